"""Soft Dice and cross-entropy of logits in one pass over memory forward and one backward, as Triton kernels.

PyTorch's operators read and write tensors of the size of all logits in float32 some twenty times for a loss and its
gradient (docs/performance.md). Here a program reads logits as they are, in half precision and either memory format, and
labels as integers; masks and probabilities exist in registers only. Sums are taken in float32, part by part, always in
the same order.

The kernels see samples x voxels x heads. Sums of a part are (samples, parts, 5, heads): overlap of probability and
mask, probability, mask, entropy, and the number of annotated voxels. From them one program computes the loss, and the
two numbers per head that the gradient of every voxel needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 2048
"""Numbers that a program holds at a time, in several variables each."""

PROGRAMS = 1024
"""Programs that share a sum: about eight for each multiprocessor of a large GPU."""

NOTHING_IGNORED = -1
"""Value of voxels that are not annotated, where there are none; labels below 0 have become 0 when it is compared."""


@dataclass(frozen=True, slots=True)
class LossKind:
    """What is computed.

    Attributes:
        table: (values, heads) int8 on the device: whether a label value belongs to a head.
        is_regions: whether heads may overlap (sigmoid) or exclude each other (softmax, head 0 the background).
        ignore: value of voxels that are not annotated, or `NOTHING_IGNORED`.
        batch_dice: whether Dice pools the batch before it divides.
        smooth: added to numerator and denominator of the Dice score.
    """

    table: Tensor
    is_regions: bool
    ignore: int
    batch_dice: bool
    smooth: float


@triton.jit
def _tile(
    logits, labels, table, sample, v, end, strides, voxels, heads, values, ignore, IS_REGIONS, WIDTH: tl.constexpr
):
    """Of a tile: probabilities, masks and entropy (0 where not annotated), where it is annotated, and places."""
    c = tl.arange(0, WIDTH)
    is_inside = v < end
    label = tl.load(labels + sample.to(tl.int64) * voxels + v, mask=is_inside, other=0).to(tl.int32)
    label = tl.maximum(label, 0)
    is_annotated = is_inside & (label != ignore)
    is_there = is_inside[:, None] & (c < heads)[None, :]
    place = (
        sample.to(tl.int64) * strides[0] + v[:, None].to(tl.int64) * strides[1] + c[None, :].to(tl.int64) * strides[2]
    )
    z = tl.load(logits + place, mask=is_there, other=0.0).to(tl.float32)
    is_counted = is_annotated[:, None] & (c < heads)[None, :]
    belongs = is_counted & (label < values)[:, None]
    mask = tl.load(table + label[:, None] * heads + c[None, :], mask=belongs, other=0) > 0
    if IS_REGIONS:
        probability = 1.0 / (1.0 + tl.exp(-z))
        entropy = tl.maximum(z, 0.0) - tl.where(mask, z, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(z)))
        entropy = tl.where(is_counted, entropy, 0.0)
    else:
        z = tl.where((c < heads)[None, :], z, float("-inf"))
        shifted = z - tl.max(z, 1)[:, None]
        total = tl.sum(tl.exp(shifted), 1)
        probability = tl.exp(shifted) / total[:, None]
        entropy = tl.where(mask, tl.log(total)[:, None] - shifted, 0.0)
    return tl.where(is_counted, probability, 0.0), mask, entropy, is_annotated, is_there, place


@triton.jit
def _sum(
    logits, labels, table, partial, stride_sample, stride_voxel, stride_head, voxels, heads, values, ignore, part,
    STEPS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, IS_REGIONS: tl.constexpr,
):  # fmt: skip
    """The five sums of a part."""
    parts, number, sample = tl.num_programs(0), tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, WIDTH)
    begin = number * part
    end = tl.minimum(begin + part, voxels)
    overlap = tl.zeros([WIDTH], tl.float32)
    predicted = tl.zeros([WIDTH], tl.float32)
    labeled = tl.zeros([WIDTH], tl.float32)
    surprise = tl.zeros([WIDTH], tl.float32)
    annotated = 0.0
    for step in range(STEPS):
        v = begin + step * HEIGHT + tl.arange(0, HEIGHT)
        strides = (stride_sample, stride_voxel, stride_head)
        probability, mask, entropy, is_annotated, _, _ = _tile(
            logits, labels, table, sample, v, end, strides, voxels, heads, values, ignore, IS_REGIONS, WIDTH
        )
        overlap += tl.sum(tl.where(mask, probability, 0.0), 0)
        predicted += tl.sum(probability, 0)
        labeled += tl.sum(mask.to(tl.float32), 0)
        surprise += tl.sum(entropy, 0)
        annotated += tl.sum(is_annotated.to(tl.float32), 0)
    out = partial + (sample * parts + number) * 5 * heads + c
    tl.store(out, overlap, mask=c < heads)
    tl.store(out + heads, predicted, mask=c < heads)
    tl.store(out + 2 * heads, labeled, mask=c < heads)
    tl.store(out + 3 * heads, surprise, mask=c < heads)
    tl.store(out + 4 * heads, tl.zeros([WIDTH], tl.float32) + annotated, mask=c < heads)


@triton.jit
def _score(
    sums, loss, slopes, heads, smooth, first, is_entropy_of_heads,
    SAMPLES: tl.constexpr, BATCH_DICE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The loss, and its derivatives by overlap, probability (per sample and head) and entropy (one number)."""
    c = tl.arange(0, WIDTH)
    is_there = c < heads
    is_scored = is_there & (c >= first)
    overlap = tl.zeros([WIDTH], tl.float32)
    size = tl.zeros([WIDTH], tl.float32)
    surprise = tl.zeros([WIDTH], tl.float32)
    annotated = tl.zeros([WIDTH], tl.float32)
    dice = tl.zeros([WIDTH], tl.float32)
    scored = (heads - first).to(tl.float32)
    if not BATCH_DICE:
        scored *= SAMPLES
    for sample in range(SAMPLES):
        row = sums + sample * 5 * heads + c
        own_overlap = tl.load(row, mask=is_there, other=0.0)
        own_size = tl.load(row + heads, mask=is_there, other=0.0) + tl.load(row + 2 * heads, mask=is_there, other=0.0)
        surprise += tl.load(row + 3 * heads, mask=is_there, other=0.0)
        annotated += tl.load(row + 4 * heads, mask=is_there, other=0.0)
        overlap += own_overlap
        size += own_size
        if not BATCH_DICE:
            score = (2 * own_overlap + smooth) / (own_size + smooth)
            dice += score
            out = slopes + sample * 2 * heads + c
            tl.store(out, tl.where(is_scored, -2.0 / ((own_size + smooth) * scored), 0.0), mask=is_there)
            tl.store(out + heads, tl.where(is_scored, score / ((own_size + smooth) * scored), 0.0), mask=is_there)
    if BATCH_DICE:
        dice = (2 * overlap + smooth) / (size + smooth)
        for sample in range(SAMPLES):
            out = slopes + sample * 2 * heads + c
            tl.store(out, tl.where(is_scored, -2.0 / ((size + smooth) * scored), 0.0), mask=is_there)
            tl.store(out + heads, tl.where(is_scored, dice / ((size + smooth) * scored), 0.0), mask=is_there)
    count = tl.maximum(tl.max(annotated, 0), 1.0)
    if is_entropy_of_heads:
        count *= heads
    tl.store(loss, tl.sum(surprise, 0) / count - tl.sum(tl.where(is_scored, dice, 0.0), 0) / scored)
    tl.store(slopes + SAMPLES * 2 * heads, 1.0 / count)


