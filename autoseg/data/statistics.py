"""Statistics of single cases, small enough to keep, and of the whole dataset from them."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import Geometry
from autoseg.data.fingerprint import (
    FINGERPRINT_VERSION,
    QUANTILE_LEVELS,
    CaseStatistics,
    Fingerprint,
    IntensityStatistics,
)
from autoseg.data.labels import value_counts
from autoseg.images.crop import nonzero_box, slices
from autoseg.images.volume import Volume

_EDGES = (1 - np.cos(np.linspace(0, np.pi, 513))) / 2

SKETCH_LEVELS = np.concatenate(([0.0], (_EDGES[1:] + _EDGES[:-1]) / 2, [1.0]))
"""Quantile levels of a sketch, dense at both tails: around 0.5 % they are 0.04 % apart (assumption: enough)."""

SKETCH_SHARES = np.concatenate(([0.0], np.diff(_EDGES), [0.0]))
"""Share of the voxels that the value at each level stands for; the extremes are only kept to be known."""

MOST_VALUES_SORTED = 1 << 20
"""Quantiles of larger sets are taken from so many values drawn with a fixed seed (error below 0.1 % in rank)."""

LEAST_ALONG = math.cos(math.radians(35))
"""An axis is taken to run from left to right if it is turned away by up to 35 degrees (assumption)."""

_SEED = 1234


@dataclass(frozen=True, slots=True)
class Sketch:
    """Intensities of one channel of one case over its foreground, in 2 KiB.

    Attributes:
        mean: of all foreground voxels.
        mean_square: mean of their squares.
        quantiles: values at `SKETCH_LEVELS`, float32 in base64.
    """

    mean: float
    mean_square: float
    quantiles: str


@dataclass(frozen=True, slots=True)
class ExtractedCase:
    """What the fingerprint needs to know about one case.

    Attributes:
        statistics: the case's own entry of the fingerprint.
        foreground: one sketch per channel; empty without foreground.
    """

    statistics: CaseStatistics
    foreground: tuple[Sketch, ...]


def case_statistics(identifier: str, volume: Volume, labels: NDArray[np.integer], content: str = "") -> ExtractedCase:
    """The statistics of one case.

    Args:
        identifier: of the case.
        volume: image as read.
        labels: (z, y, x) training values; every value above 0 is foreground, the ignore value too.
        content: hash of the case's files.

    Source: nnU-Net v2 experiment_planning/dataset_fingerprint/fingerprint_extractor.py.
    """
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
    )
    has_foreground = bool(foreground.any())
    return ExtractedCase(statistics, tuple(_sketch(channel[foreground]) for channel in image) if has_foreground else ())


def left_right_axis(geometry: Geometry) -> int | None:
    """The axis (0 = z) that runs along the patient's left and right, or None if the image lies too oblique.

    Files without an orientation are read with x from right to left, as radiographs are stored.
    """
    along = [abs(row[0]) for row in np.array(geometry.direction).reshape(3, 3).tolist()]
    nearest = int(np.argmax(along))
    return nearest if along[nearest] >= LEAST_ALONG else None


def combine(cases: Iterable[ExtractedCase], channels: int) -> Fingerprint:
    """The fingerprint of a dataset; the order of the cases does not matter.

    Every case with foreground weighs the same, however large it is, as in nnU-Net, which draws equally many voxels of
    each case at random; here nothing is random. Without any foreground all intensities are given as 0.

    Args:
        cases: of the dataset.
        channels: number of channels.

    Source: nnU-Net v2 experiment_planning/dataset_fingerprint/fingerprint_extractor.py.
    """
    ordered = sorted(cases, key=lambda case: case.statistics.identifier)
    sketched = [case.foreground for case in ordered if case.foreground]
    return Fingerprint(
        version=FINGERPRINT_VERSION,
        cases=tuple(case.statistics for case in ordered),
        intensities=tuple(_intensities([sketches[channel] for sketches in sketched]) for channel in range(channels)),
        relative_size=float(np.median([case.statistics.relative_size for case in ordered])) if ordered else 1.0,
    )


def _quantiles(values: NDArray[np.float32], levels: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float32]:
    """Quantiles among the values themselves, so that integers stay integers; the extremes are always exact."""
    drawn = values
    if values.size > MOST_VALUES_SORTED:
        drawn = values[np.random.default_rng(_SEED).integers(0, values.size, MOST_VALUES_SORTED)]
    ordered = np.sort(drawn)
    ordered[0], ordered[-1] = values.min(), values.max()
    ranks = np.minimum(np.asarray(levels) * ordered.size, ordered.size - 1).astype(np.intp)
    quantiles: NDArray[np.float32] = ordered[ranks]
    return quantiles


def _sketch(values: NDArray[np.float32]) -> Sketch:
    return Sketch(
        mean=float(values.mean(dtype=np.float64)),
        mean_square=float(np.mean(np.square(values, dtype=np.float64))),
        quantiles=base64.b64encode(_quantiles(values, SKETCH_LEVELS).astype("<f4").tobytes()).decode(),
    )


def _intensities(sketches: Sequence[Sketch]) -> IntensityStatistics:
    if not sketches:
        return IntensityStatistics(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    quantiles = np.stack([np.frombuffer(base64.b64decode(sketch.quantiles), "<f4") for sketch in sketches])
    mean = float(np.mean([sketch.mean for sketch in sketches]))
    variance = float(np.mean([sketch.mean_square for sketch in sketches])) - mean**2
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
    """Quantiles of the equally weighted mixture of the cases, from their sketches (case, level)."""
    order = np.argsort(quantiles, axis=None, kind="stable")
    reached = np.cumsum(np.tile(SKETCH_SHARES, len(quantiles))[order]) / len(quantiles)
    positions = np.searchsorted(reached, levels)
    return [float(value) for value in quantiles.ravel()[order][positions]]
