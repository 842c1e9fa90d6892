"""The statistics that every planning decision rests on: of single cases, small enough to keep, and of the dataset."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import Geometry
from autoseg.core.limits import Name
from autoseg.core.records import content_hash, to_data
from autoseg.data.labels import value_counts
from autoseg.images.crop import nonzero_box, slices
from autoseg.images.orientation import (
    AS_STORED,
    Direction,
    direction_along,
    direction_among,
    orientation_of,
    turn_to,
)
from autoseg.images.volume import Volume

FINGERPRINT_VERSION = 1

QUANTILE_LEVELS = (0.0, 0.005, 0.05, 0.25, 0.5, 0.75, 0.95, 0.995, 1.0)
"""Levels of the per-case intensity quantiles kept for quality checks of new data."""

_EDGES = (1 - np.cos(np.linspace(0, np.pi, 513))) / 2

FOREGROUND_LEVELS = np.concatenate(([0.0], (_EDGES[1:] + _EDGES[:-1]) / 2, [1.0]))
"""Levels of the foreground quantiles, dense at both tails: around 0.5 % they are 0.04 % apart (assumption: enough)."""

FOREGROUND_SHARES = np.concatenate(([0.0], np.diff(_EDGES), [0.0]))
"""Share of the voxels that the value at each level stands for; minimum and maximum are kept, but stand for none."""

MOST_VALUES_SORTED = 1 << 20
"""Quantiles of larger sets are taken from so many values drawn with a fixed seed (error below 0.1 % in rank)."""

LEAST_ALONG = math.cos(math.radians(35))
"""An axis is taken to run from left to right if it is turned away by up to 35 degrees (assumption)."""

LEAST_UPRIGHT = math.cos(math.radians(20))
"""Cases lie oblique on the whole if an axis is turned away by more than 20 degrees from the body's (assumption)."""

_SEED = 1234


@dataclass(frozen=True, slots=True)
class IntensityStatistics:
    """Intensities of one channel over the foreground voxels (labels > 0) of all training cases."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, slots=True)
class CaseStatistics:
    """One training case, axes z, y, x as they are stored in its files or, if it is turned, would be then.

    Attributes:
        identifier: the case.
        shape: voxels before the crop to nonzero.
        shape_after_crop: voxels after it.
        spacing_mm: voxel spacing.
        relative_size: voxels after the crop / voxels before.
        quantiles: for each channel, intensities of the cropped image at `QUANTILE_LEVELS`.
        class_voxels: voxels of each training value that occurs, as {"1": 1725}.
        content: hash of the bytes of all its files; anything derived from the case is keyed by it.
        left_right_axis: axis that runs from the patient's left to right or back, 0 = z; None if oblique or not known.
        orientation: where the axes x, y, z of its files run to ("LPS"); None where they do not say.
        turned_to: the orientation it is turned to, which is that of most cases; None if it is used as stored.
        direction: of the axes z, y, x of its files, as `Geometry` has it, where they lie oblique in the body.
    """

    identifier: Name
    shape: tuple[int, int, int]
    shape_after_crop: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    relative_size: float
    quantiles: tuple[tuple[float, ...], ...] = ()
    class_voxels: dict[str, int] | None = None
    content: str = ""
    left_right_axis: int | None = None
    orientation: str | None = None
    turned_to: str | None = None
    direction: Direction | None = None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Statistics of a dataset.

    Attributes:
        version: of this record.
        cases: usable training cases, sorted by identifier.
        intensities: foreground statistics, one per channel.
        relative_size: median over the cases of voxels after / before the crop to nonzero.
        orientation: that of most cases, which the others are turned to; None if no case states one.
        direction: what cases are turned as near to as whole axes allow, where most lie oblique; else None.
    """

    version: int
    cases: tuple[CaseStatistics, ...]
    intensities: tuple[IntensityStatistics, ...]
    relative_size: float
    orientation: str | None = None
    direction: Direction | None = None


@dataclass(frozen=True, slots=True)
class IntensityQuantiles:
    """Intensities of one channel of one case over its foreground, in 2 KiB.

    So much of every case is kept in check.json: when one case changes, the statistics of the dataset follow from these
    without reading the other cases again.

    Attributes:
        mean: of all foreground voxels.
        mean_square: mean of their squares.
        quantiles: values at `FOREGROUND_LEVELS`, float32 in base64.
    """

    mean: float
    mean_square: float
    quantiles: str


