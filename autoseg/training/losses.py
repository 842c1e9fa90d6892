"""Soft Dice plus cross-entropy, on labels (softmax) or regions (sigmoid), over every resolution a network gives.

Everything is computed in float32, whatever half precision the logits are. On a CUDA GPU the kernels of
`networks/fused_loss` do the same in two passes over memory. Source: nnU-Net v2, `training/loss/{compound_losses,dice,
deep_supervision}.py`; Isensee et al. 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from autoseg.core.registry import choose
from autoseg.data.model import LabelSet
from autoseg.networks.channels_last_ops import has_kernels

DICE_SMOOTH = 1e-5
"""Added to numerator and denominator of the Dice score (nnU-Net v2)."""

_SMALLEST_DENOMINATOR = 1e-8
_NOT_A_LABEL = -100

Loss = Callable[[Tensor, Tensor, LabelSet, bool], Tensor]
"""(logits (b, heads, *shape), labels (b, *shape) of training values, classes, batch Dice or not) -> a number.

What a recipe names. Deep supervision is added by `make_objective`, so a loss sees one resolution at a time.
"""

Objective = Callable[[Tensor | Sequence[Tensor], Tensor], Tensor]
"""(logits of one or several resolutions, finest first; labels (b, *shape) of the finest) -> a number to minimize."""


def dice_ce(logits: Tensor, labels: Tensor, label_set: LabelSet, batch_dice: bool) -> Tensor:
    """Soft Dice plus cross-entropy, equally weighted; for region datasets soft Dice plus binary cross-entropy.

    Args:
        logits: (b, heads, *shape).
        labels: (b, *shape), training values; negative values count as background.
        label_set: says whether heads are labels or regions, and which value is not annotated.
        batch_dice: whether Dice pools the batch before it divides.
    """
    if has_kernels(logits):
        return _fused_dice_ce(logits, labels, label_set, batch_dice)
    if label_set.has_regions:
        annotated = None if label_set.ignore is None else labels != label_set.ignore
        return dice_and_binary_cross_entropy(logits, region_masks(labels, label_set), annotated, batch_dice)
    return dice_and_cross_entropy(logits, labels, label_set.ignore, batch_dice)


def _fused_dice_ce(logits: Tensor, labels: Tensor, label_set: LabelSet, batch_dice: bool) -> Tensor:
    from autoseg.networks import fused_loss

    rows = _regions(label_set) if label_set.has_regions else tuple((value,) for value in range(logits.shape[1]))
    ignore = fused_loss.NOTHING_IGNORED if label_set.ignore is None else label_set.ignore
    table = _membership(rows, label_set.largest_value + 1, logits.device)
    kind = fused_loss.LossKind(table.view(torch.int8), label_set.has_regions, ignore, batch_dice, DICE_SMOOTH)
    return fused_loss.dice_and_entropy(logits, labels, kind)


LOSSES: dict[str, Loss] = {"dice_ce": dice_ce}
"""Kinds of losses by the name used in recipes."""


def make_objective(name: str, label_set: LabelSet, batch_dice: bool) -> Objective:
    """The loss of that name over all outputs of a network, each output with its deep-supervision weight.

    Args:
        name: a key of `LOSSES`.
        label_set: classes of the dataset.
        batch_dice: whether Dice pools the batch before it divides.

    Raises:
        UsageError: there is no such loss.
    """
    loss = choose(name, LOSSES, "loss")

    def objective(outputs: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        weighted = [pair for pair in zip(levels, deep_supervision_weights(len(levels)), strict=True) if pair[1] > 0]
        targets = deep_supervision_targets(labels, [logits.shape[2:] for logits, _ in weighted])
        terms = [
            weight * loss(logits, target, label_set, batch_dice)
            for (logits, weight), target in zip(weighted, targets, strict=True)
        ]
        return torch.stack(terms).sum()

    return objective


def deep_supervision_weights(n: int) -> tuple[float, ...]:
    """Weights of n outputs, finest first: halved from one to the next, the coarsest 0, their sum 1.

    A single output has weight 1. Source: nnU-Net v2, `nnUNetTrainer._build_loss`.
    """
    if n == 1:
        return (1.0,)
    raw = [0.5**level for level in range(n - 1)] + [0.0]
    return tuple(weight / sum(raw) for weight in raw)


def deep_supervision_targets(labels: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Labels (b, *shape) on coarser grids: each voxel takes the label at its center ("nearest-exact")."""
    targets = []
    for shape in shapes:
        target = labels
        for axis, size in enumerate(shape, start=1):
            factor, rest = divmod(labels.shape[axis], size)
            if rest:
                centers = (2 * torch.arange(size, device=labels.device) + 1) * labels.shape[axis] // (2 * size)
                target = target.index_select(axis, centers)
            elif factor > 1:
                target = target[(slice(None),) * axis + (slice(factor // 2, None, factor),)]
        targets.append(target)
    return targets


def region_masks(labels: Tensor, label_set: LabelSet) -> Tensor:
    """For every foreground region, in declared order, where it is: bool (b, regions, *shape) of labels (b, *shape)."""
    table = _membership(_regions(label_set), label_set.largest_value + 1, labels.device)
    return table.T[:, labels.clamp(min=0).long()].movedim(0, 1)


def _regions(label_set: LabelSet) -> tuple[tuple[int, ...], ...]:
    return tuple(label_set.classes[name] for name in label_set.foreground)


@lru_cache
def _membership(rows: tuple[tuple[int, ...], ...], values: int, device: torch.device) -> Tensor:
    """Which of the label values 0, 1, ... belongs to which row: bool (values, rows); copied to a device only once."""
    table = torch.zeros(max(values, 1 + max(map(max, rows))), len(rows), dtype=torch.bool)
    for number, own in enumerate(rows):
        table[list(own), number] = True
    return table.to(device)


def dice_and_cross_entropy(logits: Tensor, labels: Tensor, ignore: int | None, batch_dice: bool) -> Tensor:
    """Cross-entropy (mean over annotated voxels) minus soft Dice (mean over labels above 0).

    Args:
        logits: (b, labels, *shape).
        labels: (b, *shape), negative values count as background.
        ignore: value of voxels that are not annotated, or None.
        batch_dice: whether Dice pools the batch before it divides.
    """
    logits, labels = _precise(logits).flatten(2).contiguous(), labels.flatten(1).long().clamp(min=0)
    annotated = None if ignore is None else labels != ignore
    if annotated is not None:
        labels = labels.where(annotated, _NOT_A_LABEL)
    log_probabilities = F.log_softmax(logits, 1)
    total = F.nll_loss(log_probabilities, labels, reduction="sum", ignore_index=_NOT_A_LABEL)
    count = labels.numel() if annotated is None else annotated.sum().clamp(min=1)
    probabilities = log_probabilities[:, 1:].exp()
    foreground = torch.arange(1, logits.shape[1], device=labels.device)
    masks = labels[:, None] == foreground[:, None]
    return total / count - _mean_dice(probabilities, masks, annotated, batch_dice)


def dice_and_binary_cross_entropy(logits: Tensor, masks: Tensor, annotated: Tensor | None, batch_dice: bool) -> Tensor:
    """Binary cross-entropy minus soft Dice (mean over regions).

    Without `annotated` the cross-entropy is the mean over regions and voxels; with it, its sum over regions is divided
    by the number of annotated voxels, as nnU-Net v2 does.

    Args:
        logits: (b, regions, *shape).
        masks: bool (b, regions, *shape).
        annotated: bool (b, *shape), or None if every voxel is.
        batch_dice: whether Dice pools the batch before it divides.
    """
    logits, masks = _precise(logits).flatten(2), masks.flatten(2)
    entropy = F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none")
    if annotated is None:
        return entropy.mean() - _mean_dice(logits.sigmoid(), masks, None, batch_dice)
    annotated = annotated.flatten(1)
    mean = (entropy * annotated[:, None]).sum() / annotated.sum().clamp(min=1)
    return mean - _mean_dice(logits.sigmoid(), masks, annotated, batch_dice)


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _mean_dice(probabilities: Tensor, masks: Tensor, annotated: Tensor | None, batch_dice: bool) -> Tensor:
    """Soft Dice (mean over classes, and samples unless pooled) of (b, classes, n) arrays, annotated (b, n)."""
    if annotated is not None:
        probabilities = probabilities * annotated[:, None]
        masks = masks & annotated[:, None]
    overlap = torch.where(masks, probabilities, 0.0).sum(2)
    sizes = probabilities.sum(2) + masks.sum(2)
    if batch_dice:
        overlap, sizes = overlap.sum(0), sizes.sum(0)
    return ((2 * overlap + DICE_SMOOTH) / (sizes + DICE_SMOOTH).clamp(min=_SMALLEST_DENOMINATOR)).mean()
