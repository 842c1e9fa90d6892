#!/usr/bin/env python3
"""Checks and times AutoSeg on a GPU: one command, at most six minutes, what matters most first.

    scripts/gpu_check.py --out FOLDER          on the first CUDA GPU
    scripts/gpu_check.py --device cpu --small  on a CPU, in seconds; what the tests run

FOLDER gets `rows.json` and `table.md`, written again after every row, so that a run that is cut off leaves what it
found, and `kernels.txt`, the profile of a step. Needs torch, numpy, scipy, scikit-image, pydantic and safetensors, and
no data: it draws synthetic phantoms. The exit code is 0 if every check held, else 1. Times are medians; the first calls
do not count. A step's time is that of steps queued one after the other, as training does.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402 - the package beside this script comes first on the path
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from autoseg.augmentation.kinds import DEFAULT  # noqa: E402
from autoseg.augmentation.pipeline import Pipeline  # noqa: E402
from autoseg.augmentation.spec import AugmentationSpec, augmentation_spec  # noqa: E402
from autoseg.augmentation.transforms.noise import Noise  # noqa: E402
from autoseg.data.model import LabelSet  # noqa: E402
from autoseg.data.synthetic import CHANNELS, CLASSES, phantom  # noqa: E402
from autoseg.inference.predictor import Predictor  # noqa: E402
from autoseg.inference.restore import predict_case  # noqa: E402
from autoseg.launch.step_graph import StepGraph, step_graph  # noqa: E402
from autoseg.networks import channels_last_ops  # noqa: E402
from autoseg.networks.kinds.unet import PlainUNet  # noqa: E402
from autoseg.planning.plan import Configuration  # noqa: E402
from autoseg.preprocessing.prepare import (  # noqa: E402
    Placement,
    Preparation,
    prepare,
)
from autoseg.training import losses  # noqa: E402
from autoseg.training.batches import BatchSource, Placed, Prefetcher  # noqa: E402
from autoseg.training.checkpoint import restore, save_checkpoint  # noqa: E402
from autoseg.training.loop import Callback, EpochResult, fit  # noqa: E402
from autoseg.training.losses import make_objective  # noqa: E402
from autoseg.training.optimization import ScheduleSegment  # noqa: E402
from autoseg.training.recipe import Recipe  # noqa: E402
from autoseg.training.sampling import Sampling  # noqa: E402
from autoseg.training.splits import Fold  # noqa: E402
from autoseg.training.step import Compute, TrainingState, start_state, train_step  # noqa: E402
from scripts.benchmark.machine import machine_line  # noqa: E402

LIMIT_SECONDS = 5.5 * 60.0
H100_FLOPS, H100_BYTES = 989e12, 3.35e12  # dense bf16, a second; NVIDIA's data sheet, H100 SXM
READERS = 4  # threads, as many as a run has
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LABELS = LabelSet({name: (value,) for name, value in CLASSES.items()}, file_values=tuple(CLASSES.values()))
_OBJECTIVE = make_objective("dice_ce", LABELS, False)
SPACING_MM = (3.3, 1.18, 1.18)  # about the median of the phantoms
PREPARATION = Preparation((0, 1, 2), SPACING_MM, ("zscore", "zscore"), (False, False), (None, None))

FIRST_LOSS_TOLERANCE = {"fp32": 2e-3, "bf16": 3e-2, "fp16": 1e-2}  # assumption: rounding of tf32, bf16, fp16
LABEL_AGREEMENT = {"fp32": 0.999, "bf16": 0.98, "fp16": 0.99}  # share of voxels; assumption, likewise
RESUME_TOLERANCE = 1e-3  # largest difference of a weight after resuming on a GPU, whose sums have no fixed order


@dataclass(frozen=True)
class Case:
    """A prepared phantom, as the store holds one."""

    image: Any
    labels: Any
    locations: dict[int, Any]
    placement: Placement
    first_stage: Any = None


@dataclass(frozen=True)
class Row:
    """A line of the table: a check that held or not, or a time (held is None)."""

    name: str
    held: bool | None
    found: str


class Bench:
    """Data, networks and device of all checks."""

    def __init__(self, device: torch.device, is_small: bool, out: Path | None = None) -> None:
        self.device, self.out = device, out
        self.is_small = is_small
        self.cases = {f"phantom_{i}": _prepared(i) for i in range(3 if is_small else 8)}
        width = 8 if is_small else 16
        patch_size = (8, 32, 32) if is_small else (16, 48, 48)
        self.learning = _configuration(patch_size, (width, 2 * width, 4 * width), batch_size=2)
        self.timed = (
            self.learning
            if is_small
            else _configuration((128, 128, 128), (32, 64, 128, 256, 320, 320), batch_size=2, isotropic=True)
        )
        self.short = (  # bound by launches: the hippocampus as planned, its batch as large as a GPU's memory suggests
            self.learning
            if is_small
            else _configuration((40, 56, 40), (32, 64, 128, 256), batch_size=9, isotropic=True)
        )
        self.recipe = Recipe(epochs=1, steps_per_epoch=12 if is_small else 150, lr_update="step", momentum=0.95)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Number formats that the device computes; fp16 needs a GPU."""
        return tuple(TYPES) if self.device.type == "cuda" else ("fp32", "bf16")

    def compute(self, precision: str, device: torch.device | None = None) -> Compute:
        """Device, precision and memory format of a training."""
        return Compute(device or self.device, precision, "channels_last")

    def state(self, configuration: Configuration, compute: Compute) -> TrainingState:
        """A fresh training state; the same weights on every device."""
        torch.manual_seed(0)
        network = configuration.network.build(len(CHANNELS), LABELS.head_count)
        return start_state(network, self.recipe, compute, configuration.dimensions)

    def batch(self, spec: AugmentationSpec, index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Batch number `index`, cut from the phantoms, on the CPU."""
        sampling = Sampling(
            tuple(self.cases), self.cases.__getitem__, spec.initial_patch_size, spec.patch_size, batch_size, 0.5, (0, 0)
        )
        drawn = sampling(index)
        return torch.from_numpy(drawn.image), torch.from_numpy(drawn.labels)

    def augmented(self, configuration: Configuration, index: int, compute: Compute) -> tuple[Tensor, Tensor]:
        """The same batch augmented on the device."""
        spec = augmentation_spec(configuration)
        image, labels = self.batch(spec, index, configuration.batch_size)
        generator = torch.Generator().manual_seed(index)
        image, labels = DEFAULT(image.to(compute.device), labels.to(compute.device), spec, generator)
        return compute.place_image(image), labels

    def step(self, state: TrainingState, configuration: Configuration, compute: Compute, index: int) -> float:
        """One training step with batch `index`; its loss."""
        image, labels = self.augmented(configuration, index, compute)
        return float(train_step(state, image, labels, _OBJECTIVE, self.recipe, compute))

    def predictor(self, network: nn.Module, precision: str, device: torch.device) -> Predictor:
        """The predictor of one network, with mirroring."""
        heads, axes, dtype = LABELS.head_count, (0, 1, 2), TYPES[precision]
        return Predictor((network,), self.learning, heads, axes, device=device, dtype=dtype, channels_last=True)


def _prepared(number: int) -> Case:
    prepared = prepare(*phantom(np.random.default_rng([1, number])), PREPARATION)
    labels = prepared.labels
    if labels is None:
        raise AssertionError("labels were given")
    locations = {value: np.argwhere(labels == value) for value in CLASSES.values() if value}
    return Case(prepared.image, labels, locations, prepared.placement)


def _configuration(
    patch_size: tuple[int, ...], features: tuple[int, ...], batch_size: int, isotropic: bool = False
) -> Configuration:
    """A configuration as the rules would make it; the first axis is halved less often where slices are thick."""
    first = 2 if isotropic else 1
    strides = ((1, 1, 1), (first, 2, 2), *((2, 2, 2),) * (len(features) - 2))
    network = PlainUNet(
        dimensions=3,
        features_per_stage=features,
        kernel_sizes=((3, 3, 3),) * len(features),
        strides=strides,
        blocks_per_stage=(2,) * len(features),
        decoder_convs_per_stage=(2,) * (len(features) - 1),
    )
    return Configuration(
        name="3d_fullres",
        dimensions=3,
        spacing_mm=SPACING_MM,
        patch_size=patch_size,
        batch_size=batch_size,
        median_shape=tuple(map(float, patch_size)),
        normalization=("zscore", "zscore"),
        use_nonzero_mask=(False, False),
        network=network,
        batch_dice=False,
        mirror_axes=(0, 1, 2),
        cascade_from=None,
        estimated_feature_map_elements=0,
    )


def check_loss_kernels(bench: Bench) -> Iterator[Row]:
    """Loss and gradient on the device against those in double precision, and their time beside PyTorch's operators."""
    regions = LabelSet({"background": (0,), "whole": (1, 2), "core": (2,)}, ignore=3, regions_class_order=(1, 2))
    for name, label_set in {"classes": LABELS, "regions, ignore label": regions}.items():
        for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
            generator = torch.Generator().manual_seed(0)
            logits = 3 * torch.randn((2, label_set.head_count, 40, 33, 29), generator=generator).to(dtype)
            labels = torch.randint(0, label_set.largest_value + 1, (2, 40, 33, 29), generator=generator)
            exact = logits.double().requires_grad_()
            losses.dice_ce(exact, labels, label_set, False).backward()
            found = logits.to(bench.device).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
            losses.dice_ce(found, labels.to(bench.device), label_set, False).backward()
            own, expected = (one.grad for one in (found, exact))
            if own is None or expected is None:
                raise AssertionError("backward leaves a gradient")
            error = float((own.cpu().double() - expected).norm() / expected.norm())
            yield Row(
                f"loss in double precision, {name}, {str(dtype)[6:]}", error < most, f"gradient {error:.1e} apart"
            )
    for name, has_kernels in (("kernels", losses.has_kernels), ("PyTorch's operators", lambda _logits: False)):
        losses.has_kernels = has_kernels
        yield Row(
            f"loss and its gradient, {name}", None, f"{1000 * _loss_seconds(bench):.2f} ms, {_words(bench.timed)}"
        )
        losses.has_kernels = channels_last_ops.has_kernels


def _loss_seconds(bench: Bench) -> float:
    configuration = bench.timed
    shapes = [
        [size >> level for size in configuration.patch_size] for level in range(configuration.network.n_stages - 1)
    ]
    sizes = [(configuration.batch_size, LABELS.head_count, *(max(1, size) for size in shape)) for shape in shapes]
    outputs = [torch.randn(size, device=bench.device, dtype=torch.bfloat16) for size in sizes]
    outputs = [own.contiguous(memory_format=torch.channels_last_3d).requires_grad_() for own in outputs]
    labels = torch.randint(0, LABELS.head_count, (sizes[0][0], *sizes[0][2:]), device=bench.device, dtype=torch.int16)
    return _seconds_of_queue(bench, lambda: _OBJECTIVE(outputs, labels).backward())


def check_that_nothing_waits(bench: Bench) -> Iterator[Row]:
    """A step for which the host waits for the device raises an error here."""
    if bench.device.type != "cuda":
        return
    for precision in bench.precisions:
        compute = bench.compute(precision)
        state = bench.state(bench.learning, compute)
        image, labels = bench.augmented(bench.learning, 0, compute)
        for _ in range(3):
            train_step(state, image, labels, _OBJECTIVE, bench.recipe, compute)
        torch.cuda.set_sync_debug_mode("error")
        try:
            train_step(state, image, labels, _OBJECTIVE, bench.recipe, compute)
            row = Row(f"no step waits, {precision}", True, "the host queues a step without a look at the device")
        except RuntimeError as error:
            row = Row(f"no step waits, {precision}", False, str(error).splitlines()[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        yield row


def time_steps(bench: Bench) -> Iterator[Row]:
    """A step in bf16 as training takes it, and with one thing changed; beside it what its count allows."""
    configurations = {"large": bench.timed, "short": bench.short}
    for name, configuration in configurations.items():
        flops, traffic, bound = counted(configuration)
        words = f"{flops / 1e12:.2f} TFLOP, {traffic / 1e9:.1f} GB, bound {1000 * bound:.1f} ms on an H100"
        yield Row(f"count of a step, {name}", None, f"{words}, {_words(configuration)}")
        for way in ("channels_last", "contiguous", "channels_last, usual", "channels_last, cudnn.benchmark"):
            memory_format, _, change = way.partition(", ")
            torch.backends.cudnn.benchmark = change == "cudnn.benchmark"
            compute = Compute(bench.device, "bf16", memory_format)
            state = bench.state(configuration, compute)
            state.graph = None if change == "usual" else step_graph(state)
            image, labels = bench.augmented(configuration, 0, compute)
            seconds = _seconds_of_queue(
                bench, lambda s=state, i=image, t=labels, c=compute: train_step(s, i, t, _OBJECTIVE, bench.recipe, c)
            )
            torch.backends.cudnn.benchmark = False
            replayed = (
                "replayed" if isinstance(state.graph, StepGraph) and state.graph.is_recorded else "kernel by kernel"
            )
            found = f"{1000 * seconds:.2f} ms, {seconds / bound:.1f} x bound, {replayed}{_memory(bench)}"
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
        train_step(state, image, labels, _OBJECTIVE, bench.recipe, compute)
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        train_step(state, image, labels, _OBJECTIVE, bench.recipe, compute)
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
            return train_step(now, compute.place_image(image), labels, _OBJECTIVE, bench.recipe, compute), batch.cases

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


def check_first_loss(bench: Bench) -> Iterator[Row]:
    """The first step's loss on the device against the CPU's in single precision, without augmentation."""
    cpu = bench.compute("fp32", torch.device("cpu"))
    spec = replace(augmentation_spec(bench.learning), initial_patch_size=bench.learning.patch_size)
    image, labels = bench.batch(spec, 0, bench.learning.batch_size)
    labels = labels.clamp(min=0)

    def first(compute: Compute) -> float:
        state = bench.state(bench.learning, compute)
        target = labels.to(compute.device)
        return float(train_step(state, compute.place_image(image), target, _OBJECTIVE, bench.recipe, compute))

    expected = first(cpu)
    for precision in bench.precisions:
        found = first(bench.compute(precision))
        held = abs(found - expected) <= FIRST_LOSS_TOLERANCE[precision]
        yield Row(f"first loss, {precision}", held, f"{found:.5f}, on the CPU in fp32 {expected:.5f}")


def check_learning(bench: Bench) -> Iterator[Row]:
    """Training lowers the loss, and every step is finite."""
    for precision in bench.precisions:
        compute = bench.compute(precision)
        state = bench.state(bench.learning, compute)
        steps = bench.recipe.steps_per_epoch
        losses = [bench.step(state, bench.learning, compute, index) for index in range(steps)]
        finite = [loss for loss in losses if math.isfinite(loss)]
        skipped = steps - len(finite)
        quarter = max(1, len(finite) // 4)
        before, after = statistics.mean(finite[:quarter]), statistics.mean(finite[-quarter:])
        held = after < before and skipped <= (2 if precision == "fp16" else 0)  # a loss scale may overflow at first
        yield Row(f"learns, {precision}", held, f"loss {before:.3f} to {after:.3f} in {steps} steps, {skipped} skipped")


def check_augmentation(bench: Bench) -> Iterator[Row]:
    """A cascade's batch augmented on the device and the CPU; without noise, whose numbers are the device's."""
    spec = augmentation_spec(bench.learning, LABELS.foreground_values)
    quiet = Pipeline(tuple(own for own in DEFAULT.transforms if not isinstance(own, Noise)))
    worst, labels_equal, compared = 0.0, 1.0, 12 if bench.is_small else 60
    for number in range(compared):
        generators = [torch.Generator().manual_seed(number) for _ in range(2)]
        image, labels = bench.batch(spec, number, 2)
        here = quiet(image, labels, spec, generators[0], labels)
        there = quiet(image.to(bench.device), labels.to(bench.device), spec, generators[1], labels.to(bench.device))
        worst = max(worst, float((here[0] - there[0].cpu()).abs().mean()))
        labels_equal = min(labels_equal, float((here[1] == there[1].cpu()).float().mean()))
    held = worst < 1e-3 and labels_equal > 0.999
    found = f"{compared} batches, mean difference {worst:.1e}, equal labels {100 * labels_equal:.3f} %"
    yield Row("augmentation as on the CPU", held, found)


def check_prediction(bench: Bench) -> Iterator[Row]:
    """Labels predicted on the device against the CPU's, by a network that was trained a little."""
    compute = bench.compute("fp32")
    state = bench.state(bench.learning, compute)
    for index in range(bench.recipe.steps_per_epoch):
        bench.step(state, bench.learning, compute, index)
    case = next(iter(bench.cases.values()))
    cpu = torch.device("cpu")

    def labels(precision: str, device: torch.device) -> Any:
        predictor = bench.predictor(state.network, precision, device)
        return predict_case(predictor, case.image, case.placement, LABELS)

    expected = labels("fp32", cpu)
    for precision in bench.precisions:
        equal = float((labels(precision, bench.device) == expected).mean())
        yield Row(
            f"prediction as on the CPU, {precision}", equal >= LABEL_AGREEMENT[precision], f"{100 * equal:.3f} % equal"
        )


def check_resume(bench: Bench) -> Iterator[Row]:
    """A training stopped in the middle and restored against one that was not stopped."""
    for precision in bench.precisions:
        compute = bench.compute(precision)
        straight = bench.state(bench.learning, compute)
        for index in range(6):
            bench.step(straight, bench.learning, compute, index)
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            stopped = bench.state(bench.learning, compute)
            for index in range(3):
                bench.step(stopped, bench.learning, compute, index)
            save_checkpoint(stopped, Path(folder))
            resumed = bench.state(bench.learning, compute)
            restore(resumed, Path(folder))
        for index in range(3, 6):
            bench.step(resumed, bench.learning, compute, index)
        pairs = zip(straight.network.parameters(), resumed.network.parameters(), strict=True)
        worst = max(float((one - other).detach().abs().max()) for one, other in pairs)
        allowed = 0.0 if bench.device.type == "cpu" else RESUME_TOLERANCE
        same = "bit-equal" if worst == 0 else f"weights differ by at most {worst:.1e}"
        yield Row(f"resumes, {precision}", worst <= allowed, same)


def time_other_precisions(bench: Bench) -> Iterator[Row]:
    """Seconds of a step in fp16 and fp32."""
    for precision in (own for own in bench.precisions if own != "bf16"):
        compute = bench.compute(precision)
        state = bench.state(bench.timed, compute)
        state.graph = step_graph(state)
        image, labels = bench.augmented(bench.timed, 0, compute)
        seconds = _seconds_of_queue(
            bench, lambda s=state, i=image, t=labels, c=compute: train_step(s, i, t, _OBJECTIVE, bench.recipe, c)
        )
        yield Row(f"step, large, {precision}", None, f"{1000 * seconds:.1f} ms{_memory(bench)}, {_words(bench.timed)}")


def time_augmentation(bench: Bench) -> Iterator[Row]:
    """Seconds of augmenting a batch that is on the device, with nothing beside it."""
    configuration = bench.timed
    spec = augmentation_spec(configuration)
    image, labels = (part.to(bench.device) for part in bench.batch(spec, 0, configuration.batch_size))
    numbers = iter(range(10**6))
    seconds = _median_seconds(
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
    seconds = _median_seconds(bench, lambda: predictor.logits(image), calls=3)
    tiles = len(predictor.tiling(shape[1:]).windows)
    size = " x ".join(map(str, shape[1:]))
    yield Row(f"prediction, {precision}", None, f"{seconds:.2f} s, {size} voxels, {tiles} tiles x 8 mirrorings")


def _median_seconds(bench: Bench, call: Callable[[], object], calls: int = 10) -> float:
    """Median over calls that follow two which do not count; fewer on a CPU."""
    calls, warm = (1, 1) if bench.is_small else (calls, 2)
    times = []
    for _ in range(warm + calls):
        begin = time.perf_counter()
        call()
        _wait(bench)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[warm:])


def _seconds_of_queue(bench: Bench, call: Callable[[], object]) -> float:
    """Median seconds of a call among ten that are queued one after the other."""
    warm, rounds, calls = (1, 1, 1) if bench.is_small else (6, 5, 10)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    for _ in range(warm):
        call()
    times = []
    for _ in range(rounds):
        _wait(bench)
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        _wait(bench)
        times.append((time.perf_counter() - begin) / calls)
    return statistics.median(times)


def _wait(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)


def _memory(bench: Bench) -> str:
    if bench.device.type != "cuda":
        return ""
    return f", {torch.cuda.max_memory_allocated(bench.device) / 2**30:.1f} GiB"


def _words(configuration: Configuration) -> str:
    patch = " x ".join(map(str, configuration.patch_size))
    return f"batch {configuration.batch_size} of {patch}, {configuration.network.n_stages} stages"


PARTS: Sequence[Callable[[Bench], Iterator[Row]]] = (
    *(check_loss_kernels, check_that_nothing_waits, time_steps, check_first_loss, check_learning, check_resume),
    *(time_data_path, profile_step, check_augmentation, check_prediction),
    *(time_augmentation, time_prediction, time_other_precisions),
)


def run_all(bench: Bench, deadline: float) -> Iterator[Row]:
    """Every part in turn; one that fails is a check that did not hold, one without time left is named."""
    for part in PARTS:
        name = part.__name__.replace("_", " ")
        if time.monotonic() > deadline:
            yield Row(name, False, "no time left")
            continue
        try:
            yield from part(bench)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:  # torch's own errors among them
            yield Row(name, False, f"{type(error).__name__}: {str(error).splitlines()[0]}")
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def table(rows: Sequence[Row], title: str) -> str:
    """The rows as text."""
    width = max(len(row.name) for row in rows)
    marks = {True: "ok  ", False: "FAIL", None: "    "}
    return "\n".join([title, *(f"{marks[row.held]}  {row.name:<{width}}  {row.found}" for row in rows)])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="small networks, few steps")
    parser.add_argument("--out", type=Path, help="folder for rows.json, table.md and kernels.txt")
    asked = parser.parse_args()
    begin = time.monotonic()
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print("error: torch sees no CUDA GPU here; --device cpu --small checks the CPU", file=sys.stderr)
        return 2
    device = torch.device(asked.device)
    machine = f"{machine_line('torch', 'numpy', 'scipy')}; {time.strftime('%Y-%m-%d')}; {asked.device}"
    rows: list[Row] = []
    for row in run_all(Bench(device, asked.small, asked.out), begin + LIMIT_SECONDS):
        rows.append(row)
        print(f"{row.name}: {row.found}", file=sys.stderr, flush=True)
        seconds = time.monotonic() - begin
        title = f"{machine}, {seconds:.0f} s"
        if asked.out:
            document = {"machine": machine, "seconds": seconds, "rows": list(map(asdict, rows))}
            asked.out.mkdir(parents=True, exist_ok=True)
            (asked.out / "rows.json").write_text(json.dumps(document, indent=1) + "\n")
            (asked.out / "table.md").write_text(f"```\n{table(rows, title)}\n```\n")
    print(table(rows, title))
    return 1 if any(row.held is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
