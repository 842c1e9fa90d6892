"""Optimizers, and what depends on how far the training is: the learning rate and the stage of a growing patch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autoseg.networks.threads import computing_threads

if TYPE_CHECKING:
    from autoseg.training.recipe import Recipe  # which resolves the names of what stands here

POLY_POWER = 0.9
"""Exponent of the polynomial decay (nnU-Net v2, training/lr_scheduler/polylr.py)."""


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration: singular values from 0.005 to 1 end between 0.66 and 1.21 after four of them."""

ITERATIONS = 4
"""One fewer than usual: scaled by what is near the largest singular value, they begin where others are after one."""

RMS = 0.2
"""Root mean square of an update's entries at a learning rate of 1, about that of AdamW (arXiv 2502.16982)."""

LEAST_SQUARED_NORM = 1e-30
"""Of what is made orthogonal; anything smaller counts as nothing, as products of its entries are not precise."""


@dataclass(frozen=True, slots=True)
class ScheduleSegment:
    """The part of the schedule from a step to the end of the training, along which progress grows evenly.

    Without a time budget there is one segment, from step 0 to the last. Under a budget the end moves as the pace
    becomes known; a new segment then begins at the present step with the progress made, so that the learning rate never
    jumps: it only falls faster or more slowly from there on.

    Attributes:
        step: where the segment begins.
        progress: progress at `step`, in [0, 1].
        end: number of steps of the whole training.
    """

    step: int
    progress: float
    end: int

    def at(self, step: int) -> float:
        """Progress in [0, 1] at a step of this segment."""
        if self.end <= self.step:
            return 1.0
        return min(1.0, self.progress + (1.0 - self.progress) * (step - self.step) / (self.end - self.step))

    def moved(self, step: int, end: int) -> ScheduleSegment:
        """The segment that begins at `step` with the progress made and ends at `end`."""
        return ScheduleSegment(step, self.at(step), end)


def stage_at(progress: float, stages: int) -> int:
    """The stage, of `stages` with equal numbers of steps, that the training is in at a progress in [0, 1]."""
    return min(stages - 1, int(progress * stages))


def mean_cost(progress: float, costs: Sequence[float]) -> float:
    """Mean cost of the steps from a progress in [0, 1] to the end, where those of each stage have their own cost."""
    ends = [max(progress, stage / len(costs)) for stage in range(1, len(costs))]
    shares = [end - begin for begin, end in pairwise((progress, *ends, 1.0))]
    total = sum(shares)
    return sum(share * cost for share, cost in zip(shares, costs, strict=True)) / total if total else costs[-1]


def poly(progress: float) -> float:
    """Polynomial decay to 0."""
    return float((1.0 - progress) ** POLY_POWER)


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"poly": poly, "cosine": cosine}
"""Progress in [0, 1] -> factor of the learning rate."""


def warmup(step: int, steps: int) -> float:
    """Factor that rises linearly to 1 over the first `steps` steps."""
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0


def sgd(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov momentum (nnU-Net v2)."""
    parameters = list(parameters)
    options = _options(parameters, recipe)
    has_momentum = recipe.momentum > 0
    optimizer = torch.optim.SGD(parameters, momentum=recipe.momentum, nesterov=has_momentum, **options)
    if skips_on_device(optimizer) and has_momentum:
        # The fused kernel allocates momentum in the first step and leaves it as it is where that step is skipped.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adamw(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); `momentum` is the first beta, the second is 0.999."""
    parameters = list(parameters)
    options = _options(parameters, recipe)
    return torch.optim.AdamW(parameters, betas=(recipe.momentum, 0.999), **options)


def _options(parameters: Sequence[nn.Parameter], recipe: Recipe) -> dict[str, Any]:
    """Rate and decay; on a GPU one kernel for all parameters, which reads its rate there."""
    decay = {"weight_decay": recipe.weight_decay}
    if not parameters[0].is_cuda:
        return {"lr": recipe.lr, **decay}
    return {"lr": torch.tensor(recipe.lr, device=parameters[0].device), "fused": True, **decay}


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its kernels read there whether the step is to be skipped (`found_inf`), so that the host need not."""
    return all(group.get("fused") for group in optimizer.param_groups)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of the next step; one that lies on the device is changed there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def orthogonalized(matrix: Tensor, product_type: torch.dtype | None = None) -> Tensor:
    """The matrix with singular values near 1 and the same singular vectors.

    Newton-Schulz steps X <- (a + b XX' + c (XX')^2) X. All factors are polynomials of the Gram matrix XX' of the short
    side, so that the long side of a convolution's matrix is gone through twice, not twice in every step.

    Args:
        matrix: (rows, columns).
        product_type: what the last product is computed in, if not in the matrix's own type. That of the Gram matrix
            always is: rounded, it can have negative eigenvalues, which the steps blow up.

    Returns:
        (rows, columns) of `product_type`.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalized(matrix.T, product_type).T
    factor = _orthogonalizing_factor(matrix @ matrix.T)
    return factor.to(product_type or factor.dtype) @ matrix.to(product_type or matrix.dtype)


