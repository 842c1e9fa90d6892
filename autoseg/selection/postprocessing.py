"""Which postprocessing helps, tried on out-of-fold predictions and believed only if it helps cases not looked at."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import Geometry
from autoseg.data.model import LabelSet
from autoseg.evaluation.confusion import dice, overlaps
from autoseg.evaluation.statistics import foreground_mean
from autoseg.images.components import components
from autoseg.images.crop import Box, nonzero_box, slices
from autoseg.inference.postprocessing import PostprocessingStep, class_mask, postprocess, voxel_volume
from autoseg.selection.record import PostprocessingTrial

LARGEST_MINIMUM_SHARE = 0.1
"""Largest minimum volume that is tried, as a share of a class's median volume in the references (assumption: what is
smaller than a tenth of the usual object is an invention or does not matter)."""

_LEAST_GAIN = 1e-6
"""Gains below this are rounding."""

LabelMap = NDArray[np.integer[Any]]
Table = NDArray[np.float64]  # Dice (cases, classes), NaN where undefined
Indices = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class PackedMap:
    """A label map, compressed, as all cases are held in memory together."""

    content: bytes
    shape: tuple[int, ...]
    kind: str

    def open(self) -> LabelMap:
        """The label map, read-only."""
        return np.frombuffer(zlib.decompress(self.content), self.kind).reshape(self.shape)


def pack(labels: LabelMap) -> PackedMap:
    """The label map, compressed to about a hundredth."""
    labels = np.ascontiguousarray(labels)
    return PackedMap(zlib.compress(labels.data, 1), labels.shape, labels.dtype.str)


@dataclass(frozen=True, slots=True)
class PredictedCase:
    """An out-of-fold prediction and its reference in training values, cut to the box that holds all foreground.

    Attributes:
        identifier: of the case.
        prediction: of the chosen ensemble, with the steps accepted so far.
        reference: the truth.
        geometry: grid of the whole label maps.
        box: of the cut in it.
    """

    identifier: str
    prediction: PackedMap
    reference: PackedMap
    geometry: Geometry
    box: Box

    @property
    def label_map(self) -> LabelMap:
        """The prediction (z, y, x) on the whole grid."""
        inside = self.prediction.open()
        whole = np.zeros(self.geometry.shape, inside.dtype)
        whole[slices(self.box)] = inside
        return whole


def predicted_case(identifier: str, prediction: LabelMap, reference: LabelMap, geometry: Geometry) -> PredictedCase:
    """A case ready for the search.

    Args:
        identifier: of the case.
        prediction: training values (z, y, x).
        reference: training values on the same grid, the ignore value included.
        geometry: the grid.
    """
    box = nonzero_box(np.stack([prediction, reference]))
    cut = slices(box)
    return PredictedCase(identifier, pack(prediction[cut]), pack(reference[cut]), geometry, box)


@dataclass(slots=True)
class Search:
    """Tries one step after the other; each is accepted, or the predictions stay as they are.

    Attributes:
        cases: out-of-fold predictions; replaced when a step is accepted.
        groups: (cases,) index of the group that each case is left out with.
        labels: classes of the plan.
        threads: that work on cases at once.
        dice: of the predictions as they are.
        nested: the same, but every case with only the steps that would be accepted without its group.
        trials: what was tried.
    """

    cases: list[PredictedCase]
    groups: Indices
    labels: LabelSet
    threads: int = 1
    dice: Table = field(init=False)
    nested: Table = field(init=False)
    trials: list[PostprocessingTrial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = self._each(partial(case_dice, labels=self.labels))
        self.nested = self.dice.copy()

    def run(self, told: Callable[[str], None] = lambda _title: None) -> None:
        """Tries everything: the largest component of the whole foreground, then each class by itself.

        Args:
            told: before each trial, what is tried.

        Source: nnU-Net v2 postprocessing/remove_connected_components.py, `determine_postprocessing` (largest
        components); minimum volumes and the nested estimate are our own.
        """
        names = self.labels.foreground
        whole = PostprocessingStep("largest_component", names)
        if not np.isfinite(self.dice).any():
            return
        told(whole.title)
        self._try_whole(whole)
        for index, name in enumerate(names):
            if len(names) > 1:
                step = PostprocessingStep("largest_component", (name,))
                told(step.title)
                self._try_class(index, [step])
            told(f"minimum volume of {name}")
            self._try_class(index, [PostprocessingStep("minimum_volume", (name,), own) for own in self._minima(name)])

    def _try_whole(self, step: PostprocessingStep) -> None:
        after = self._each(partial(_dice_after, step=step, labels=self.labels))
        accepted_without = [_whole_helps(self.dice[own], after[own]) for own in self._others()]
        nested = self._nested(after, accepted_without, self.dice)
        before, now = foreground_mean(self.dice), foreground_mean(after)
        gain = foreground_mean(nested) - before
        helps = _whole_helps(self.dice, after)
        told = "" if helps or now <= before + _LEAST_GAIN else "; a class loses"
        if self._conclude(step, (before, now, gain), helps, told):
            self._accept(step, self._nested(after, accepted_without, self.nested))

    def _try_class(self, index: int, steps: Sequence[PostprocessingStep]) -> None:
        """Tries steps for one class of which one at most is wanted; without a group, the best without it is taken."""
        if not steps:
            return
        variants = self._each(partial(_class_dice, steps=steps, labels=self.labels))  # (cases, steps)
        if not np.isfinite(_means(variants)).any():
            return
        own = self.dice[:, index]
        best = _best_variant(own, variants)
        tried = int(np.nanargmax(_means(variants))) if best is None else best
        after = self._after(steps[tried], index, variants[:, tried])
        harms = foreground_mean(after) < foreground_mean(self.dice) - _LEAST_GAIN
        chosen = [_best_variant(own[others], variants[others]) for others in self._others()]
        gain = _mean(self._with_variants(own, variants, chosen)) - _mean(own)
        measured = (_mean(own), _mean(variants[:, tried]), gain)
        told = "; other classes lose" if harms and best is not None else ""
        if self._conclude(steps[tried], measured, best is not None and not harms, told):
            nested = self._nested(after, [variant == tried for variant in chosen], self.nested)
            nested[:, index] = self._with_variants(self.nested[:, index], variants, chosen)
            self._accept(steps[tried], nested)

    def _after(self, step: PostprocessingStep, index: int, own: Table) -> Table:
        """Scores after a step for one class; only of regions, which overlap, are others touched by it."""
        if self.labels.has_regions:
            return self._each(partial(_dice_after, step=step, labels=self.labels))
        after = self.dice.copy()
        after[:, index] = own
        return after

    def _with_variants(self, values: Table, variants: Table, chosen: Sequence[int | None]) -> Table:
        """Scores (cases,) of a class with the variant chosen without each case's group."""
        replaced = values.copy()
        for group, variant in enumerate(chosen):
            if variant is not None:
                replaced[self.groups == group] = variants[self.groups == group, variant]
        return replaced

    def _conclude(self, step: PostprocessingStep, measured: tuple[float, float, float], helps: bool, told: str) -> bool:
        """Adds the trial; whether its step is accepted."""
        before, after, gain = measured
        is_accepted = helps and gain > _LEAST_GAIN
        if abs(after - before) <= _LEAST_GAIN:
            because = "it changes nothing"
        elif not helps:
            because = f"Dice {before:.4f} -> {after:.4f}{told}"
        elif not is_accepted:
            because = f"Dice {before:.4f} -> {after:.4f}, but {gain:+.4f} on cases that had no part in the decision"
        else:
            because = f"Dice {before:.4f} -> {after:.4f}, {gain:+.4f} on cases that had no part in the decision"
        gain = gain if np.isfinite(gain) else 0.0
        self.trials.append(PostprocessingTrial(step, before, after, gain, is_accepted, because))
        return is_accepted

    def _accept(self, step: PostprocessingStep, nested: Table) -> None:
        with ThreadPoolExecutor(self.threads) as pool:
            self.cases = list(pool.map(partial(_with_step, step=step, labels=self.labels), self.cases))
        self.dice, self.nested = self._each(partial(case_dice, labels=self.labels)), nested

    def _nested(self, after: Table, accepted: Sequence[bool], base: Table) -> Table:
        """`base` with what a step changes in the groups without which it is accepted."""
        is_changed = ~((after == self.dice) | (np.isnan(after) & np.isnan(self.dice)))
        is_changed &= np.array(accepted, bool)[self.groups][:, None]
        return np.where(is_changed, after, base)

    def _others(self) -> list[Indices]:
        """For each group the cases that are not in it."""
        return [np.flatnonzero(self.groups != group) for group in range(int(self.groups.max(initial=0)) + 1)]

    def _each(self, measure: Callable[[PredictedCase], Sequence[float]]) -> Table:
        with ThreadPoolExecutor(self.threads) as pool:
            return np.array(list(pool.map(measure, self.cases)), np.float64)

    def _minima(self, name: str) -> list[float]:
        """Minimum volumes worth trying: 2, 4, 8, ... voxels, up to a share of the class's median volume."""
        with ThreadPoolExecutor(self.threads) as pool:
            measured = list(pool.map(partial(_reference_volume, name=name, labels=self.labels), self.cases))
        volumes = [volume for volume, _ in measured if volume > 0]
        voxel = float(np.median([voxel for _, voxel in measured]))
        most = LARGEST_MINIMUM_SHARE * float(np.median(volumes)) if volumes else 0.0
        minima, size = [], 2 * voxel
        while size <= most:
            minima.append(round(size, 6))
            size *= 2
        return minima


