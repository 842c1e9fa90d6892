"""The statistics that every planning decision rests on."""

from __future__ import annotations

from dataclasses import dataclass

from autoseg.core.records import content_hash, to_data

FINGERPRINT_VERSION = 1

QUANTILE_LEVELS = (0.0, 0.005, 0.05, 0.25, 0.5, 0.75, 0.95, 0.995, 1.0)
"""Levels of the per-case intensity quantiles kept for quality checks of new data."""


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
    """One training case, axes z, y, x in the order of the files.

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
    """

    identifier: str
    shape: tuple[int, int, int]
    shape_after_crop: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    relative_size: float
    quantiles: tuple[tuple[float, ...], ...] = ()
    class_voxels: dict[str, int] | None = None
    content: str = ""
    left_right_axis: int | None = None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Statistics of a dataset.

    Attributes:
        version: of this record.
        cases: usable training cases, sorted by identifier.
        intensities: foreground statistics, one per channel.
        relative_size: median over the cases of voxels after / before the crop to nonzero.
    """

    version: int
    cases: tuple[CaseStatistics, ...]
    intensities: tuple[IntensityStatistics, ...]
    relative_size: float


def fingerprint_hash(fingerprint: Fingerprint) -> str:
    """The hash that plans are tied to their fingerprint by.

    Which axis runs from left to right is left out, because it follows from files whose hashes are in it.
    """
    data = to_data(fingerprint)
    for case in data["cases"]:
        del case["left_right_axis"]
    return content_hash(data)
