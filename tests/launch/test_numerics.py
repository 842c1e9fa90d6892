"""What is wrong is never chosen, what is slow only where nothing else is right; what was found out is kept."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autoseg.core.errors import UsageError, WrongNumerics
from autoseg.launch import numerics, precision
from autoseg.launch.numerics import Trial, check_numerics, choose_compute, choose_for_prediction
from autoseg.training.step import Compute
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
    return tmp_path / "cache" / "numerics"


def train(wanted: tuple[str, str] = ("auto", "auto")) -> tuple[Compute, str]:
    return choose_compute(NETWORK, CONFIGURATION, 1, CPU, wanted)


def predict(trained: str = "bf16") -> tuple[Compute, str]:
    return choose_for_prediction(NETWORK, CONFIGURATION, 1, CPU, trained)


def is_half() -> bool:
    return torch.is_autocast_enabled("cpu")


def is_channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous()


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Tensor, Tensor], Tensor]) -> list[int]:
    """Lets `fault` (result, weight) happen to every 3D convolution; returns the count of convolutions."""
    true, calls = functional.conv3d, [0]

    def conv3d(image: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        calls[0] += 1
        return fault(true(image, weight, *rest), weight)

    monkeypatch.setattr(functional, "conv3d", conv3d)
    return calls


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


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
def test_a_wrong_format_is_not_used_however_fast(choose, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(result: Tensor, _weight: Tensor) -> Tensor:
        if not is_half():
            burn(0.002)
            return result
        return result * 1.2

    plant(monkeypatch, fault)
    compute, because = choose()
    assert compute.precision == "fp32"
    assert "not bf16 channels last, which computes wrong values" in because


@pytest.mark.parametrize("choose", [train, predict])
@pytest.mark.parametrize("slow", ["fp32", "bf16"])
def test_a_slow_format_is_not_used(choose, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(result: Tensor, _weight: Tensor) -> Tensor:
        burn(0.02 if is_half() == (slow == "bf16") else 0.0)
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


def test_the_order_of_the_ways_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = dict(zip(WAYS, (0.004, 0.003, 0.002, 0.001), strict=True))

    def fault(result: Tensor, weight: Tensor) -> Tensor:
        way = ("bf16" if is_half() else "fp32", "channels_last" if is_channels_last(weight) else "contiguous")
        burn(costs[way])
        return result

    plant(monkeypatch, fault)
    trial = Trial(NETWORK, CONFIGURATION, 1, CPU, "predict")
    for ways in list(permutations(WAYS))[::7]:
        found = check_numerics(trial, ways, 10.0)
        assert found.chosen is not None
        assert ways[found.chosen] == ("bf16", "contiguous")


def test_many_at_once_leave_a_whole_cache(cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda _: choose_compute(SPEC.build(1, 3), CONFIGURATION, 1, CPU, ("auto", "auto")), range(4))
        )
    assert len(found) == 4
    (file,) = cache.iterdir()
    assert numerics.load(numerics.NumericsCheck, file).chosen is not None


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"AUTOSEG_CACHE": "/a"}, "linux", "/a"),
        ({"XDG_CACHE_HOME": "/x"}, "linux", "/x/autoseg"),
        ({"HOME": "/h"}, "linux", "/h/.cache/autoseg"),
        ({"HOME": "/h"}, "darwin", "/h/Library/Caches/autoseg"),
        ({"HOME": "/h", "LOCALAPPDATA": "/l"}, "win32", "/l/autoseg"),
    ],
)
def test_the_cache_lies_where_the_system_has_caches(environment, platform, expected, monkeypatch) -> None:
    for name in ("AUTOSEG_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert numerics.cache_folder() == Path(expected)