def case_dice(case: PredictedCase, labels: LabelSet) -> list[float]:
    """Dice of each foreground class; NaN where undefined."""
    return _dice(case.prediction.open(), case.reference.open(), labels)


def _dice(prediction: LabelMap, reference: LabelMap, labels: LabelSet) -> list[float]:
    found = overlaps(prediction, reference, labels)
    return [np.nan if own.dice is None else own.dice for own in (found[name] for name in labels.foreground)]


def _dice_after(case: PredictedCase, step: PostprocessingStep, labels: LabelSet) -> list[float]:
    after = postprocess(case.prediction.open(), [step], labels, case.geometry.spacing_mm)
    return _dice(after, case.reference.open(), labels)


def _with_step(case: PredictedCase, step: PostprocessingStep, labels: LabelSet) -> PredictedCase:
    after = postprocess(case.prediction.open(), [step], labels, case.geometry.spacing_mm)
    return replace(case, prediction=pack(after))


def _class_dice(case: PredictedCase, steps: Sequence[PostprocessingStep], labels: LabelSet) -> list[float]:
    """Dice of the steps' class after each of them, from one look at its components."""
    prediction, reference = case.prediction.open(), case.reference.open()
    found = components(class_mask(prediction, steps[0].classes, labels))
    truth = class_mask(reference, steps[0].classes, labels)
    counted = np.ones_like(truth) if labels.ignore is None else reference != labels.ignore
    numbers, count = found.numbers, len(found.sizes)
    predicted = np.bincount(numbers[counted[found.box]], minlength=count + 1)[1:]
    hits = np.bincount(numbers[truth[found.box]], minlength=count + 1)[1:]
    voxel = voxel_volume(prediction.shape, case.geometry.spacing_mm)
    found_dice = []
    for step in steps:
        is_largest = step.kind == "largest_component"
        least = found.sizes.max(initial=0) if is_largest else (step.minimum_mm3 or 0.0) / voxel
        kept = found.sizes >= least
        own = dice(int(hits[kept].sum()), int(predicted[kept].sum()), int(truth.sum()))
        found_dice.append(np.nan if own is None else own)
    return found_dice


def _reference_volume(case: PredictedCase, name: str, labels: LabelSet) -> tuple[float, float]:
    """Volume of a class in the reference, and of a voxel."""
    reference = case.reference.open()
    voxel = voxel_volume(reference.shape, case.geometry.spacing_mm)
    return float(class_mask(reference, (name,), labels).sum()) * voxel, voxel


def _whole_helps(before: Table, after: Table) -> bool:
    """nnU-Net's criterion for the whole foreground: the mean over the classes rises and no class falls."""
    falls = _means(after) < _means(before) - _LEAST_GAIN
    return foreground_mean(after) > foreground_mean(before) + _LEAST_GAIN and not falls.any()


def _best_variant(before: Table, variants: Table) -> int | None:
    """The variant with the highest mean, the first of equal ones; None if none beats what was before."""
    means = _means(variants)
    if not np.isfinite(means).any():
        return None
    best = int(np.nanargmax(means))
    return best if means[best] > _mean(before) + _LEAST_GAIN else None


def _means(table: Table) -> Table:
    """Mean of each column over its defined entries; NaN where there is none."""
    return np.array([_mean(table[:, index]) for index in range(table.shape[1])])


def _mean(values: Table) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
