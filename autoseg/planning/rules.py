"""The rules: each makes one decision, and says why.

Every rule is a pure function that returns `Chosen(value, because)`. Unless a docstring says otherwise the rules are
nnU-Net v2's (Isensee et al. 2021, Nature Methods; default_experiment_planner.py of version 2.8.1) and reproduce its
decisions exactly. Axes: spacings and shapes of cases come in file order (z, y, x);
everything about a configuration is in the plan's transposed order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from autoseg.core.geometry import is_picture
from autoseg.data.fingerprint import CaseStatistics, Fingerprint
from autoseg.data.model import Case, LabelSet
from autoseg.data.naming import has_whole_name
from autoseg.images.orientation import spelled
from autoseg.planning.lateral import can_swap, find_pairs, heart_pairs
from autoseg.planning.presets import FittedPatch, Preset

T = TypeVar("T")

ANISOTROPY = 3.0
"""A spacing more than 3 times the others, over an axis with less than a third of their voxels, is anisotropic."""

CROPPED_TO = 0.75
"""Below this median share of voxels kept by the crop to nonzero, the zeros around are background, not data."""

LARGEST_3D_EDGE = 256
LARGEST_2D_EDGE = 2048
"""Edges of the cube or square that the search for a patch starts from."""

LOWRES_BELOW = 0.25
"""A patch that sees less than this share of the median case lacks context: a low-resolution stage is planned."""

LOWRES_STEP = 1.03
"""The target spacing of the low-resolution stage grows by this factor until a patch sees enough."""

LOWRES_GAIN = 2.0
"""A low-resolution stage with less than this factor fewer voxels is not worth having."""

LOWRES_SIMILAR = 2.0
"""Axes whose spacings differ by less than this factor grow coarser together in the low-resolution stage."""

SMALLEST_BATCH = 2
LARGEST_GUARDED_2D_BATCH = 64
"""Assumption: larger 2D batches gain nothing and cost hours; guarded presets stop there (nnU-Net issue 1811)."""

NORMALIZATION_OF_CHANNEL = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_0_1",
    "rgb_to_0_1": "rgb_0_1",
}
_WHY_NORMALIZED = {
    "ct": "CT numbers mean the same in every scanner, so the clipping range and scale come from all training cases",
    "none": "the channel's name asks for no normalization",
    "zscore": "intensities have no common unit, so every case is brought to mean 0 and standard deviation 1",
    "rescale_0_1": "the channel's name asks for a linear map of each case onto 0..1",
    "rgb_0_1": "colors are 8-bit and are divided by 255",
}


@dataclass(frozen=True, slots=True)
class Chosen(Generic[T]):
    """A decision and the sentence that explains it."""

    value: T
    because: str


@dataclass(frozen=True, slots=True)
class Lateral:
    """What is known about left and right.

    Attributes:
        axis: the plan's axis from left to right, None if it is not known or of no interest.
        pairs: names (left, right) of classes that mirroring exchanges.
        unpaired: classes that lie on one side and have no counterpart that mirroring could make of them.
    """

    axis: int | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    unpaired: tuple[str, ...] = ()


def target_spacing(spacings_mm: np.ndarray, shapes: np.ndarray) -> Chosen[tuple[float, float, float]]:
    """The median spacing; across thick slices the 10th percentile, so that thin-sliced cases keep their detail.

    Args:
        spacings_mm: (cases, 3) in file order.
        shapes: (cases, 3) voxels after the crop.
    """
    target = np.percentile(spacings_mm, 50, axis=0)
    voxels = np.percentile(shapes, 50, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarsest_other = float(max(target[others]))
    is_coarse = target[worst] > ANISOTROPY * coarsest_other
    has_few_slices = voxels[worst] * ANISOTROPY < min(voxels[others])
    if not (is_coarse and has_few_slices):
        return Chosen(_triple(target), "the median spacing of the training cases, axis by axis")
    median = float(target[worst])
    tenth = float(np.percentile(spacings_mm[:, worst], 10))
    target[worst] = coarsest_other + 1e-5 if tenth < coarsest_other else tenth
    if shapes[:, worst].max() == 1:
        return Chosen(_triple(target), "the median spacing along the axes of the pictures; they have one slice each")
    because = (
        f"the median spacing, except across the slices: there the median of {median:.4g} mm is more than "
        f"{ANISOTROPY:g} times the {coarsest_other:.4g} mm of the other axes, so the 10th percentile "
        f"{target[worst]:.4g} mm is used and the thinner slices keep their detail"
    )
    return Chosen(_triple(target), because)


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in values)
    return z, y, x


def axis_order(target_mm: Sequence[float]) -> Chosen[tuple[int, int, int]]:
    """The axis with the coarsest target spacing comes first, so that 2D slices are cut across it."""
    coarsest = int(np.argmax(target_mm))
    rest = [axis for axis in range(3) if axis != coarsest]
    step_mm, cut = target_mm[coarsest], "so 2D slices are cut across it"
    because = f"axis {'zyx'[coarsest]} has the coarsest target spacing ({step_mm:.4g} mm), {cut}"
    if is_picture((1, 1, 1), _triple(np.asarray(target_mm))):  # the spacing stands for no thickness
        because = f"pictures have one slice along axis {'zyx'[coarsest]}, {cut}"
    return Chosen((coarsest, rest[0], rest[1]), because)


def median_shape(
    spacings_mm: np.ndarray, shapes: np.ndarray, target_mm: Sequence[float], order: Sequence[int]
) -> tuple[float, ...]:
    """Median voxels of the cases after resampling, in the plan's axis order; may hold halves."""
    resampled = [
        [round(float(old / new * edge)) for old, new, edge in zip(spacing, target_mm, shape, strict=True)]
        for spacing, shape in zip(spacings_mm, shapes, strict=True)
    ]
    median = np.median(resampled, axis=0)
    return tuple(float(median[axis]) for axis in order)


