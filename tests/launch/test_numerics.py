"""What is wrong is never chosen, what is slow only where nothing else is right; what was found out is kept."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autoseg.core.errors import UsageError, WrongNumerics
from autoseg.launch import numerics, precision
from autoseg.launch.numerics import Trial, check_numerics, check_prediction, check_training
from autoseg.training.step import Compute
from tests.launch.planted import is_channels_last, is_half, plant
from tests.launch.test_precision import CONFIGURATION
from tests.training.tiny_training import SPEC

CPU = torch.device("cpu")
NETWORK = SPEC.build(1, 3)
WAYS = [("fp32", "channels_last"), ("fp32", "contiguous"), ("bf16", "channels_last"), ("bf16", "contiguous")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a CPU that says it computes bfloat16."""
    monkeypatch.setenv("AUTOSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "cpu_features", lambda: {"avx512_bf16"})
    monkeypatch.setattr(numerics, "is_busy", lambda: False)
    return tmp_path / "cache" / "numerics"


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self) -> tuple[float, ...]:
        return self.seconds, self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(numerics, "wall_and_processor_clock", made.read)
    return made


def train(wanted: tuple[str, str] = ("auto", "auto")) -> tuple[Compute, str]:
    found = check_training(NETWORK, (CONFIGURATION,), 1, CPU, wanted)
    return found.compute(CPU), found.because


def predict(trained: str = "bf16") -> tuple[Compute, str]:
    found = check_prediction(NETWORK, CONFIGURATION, 1, CPU, trained)
    return found.compute(CPU), found.because


def test_the_choice_is_measured_and_says_so() -> None:
    before = [value.clone() for value in NETWORK.state_dict().values()]
    compute, because = train()
    assert (compute.precision, compute.memory_format) in WAYS
    assert "checked on" in because
    assert all(torch.equal(a, b) for a, b in zip(before, NETWORK.state_dict().values(), strict=True))
    assert all(parameter.grad is None for parameter in NETWORK.parameters())
    assert NETWORK.training


def test_a_recipe_that_decides_is_not_timed() -> None:
    compute, because = train(("bf16", "channels_last"))
    assert compute == Compute(CPU, "bf16", "channels_last")
    assert "only choice" in because


def test_half_precision_with_a_loss_scale_needs_cuda() -> None:
    with pytest.raises(UsageError, match="CUDA"):
        train(("fp16", "auto"))


@pytest.mark.parametrize("choose", [train, predict])
def test_a_wrong_format_is_not_used_however_fast(choose, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(result: Tensor, _weight: Tensor) -> Tensor:
        clock.seconds += 1e-4 if is_half() else 1e-3
        return result * 1.2 if is_half() else result

    plant(monkeypatch, fault)
    compute, because = choose()
    assert compute.precision == "fp32"
    assert "not bf16 channels last, which computes wrong values" in because


def test_what_is_wrong_for_the_smallest_patch_alone_is_not_used_where_patches_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch, lambda result, _weight: result * 1.2 if is_half() and result.shape[2] == 2 else result)
    beginning = replace(CONFIGURATION, patch_size=(4, 8, 8))  # two voxels after the only stride
    assert "computes wrong values" not in check_training(NETWORK, (CONFIGURATION,), 1, CPU).because
    found = check_training(NETWORK, (beginning, CONFIGURATION), 1, CPU)
    assert found.compute(CPU).precision == "fp32"
    assert "not bf16 channels last, which computes wrong values" in found.because


@pytest.mark.parametrize("choose", [train, predict])
@pytest.mark.parametrize("slow", ["fp32", "bf16"])
def test_a_slow_format_is_not_used(choose, slow: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(result: Tensor, _weight: Tensor) -> Tensor:
        clock.seconds += 2e-3 if is_half() == (slow == "bf16") else 1e-3
        return result

    plant(monkeypatch, fault)
    assert choose()[0].precision != slow


@pytest.mark.parametrize("choose", [train, predict])
def test_where_single_precision_is_wrong_the_other_layout_is_used(choose, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda result, weight: result + 0.5 if is_channels_last(weight) else result)
    compute, because = choose()
    assert compute.memory_format == "contiguous"
    assert "not fp32 channels last" in because


def test_where_all_is_wrong_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda result, _weight: result.neg())
    with pytest.raises(WrongNumerics, match="computes the convolutions of 3d_fullres wrongly") as caught:
        train()
    assert "--device" in str(caught.value)


def test_what_a_recipe_demands_is_refused_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda result, _weight: result.neg() if is_half() else result)
    with pytest.raises(WrongNumerics, match="bf16"):
        train(("bf16", "auto"))


