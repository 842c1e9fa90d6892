"""Number formats that a device computes natively, and what a pass with a network takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoseg.planning.plan import Configuration
from autoseg.training.step import Compute

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


def compiled(network: nn.Module, shape: Sequence[int], compute: Compute) -> tuple[Callable[..., Any] | None, str]:
    """The compiled network if `torch.compile` works here, and a sentence; None and the reason if not."""
    try:
        forward = torch.compile(network)
        _training_pass(network, forward, torch.zeros(*shape), compute)
    except (RuntimeError, ImportError, OSError, TypeError, NotImplementedError) as error:
        torch.compiler.reset()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return None, f"torch.compile does not work here, going on without: {reason}"
    return forward, "network compiled with torch.compile"


def step_seconds(network: nn.Module, shape: Sequence[int], compute: Compute) -> float:
    """Seconds of one forward and backward pass with a batch (b, c, *patch): the best of two, after one not counted.

    A batch that does not fit into the device's memory takes twice as long as its half, as it does in training.
    """
    network = compute.place_network(network, len(shape) - 2)
    image = torch.zeros(*shape)
    fits = True
    try:
        training_pass(network, image, compute)
    except torch.OutOfMemoryError:
        if shape[0] == 1:
            raise
        fits = False
    if not fits:  # only here has the error let go of its memory
        return 2 * step_seconds(network, (-(-shape[0] // 2), *shape[1:]), compute)
    times = []
    for _ in range(_TIMED_STEPS):
        begin = time.perf_counter()
        training_pass(network, image, compute)
        times.append(time.perf_counter() - begin)
    return min(times)


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
    outputs = logits if isinstance(logits, list) else [logits]
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    network.zero_grad(set_to_none=True)
    _wait(compute)


def _wait(compute: Compute) -> None:
    """Waits until the device has done what it was given."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
