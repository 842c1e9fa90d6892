from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from autoseg.launch import precision
from autoseg.launch.precision import compiled, cpu_features, growing_batches, native_types, step_seconds
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


def test_patches_grow_up_to_the_planned_batch() -> None:
    larger = replace(CONFIGURATION, patch_size=(8, 16, 6))
    shapes = list(growing_batches(larger, 1))
    assert shapes[-1] == (2, 1, 8, 16, 6)
    assert all(math.prod(one) < math.prod(other) <= 2 * math.prod(one) for one, other in pairwise(shapes))
    assert all(size % 2 == 0 for shape in shapes for size in shape[2:])


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


def test_a_batch_that_does_not_fit_takes_twice_as_long_as_its_half() -> None:
    sizes: list[int] = []

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, image: torch.Tensor, **_options: bool) -> torch.Tensor:
            sizes.append(len(image))
            if len(image) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return image * self.weight

    assert step_seconds(Small(), (5, 1, 4, 4), Compute(torch.device("cpu"))) > 0
    assert sizes[:3] == [5, 3, 2]