def fingerprint_hash(fingerprint: Fingerprint) -> str:
    """The hash that plans are tied to their fingerprint by.

    Which axis runs from left to right, and how files are stored, is left out, because it follows from files whose
    hashes are in it. To what cases are turned follows from other cases, so it counts; where nothing is turned, the hash
    is that of fingerprints that knew nothing of orientations.
    """
    data = to_data(fingerprint)
    del data["orientation"], data["direction"]
    for case in data["cases"]:
        del case["left_right_axis"], case["orientation"], case["direction"]
        if case["turned_to"] is None:
            del case["turned_to"]
    return content_hash(data)


def usual_orientation(cases: Sequence[CaseStatistics]) -> tuple[str | None, Direction | None]:
    """How most of the cases are stored that say so, and of equally many the first; None if no case does.

    Where these lie oblique on the whole, the second is the direction in their middle: as the nearest axis of the body
    then differs from case to case, it is no guide to what is stored alike.
    """
    counts = Counter(case.orientation for case in cases if case.orientation is not None)
    usual = max(counts, key=lambda codes: counts[codes], default=None)
    if usual is None:
        return None, None
    along = direction_along(usual)
    middle = direction_among([case.direction or along for case in cases if case.orientation == usual])
    cosines = np.sum(np.reshape(middle, (3, 3)) * np.reshape(along, (3, 3)), axis=1)
    return usual, middle if cosines.min() < LEAST_UPRIGHT else None


def wanted_orientation(case: CaseStatistics, usual: str | None, direction: Direction | None) -> str | None:
    """The orientation that a case is to be turned to for `usual_orientation`; None if it is used as stored."""
    if case.orientation is None or usual is None:
        return None
    shape = np.array(case.shape)
    if case.turned_to is not None:
        before = turn_to(Geometry((2, 2, 2), direction=direction_along(case.orientation)), case.turned_to)
        shape[list(before.order)] = case.shape
    z, y, x = shape.tolist()
    stored = Geometry((z, y, x), direction=case.direction or direction_along(case.orientation))
    turn = turn_to(stored, usual, direction)
    return None if turn == AS_STORED else orientation_of(turn.grid(stored))


Foreground = tuple[IntensityQuantiles, ...]
"""Intensities of a case over its foreground, one entry per channel; empty without foreground."""


def case_statistics(
    identifier: str, volume: Volume, labels: NDArray[np.integer], content: str = "", codes: str | None = None
) -> tuple[CaseStatistics, Foreground]:
    """The statistics of one case, and the intensities of its foreground inside the crop to nonzero.

    Args:
        identifier: of the case.
        volume: image as read.
        labels: (z, y, x) training values; every value above 0 is foreground, the ignore value too.
        content: hash of the case's files.
        codes: orientation that the case is turned to before; None to take it as it is stored.

    Source: nnU-Net v2 experiment_planning/dataset_fingerprint/fingerprint_extractor.py.
    """
    stored, turn = volume.geometry, turn_to(volume.geometry, codes)
    volume, labels = turn.apply(volume), np.ascontiguousarray(turn.view(labels))
    box = nonzero_box(volume.array)
    image, inside = volume.array[slices(box)], labels[slices(box)]
    foreground = inside > 0
    z, y, x = inside.shape
    statistics = CaseStatistics(
        identifier=identifier,
        shape=volume.geometry.shape,
        shape_after_crop=(z, y, x),
        spacing_mm=volume.geometry.spacing_mm,
        relative_size=inside.size / labels.size,
        quantiles=tuple(tuple(map(float, _quantiles(channel.ravel(), QUANTILE_LEVELS))) for channel in image),
        class_voxels={str(value): count for value, count in value_counts(labels).items()},
        content=content,
        left_right_axis=left_right_axis(volume.geometry),
        orientation=orientation_of(stored),
        turned_to=None if turn == AS_STORED else codes,
        direction=_oblique(stored),
    )
    return statistics, tuple(_quantiles_of(channel[foreground]) for channel in image) if foreground.any() else ()


