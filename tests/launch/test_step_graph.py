"""Recorded steps, with a recorder that does on a CPU what a CUDA graph does."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from autoseg.launch.step_graph import WARM_UP_STEPS, StepGraph, step_graph
from autoseg.training.step import TrainingState, train_step
from tests.training.tiny_training import COMPUTE, RECIPE, fresh_state, loss, on_device, same_weights, sampling


class Recorder:
    """Keeps the work; nothing changes while it is recorded, and its result comes into the same tensor every time."""

    recorded = 0

    def __init__(self, state: TrainingState, spoil: Callable[[TrainingState], object] | None = None) -> None:
        self._state, self._spoil = state, spoil
        self.replays = 0

    def _changing(self) -> list[Tensor]:
        momentum = [entry["momentum_buffer"] for entry in self._state.optimizer.state.values()]
        return [*self._state.network.parameters(), *momentum]

    @torch.no_grad()
    def record(self, work: Callable[[], Tensor]) -> Tensor:
        Recorder.recorded += 1
        before = [tensor.clone() for tensor in self._changing()]
        self._work = work
        with torch.enable_grad():
            self._result = work().clone().fill_(math.nan)
        for tensor, value in zip(self._changing(), before, strict=True):
            tensor.copy_(value)
        return self._result

    def replay(self) -> None:
        self.replays += 1
        self._result.copy_(self._work())
        if self._spoil is not None:
            self._spoil(self._state)


def trained(state: TrainingState, sizes: list[int]) -> list[float]:
    """Losses of steps with batches of these sizes."""
    drawn = [on_device(sampling(batch_size=size)(number)) for number, size in enumerate(sizes)]
    return [float(train_step(state, *batch, loss, RECIPE, COMPUTE)) for batch in drawn]


def test_recorded_steps_are_those_that_run_as_usual_also_when_the_shape_changes() -> None:
    sizes = [2] * 7 + [3] * 6
    usual, recorded = fresh_state(), fresh_state()
    made: list[Recorder] = []

    def make(_device: torch.device) -> Recorder:
        made.append(Recorder(recorded))
        return made[-1]

    recorded.graph = StepGraph(recorded, make)
    assert trained(recorded, sizes) == trained(usual, sizes)
    assert same_weights(recorded, usual)
    assert [own.replays for own in made] == [7 - WARM_UP_STEPS, 6 - WARM_UP_STEPS]


@torch.no_grad()
def shift(state: TrainingState) -> None:
    next(state.network.parameters()).add_(0.01)


@pytest.mark.parametrize("fault", ["wrong weights", "nothing done", "cannot be recorded"])
def test_a_graph_that_does_something_else_is_not_used(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    usual, recorded = fresh_state(), fresh_state()

    class Faulty(Recorder):
        def record(self, work: Callable[[], Tensor]) -> Tensor:
            if fault == "cannot be recorded":
                raise RuntimeError("operation not permitted when stream is capturing")
            return super().record(work)

        def replay(self) -> None:
            if fault != "nothing done":
                super().replay()

    recorded.graph = StepGraph(recorded, lambda _device: Faulty(recorded, shift))
    assert trained(recorded, [2] * 6) == trained(usual, [2] * 6)
    assert same_weights(recorded, usual)
    assert "kernel by kernel" in caplog.text


def test_a_step_that_is_not_finite_proves_nothing() -> None:
    state = fresh_state()
    state.graph = StepGraph(state, lambda _device: Recorder(state))
    before = Recorder.recorded
    trained(state, [2] * WARM_UP_STEPS)
    image, labels = on_device(sampling()(0))
    assert math.isnan(train_step(state, image * math.inf, labels, loss, RECIPE, COMPUTE))
    assert Recorder.recorded == before
    trained(state, [2])
    assert Recorder.recorded == before + 1


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert step_graph(fresh_state()) is None