@triton.jit
def _differentiate(
    logits, labels, table, slopes, upstream, gradient,
    stride_sample, stride_voxel, stride_head, voxels, heads, values, ignore,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, IS_REGIONS: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits of a tile."""
    sample = tl.program_id(1)
    c = tl.arange(0, WIDTH)
    v = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    strides = (stride_sample, stride_voxel, stride_head)
    probability, mask, _, is_annotated, is_there, place = _tile(
        logits, labels, table, sample, v, voxels, strides, voxels, heads, values, ignore, IS_REGIONS, WIDTH
    )
    of_overlap = tl.load(slopes + sample * 2 * heads + c, mask=c < heads, other=0.0)
    of_probability = tl.load(slopes + (sample * 2 + 1) * heads + c, mask=c < heads, other=0.0)
    of_entropy = tl.load(slopes + tl.num_programs(1) * 2 * heads)
    pull = of_probability[None, :] + tl.where(mask, of_overlap[None, :], 0.0)
    if IS_REGIONS:
        change = probability * (1.0 - probability) * pull
    else:
        change = probability * (pull - tl.sum(probability * pull, 1)[:, None])
    change += of_entropy * (probability - mask.to(tl.float32))
    change = tl.where(is_annotated[:, None], change * tl.load(upstream), 0.0)
    tl.store(gradient + place, change.to(gradient.dtype.element_ty), mask=is_there)


class _DiceAndEntropy(torch.autograd.Function):
    """Keeps logits and labels for the way back, and two numbers per sample and head."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, kind: LossKind) -> Tensor:
        samples, heads, voxels = logits.shape
        width = int(triton.next_power_of_2(heads))
        height = max(1, TILE // width)
        part = triton.cdiv(voxels, min(triton.cdiv(voxels, height), triton.cdiv(PROGRAMS, samples)))
        parts = triton.cdiv(voxels, part)
        ctx.sizes = (*logits.stride()[::2], logits.stride(1), voxels, heads, len(kind.table), kind.ignore)
        ctx.tile = {"HEIGHT": height, "WIDTH": width, "IS_REGIONS": kind.is_regions}
        partial = logits.new_empty((samples, parts, 5, heads), dtype=torch.float32)
        loss = logits.new_empty((), dtype=torch.float32)
        slopes = logits.new_empty(samples * 2 * heads + 1, dtype=torch.float32)
        first = 0 if kind.is_regions else 1
        is_entropy_of_heads = int(kind.is_regions and kind.ignore == NOTHING_IGNORED)
        with torch.cuda.device_of(logits):
            steps = triton.cdiv(part, height)
            _sum[parts, samples](logits, labels, kind.table, partial, *ctx.sizes, part, STEPS=steps, **ctx.tile)
            _score[(1,)](
                *(partial.sum(1), loss, slopes, heads, kind.smooth, first, is_entropy_of_heads),
                SAMPLES=samples,
                BATCH_DICE=kind.batch_dice,
                WIDTH=width,
            )
        ctx.save_for_backward(logits, labels, slopes)
        ctx.table = kind.table
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, slopes = ctx.saved_tensors
        gradient = torch.empty_strided(logits.shape, logits.stride(), dtype=logits.dtype, device=logits.device)
        grid = (triton.cdiv(logits.shape[2], ctx.tile["HEIGHT"]), len(logits))
        with torch.cuda.device_of(logits):
            _differentiate[grid](logits, labels, ctx.table, slopes, upstream, gradient, *ctx.sizes, **ctx.tile)
        return gradient, None, None


def dice_and_entropy(logits: Tensor, labels: Tensor, kind: LossKind) -> Tensor:
    """Cross-entropy less soft Dice, as `training.losses.dice_ce` defines them: a number in float32.

    Args:
        logits: (b, heads, *shape) on a CUDA GPU, contiguous or channels-last; float16, bfloat16 or float32.
        labels: (b, *shape), integers; negative ones count as background.
        kind: classes or regions, what is ignored, whether Dice pools the batch.
    """
    loss: Tensor = _DiceAndEntropy.apply(logits.flatten(2), labels.flatten(1).contiguous(), kind)
    return loss
