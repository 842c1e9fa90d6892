from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from autoseg.core.errors import UsageError
from autoseg.launch import precision
from autoseg.launch.precision import choose_compute, compiled, cpu_features, native_types, step_seconds
from autoseg.planning.plan import Configuration
from autoseg.training.step import Compute
from tests.training.tiny_training import SPEC

CPU = torch.device("cpu")
CONFIGURATION = Configuration(
    name="3d_fullres",
    dimensions=3,
    spacing_mm=(1.0, 1.0, 1.0),
    patch_size=(8, 8, 8),
    batch_size=2,
    median_shape=(8.0, 8.0, 8.0),
    normalization=("zscore",),
    use_nonzero_mask=(False,),
    network=SPEC,
    batch_dice=False,
    cascade_from=None,
    estimated_feature_map_elements=1,
    mirror_axes=(0, 1, 2),
)


def test_the_probe_chooses_what_it_measured_and_says_so() -> None:
    network = SPEC.build(1, 3)
    before = [value.clone() for value in network.state_dict().values()]
    compute, because = choose_compute(network, CONFIGURATION, 1, CPU, ("auto", "auto"))
    assert compute.precision in ("fp32", "bf16")
    assert "fastest of" in because
    assert all(torch.equal(a, b) for a, b in zip(before, network.state_dict().values(), strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_recipe_that_decides_is_not_probed() -> None:
    compute, because = choose_compute(SPEC.build(1, 3), CONFIGURATION, 1, CPU, ("bf16", "channels_last"))
    assert compute == Compute(CPU, "bf16", "channels_last")
    assert "only choice" in because


def test_the_earlier_of_two_equally_fast_candidates_wins() -> None:
    assert precision._fastest([1.0, 0.99]) == 0
    assert precision._fastest([1.0, 0.9]) == 1


def test_half_precision_with_a_loss_scale_needs_cuda() -> None:
    with pytest.raises(UsageError, match="CUDA"):
        choose_compute(SPEC.build(1, 3), CONFIGURATION, 1, CPU, ("fp16", "auto"))


def test_bfloat16_is_a_candidate_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_features", lambda: {"avx2"})
    assert native_types(CPU) == ()
    monkeypatch.setattr(precision, "cpu_features", lambda: {"avx512_bf16"})
    assert native_types(CPU) == ("bf16",)
    assert native_types(torch.device("mps")) == ()


def test_features_of_the_processor_are_names() -> None:
    assert all(isinstance(name, str) for name in cpu_features())


def test_features_come_from_the_system_where_torch_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert isinstance(cpu_features(), set)


def test_a_small_probe_patch_grows_up_to_the_planned_one() -> None:
    network = SPEC.build(1, 3)
    larger = replace(CONFIGURATION, patch_size=(8, 16, 6))
    patch = precision._probe_patch(network, larger, 1, Compute(CPU))
    assert all(2 <= size <= planned for size, planned in zip(patch, larger.patch_size, strict=True))


def test_a_step_takes_time() -> None:
    assert step_seconds(SPEC.build(1, 3), (1, 1, 8, 8, 8), Compute(CPU)) > 0


def test_a_failing_compiler_is_told_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_network: object) -> object:
        raise RuntimeError("no compiler found\nmore")

    monkeypatch.setattr(torch, "compile", fail)
    forward, told = compiled(SPEC.build(1, 3), (1, 1, 8, 8, 8), Compute(CPU))
    assert forward is None
    assert told.endswith("no compiler found")


def test_a_working_compiler_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: network)
    network = SPEC.build(1, 3)
    assert compiled(network, (1, 1, 8, 8, 8), Compute(CPU))[0] is network