def left_right_axis(geometry: Geometry) -> int | None:
    """The axis (0 = z) that runs along the patient's left and right, or None if the image lies too oblique.

    Files without an orientation are read with x from right to left, as radiographs are stored.
    """
    along = [abs(row[0]) for row in np.array(geometry.direction).reshape(3, 3).tolist()]
    nearest = int(np.argmax(along))
    return nearest if along[nearest] >= LEAST_ALONG else None


def _oblique(geometry: Geometry) -> Direction | None:
    """The direction of a grid that states its orientation, unless it lies along the axes of the body."""
    codes = orientation_of(geometry)
    is_upright = codes is None or np.allclose(geometry.direction, direction_along(codes), atol=1e-3)
    return None if is_upright else geometry.direction


def combine(cases: Iterable[tuple[CaseStatistics, Foreground]], channels: int) -> Fingerprint:
    """The fingerprint of a dataset; the order of the cases does not matter.

    Every case with foreground weighs the same, however large it is, as in nnU-Net, which draws equally many voxels of
    each case at random; here nothing is random. Without any foreground all intensities are given as 0.

    Args:
        cases: `case_statistics` of each.
        channels: number of channels.

    Source: nnU-Net v2 experiment_planning/dataset_fingerprint/fingerprint_extractor.py.
    """
    ordered = sorted(cases, key=lambda case: case[0].identifier)
    usual, direction = usual_orientation([statistics for statistics, _ in ordered])
    foregrounds = [foreground for _, foreground in ordered if foreground]
    return Fingerprint(
        version=FINGERPRINT_VERSION,
        cases=tuple(statistics for statistics, _ in ordered),
        intensities=tuple(_intensities([entry[channel] for entry in foregrounds]) for channel in range(channels)),
        relative_size=float(np.median([statistics.relative_size for statistics, _ in ordered])) if ordered else 1.0,
        orientation=usual,
        direction=direction,
    )


def _quantiles(values: NDArray[np.float32], levels: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float32]:
    """Quantiles among the values themselves, so that integers stay integers; the extremes are always exact."""
    drawn = values
    if values.size > MOST_VALUES_SORTED:
        drawn = values[np.random.default_rng(_SEED).integers(0, values.size, MOST_VALUES_SORTED)]
    ranks = np.minimum(np.asarray(levels) * drawn.size, drawn.size - 1).astype(np.intp)
    # of a million values, nine are selected in a fifth of the time of a sort; hundreds take longer than that
    ordered = np.partition(drawn, ranks) if len(ranks) <= len(QUANTILE_LEVELS) else np.sort(drawn)
    ordered[0], ordered[-1] = values.min(), values.max()
    quantiles: NDArray[np.float32] = ordered[ranks]
    return quantiles


def _quantiles_of(values: NDArray[np.float32]) -> IntensityQuantiles:
    return IntensityQuantiles(
        mean=float(values.mean(dtype=np.float64)),
        mean_square=float(np.mean(np.square(values, dtype=np.float64))),
        quantiles=base64.b64encode(_quantiles(values, FOREGROUND_LEVELS).astype("<f4").tobytes()).decode(),
    )


def _intensities(cases: Sequence[IntensityQuantiles]) -> IntensityStatistics:
    """Statistics of one channel over the equally weighted cases."""
    if not cases:
        return IntensityStatistics(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    quantiles = np.stack([np.frombuffer(base64.b64decode(case.quantiles), "<f4") for case in cases])
    mean = float(np.mean([case.mean for case in cases]))
    variance = float(np.mean([case.mean_square for case in cases])) - mean**2
    low, median, high = _pooled_quantiles(quantiles, (0.005, 0.5, 0.995))
    return IntensityStatistics(
        mean=mean,
        median=median,
        std=max(variance, 0.0) ** 0.5,
        min=float(quantiles.min()),
        max=float(quantiles.max()),
        percentile_00_5=low,
        percentile_99_5=high,
    )


def _pooled_quantiles(quantiles: NDArray[np.float32], levels: Sequence[float]) -> list[float]:
    """Quantiles of all cases together, each weighing the same, from their own quantiles (case, level).

    Every kept value stands for its share of its case's voxels: sorted together, their running sum is the distribution.
    """
    order = np.argsort(quantiles, axis=None, kind="stable")
    reached = np.cumsum(np.tile(FOREGROUND_SHARES, len(quantiles))[order]) / len(quantiles)
    positions = np.searchsorted(reached, levels)
    return [float(value) for value in quantiles.ravel()[order][positions]]
