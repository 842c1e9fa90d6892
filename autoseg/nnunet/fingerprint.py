"""Fingerprints that nnU-Net v2 extracted, as ours: its `dataset_fingerprint.json`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autoseg.core import records
from autoseg.core.errors import RecordFault
from autoseg.data.fingerprint import FINGERPRINT_VERSION, CaseStatistics, Fingerprint, IntensityStatistics


@dataclass(frozen=True, slots=True)
class _File:
    """The fields of the file under their original names; the lists hold one entry per training case, axes z, y, x."""

    spacings: tuple[tuple[float, float, float], ...]
    shapes_after_crop: tuple[tuple[int, int, int], ...]
    foreground_intensity_properties_per_channel: dict[str, IntensityStatistics]
    median_relative_size_after_cropping: float


def read_nnunet_fingerprint(data: Mapping[str, Any], where: str = "dataset_fingerprint.json") -> Fingerprint:
    """The fingerprint in nnU-Net's file.

    The file names no cases and tells nothing of the time before the crop, so cases are numbered, their shape before
    the crop is given as that after it, and each carries the dataset's median relative size.

    Args:
        data: the parsed JSON document.
        where: the file, for error messages.

    Raises:
        RecordFault: fields are missing, of the wrong kind, or cannot be true.

    Source: nnU-Net v2 experiment_planning/dataset_fingerprint/fingerprint_extractor.py.
    """
    file = records.from_data(_File, dict(data), where)
    faults = list(_faults(file))
    if faults:
        raise RecordFault(
            "not a usable fingerprint: " + "; ".join(faults), where=where, do="extract the fingerprint again"
        )
    return Fingerprint(
        version=FINGERPRINT_VERSION,
        cases=tuple(_case(index, file) for index in range(len(file.spacings))),
        intensities=tuple(
            file.foreground_intensity_properties_per_channel[str(channel)]
            for channel in range(len(file.foreground_intensity_properties_per_channel))
        ),
        relative_size=file.median_relative_size_after_cropping,
    )


def _case(index: int, file: _File) -> CaseStatistics:
    return CaseStatistics(
        identifier=f"case_{index:05d}",
        shape=file.shapes_after_crop[index],
        shape_after_crop=file.shapes_after_crop[index],
        spacing_mm=file.spacings[index],
        relative_size=file.median_relative_size_after_cropping,
    )


def _faults(file: _File) -> Iterator[str]:
    if not file.spacings or len(file.spacings) != len(file.shapes_after_crop):
        yield f"{len(file.spacings)} spacings but {len(file.shapes_after_crop)} shapes; there must be one per case"
    for index, spacing in enumerate(file.spacings):
        if not all(math.isfinite(value) and value > 0 for value in spacing):
            yield f"spacings.{index}: {list(spacing)} is not a positive spacing"
    for index, shape in enumerate(file.shapes_after_crop):
        if min(shape) < 1:
            yield f"shapes_after_crop.{index}: {list(shape)} has an axis without voxels"
    if not 0 < file.median_relative_size_after_cropping <= 1:
        yield f"median_relative_size_after_cropping: {file.median_relative_size_after_cropping} is not in (0, 1]"
    yield from _intensity_faults(file.foreground_intensity_properties_per_channel)


def _intensity_faults(channels: Mapping[str, IntensityStatistics]) -> Iterator[str]:
    if set(channels) != {str(channel) for channel in range(len(channels))} or not channels:
        yield f"foreground_intensity_properties_per_channel: channels are {sorted(channels)}, expected '0', '1', ..."
    for channel, statistics in channels.items():
        values = (getattr(statistics, name) for name in IntensityStatistics.__dataclass_fields__)
        if not all(map(math.isfinite, values)):
            yield f"foreground_intensity_properties_per_channel.{channel}: not finite (no foreground in any case?)"
