#!/usr/bin/env python3
"""Measures what this machine can do at most, counts what a network costs, and divides one by the other.

    scripts/machine_peaks.py              one thread; a minute or two
    scripts/machine_peaks.py --threads 2
    scripts/machine_peaks.py --small      seconds; what the tests run

Rates are the best of several rounds, per CPU second, so that other work on the machine matters little. Operations are
counted by PyTorch while the network runs without numbers (meta tensors): convolutions, transposed convolutions and
matrix products, a multiplication and an addition each counting as one. `docs/performance.md` sets the bounds that
follow beside measured times.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402 - the packages beside this script come first on the path
from torch.nn import functional  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from autoseg.networks.kinds.unet import PlainUNet, UNetOptions  # noqa: E402
from scripts.benchmark.machine import machine_line  # noqa: E402

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROUNDS = 5


@dataclass(frozen=True)
class Network:
    """A plain U-Net with the stages that the rules plan for its patch and spacing, and its batch."""

    name: str
    patch_size: tuple[int, ...]
    features: tuple[int, ...]
    batch_size: int = 2
    heads: int = 3
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)

    def spec(self) -> PlainUNet:
        """Its topology."""
        options = UNetOptions(self.features[0], max(self.features), max(self.features), (2,), 2)
        planned = PlainUNet.for_patch(options, self.spacing_mm[-len(self.patch_size) :], self.patch_size)
        return replace(planned, features_per_stage=self.features)


NETWORKS = (
    Network("hippocampus, 40 x 56 x 40, batch 2", (40, 56, 40), (32, 64, 128, 256)),
    Network("the same, first stage of 16", (40, 56, 40), (16, 64, 128, 256)),
    Network("the same, half width", (40, 56, 40), (16, 32, 64, 128)),
    Network("128 x 128 x 128, batch 2", (128, 128, 128), (32, 64, 128, 256, 320, 320)),
    Network("narrow, 40 x 64 x 64, batch 2", (40, 64, 64), (8, 16, 32, 64, 128), 2, 4, (2.5, 1.2, 1.2)),
    Network("2D, 256 x 256, batch 8", (256, 256), (16, 32, 64, 128, 256, 256, 256), 8),
)


def rate(call: Callable[[], object], amount: float, rounds: int) -> float:
    """The most of `amount` that a call does per second of wall time, or of CPU time of its threads if that is less.

    With several threads the CPU seconds are divided by their number.
    """
    call()
    best = 0.0
    for _ in range(rounds):
        begin, cpu = time.perf_counter(), time.process_time()
        call()
        busy = (time.process_time() - cpu) / torch.get_num_threads()
        best = max(best, amount / max(min(time.perf_counter() - begin, busy), 1e-9))
    return best


def gemm_rate(dtype: torch.dtype, edge: int, rounds: int) -> float:
    """Operations per second of a matrix product of edge x edge."""
    one, other = (torch.randn(edge, edge).to(dtype) for _ in range(2))
    return rate(lambda: one @ other, 2 * edge**3, rounds)


def convolution_rates(dtype: torch.dtype, shape: Sequence[int], channels: int, rounds: int) -> tuple[float, float]:
    """Operations per second of a convolution of 3 x 3 x 3, channels last: forward alone, and with its way back."""
    image = torch.randn(2, channels, *shape).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(channels, channels, 3, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    amount = 2 * image.numel() * channels * 27.0
    with torch.inference_mode():
        forward = rate(lambda: functional.conv3d(image, weight, padding=1), amount, rounds)
    image.requires_grad_()
    weight.requires_grad_()
    gradient = torch.ones_like(image)
    both = rate(lambda: functional.conv3d(image, weight, padding=1).backward(gradient), 3 * amount, rounds)
    return forward, both


def copy_rate(mebibytes: int, rounds: int) -> float:
    """Bytes per second of a copy, read and written bytes together."""
    source = torch.zeros(mebibytes << 18)
    target = torch.empty_like(source)
    return rate(lambda: target.copy_(source), 2.0 * source.numel() * 4, rounds)


def inflate_rate(mebibytes: int, rounds: int) -> float:
    """Decompressed bytes per second of zlib, of noise with the range of a CT."""
    noise = (200 * torch.randn(mebibytes << 19, generator=torch.Generator().manual_seed(0))).to(torch.int16)
    packed = zlib.compress(noise.numpy().tobytes(), 6)
    return rate(lambda: zlib.decompress(packed), 2.0 * noise.numel(), rounds)


def count(network: Network) -> tuple[float, float, int]:
    """Operations of a training step and of a forward pass of one batch, and the elements of its feature maps."""
    spec = network.spec()
    with torch.device("meta"):
        built = spec.build(1, network.heads)
        image = torch.empty(network.batch_size, 1, *network.patch_size)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        built(image)
    with FlopCounterMode(display=False) as step:
        outputs = built(image, deep_supervision=True)
        sum(output.float().mean() for output in outputs).backward()  # type: ignore[union-attr]
    elements = network.batch_size * spec.feature_map_elements(network.patch_size, network.heads)
    return step.get_total_flops(), forward.get_total_flops(), elements


def report(is_small: bool) -> Iterator[str]:
    """The lines to print; the least seconds are those at the rate of the best convolution, in fp32 / bf16."""
    edge, shape, mebibytes, rounds = (64, (4, 4, 4), 1, 1) if is_small else (2048, (40, 56, 40), 256, ROUNDS)
    yield f"{machine_line('torch')}; {torch.get_num_threads()} threads; {time.strftime('%Y-%m-%d')}"
    yield ""
    yield "| rate | fp32 | bf16 |\n|---|---|---|"
    gemm = {name: gemm_rate(dtype, edge, rounds) for name, dtype in TYPES.items()}
    yield f"| matrix product of {edge}, GFLOP/s | {' | '.join(f'{one / 1e9:.0f}' for one in gemm.values())} |"
    steps = {name: [0.0, 0.0] for name in TYPES}
    for channels in (8, 32, 128):
        found = {name: convolution_rates(dtype, shape, channels, rounds) for name, dtype in TYPES.items()}
        cells = " | ".join(f"{one[0] / 1e9:.0f}, {one[1] / 1e9:.0f}" for one in found.values())
        yield f"| convolution of {channels} channels: forward, with backward, GFLOP/s | {cells} |"
        steps = {name: [max(pair) for pair in zip(steps[name], own, strict=True)] for name, own in found.items()}
    yield f"| copy, GB/s read and written | {copy_rate(mebibytes, rounds) / 1e9:.1f} | |"
    yield f"| inflating gzip, MB/s | {inflate_rate(max(mebibytes // 16, 1), rounds) / 1e6:.0f} | |"
    yield ""
    yield "| network | step, GFLOP | forward of a batch, GFLOP | feature maps, Mi elements | least s: step | forward |"
    yield "|---|---|---|---|---|---|"
    for network in NETWORKS[:1] if is_small else NETWORKS:
        step, forward, elements = count(network)
        bounds = [
            " / ".join(f"{amount / steps[kind][way]:.2f}" for kind in TYPES)
            for amount, way in ((step, 1), (forward, 0))
        ]
        numbers = f"{step / 1e9:.0f} | {forward / 1e9:.1f} | {elements / 2**20:.0f}"
        yield f"| {network.name} | {numbers} | {' | '.join(bounds)} |"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="small matrices and one round: no statement")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for line in report(asked.small):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