def _orthogonalizing_factor(gram: Tensor) -> Tensor:
    """The matrix P that makes PX orthogonal, nearly, from XX'.

    XX' is first divided by its trace, as the squares that the norm of (XX')^2 is made of would be 0 in float32 for
    small gradients (seen: 1e-5 in all for a convolution of 256 to 256 channels). Then by the root of that norm, which
    is not below its largest eigenvalue, and is near it: the norm of X that is divided by elsewhere is up to the root of
    its rows too large.
    """
    a, b, c = NEWTON_SCHULZ
    trace = gram.diagonal().sum()
    gram = gram / trace
    square = gram @ gram
    scale = square.norm().sqrt()
    gram, square = gram / scale, square / scale**2
    factors: list[Tensor] = []
    for iteration in range(ITERATIONS):
        if iteration > 0:
            gram = factors[-1] @ gram @ factors[-1]
            square = gram @ gram
        factor = b * gram + c * square
        factor.diagonal().add_(a)
        factors.append(factor)
    total: Tensor = (trace * scale).rsqrt() * torch.linalg.multi_dot(factors)
    return total.where(trace > LEAST_SQUARED_NORM, 0.0)


class Muon(torch.optim.AdamW):
    """Muon for weights of convolutions, as matrices (first axis, all others), and AdamW for all other parameters."""

    product_type: torch.dtype | None = None  # of the product that makes an update, if not that of the parameters
    _pool: ThreadPoolExecutor | None = None

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; those of convolutions are used up."""
        of_group = [(own, group) for group in self.param_groups for own in group["params"] if own.grad is not None]
        kernels = [(own, own.grad, group, self.state[own]) for own, group in of_group if own.ndim > 2]
        kernels.sort(key=lambda own: own[0].numel(), reverse=True)  # so that threads end together
        list(self._map_for(kernels)(lambda own: self._update_convolution(*own), kernels))
        for kernel, *_ in kernels:
            kernel.grad = None  # AdamW passes it over
        value: float | None = super().step(closure)
        return value

    def _map_for(self, kernels: Sequence[tuple[nn.Parameter, Any, Any, Any]]) -> Callable[..., Iterable[None]]:
        """On a CPU with several cores each has updates of its own: they are many small products, too short to share."""
        threads = torch.get_num_threads()
        if threads == 1 or any(kernel.is_cuda for kernel, *_ in kernels):
            return map
        self._pool = self._pool or computing_threads(threads, "update")
        return self._pool.map

    @torch.no_grad()
    def _update_convolution(
        self, weight: nn.Parameter, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> None:
        momentum, _ = group["betas"]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
            state["step"] = torch.zeros(())  # which AdamW expects of every parameter when a state is restored
        rate, share = group["lr"], 1 - momentum
        if skips_on_device(self):  # where nothing may change, the gradient is not finite
            is_skipped = self.found_inf > 0  # type: ignore[attr-defined]
            gradient = gradient.masked_fill(is_skipped, 0.0)
            rate, share = (torch.where(is_skipped, 0.0, value) for value in (rate, share))
        kept = state["momentum"].lerp_(gradient, share)
        order = (0, *sorted(range(1, weight.ndim), key=weight.stride, reverse=True))  # of memory, so that nothing moves
        matrix = kept.lerp(gradient, share).permute(order).flatten(1)  # Nesterov's correction
        update = orthogonalized(matrix, self.product_type)
        own, size = weight.permute(order).view(matrix.shape), RMS * math.sqrt(max(matrix.shape))
        own.mul_(1 - rate * group["weight_decay"])
        if isinstance(rate, Tensor):
            own.addcmul_(update.to(own.dtype), rate, value=-size)
        else:
            own.sub_(update, alpha=rate * size)


def muon(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Muon with the learning rate and weight decay of AdamW; `momentum` is that of both."""
    parameters = list(parameters)
    return Muon(parameters, betas=(recipe.momentum, 0.999), **_options(parameters, recipe))


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], Recipe], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
    "muon": muon,
}
"""Kinds of optimizers by the name used in recipes."""


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe, precision: str) -> torch.optim.Optimizer:
    """The recipe's optimizer for a network that is computed in a precision: "fp32", "bf16" or "fp16"."""
    optimizer = OPTIMIZERS[recipe.optimizer](parameters, recipe)
    if isinstance(optimizer, Muon) and precision == "bf16":  # float16 has not the range
        optimizer.product_type = torch.bfloat16
    return optimizer


MOMENTS = {"sgd": 1, "adamw": 2, "muon": 1}
"""Numbers that some of them keep per weight of a convolution, in checkpoints as in memory."""