def normalization(channels: Sequence[str]) -> Chosen[tuple[str, ...]]:
    """The channel's name decides: CT by the whole dataset's statistics, anything unknown by the case's own."""
    schemes = tuple(NORMALIZATION_OF_CHANNEL.get(channel.strip().casefold(), "zscore") for channel in channels)
    reasons = [
        f"{channel}: {scheme}, {_WHY_NORMALIZED[scheme]}" for channel, scheme in zip(channels, schemes, strict=True)
    ]
    return Chosen(schemes, "; ".join(reasons))


def use_nonzero_mask(schemes: Sequence[str], relative_size: float) -> Chosen[tuple[bool, ...]]:
    """Z-scores are taken inside the nonzero mask when the crop removed more than a quarter of the voxels."""
    is_cropped = relative_size < CROPPED_TO
    chosen = tuple(is_cropped and scheme == "zscore" for scheme in schemes)
    compared = "less" if is_cropped else "not less"
    consequence = "z-scores use nonzero voxels only" if any(chosen) else "all voxels are normalized"
    because = (
        f"the crop to nonzero keeps a median of {relative_size:.0%} of the voxels, {compared} than {CROPPED_TO:.0%}: "
        f"{consequence}"
    )
    return Chosen(chosen, because)


def initial_patch_size(spacing_mm: Sequence[float], median: Sequence[float]) -> tuple[float, ...]:
    """A patch cubic in millimeters, as large as 256 voxels cubed (2048 squared), cut to the median shape."""
    dimensions = len(spacing_mm)
    density = 1 / np.array(spacing_mm)
    largest = float({2: LARGEST_2D_EDGE**2, 3: LARGEST_3D_EDGE**3}[dimensions])
    scaled = density * (largest / np.prod(density)) ** (1 / dimensions)
    return tuple(float(min(round(float(edge)), limit)) for edge, limit in zip(scaled, median, strict=True))


def shrink_patch(
    preset: Preset, spacing_mm: Sequence[float], fitted: FittedPatch, median: Sequence[float]
) -> FittedPatch | None:
    """One step smaller along the axis that is largest relative to the median case.

    An axis that would leave too little for any network is spared, and the next one shrinks; None if every axis is such.

    Args:
        preset: constants.
        spacing_mm: one per axis.
        fitted: the network and its patch.
        median: voxels of the median case; infinite for an axis that shall not shrink.
    """
    network, patch = fitted
    axes = sorted(range(len(patch)), key=lambda index: (patch[index] / median[index], index), reverse=True)
    for axis in axes:
        smaller = _shortened(patch, axis, network.total_stride[axis])
        found = preset.network_for_patch(spacing_mm, smaller)
        step = found[0].total_stride[axis]
        if step != network.total_stride[axis]:
            # the smaller patch is pooled less often: its own stride is the step, or valid sizes would be skipped
            smaller = _shortened(patch, axis, step)
            found = preset.network_for_patch(spacing_mm, smaller)
        if smaller[axis] > 0 and preset.enlarged_patch(spacing_mm, smaller) is None:
            return found
    return None


