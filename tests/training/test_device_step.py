"""A step as a GPU takes it, with the fused optimizers that PyTorch also has for CPUs: the host reads nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autoseg.training.checkpoint import restore, save_checkpoint
from autoseg.training.loop import Losses, Unread
from autoseg.training.optimization import skips_on_device
from autoseg.training.recipe import Recipe
from autoseg.training.step import TrainingState, train_step
from tests.training.tiny_training import COMPUTE, RECIPE, fresh_state, loss, on_device, same_weights, sampling

WAITING = {"_local_scalar_dense", "nonzero", "_nested_tensor_size", "item"}
"""Operators for which a host waits for its device."""


class HostReads(TorchDispatchMode):
    """Counts the operators that make a host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.found.update({name} & WAITING)
        return func(*args, **(kwargs or {}))


RECIPES = {
    "sgd": RECIPE,
    "adamw": replace(RECIPE, optimizer="adamw", lr=1e-3),
    "muon": replace(RECIPE, optimizer="muon", lr=1e-3),
}

kinds = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe], TrainingState]:
    """Makes states with fused optimizers, as on a GPU; PyTorch has them for CPUs too."""

    def make(recipe: Recipe) -> TrainingState:
        with monkeypatch.context() as patch:
            patch.setattr(nn.Parameter, "is_cuda", True, raising=False)
            return fresh_state(recipe)

    return make


def step(state: TrainingState, recipe: Recipe, number: int, factor: float = 1.0) -> Tensor:
    image, labels = on_device(sampling()(number))
    return train_step(state, image * factor, labels, loss, recipe, COMPUTE)


@kinds
def test_a_step_reads_nothing_from_the_device(recipe: Recipe, as_on_a_gpu: Callable[[Recipe], TrainingState]) -> None:
    state = as_on_a_gpu(recipe)
    assert skips_on_device(state.optimizer)
    with HostReads() as reads:
        results = [step(state, recipe, number) for number in range(3)]
    assert not reads.found
    assert all(math.isfinite(float(result)) for result in results)
    plain = fresh_state(recipe)
    assert not skips_on_device(plain.optimizer)
    with HostReads() as reads:
        step(plain, recipe, 0)
    assert reads.found["_local_scalar_dense"] > 0


@kinds
def test_fused_steps_are_those_of_the_plain_optimizer(
    recipe: Recipe, as_on_a_gpu: Callable[[Recipe], TrainingState]
) -> None:
    plain, fused = fresh_state(recipe), as_on_a_gpu(recipe)
    for number in range(4):
        torch.testing.assert_close(step(fused, recipe, number), step(plain, recipe, number), rtol=1e-4, atol=1e-5)
    for networks in ((fused.network, plain.network), (fused.averaged, plain.averaged)):
        # before a normalization a bias has no gradient but rounding errors, which AdamW scales up
        states = [
            {name: value for name, value in own.state_dict().items() if not name.endswith("conv.bias")}
            for own in networks
            if own is not None
        ]
        torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


@kinds
@pytest.mark.parametrize("bad", [0, 2], ids=["first", "third"])
def test_a_step_that_is_not_finite_is_skipped_on_the_device(
    bad: int, recipe: Recipe, as_on_a_gpu: Callable[[Recipe], TrainingState]
) -> None:
    straight, state = as_on_a_gpu(recipe), as_on_a_gpu(recipe)
    for number in range(4):
        if number == bad:
            with HostReads() as reads:
                assert math.isnan(step(state, recipe, 9, math.inf))
            assert reads.found.total() == 1  # the one of this test
            state.step -= 1
        assert torch.equal(step(state, recipe, number), step(straight, recipe, number))
    state.averaged = straight.averaged = None  # takes the weights of the step before once more
    assert same_weights(state, straight)


