"""Number formats that a device computes natively, what a pass with a network takes, and whether to compile it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from autoseg.launch.race import race, wall_and_processor_clock, wall_clock
from autoseg.launch.side_by_side import parts_of, side_by_side
from autoseg.planning.plan import Configuration
from autoseg.training.step import Compute

T = TypeVar("T")

LARGEST_COMPILED_GAIN = 0.5
"""Share of a step's time that compiling is hoped to save at most (assumption; 0.2 was measured on CPUs)."""

FEWEST_COMPILING_SECONDS = 20.0
"""That compiling a planned network takes at least (assumption)."""

LARGEST_COMPILED_DIFFERENCE = 0.1
"""Of logits, as a share of the largest, between a compiled network and the usual one in half precision (assumption)."""

RACE_SECONDS = 10.0

_TIMED_STEPS = 2


def native_types(device: torch.device) -> tuple[str, ...]:
    """Half-precision formats that the device computes natively, preferred first."""
    if device.type == "cuda":
        return ("bf16",) if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp16",)
    if device.type == "cpu" and {"avx512_bf16", "amx_bf16"} & cpu_features():
        return ("bf16",)
    return ()


def cpu_features() -> set[str]:
    """Names of the instruction sets of the CPU, as Linux names them; empty where they cannot be found out."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        return {name for name, is_there in ask().items() if is_there is True}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def compile_if_faster(
    network: nn.Module, shape: Sequence[int], compute: Compute, steps: int
) -> tuple[Callable[..., Any] | None, str]:
    """The compiled network if it computes the same and saves more time than compiling takes, and why; else None.

    Args:
        network: on the device; its weights stay as they are.
        shape: of a batch (b, c, *patch).
        compute: precision and memory format.
        steps: that it will be used for.
    """
    if compute.device.type == "cpu" and parts_of(shape[0], torch.get_num_threads()) > 1:
        return None, "not compiled: patches are computed side by side, and a compiled network is not"
    clock = wall_and_processor_clock if compute.device.type == "cpu" else wall_clock
    usual = step_seconds(network, shape, compute)
    if steps * usual * LARGEST_COMPILED_GAIN < FEWEST_COMPILING_SECONDS:
        return None, f"not compiled: {steps} steps of {usual:.3g} s are too few to win back what compiling takes"
    begin = clock()[0]
    forward, because = compiled(network, shape, compute)
    seconds = clock()[0] - begin
    if forward is None:
        return None, because
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    error = _difference(network, forward, image, compute)
    if not error <= LARGEST_COMPILED_DIFFERENCE:
        return None, f"not compiled: the compiled network's logits differ by {error:.0%} of the largest"
    ways = [partial(_training_pass, network, own, image, compute) for own in (network, forward)]
    found = race(ways, 0, RACE_SECONDS, clock)
    saved = steps * usual * (1 - found.seconds[1] / found.seconds[0])
    gain = f"{found.seconds[0] / found.seconds[1]:.2f} times as fast"
    if found.winner == 0 or saved <= seconds:
        return (
            None,
            f"not compiled: {gain} once compiled, which took {seconds:.0f} s; {steps} steps do not win that back",
        )
    return forward, f"compiled: {gain}; compiling took {seconds:.0f} s, and {steps} steps save {saved:.0f} s"


def compiled(network: nn.Module, shape: Sequence[int], compute: Compute) -> tuple[Callable[..., Any] | None, str]:
    """The compiled network if `torch.compile` works here, and a sentence; None and the reason if not."""
    try:
        forward = torch.compile(network)
        _training_pass(network, forward, torch.zeros(*shape), compute)
    except (RuntimeError, ImportError, OSError, TypeError, NotImplementedError) as error:
        torch.compiler.reset()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return None, f"torch.compile does not work here, going on without: {reason}"
    return forward, "network compiled with torch.compile, as when the run was begun"


def _difference(network: nn.Module, forward: Callable[..., Any], image: torch.Tensor, compute: Compute) -> float:
    """Largest difference of the logits as a share of the largest."""
    with torch.no_grad(), compute.autocast():
        placed = compute.place_image(image)
        usual, other = (own(placed, deep_supervision=True)[0].float() for own in (network, forward))
    return float((other - usual).abs().max() / usual.abs().max())


def step_seconds(network: nn.Module, shape: Sequence[int], compute: Compute) -> float:
    """Seconds of one forward and backward pass with a batch (b, c, *patch): the best of two, after one not counted.

    A batch that does not fit into the device's memory takes as long as its parts, as it does in training.
    """
    network = compute.place_network(network, len(shape) - 2)

    def measure(shape: Sequence[int]) -> float:
        image = torch.zeros(*shape)
        parted = side_by_side(network, compute, shape[0])

        def work() -> None:
            if parted is None:
                training_pass(network, image, compute)
            else:
                parted(compute.place_image(image), image, _mean_square, compute)
                network.zero_grad(set_to_none=True)

        work()
        times = []
        for _ in range(_TIMED_STEPS):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return min(times) / shape[0]

    return shape[0] * with_what_fits(measure, shape)


def with_what_fits(work: Callable[[Sequence[int]], T], shape: Sequence[int]) -> T:
    """Does the work with a batch (b, ...), or with half of it, again and again, where the device's memory runs out.

    Raises:
        torch.OutOfMemoryError: a single sample does not fit either.
    """
    while True:
        try:
            return work(shape)
        except torch.OutOfMemoryError:
            if shape[0] == 1:
                raise
        shape = (-(-shape[0] // 2), *shape[1:])  # only here has the error let go of its memory


def growing_batches(configuration: Configuration, channels: int) -> Iterator[tuple[int, ...]]:
    """Shapes (b, c, *patch) from one small patch up to the planned batch, each about twice the one before.

    A GPU takes as long for one small patch as for a hundred: only a batch that keeps it busy can be extrapolated from.
    """
    planned, batch = configuration.patch_size, 1
    strides = configuration.network.total_stride
    patch = [min(2 * stride, edge) for stride, edge in zip(strides, planned, strict=True)]
    yield (batch, channels, *patch)
    while tuple(patch) != planned:
        axis = min(range(len(patch)), key=lambda index: patch[index] / planned[index])
        patch[axis] = min(2 * patch[axis], planned[axis])
        yield (batch, channels, *patch)
    while batch < configuration.batch_size:
        batch = min(2 * batch, configuration.batch_size)
        yield (batch, channels, *patch)


def training_pass(network: nn.Module, image: torch.Tensor, compute: Compute) -> None:
    """Forward and backward with an image (b, c, *patch); weights and gradients stay as they were, without any."""
    _training_pass(network, network, image, compute)


def prediction_pass(network: nn.Module, image: torch.Tensor, compute: Compute) -> None:
    """Forward as in prediction with an image (b, c, *patch)."""
    placed = compute.place_image(image)
    with torch.inference_mode(), compute.autocast():
        network(placed)
    _wait(compute)


def _training_pass(network: nn.Module, forward: Callable[..., Any], image: torch.Tensor, compute: Compute) -> None:
    placed = compute.place_image(image)
    with compute.autocast():
        logits = forward(placed, deep_supervision=True)
    _mean_square(logits, image).backward()  # type: ignore[no-untyped-call]
    network.zero_grad(set_to_none=True)
    _wait(compute)


def _mean_square(logits: torch.Tensor | Sequence[torch.Tensor], _labels: torch.Tensor) -> torch.Tensor:
    """A loss that nothing is learned by; it costs next to nothing."""
    outputs = [logits] if isinstance(logits, torch.Tensor) else logits
    return torch.stack([output.float().square().mean() for output in outputs]).sum()


def _wait(compute: Compute) -> None:
    """Waits until the device has done what it was given."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
    elif compute.device.type == "mps":
        torch.mps.synchronize()