def _shortened(patch: Sequence[int], axis: int, voxels: int) -> tuple[int, ...]:
    return (*patch[:axis], patch[axis] - voxels, *patch[axis + 1 :])


def budget_elements(preset: Preset, dimensions: int, memory_gib: float) -> float:
    """Feature-map elements that fit at the reference batch, in proportion to the memory target."""
    return preset.reference_elements(dimensions) * (memory_gib / preset.reference_memory_gib)


def is_too_large(elements: int, preset: Preset, patch: Sequence[int], budget: float) -> bool:
    """Whether a patch with this estimate must shrink."""
    if preset.fits_at_batch is None:
        return elements > budget
    return elements / preset.reference_batch(len(patch)) * preset.fits_at_batch > budget


def batch_size(
    elements: int, preset: Preset, budget: float, patch: Sequence[int], dataset_voxels: float
) -> Chosen[int]:
    """What fits the memory target, at most the preset's share of the dataset, at least 2.

    Args:
        elements: feature-map estimate of one patch.
        preset: constants.
        budget: elements that fit at the reference batch.
        patch: voxels, one per axis.
        dataset_voxels: voxels of all training cases at the target spacing.
    """
    dimensions = len(patch)
    fitting = round((budget / elements) * preset.reference_batch(dimensions))
    covered = round(dataset_voxels * preset.dataset_share / math.prod(patch))
    value, because = fitting, f"{fitting} patches fit the memory target"
    if covered < value:
        value = covered
        enough = f"{covered} already cover" if covered > 1 else "a single one already covers"
        because += f", but {enough} {preset.dataset_share:.0%} of all training voxels"
    limit = preset.largest_batch(dimensions) if preset.guarded else None
    if limit is not None and limit < value:
        value = limit
        because += f"; this preset stops at {limit}, because more steps beat larger batches on a slow machine"
    if value < SMALLEST_BATCH:
        value = SMALLEST_BATCH
        because += f"; the smallest batch is {SMALLEST_BATCH}"
    return Chosen(value, because)


def large_batch_warning(value: int, dimensions: int) -> str | None:
    """A warning about a huge 2D batch, or None."""
    if dimensions == 2 and value > LARGEST_GUARDED_2D_BATCH:
        return (
            f"a 2D batch of {value} is what nnU-Net plans, but more than {LARGEST_GUARDED_2D_BATCH} rarely helps "
            f"(assumption); pin batch_size to change it"
        )
    return None


