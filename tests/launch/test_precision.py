from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from autoseg.launch import precision
from autoseg.launch.precision import (
    compile_if_faster,
    compiled,
    cpu_features,
    growing_batches,
    native_types,
    step_seconds,
)
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


@pytest.mark.usefixtures("one_thread")
def test_a_batch_that_does_not_fit_is_measured_by_a_part_of_it() -> None:
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


@pytest.mark.parametrize(
    ("compiling", "step", "error", "steps", "expected"),
    [
        (40.0, 0.8, 0.0, 1000, "compiled: 1.25 times as fast"),
        (40.0, 0.8, 0.0, 150, "150 steps do not win that back"),
        (40.0, 1.1, 0.0, 1000, "0.91 times as fast"),
        (40.0, 0.5, 0.5, 1000, "the compiled network's logits differ"),
        (40.0, 0.5, 0.0, 10, "too few"),
    ],
)
def test_compiling_has_to_pay(compiling, step, error, steps, expected, monkeypatch) -> None:
    network = SPEC.build(1, 3)
    now = [0.0]

    def compile_(usual):
        now[0] += compiling

        def forward(image, deep_supervision):
            now[0] += step - 1.0  # which the network's own hook adds
            return [(1 + error) * logits for logits in usual(image, deep_supervision)]

        return forward

    def tick(*_: object) -> None:
        now[0] += 1.0

    network.register_forward_hook(tick)
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(precision, "wall_and_processor_clock", lambda: (now[0], now[0]))
    monkeypatch.setattr(precision, "step_seconds", lambda *_: 1.0)
    monkeypatch.setattr(precision, "RACE_SECONDS", 1000.0)
    forward, because = compile_if_faster(network, (1, 1, 8, 8, 8), Compute(CPU), steps)
    assert expected in because
    assert (forward is not None) == because.startswith("compiled:")
