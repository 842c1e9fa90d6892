"""Measuring at the start of a run which number format and memory layout is fastest here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoseg.core.errors import UsageError
from autoseg.planning.plan import Configuration
from autoseg.training.step import Compute

PROBE_SECONDS = 1.0
"""Time that a race may take (assumption: one or two seconds do not matter at the start of a training)."""

SMALLEST_GAIN = 0.03
"""A format or layout that gains less than this share of the time is within the noise of the measurement."""

_TIMED_STEPS = 2


def choose_compute(
    network: nn.Module, configuration: Configuration, channels: int, device: torch.device, wanted: tuple[str, str]
) -> tuple[Compute, str]:
    """The fastest precision and memory format for training this network on this device, and why, with the times.

    Forward and backward are timed on a patch small enough for about a second in all; the network's weights stay as they
    are.

    Args:
        network: with any weights.
        configuration: patch and topology.
        channels: of the image.
        device: to compute on.
        wanted: the recipe's (precision, memory_format); what is not "auto" is taken as it is.

    Raises:
        UsageError: the precision asked for does not exist on the device.
    """
    precisions, layouts = _precisions(device, wanted[0]), _layouts(device, wanted[1])
    by_precision = [Compute(device, kind, layouts[0]) for kind in precisions]
    best, first = _race(network, configuration, channels, by_precision)
    by_layout = [replace(best, memory_format=layout) for layout in layouts]
    best, second = _race(network, configuration, channels, by_layout)
    words = f"{best.precision}, {best.memory_format.replace('_', ' ')}"
    measured = "; ".join(f"fastest of {text}" for text in (first, second) if text)
    return best, f"{words}: {measured or f'the only choice on {device} with this recipe'}"


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
        _forward_backward(network, forward, torch.zeros(*shape), compute)
    except (RuntimeError, ImportError, OSError, TypeError, NotImplementedError) as error:
        torch.compiler.reset()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return None, f"torch.compile does not work here, going on without: {reason}"
    return forward, "network compiled with torch.compile"


def _interleaved_seconds(network: nn.Module, shape: Sequence[int], candidates: Sequence[Compute]) -> list[float]:
    """The best time of each candidate; they take turns, so that a moment of load hits none of them alone."""
    rounds = [[_seconds(network, shape, candidate, 1) for candidate in candidates] for _ in range(_TIMED_STEPS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def step_seconds(network: nn.Module, shape: Sequence[int], compute: Compute) -> float:
    """Seconds of one forward and backward pass with a batch (b, c, *patch), the first one not counted."""
    return _seconds(network, shape, compute, _TIMED_STEPS)


def _precisions(device: torch.device, wanted: str) -> tuple[str, ...]:
    """Number formats to compare."""
    if wanted == "fp16" and device.type != "cuda":
        raise UsageError(f"fp16 training needs a CUDA GPU, the device is {device}", do="set `precision: auto`")
    if wanted != "auto":
        return (wanted,)
    if device.type == "cuda":
        return native_types(device)
    return ("fp32", *native_types(device))


def _layouts(device: torch.device, wanted: str) -> tuple[str, ...]:
    """Memory formats to compare."""
    if wanted != "auto":
        return (wanted,)
    if device.type == "mps":
        return ("contiguous",)
    # the first one wins a tie: on CPUs channels-last gains more the larger the patch, on GPUs it often loses in 3D
    return ("channels_last", "contiguous") if device.type == "cpu" else ("contiguous", "channels_last")


def _race(
    network: nn.Module, configuration: Configuration, channels: int, candidates: Sequence[Compute]
) -> tuple[Compute, str]:
    """The fastest candidate and the times measured; the patch is sized for the last one, mostly the fastest."""
    if len(candidates) == 1:
        return candidates[0], ""
    patch = _probe_patch(network, configuration, channels, candidates[-1])
    seconds = _interleaved_seconds(network, (1, channels, *patch), candidates)
    measured = ", ".join(
        f"{candidate.precision} {candidate.memory_format.replace('_', ' ')} {1000 * time:.0f} ms"
        for candidate, time in zip(candidates, seconds, strict=True)
    )
    return candidates[_fastest(seconds)], f"{measured} (patch {' x '.join(map(str, patch))})"


def _probe_patch(network: nn.Module, configuration: Configuration, channels: int, compute: Compute) -> tuple[int, ...]:
    """The largest patch, by halving axes of the planned one, whose race takes about the probe's second.

    Small patches would favor the wrong memory format: what it gains shows only when caches overflow.
    """
    strides = configuration.network.total_stride
    patch = [max(2 * s, s) if p > s else s for p, s in zip(configuration.patch_size, strides, strict=True)]
    allowed = PROBE_SECONDS / 2 / (2 * _TIMED_STEPS)
    seconds = _seconds(network, (1, channels, *patch), compute, 1)
    while seconds * 2 < allowed:
        growing = [axis for axis in range(len(patch)) if patch[axis] < configuration.patch_size[axis]]
        if not growing:
            break
        axis = min(growing, key=lambda a: patch[a] / configuration.patch_size[a])
        patch[axis] = min(2 * patch[axis], configuration.patch_size[axis])
        seconds = _seconds(network, (1, channels, *patch), compute, 1)
    return tuple(patch)


def _seconds(network: nn.Module, shape: Sequence[int], compute: Compute, steps: int) -> float:
    network = compute.place_network(network, len(shape) - 2)
    image = torch.zeros(*shape)
    _forward_backward(network, network, image, compute)
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        _forward_backward(network, network, image, compute)
        times.append(time.perf_counter() - begin)
    return min(times)


def _forward_backward(network: nn.Module, forward: Callable[..., Any], image: torch.Tensor, compute: Compute) -> None:
    placed = compute.place_image(image)
    with compute.autocast():
        logits = forward(placed, deep_supervision=True)
    outputs = logits if isinstance(logits, list) else [logits]
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    network.zero_grad(set_to_none=True)
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)


def _fastest(seconds: Sequence[float]) -> int:
    """The earliest candidate that no other beats by more than the noise."""
    best = min(seconds)
    return next(i for i, value in enumerate(seconds) if value <= best * (1 + SMALLEST_GAIN))
