"""Scores during training: Dice over patches of the validation cases, as a quick estimate of the real thing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoseg.data.model import LabelSet
from autoseg.evaluation.confusion import dice
from autoseg.training.losses import Objective, region_masks
from autoseg.training.step import Compute, TrainingState

EMA_KEPT = 0.9
"""Share of the old value in the smoothed online Dice (nnU-Net v2, logging/nnunet_logger.py)."""


@dataclass(frozen=True, slots=True)
class OnlineScores:
    """Scores of one epoch's validation patches.

    Attributes:
        loss: mean over the batches, of the finest logits.
        dice: per foreground class, counts pooled over all patches; None where the class is neither there nor predicted.
    """

    loss: float
    dice: tuple[float | None, ...]

    @property
    def mean_dice(self) -> float | None:
        """Mean over the classes that have a Dice."""
        known = [value for value in self.dice if value is not None]
        return sum(known) / len(known) if known else None


@torch.no_grad()
def score_patches(
    state: TrainingState,
    batches: Iterable[tuple[Tensor, Tensor]],
    objective: Objective,
    compute: Compute,
    label_set: LabelSet,
) -> OnlineScores | None:
    """Pseudo Dice and loss over (image, labels) batches on the device; None without any batch.

    Source: nnU-Net v2 nnUNetTrainer.validation_step and on_validation_epoch_end.
    """
    network = state.final_network.eval()
    losses: list[Tensor] = []
    counts = None
    for image, labels in batches:
        with compute.autocast():
            logits = network(image, deep_supervision=False)
            losses.append(objective([logits], labels))
        batch_counts = overlap_counts(logits, labels, label_set)
        counts = batch_counts if counts is None else counts + batch_counts
    if counts is None:
        return None
    finite = [value for value in torch.stack(losses).tolist() if math.isfinite(value)]
    return OnlineScores(sum(finite) / len(finite) if finite else math.nan, pooled_dice(counts))


def overlap_counts(logits: Tensor, labels: Tensor, label_set: LabelSet) -> Tensor:
    """Counts (3, classes) of true positives, false positives and false negatives of every foreground class.

    A class is predicted where its logit is the highest, a region where its logit is above 0. Voxels that are not
    annotated count nowhere.

    Args:
        logits: (b, heads, *shape).
        labels: (b, *shape), training values, none negative.
        label_set: classes in the order of the counts.
    """
    is_labeled = region_masks(labels, label_set)
    is_predicted = logits > 0 if label_set.has_regions else region_masks(logits.argmax(1), label_set)
    if label_set.ignore is not None:
        is_predicted &= (labels != label_set.ignore)[:, None]
    both, predicted, labeled = (
        masks.sum((0, *range(2, masks.ndim))) for masks in (is_predicted & is_labeled, is_predicted, is_labeled)
    )
    return torch.stack((both, predicted - both, labeled - both))


def pooled_dice(counts: Tensor) -> tuple[float | None, ...]:
    """2 TP / (2 TP + FP + FN) per column of counts (3, classes); None where all are 0."""
    return tuple(dice(true, true + false, true + missed) for true, false, missed in counts.T.tolist())


def smoothed(previous: float | None, current: float | None) -> float | None:
    """The exponential moving average of the online Dice over epochs."""
    if current is None:
        return previous
    return current if previous is None else EMA_KEPT * previous + (1 - EMA_KEPT) * current


def class_dice(names: Sequence[str], scores: OnlineScores | None) -> dict[str, float | None]:
    """Online Dice by class name."""
    return dict(zip(names, scores.dice, strict=True)) if scores else dict.fromkeys(names)
