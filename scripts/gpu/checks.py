"""What has to hold on a GPU: losses, learning, resuming, augmentation and prediction as on the CPU."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autoseg.augmentation.kinds import DEFAULT
from autoseg.augmentation.pipeline import Pipeline
from autoseg.augmentation.spec import augmentation_spec
from autoseg.augmentation.transforms.noise import Noise
from autoseg.data.model import LabelSet
from autoseg.inference.restore import predict_case
from autoseg.networks import channels_last_ops
from autoseg.training import losses
from autoseg.training.checkpoint import restore, save_checkpoint
from autoseg.training.step import Compute, train_step
from scripts.gpu.bench import LABELS, OBJECTIVE, Bench, Row, seconds_of_queue, words_of

FIRST_LOSS_TOLERANCE = {"fp32": 2e-3, "bf16": 3e-2, "fp16": 1e-2}  # assumption: rounding of tf32, bf16, fp16
LABEL_AGREEMENT = {"fp32": 0.999, "bf16": 0.98, "fp16": 0.99}  # share of voxels; assumption, likewise
RESUME_TOLERANCE = 1e-3  # largest difference of a weight after resuming on a GPU, whose sums have no fixed order


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
            f"loss and its gradient, {name}", None, f"{1000 * _loss_seconds(bench):.2f} ms, {words_of(bench.timed)}"
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
    return seconds_of_queue(bench, lambda: OBJECTIVE(outputs, labels).backward())


def check_that_nothing_waits(bench: Bench) -> Iterator[Row]:
    """A step for which the host waits for the device raises an error here."""
    if bench.device.type != "cuda":
        return
    for precision in bench.precisions:
        compute = bench.compute(precision)
        state = bench.state(bench.learning, compute)
        image, labels = bench.augmented(bench.learning, 0, compute)
        for _ in range(3):
            train_step(state, image, labels, OBJECTIVE, bench.recipe, compute)
        torch.cuda.set_sync_debug_mode("error")
        try:
            train_step(state, image, labels, OBJECTIVE, bench.recipe, compute)
            row = Row(f"no step waits, {precision}", True, "the host queues a step without a look at the device")
        except RuntimeError as error:
            row = Row(f"no step waits, {precision}", False, str(error).splitlines()[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        yield row


def check_first_loss(bench: Bench) -> Iterator[Row]:
    """The first step's loss on the device against the CPU's in single precision, without augmentation."""
    cpu = bench.compute("fp32", torch.device("cpu"))
    spec = replace(augmentation_spec(bench.learning), initial_patch_size=bench.learning.patch_size)
    image, labels = bench.batch(spec, 0, bench.learning.batch_size)
    labels = labels.clamp(min=0)

    def first(compute: Compute) -> float:
        state = bench.state(bench.learning, compute)
        target = labels.to(compute.device)
        return float(train_step(state, compute.place_image(image), target, OBJECTIVE, bench.recipe, compute))

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
