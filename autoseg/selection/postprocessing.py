"""Which postprocessing helps: tried on out-of-fold predictions, accepted only if it helps cases not used to decide."""

from __future__ import annotations

import logging
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
from autoseg.images.crop import Box, nonzero_box, slices
from autoseg.inference.postprocessing import (
    POSTPROCESSING,
    LabelMap,
    ObjectSizes,
    PostprocessingStep,
    class_mask,
    postprocess,
    voxel_volume,
)
from autoseg.selection.record import PostprocessingTrial

_LEAST_GAIN = 1e-6
"""Gains below this are rounding."""

Table = NDArray[np.float64]  # Dice (cases, classes), NaN where undefined
Indices = NDArray[np.integer[Any]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PredictedCase:
    """An out-of-fold prediction and its reference, cut to the foreground and compressed: all cases are held at once.

    Attributes:
        identifier: of the case.
        content: training values of prediction and reference (2, z, y, x), compressed to about a hundredth.
        kind: type of the values.
        geometry: grid of the whole label maps.
        box: of the cut in it.
    """

    identifier: str
    content: bytes
    kind: str
    geometry: Geometry
    box: Box

    def open(self) -> tuple[LabelMap, LabelMap]:
        """Prediction and reference (z, y, x) inside the box, read-only."""
        shape = [behind - first for first, behind in self.box]
        prediction, reference = np.frombuffer(zlib.decompress(self.content), self.kind).reshape(2, *shape)
        return prediction, reference

    def postprocessed(self, step: PostprocessingStep, labels: LabelSet) -> LabelMap:
        """The prediction inside the box after one more step."""
        return postprocess(self.open()[0], [step], labels, self.geometry.spacing_mm)

    @property
    def label_map(self) -> LabelMap:
        """The prediction (z, y, x) on the whole grid."""
        inside = self.open()[0]
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
    both = np.stack([prediction, reference])
    # One voxel of margin: what touches the edge of the box is then what touches the border of the image.
    around = zip(nonzero_box(both), prediction.shape, strict=True)
    box = tuple((max(0, first - 1), min(length, behind + 1)) for (first, behind), length in around)
    cut = both[:, *slices(box)]
    return PredictedCase(identifier, _compressed(cut), both.dtype.str, geometry, box)


def _compressed(labels: LabelMap) -> bytes:
    return zlib.compress(np.ascontiguousarray(labels).data, 1)


@dataclass(slots=True)
class PostprocessingSearch:
    """Tries one step after the other; each is accepted, or the predictions stay as they are.

    A class offers variants of a step (several minimum volumes), of which at most one is accepted. Each decision is also
    made without each group of cases in turn: what it gains on the cases of the group is the nested gain, and a step
    without nested gain is not accepted.

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

    def run(self) -> None:
        """Tries every kind on the whole foreground where it is meant for that, then on each class by itself.

        Source: nnU-Net v2 postprocessing/remove_connected_components.py, `determine_postprocessing` (largest
        components); minimum volumes and the nested estimate are our own.
        """
        if not np.isfinite(self.dice).any():
            return
        names = self.labels.foreground
        for kind in POSTPROCESSING.values():
            for step in kind.proposals(names, self._sizes(names)) if kind.is_for_foreground else ():
                _log.info("postprocessing: %s?", step.title)
                self._try_foreground(step)
        for index, name in enumerate(names):
            sizes = self._sizes((name,))
            for title, kind in POSTPROCESSING.items():
                if kind.is_for_foreground and len(names) == 1:
                    continue  # the class is the whole foreground
                if steps := kind.proposals((name,), sizes):
                    _log.info("postprocessing: %s of %s?", title.replace("_", " "), name)
                    self._try_class(index, steps)

    def _try_foreground(self, step: PostprocessingStep) -> None:
        after = self._each(partial(_dice_after, step=step, labels=self.labels))
        accepted_without = [_helps_foreground(self.dice[own], after[own]) for own in self._others()]
        before, now = foreground_mean(self.dice), foreground_mean(after)
        gain = foreground_mean(self._nested(after, accepted_without, self.dice)) - before
        helps = _helps_foreground(self.dice, after)
        flaw = "" if helps or now <= before + _LEAST_GAIN else "; a class loses"
        if self._decide(step, (before, now, gain), helps, flaw):
            self._accept(step, self._nested(after, accepted_without, self.nested))

    def _try_class(self, index: int, steps: Sequence[PostprocessingStep]) -> None:
        """Tries steps for one class, of which at most one is accepted: the best on all cases.

        In the nested estimate each group's cases get the step that is best without them, which may be another one.
        """
        variants = self._each(partial(class_dice, steps=steps, labels=self.labels))  # (cases, steps)
        if not np.isfinite(variants).any():
            return
        own = self.dice[:, index]
        best = _best_variant(own, variants)
        tried = int(np.nanargmax(_means(variants))) if best is None else best
        after = self._after(steps[tried], index, variants[:, tried])
        # a step for one region can take voxels from another that overlaps it
        harms = foreground_mean(after) < foreground_mean(self.dice) - _LEAST_GAIN
        chosen = [_best_variant(own[others], variants[others]) for others in self._others()]
        gain = _mean(self._with_variants(own, variants, chosen)) - _mean(own)
        measured = (_mean(own), _mean(variants[:, tried]), gain)
        flaw = "; other classes lose" if harms and best is not None else ""
        if self._decide(steps[tried], measured, best is not None and not harms, flaw):
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

    def _decide(self, step: PostprocessingStep, measured: tuple[float, float, float], helps: bool, flaw: str) -> bool:
        """Records the trial; whether its step is accepted."""
        before, after, gain = measured
        is_accepted = helps and gain > _LEAST_GAIN
        because = f"Dice {before:.4f} -> {after:.4f}"
        if abs(after - before) <= _LEAST_GAIN:
            because = "it changes nothing"
        elif not helps:
            because += flaw
        else:
            because += f", {'' if is_accepted else 'but '}{gain:+.4f} on cases that had no part in the decision"
        gain = gain if np.isfinite(gain) else 0.0
        self.trials.append(PostprocessingTrial(step, before, after, gain, is_accepted, because))
        return is_accepted

    def _accept(self, step: PostprocessingStep, nested: Table) -> None:
        with ThreadPoolExecutor(self.threads) as pool:
            self.cases = list(pool.map(partial(_with_step, step=step, labels=self.labels), self.cases))
        self.dice, self.nested = self._each(partial(case_dice, labels=self.labels)), nested

    def _nested(self, after: Table, accepted: Sequence[bool], base: Table) -> Table:
        """`base` with what a step changes in the groups without which it is accepted."""
        # only what the step changes is taken over, as `base` may hold other steps of the same cases already
        is_changed = ~((after == self.dice) | (np.isnan(after) & np.isnan(self.dice)))
        is_changed &= np.array(accepted, bool)[self.groups][:, None]
        return np.where(is_changed, after, base)

    def _others(self) -> list[Indices]:
        """For each group the cases that are not in it."""
        return [np.flatnonzero(self.groups != group) for group in range(int(self.groups.max(initial=0)) + 1)]

    def _each(self, measure: Callable[[PredictedCase], Sequence[float]]) -> Table:
        with ThreadPoolExecutor(self.threads) as pool:
            return np.array(list(pool.map(measure, self.cases)), np.float64)

    def _sizes(self, classes: tuple[str, ...]) -> ObjectSizes:
        volume_and_voxel = self._each(partial(_reference_volume, classes=classes, labels=self.labels))
        volumes = tuple(volume for volume in volume_and_voxel[:, 0].tolist() if volume > 0)
        return ObjectSizes(volumes, float(np.median(volume_and_voxel[:, 1])))


def case_dice(case: PredictedCase, labels: LabelSet) -> list[float]:
    """Dice of each foreground class; NaN where undefined."""
    return _dice(*case.open(), labels)


def class_dice(case: PredictedCase, steps: Sequence[PostprocessingStep], labels: LabelSet) -> list[float]:
    """Dice of the steps' class after each of them, from one analysis of its mask; NaN where undefined.

    Args:
        case: not changed.
        steps: of one kind and the same classes.
        labels: classes of the plan.
    """
    prediction, reference = case.open()
    mask, truth = (class_mask(array, steps[0].classes, labels) for array in (prediction, reference))
    voxel_mm3 = voxel_volume(prediction.shape, case.geometry.spacing_mm)
    kept_by = POSTPROCESSING[steps[0].kind].analyze(mask, voxel_mm3)
    counted = True if labels.ignore is None else reference != labels.ignore
    found = []
    for step in steps:
        kept = kept_by(step) & counted
        own = dice(*(int(np.count_nonzero(voxels)) for voxels in (kept & truth, kept, truth)))
        found.append(np.nan if own is None else own)
    return found


def _dice(prediction: LabelMap, reference: LabelMap, labels: LabelSet) -> list[float]:
    dice_of = [own.dice for own in overlaps(prediction, reference, labels).values()]
    return [np.nan if own is None else own for own in dice_of]


def _dice_after(case: PredictedCase, step: PostprocessingStep, labels: LabelSet) -> list[float]:
    return _dice(case.postprocessed(step, labels), case.open()[1], labels)


def _with_step(case: PredictedCase, step: PostprocessingStep, labels: LabelSet) -> PredictedCase:
    both = np.stack([case.postprocessed(step, labels), case.open()[1]])
    return replace(case, content=_compressed(both))


def _reference_volume(case: PredictedCase, classes: Sequence[str], labels: LabelSet) -> tuple[float, float]:
    """Volume of some classes in the reference, and of a voxel."""
    reference = case.open()[1]
    voxel = voxel_volume(reference.shape, case.geometry.spacing_mm)
    return np.count_nonzero(class_mask(reference, classes, labels)) * voxel, voxel


def _helps_foreground(before: Table, after: Table) -> bool:
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
