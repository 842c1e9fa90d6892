"""What takes how long on a GPU, and what its count allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.augmentation.kinds import DEFAULT
from autoseg.augmentation.spec import augmentation_spec
from autoseg.data.synthetic import CHANNELS
from autoseg.launch.step_graph import StepGraph, step_graph
from autoseg.planning.plan import Configuration
from autoseg.training.batches import BatchSource, Placed, Prefetcher
from autoseg.training.loop import Callback, EpochResult, fit
from autoseg.training.optimization import ScheduleSegment
from autoseg.training.splits import Fold
from autoseg.training.step import Compute, TrainingState, train_step
from scripts.gpu.bench import (
    LABELS,
    OBJECTIVE,
    Bench,
    Row,
    median_seconds,
    peak_memory,
    seconds_of_queue,
    words_of,
)

H100_FLOPS, H100_BYTES = 989e12, 3.35e12  # dense bf16, a second; NVIDIA's data sheet, H100 SXM
READERS = 4  # threads, as many as a run has


def time_steps(bench: Bench) -> Iterator[Row]:
    """A step in bf16 as training takes it, and with one thing changed; beside it what its count allows."""
    configurations = {"large": bench.timed, "short": bench.short}
    for name, configuration in configurations.items():
        flops, traffic, bound = counted(configuration)
        words = f"{flops / 1e12:.2f} TFLOP, {traffic / 1e9:.1f} GB, bound {1000 * bound:.1f} ms on an H100"
        yield Row(f"count of a step, {name}", None, f"{words}, {words_of(configuration)}")
        for way in ("channels_last", "contiguous", "channels_last, usual", "channels_last, cudnn.benchmark"):
            memory_format, _, change = way.partition(", ")
            torch.backends.cudnn.benchmark = change == "cudnn.benchmark"
            compute = Compute(bench.device, "bf16", memory_format)
            state = bench.state(configuration, compute)
            # training does not record steps with every version of torch; here they are to be seen with any
            can_record = bench.device.type == "cuda" and change != "usual"
            state.graph = StepGraph(state) if can_record else None
            image, labels = bench.augmented(configuration, 0, compute)
            seconds = seconds_of_queue(
                bench, lambda s=state, i=image, t=labels, c=compute: train_step(s, i, t, OBJECTIVE, bench.recipe, c)
            )
            torch.backends.cudnn.benchmark = False
            replayed = (
                "replayed" if isinstance(state.graph, StepGraph) and state.graph.is_recorded else "kernel by kernel"
            )
            found = f"{1000 * seconds:.2f} ms, {seconds / bound:.1f} x bound, {replayed}{peak_memory(bench)}"
            yield Row(f"step, {name}, bf16, {way}", None, found)


def counted(configuration: Configuration) -> tuple[float, float, float]:
    """Operations and bytes of a step in half precision, and the seconds that an H100 needs at least.

    Every convolution takes operations three times: forward, gradient of its input, gradient of its weights. Each of the
    three reads two of input, output and weights and writes the third. A normalization with its leaky ReLU reads the
    output twice and writes it once forward, and reads it twice, its gradient twice and writes once backward. Bound is
    the sum over layers of the longer of arithmetic and traffic.
    """
    seconds, flops, traffic = 0.0, 0.0, 0.0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seconds, flops, traffic
        weight = next(layer.parameters())
        is_transposed = isinstance(layer, nn.ConvTranspose3d)
        positions = (inputs[0] if is_transposed else output)[:, 0].numel()
        operations = 3 * 2 * weight.numel() * positions
        is_normalized = not is_transposed and math.prod(weight.shape[2:]) > 1
        numbers = 3 * inputs[0].numel() + (11 if is_normalized else 3) * output.numel()
        # where levels meet, the upsampled features and those of the encoder are copied side by side, and back
        numbers += 8 * output.numel() if is_transposed else 0
        flops += operations
        traffic += 2 * numbers
        seconds += max(operations / H100_FLOPS, 2 * numbers / H100_BYTES)

    with torch.device("meta"):
        network = configuration.network.build(len(CHANNELS), LABELS.head_count)
        for layer in network.modules():
            if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
                layer.register_forward_hook(add)
        network(torch.empty(configuration.batch_size, len(CHANNELS), *configuration.patch_size), deep_supervision=True)
    return flops, traffic, seconds


def profile_step(bench: Bench) -> Iterator[Row]:
    """Where the time of a step goes, kernel by kernel."""
    if bench.device.type != "cuda" or bench.out is None:
        return
    compute = bench.compute("bf16")
    state = bench.state(bench.timed, compute)
    image, labels = bench.augmented(bench.timed, 0, compute)
    for _ in range(3):
        train_step(state, image, labels, OBJECTIVE, bench.recipe, compute)
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        train_step(state, image, labels, OBJECTIVE, bench.recipe, compute)
        torch.cuda.synchronize(bench.device)
    found = profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=70)
    (bench.out / "kernels.txt").write_text(found)
    yield Row("profile of a step", None, "kernels.txt")


def time_data_path(bench: Bench) -> Iterator[Row]:
    """Training as a run does it, batches cut, copied and augmented beside it: what of its time the GPU is busy."""
    for name, configuration in (("large", bench.timed), ("short", bench.short)):
        compute = bench.compute("bf16")
        state = bench.state(configuration, compute)
        state.graph = step_graph(state)
        fold = Fold(tuple(bench.cases), ())
        source = BatchSource(configuration, bench.recipe, fold, bench.cases.__getitem__, (0, 0), bench.device)

        def take_step(now: TrainingState, batch: Placed, compute: Compute = compute) -> tuple[Tensor, Sequence[str]]:
            image, labels = batch.tensors()
            return train_step(now, compute.place_image(image), labels, OBJECTIVE, bench.recipe, compute), batch.cases

        state.segment = ScheduleSegment(0, 0.0, 2 if bench.is_small else 160)
        state.steps_per_epoch = state.segment.end // 2
        results: list[EpochResult] = []
        with Prefetcher(source.training, 0, READERS) as batches:
            fit(state, batches, take_step, lambda _state: None, [_Noting(results)])
        last = results[-1]
        busy = "" if last.busy_share is None else f", GPU {100 * last.busy_share:.0f} % busy"
        waits = f"{100 * last.data_wait_share:.1f} % waiting for data{busy}, {READERS} threads"
        yield Row(
            f"training with its data, {name}",
            None,
            f"{1000 * last.seconds / state.steps_per_epoch:.1f} ms a step, {waits}",
        )


class _Noting(Callback):
    """Keeps what every epoch gave."""

    def __init__(self, results: list[EpochResult]) -> None:
        self._results = results

    def after_epoch(self, result: EpochResult, _state: TrainingState) -> None:
        """Keeps it."""
        self._results.append(result)


def time_other_precisions(bench: Bench) -> Iterator[Row]:
    """Seconds of a step in fp16 and fp32."""
    for precision in (own for own in bench.precisions if own != "bf16"):
        compute = bench.compute(precision)
        state = bench.state(bench.timed, compute)
        state.graph = step_graph(state)
        image, labels = bench.augmented(bench.timed, 0, compute)
        seconds = seconds_of_queue(
            bench, lambda s=state, i=image, t=labels, c=compute: train_step(s, i, t, OBJECTIVE, bench.recipe, c)
        )
        yield Row(
            f"step, large, {precision}", None, f"{1000 * seconds:.1f} ms{peak_memory(bench)}, {words_of(bench.timed)}"
        )


def time_augmentation(bench: Bench) -> Iterator[Row]:
    """Seconds of augmenting a batch that is on the device, with nothing beside it."""
    configuration = bench.timed
    spec = augmentation_spec(configuration)
    image, labels = (part.to(bench.device) for part in bench.batch(spec, 0, configuration.batch_size))
    numbers = iter(range(10**6))
    seconds = median_seconds(
        bench, lambda: DEFAULT(image, labels, spec, torch.Generator().manual_seed(next(numbers))), calls=20
    )
    yield Row("augmentation of a batch", None, f"{1000 * seconds:.1f} ms")


def time_prediction(bench: Bench) -> Iterator[Row]:
    """Seconds of one case, mirroring on."""
    torch.manual_seed(0)
    network = bench.timed.network.build(len(CHANNELS), LABELS.head_count)
    shape = (len(CHANNELS), 12, 48, 48) if bench.is_small else (len(CHANNELS), 160, 256, 256)
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    precision = "fp32" if bench.device.type == "cpu" else "bf16"
    predictor = replace(bench.predictor(network, precision, bench.device), configuration=bench.timed)
    seconds = median_seconds(bench, lambda: predictor.logits(image), calls=3)
    tiles = len(predictor.tiling(shape[1:]).windows)
    size = " x ".join(map(str, shape[1:]))
    yield Row(f"prediction, {precision}", None, f"{seconds:.2f} s, {size} voxels, {tiles} tiles x 8 mirrorings")