@kinds
def test_a_fused_optimizer_is_resumed_bit_for_bit(
    recipe: Recipe, as_on_a_gpu: Callable[[Recipe], TrainingState], tmp_path: Path
) -> None:
    straight, stopped = as_on_a_gpu(recipe), as_on_a_gpu(recipe)
    for number in range(4):
        step(straight, recipe, number)
    for number in range(2):
        step(stopped, recipe, number)
    save_checkpoint(stopped, tmp_path)
    resumed = as_on_a_gpu(recipe)
    restore(resumed, tmp_path)
    for number in range(2, 4):
        step(resumed, recipe, number)
    assert same_weights(resumed, straight)


def test_losses_are_noted_a_step_late_where_they_come_late() -> None:
    state = fresh_state()
    losses, waited = Losses(state), []
    for number, value in enumerate((0.5, math.nan, 0.25), start=1):
        state.step = number
        begin = SimpleNamespace(elapsed_time=lambda _end: 250.0)
        end = SimpleNamespace(synchronize=lambda own=number: waited.append(own))
        losses.unread.append(Unread(number, torch.tensor(value), ("a",), (begin, end)))  # type: ignore[arg-type]
        losses.note(late=1)
    assert (state.losses, state.skipped_in_row, waited) == ([0.5], 1, [1, 2])
    losses.note()
    assert (state.losses, state.skipped_in_row, waited) == ([0.5, 0.25], 0, [1, 2, 3])
    assert state.events == ["step 2: the loss or its gradient is not finite, step skipped (cases a)"]
    assert losses.busy_seconds == 0.75
    losses.take(lambda _state, batch: (batch, ("a",)), torch.tensor(2.0))  # on a CPU: known at once
    assert state.losses[-1] == 2.0


def objective_that_fits(patches: int, calls: list[int]) -> Any:
    """The loss on a device whose memory holds a batch of so many patches."""

    def objective(logits: list[Tensor], labels: Tensor) -> Tensor:
        calls.append(len(labels))
        if len(labels) > patches:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return loss(logits, labels)

    return objective


@pytest.mark.parametrize(("batch", "fitting", "sizes"), [(4, 2, [4, 2, 2]), (5, 1, [5, 3, 2, 1, 1, 1, 1, 1])])
def test_a_batch_that_does_not_fit_is_computed_in_parts_with_the_same_gradient(
    batch: int, fitting: int, sizes: list[int]
) -> None:
    whole, parts = fresh_state(), fresh_state()
    calls: list[int] = []
    drawn = sampling(batch_size=batch)
    expected = train_step(whole, *on_device(drawn(0)), loss, RECIPE, COMPUTE)
    found = train_step(parts, *on_device(drawn(0)), objective_that_fits(fitting, calls), RECIPE, COMPUTE)
    assert calls == sizes
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parts.network.state_dict(), whole.network.state_dict())
    assert parts.step == 1
    assert f"batches of {batch} patches are computed in {batch // fitting} parts" in parts.events[-1]
    calls.clear()
    train_step(parts, *on_device(drawn(1)), objective_that_fits(fitting, calls), RECIPE, COMPUTE)
    assert max(calls) <= fitting  # from here on


def test_a_single_patch_that_does_not_fit_stops_the_training() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train_step(fresh_state(), *on_device(sampling()(0)), objective_that_fits(0, []), RECIPE, COMPUTE)


def test_a_run_killed_after_memory_ran_out_goes_on_in_parts(tmp_path: Path) -> None:
    def trained(state: TrainingState, steps: range) -> TrainingState:
        for number in steps:
            objective = objective_that_fits(1, []) if number == 2 else loss  # other programs took the memory
            train_step(state, *on_device(sampling()(number)), objective, RECIPE, COMPUTE)
        return state

    straight, stopped = trained(fresh_state(), range(6)), trained(fresh_state(), range(4))
    save_checkpoint(stopped, tmp_path)
    resumed = fresh_state()
    restore(resumed, tmp_path)
    assert resumed.parts == 2
    assert same_weights(trained(resumed, range(4, 6)), straight)