def test_a_wrong_gradient_keeps_from_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(result: Tensor, _weight: Tensor) -> Tensor:
        if result.requires_grad and is_half():
            result.register_hook(torch.zeros_like)
        return result

    plant(monkeypatch, fault)
    assert train()[0].precision == "fp32"
    assert "wrong" not in predict()[1]


def test_a_library_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(result: Tensor, _weight: Tensor) -> Tensor:
        if is_half():
            raise RuntimeError("could not create a primitive descriptor")
        return result

    plant(monkeypatch, fault)
    compute, because = train()
    assert compute.precision == "fp32"
    assert "could not create a primitive" in because


def test_prediction_keeps_the_digits_of_the_training() -> None:
    assert predict("fp32")[0].precision == "fp32"
    assert predict("fp16")[0].precision == "fp32"


def test_the_second_time_takes_no_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(), predict()
    calls = plant(monkeypatch, lambda result, _weight: result)
    assert (train(), predict()) == first
    assert calls == [0]


@pytest.mark.parametrize("damage", ["", "{}", "[1", "directory", "foreign", "other machine"])
def test_a_bad_cache_is_measured_anew(damage: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train()[0]
    (file,) = cache.iterdir()
    if damage == "directory":
        file.unlink()
        file.mkdir()
    elif damage == "foreign":  # a change by other hands breaks the seal
        file.write_text(file.read_text().replace('"chosen": ', '"chosen": 1'))
    elif damage == "other machine":
        content = json.loads(file.read_text())
        content["machine"]["threads"] = "99"
        del content["seal"]
        file.write_text(json.dumps(content))
    else:
        file.write_text(damage)
    calls = plant(monkeypatch, lambda result, _weight: result)
    assert train()[0].device == first.device
    assert calls[0] > 0


def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder would be")
    assert train()[0].device == CPU


@pytest.mark.parametrize("verb", ["train", "predict"])
def test_what_is_in_doubt_is_measured_again_for_training_alone(verb, cache, monkeypatch) -> None:
    trial = Trial(NETWORK, CONFIGURATION, 1, CPU, verb)
    monkeypatch.setattr(numerics, "race", lambda *_: numerics.Outcome(0, (), is_clear=False))
    assert not check_numerics(trial, WAYS, 10.0).is_clear
    calls = plant(monkeypatch, lambda result, _weight: result)
    check_numerics(trial, WAYS, 10.0)
    assert calls == [0]
    check_numerics(trial, WAYS, 20.0)  # with more time
    assert (calls[0] > 0) == (verb == "train")
    calls[0] = 0
    (file,) = cache.iterdir()
    os.utime(file, (0, 0))  # long ago
    check_numerics(trial, WAYS, 10.0)
    assert (calls[0] > 0) == (verb == "train")


def test_what_was_timed_on_a_busy_machine_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "is_busy", lambda: True)
    assert not check_numerics(Trial(NETWORK, CONFIGURATION, 1, CPU, "train"), WAYS, 10.0).is_clear
    assert "other programs" in train()[1]


def test_the_order_of_the_ways_does_not_matter(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = dict(zip(WAYS, (0.0014, 0.0013, 0.0012, 0.0011), strict=True))

    def fault(result: Tensor, weight: Tensor) -> Tensor:
        way = ("bf16" if is_half() else "fp32", "channels_last" if is_channels_last(weight) else "contiguous")
        clock.seconds += costs[way]
        return result

    plant(monkeypatch, fault)
    trial = Trial(NETWORK, CONFIGURATION, 1, CPU, "predict")
    for ways in list(permutations(WAYS))[::5]:
        found = check_numerics(trial, ways, 10.0)
        assert found.chosen is not None
        assert ways[found.chosen] == ("bf16", "contiguous")


def test_many_at_once_leave_a_whole_cache(cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: check_training(SPEC.build(1, 3), (CONFIGURATION,), 1, CPU), range(4)))
    assert len(found) == 4
    (file,) = cache.iterdir()
    assert numerics.load(numerics.NumericsCheck, file).chosen is not None


def test_where_memory_is_short_the_ways_are_compared_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def short_of_memory(result: Tensor, _weight: Tensor) -> Tensor:
        sizes.append(len(result))
        if len(result) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    plant(monkeypatch, short_of_memory)
    large = replace(CONFIGURATION, batch_size=5)
    monkeypatch.setattr(numerics, "checked_shape", lambda layer, _device: layer.shape)
    monkeypatch.setattr(numerics, "_timed_shape", lambda trial, *_: trial.shape)
    found = check_training(NETWORK, (large,), 1, CPU)
    assert {5, 3, 2} <= set(sizes)
    assert not any(way.fault for way in found.ways)


def test_a_single_sample_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    plant(monkeypatch, out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        train()