def lowres_spacing(spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """One step coarser: the fine axes until all are within a factor of 2, then all together."""
    coarsest = max(spacing_mm)
    is_fine = [coarsest / own > LOWRES_SIMILAR for own in spacing_mm]
    if not any(is_fine):
        is_fine = [True] * len(spacing_mm)
    return tuple(own * LOWRES_STEP if fine else own for own, fine in zip(spacing_mm, is_fine, strict=True))


def needs_lowres(patch: Sequence[int], median_voxels: float) -> bool:
    """Whether a patch sees too little of the median case."""
    return float(np.prod(patch, dtype=np.float64)) / median_voxels < LOWRES_BELOW


def needs_3d(median: Sequence[float]) -> Chosen[bool]:
    """Datasets of single slices have nothing for a 3D network."""
    is_3d = median[0] != 1
    return Chosen(
        is_3d,
        f"the median case has {median[0]:g} slices" if is_3d else "the images are single slices: only 2D is planned",
    )


def whole_names(cases: Iterable[Case]) -> Chosen[bool]:
    """Whether a file's whole name is its case's, also where it ends in four digits (frame_0000).

    Otherwise such digits are the index of a channel, as nnU-Net names its files.
    """
    known = [found for case in cases if (found := has_whole_name(case.identifier, case.images)) is not None]
    because = "the training images end in four digits that belong to the names of the cases, so those of new images do"
    return Chosen(bool(known) and all(known), because)


def lateral_pairs(labels: LabelSet) -> Chosen[tuple[tuple[str, str], ...]]:
    """Classes that differ in naming left and right change places in mirrored images; chambers of the heart do not.

    nnU-Net teaches the network instead that left is right. Rule of AutoSeg.
    """
    pairs, of_heart = find_pairs(labels.foreground), heart_pairs(labels.foreground)
    named = ", ".join(f"{left} and {right}" for left, right in pairs or of_heart)
    if not pairs:
        return Chosen(
            (),
            f"{named} differ in more than their side, so they do not change places"
            if of_heart
            else "no two class names differ in left and right only",
        )
    if not can_swap(labels, pairs):
        return Chosen((), f"{named} are named by their side, but their regions are no mirror images of each other")
    return Chosen(pairs, f"{named} are named by their side, so mirroring makes one of the other")


def orientation(fingerprint: Fingerprint) -> Chosen[str | None]:
    """The orientation of most cases, which all others are turned to. Rule of AutoSeg; nnU-Net takes all as stored."""
    usual, cases = fingerprint.orientation, fingerprint.cases
    if usual is None:
        return Chosen(None, "no case states its orientation, so images are used as they are stored")
    others = [case.orientation for case in cases if case.turned_to is not None]
    unknown = sum(case.orientation is None for case in cases)
    untouched = sum(case.orientation not in (None, usual) for case in cases) - len(others)
    if others:
        ways = len(set(others))
        stored = spelled(others[0]) if ways == 1 else f"in {ways} other orientations"
        because = f"{_share(len(others), len(cases))} stored {stored} and turned to {spelled(usual)}"
    else:
        because = f"{_share(len(cases) - unknown - untouched, len(cases))} stored {spelled(usual)}"
    if untouched:
        because += f"; {_share(untouched, len(cases))} oblique, or a slice of another plane, and used as stored"
    if unknown:
        because += f"; {_share(unknown, len(cases))} of no stated orientation and used as stored"
    return Chosen(usual, because)


def _share(part: int, total: int) -> str:
    """Some of the cases with a verb: "all 6 cases are", "1 of 6 cases is"."""
    if part == total:
        return "the only case is" if total == 1 else f"all {total} cases are"
    return f"{part} of {total} cases {'is' if part == 1 else 'are'}"


def lateral_axis(fingerprint: Fingerprint) -> Chosen[int | None]:
    """The axis (0 = z) that runs from left to right, if it is the same one in all cases, turned as they are used.

    Files without a stated orientation are taken as radiographs are stored, but not among others that state one.

    Rule of AutoSeg.
    """
    usual = fingerprint.orientation
    found = sorted({_left_right_axis(case, usual) for case in fingerprint.cases}, key=str)
    if len(found) == 1 and found[0] is not None:
        along = f"axis {'zyx'[found[0]]} of the files runs from left to right in all cases"
        if usual is None:
            return Chosen(found[0], f"{along}, if they are stored as usual; none says so")
        is_turned = any(case.turned_to is not None for case in fingerprint.cases)
        turned = f", turned to {spelled(usual)} where they are stored otherwise" if is_turned else ""
        return Chosen(found[0], along + turned)
    if found == [None]:
        return Chosen(None, "which axis runs from left to right is not known")
    named = ", ".join("not known" if axis is None else "zyx"[axis] for axis in found)
    return Chosen(None, f"the axis from left to right differs from case to case: {named}")


def _left_right_axis(case: CaseStatistics, usual: str | None) -> int | None:
    """The axis of a case as it is used; not known where the files do not say, but those of other cases do."""
    return None if case.orientation is None and usual is not None else case.left_right_axis


def mirror_axes(preset: Preset, dimensions: int, lateral: Lateral) -> Chosen[tuple[int, ...]]:
    """All axes, or none where the preset leaves no time to learn mirrored anatomy.

    With lateral classes the axis from left to right has to be known: their labels change places where it is mirrored.
    A class of one side without a counterpart would change sides, so that this axis is left out.
    """
    if dimensions not in preset.mirrored_dimensions:
        return Chosen(
            (),
            "scans come in one orientation, and this preset's short training has no time to learn mirrored anatomy; "
            "pin mirror_axes for volumes without an orientation",
        )
    every = tuple(range(dimensions))
    why = "mirroring along every axis multiplies the training data"
    if not lateral.pairs and not lateral.unpaired:
        return Chosen(every, why)
    if lateral.axis is None:
        return Chosen(
            (),
            "mirroring might call left right, because no single axis is known to run from left to right in all cases; "
            "pin lateral_axis if one does",
        )
    across = lateral.axis - (3 - dimensions)
    if lateral.unpaired:
        kept = tuple(axis for axis in every if axis != across)
        named = f"{lateral.unpaired[0]} has no counterpart" + (", nor have others" if lateral.unpaired[1:] else "")
        return Chosen(kept, f"mirroring multiplies the training data, but not from left to right: {named}")
    exchanged = " and ".join(lateral.pairs[0]) + (" and the like" if lateral.pairs[1:] else "")
    return Chosen(every, f"{why}; along the axis from left to right {exchanged} change places")
