"""The patches of a batch computed side by side on a CPU, each part by threads of its own.

Threads that share a convolution wait for each other at its end, hundreds of times in a step; threads that have patches
of their own do so twice. Every part of a batch has a copy of the network, which shares the weights and has gradients of
its own. The loss is one of the whole batch, so that Dice pooled over it stays what it is; the gradient is that of the
batch but for the order in which its parts are added.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from autoseg.networks.threads import computing_threads
from autoseg.training.losses import Objective
from autoseg.training.step import Compute

T = TypeVar("T")

LEAST_SHARE_AT_WORK = 0.8
"""Of the threads, on average: what threads that share convolutions reach. Measured on two cores (AVX512-BF16, torch
2.13): 0.82 with patches of 256 x 256, 0.85 with those of 40 x 56 x 40, 0.5 with those of 56 x 40."""

MOST_PARTS = 4
"""Each has gradients of all weights (assumption: more are not worth their memory; two were measured)."""


def side_by_side(network: nn.Module, compute: Compute, batch_size: int) -> SideBySide | None:
    """What computes the parts of a batch at the same time: on a CPU, where its threads can share the patches."""
    parts = parts_of(batch_size, torch.get_num_threads()) if compute.device.type == "cpu" else 1
    return SideBySide(network, parts) if parts > 1 else None


def parts_of(batch_size: int, threads: int) -> int:
    """In how many parts threads compute a batch side by side; 1 where too many of them would have nothing to do."""

    def share_at_work(parts: int) -> float:
        return batch_size / -(-batch_size // parts) * (threads // parts) / threads

    most = min(batch_size, threads, MOST_PARTS)
    useful = [parts for parts in range(2, most + 1) if share_at_work(parts) >= LEAST_SHARE_AT_WORK]
    return max(useful, key=lambda parts: (share_at_work(parts), parts), default=1)


class SideBySide:
    """Computes the gradient of a batch in parts. Its threads end when nothing refers to it any more.

    Args:
        network: whose weights are trained; it computes the first part.
        parts: that a batch is divided into, and torch's threads are shared by.
    """

    def __init__(self, network: nn.Module, parts: int) -> None:
        self._networks = [network, *(_with_weights_of(network) for _ in range(parts - 1))]
        self._pool = computing_threads(parts, "part")

    def __call__(self, image: Tensor, labels: Tensor, objective: Objective, compute: Compute) -> Tensor:
        """The loss of a batch, whose gradient it puts into the parameters of the network.

        Args:
            image: (b, c, *patch).
            labels: (b, *patch).
            objective: of the logits of all levels.
            compute: precision.
        """
        images = image.tensor_split(len(self._networks))

        def forward(part: int) -> Sequence[Tensor]:
            with compute.autocast():
                logits = self._networks[part](images[part], deep_supervision=True)
            return [logits] if isinstance(logits, Tensor) else list(logits)

        by_part = self._each(forward)
        levels = [torch.cat([own.detach() for own in level]).requires_grad_() for level in zip(*by_part, strict=True)]
        loss = objective(levels, labels)
        gradients = [
            (number, gradient.tensor_split(len(images)))
            for number, gradient in enumerate(torch.autograd.grad(loss, levels, allow_unused=True))
            if gradient is not None  # as that of a level that does not count
        ]

        def backward(part: int) -> None:
            self._networks[part].zero_grad(set_to_none=True)
            outputs = [by_part[part][number] for number, _ in gradients]
            torch.autograd.backward(outputs, [own[part] for _, own in gradients])

        self._each(backward)
        self._add_up()
        return loss.detach()

    def _each(self, call: Callable[[int], T]) -> list[T]:
        return list(self._pool.map(call, range(len(self._networks))))

    def _add_up(self) -> None:
        """Adds the gradients of all parts to that of the first, in order."""
        first, *others = ([own.grad for own in network.parameters()] for network in self._networks)
        for other in others:
            pairs = [(own, more) for own, more in zip(first, other, strict=True) if own is not None]
            torch._foreach_add_(*map(list, zip(*pairs, strict=True)))


def _with_weights_of(network: nn.Module) -> nn.Module:
    """A copy whose parameters are other tensors in the same memory: an optimizer that changes one changes both."""
    twin = copy.deepcopy(network).train()
    for own, shared in zip(twin.parameters(), network.parameters(), strict=True):
        own.data = shared.data
    return twin
