"""Steps whose parts are computed side by side are those of the whole batch."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from autoseg.data.model import LabelSet
from autoseg.launch.side_by_side import SideBySide, parts_of
from autoseg.training.losses import make_objective
from autoseg.training.step import TrainingState, train_step
from tests.training.tiny_training import COMPUTE, LABELS, PATCH, RECIPE, fresh_state

REGIONS = LabelSet({"background": (0,), "cell": (1, 2), "core": (2,)}, regions_class_order=(1, 2))
IGNORING = LabelSet({"background": (0,), "cell": (1,), "core": (2,)}, ignore=3)

BATCHES = [
    (
        torch.randn(4, 1, *PATCH, generator=torch.Generator().manual_seed(seed)),
        torch.randint(0, 3, (4, *PATCH), generator=torch.Generator().manual_seed(seed), dtype=torch.int16),
    )
    for seed in range(3)
]


def parted_state(parts: int) -> TrainingState:
    state = fresh_state(RECIPE)
    state.gradient = SideBySide(state.network, parts)
    return state


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("labels", [LABELS, REGIONS, IGNORING], ids=["labels", "regions", "ignore"])
def test_loss_and_gradient_are_those_of_the_batch(parts: int, batch_dice: bool, labels: LabelSet) -> None:
    plain, parted = fresh_state(RECIPE), parted_state(parts)
    objective = make_objective("dice_ce", labels, batch_dice)
    image, target = BATCHES[0]
    target = target if labels.ignore is None else target.where(torch.arange(4)[:, None, None, None] < 3, labels.ignore)
    heads = labels.head_count  # of the three that the network has

    def cut(outputs: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        return objective([own[:, :heads] for own in outputs], labels)

    loss = cut(plain.network(image, deep_supervision=True), target)
    loss.backward()
    assert parted.gradient is not None
    found = parted.gradient(image, target, cut, COMPUTE)
    torch.testing.assert_close(found, loss.detach())
    for own, expected in zip(parted.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_several_steps_are_those_of_the_batch_and_repeat_bit_for_bit() -> None:
    objective = make_objective("dice_ce", LABELS, True)
    states = [fresh_state(RECIPE), parted_state(2), parted_state(2)]
    for image, labels in BATCHES:
        losses = [train_step(state, image, labels, objective, RECIPE, COMPUTE) for state in states]
        torch.testing.assert_close(losses[1], losses[0])
        assert torch.equal(losses[1], losses[2])
    weights = [list(state.network.parameters()) for state in states]
    for plain, one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, plain, rtol=1e-3, atol=1e-5)
        assert torch.equal(one, other)


@pytest.mark.usefixtures("two_threads")
def test_parts_have_threads_of_their_own_that_end() -> None:
    state, seen = parted_state(2), set()
    assert isinstance(state.gradient, SideBySide)
    meet = threading.Barrier(2, timeout=60)  # both parts are in work at the same time, or nobody passes

    def note(*_: object) -> None:
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        meet.wait()

    for network in state.gradient._networks:
        network.register_forward_pre_hook(note)
    train_step(state, *BATCHES[0], make_objective("dice_ce", LABELS, True), RECIPE, COMPUTE)
    assert seen == {("part_0", 1), ("part_1", 1)}
    with ThreadPoolExecutor(1) as later:  # as one that cuts batches: its sums must not depend on what ran before
        assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
    state.gradient = None
    end = time.monotonic() + 30
    while time.monotonic() < end and any(thread.name.startswith("part_") for thread in threading.enumerate()):
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("part_")]


def test_a_fault_in_a_part_reaches_the_caller() -> None:
    state = parted_state(2)
    with pytest.raises(RuntimeError):
        train_step(
            state, BATCHES[0][0][:, :, :3], BATCHES[0][1], make_objective("dice_ce", LABELS, True), RECIPE, COMPUTE
        )


@pytest.mark.parametrize(
    ("batch", "threads", "parts"),
    [
        (2, 2, 2),
        (2, 1, 1),
        (1, 8, 1),
        (3, 2, 1),
        (5, 2, 2),
        (2, 16, 2),
        (12, 16, 4),
        (9, 4, 2),
        (9, 16, 3),
        (16, 16, 4),
    ],
)
def test_few_threads_have_nothing_to_do(batch: int, threads: int, parts: int) -> None:
    assert parts_of(batch, threads) == parts


def test_parts_keep_the_weights_that_are_trained() -> None:
    state = parted_state(2)
    for image, labels in BATCHES:
        train_step(state, image, labels, make_objective("dice_ce", LABELS, False), RECIPE, COMPUTE)
    assert isinstance(state.gradient, SideBySide)
    for twin in state.gradient._networks[1:]:
        for own, shared in zip(twin.parameters(), state.network.parameters(), strict=True):
            assert own.data_ptr() == shared.data_ptr()
