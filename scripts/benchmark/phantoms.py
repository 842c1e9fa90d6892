"""Datasets and images that the benchmark draws itself: CT-like volumes whose organs have a size in millimeters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from autoseg.core.geometry import Geometry
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels

PERIOD_MM = 100.0
"""Distance of organs that are alike: a large volume holds more of them, not larger ones."""

RADII_MM = (24.0, 16.0, 10.0)
INTENSITIES_HU = (70.0, -40.0, 160.0)
LARGE_CASE = "large"
_SMALL_CASES, _SMALL_SHAPE, _SMALL_SPACING_MM = 8, (64, 96, 96), (2.5, 1.2, 1.2)

AIR_HU, TISSUE_HU, NOISE_HU = -1000.0, 20.0, 35.0
"""Assumption: soft tissue with the noise of a standard dose; neighboring voxels are correlated."""


def ct(
    shape: Sequence[int], spacing_mm: Sequence[float], classes: int, seed: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A volume in Hounsfield units and its labels, both (z, y, x), drawn slice by slice.

    Organs are balls of three sizes and intensities; with more than three classes (a multiple of three), neighbors that
    look alike have different values.
    """
    generator = np.random.default_rng(seed)
    shift = generator.uniform(0, PERIOD_MM, 3)
    image, labels = np.empty(shape, np.int16), np.empty(shape, np.uint8)
    y_mm, x_mm = np.meshgrid(
        *(np.arange(n) * step for n, step in zip(shape[1:], spacing_mm[1:], strict=True)), indexing="ij"
    )
    height, width = y_mm.max(), x_mm.max()
    body = ((y_mm / height - 0.5) / 0.47) ** 2 + ((x_mm / width - 0.5) / 0.47) ** 2 < 1
    for z in range(shape[0]):
        organ, values = _slice((z * spacing_mm[0] + shift[0], y_mm + shift[1], x_mm + shift[2]), classes, seed)
        values = np.where(body, values, AIR_HU)
        values = gaussian_filter(values, 0.6) + 1.7 * NOISE_HU * gaussian_filter(generator.normal(size=body.shape), 0.6)
        image[z], labels[z] = np.clip(values, -1024, 3071).round(), np.where(body, organ, 0)
    return image, labels


def _slice(place_mm: tuple[Any, Any, Any], classes: int, seed: int) -> tuple[Any, Any]:
    """Labels and intensities of one slice; the centers of organs that look alike lie on a lattice of their own."""
    shape = place_mm[1].shape
    organ, values = np.zeros(shape, np.uint8), np.full(shape, TISSUE_HU)
    for index, (radius, intensity) in enumerate(zip(RADII_MM, INTENSITIES_HU, strict=True)):
        offset = PERIOD_MM * index / len(RADII_MM)
        cells = [np.round((axis - offset) / PERIOD_MM) for axis in place_mm]
        pairs = zip(place_mm, cells, strict=True)
        inside = sum((axis - offset - PERIOD_MM * cell) ** 2 for axis, cell in pairs) < radius**2
        number = index + (len(RADII_MM) * (cells[0] + cells[1] + cells[2] + seed)) % classes
        organ[inside] = (number[inside] + 1).astype(np.uint8)
        values[inside] = intensity
    return organ, values


@dataclass(frozen=True)
class Drawing:
    """A dataset of small training cases and one large case.

    Attributes:
        classes: a multiple of three.
        subset: "Tr" if the large case is one of the training cases, else "Ts".
        shape: of the large case (z, y, x).
        spacing_mm: of the large case; the small ones have a coarser one, so that it is resampled along all axes.
    """

    classes: int
    subset: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


def draw(folder: Path, drawing: Drawing) -> None:
    """Writes a dataset in nnU-Net's raw layout, dataset.json last; one that is there is kept."""
    if (folder / "dataset.json").exists():
        return
    cases = max(_SMALL_CASES, drawing.classes // len(RADII_MM))  # such that every class occurs
    for number in range(cases):
        _write_case(
            folder,
            "Tr",
            f"small_{number:03d}",
            ct(_SMALL_SHAPE, _SMALL_SPACING_MM, drawing.classes, number),
            _SMALL_SPACING_MM,
        )
    large = ct(drawing.shape, drawing.spacing_mm, drawing.classes, cases)
    _write_case(folder, drawing.subset, LARGE_CASE, large, drawing.spacing_mm)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{f"organ_{value}": value for value in range(1, drawing.classes + 1)}},
        "numTraining": cases + (drawing.subset == "Tr"),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


def _write_case(
    folder: Path, subset: str, name: str, drawn: tuple[NDArray[Any], NDArray[Any]], spacing_mm: Sequence[float]
) -> None:
    image, labels = drawn
    (z, y, x), (z_mm, y_mm, x_mm) = image.shape, spacing_mm
    geometry = Geometry((z, y, x), (z_mm, y_mm, x_mm))
    write_image(folder / f"images{subset}" / f"{name}_0000.nii.gz", Volume(image[None], geometry))
    write_labels(folder / f"labels{subset}" / f"{name}.nii.gz", labels, geometry)
