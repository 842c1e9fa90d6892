"""Whether the labels of a case lie on its image's grid, and if not, how they differ, in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autoseg.core.geometry import Geometry
from autoseg.images.compare import compare_geometry
from autoseg.images.formats.files import find_format
from autoseg.images.volume import plane_geometry

_AXES = "zyx"


def compare_grids(image: Geometry, labels: Geometry, label_file: str) -> tuple[str, str, str] | None:
    """Code, severity and sentence of what differs between an image's grid and its labels'; None if nothing does.

    Labels in a format without geometry (PNG, plain TIFF) need the image's shape only.
    """
    relation = compare_geometry(image, labels)
    if relation == "identical":
        return None
    if image.shape == labels.shape and _carries_no_geometry(labels, label_file):
        return (
            "E0218",
            "note",
            f"the label file carries no geometry; the image's spacing {_shown(image.spacing_mm)} is used",
        )
    if relation == "rounding":
        return (
            "E0213",
            "note",
            "image and labels differ by less than a thousandth of a voxel; the image's geometry is used",
        )
    if relation == "flipped":
        return (
            "E0214",
            "refused",
            f"the labels cover the image's grid but are stored otherwise: {_rearrangement(image, labels)}",
        )
    return "E0212", "refused", f"the labels lie on another grid than the image: {_differences(image, labels)}"


def _carries_no_geometry(labels: Geometry, label_file: str) -> bool:
    label_format = find_format(Path(label_file))
    if label_format is None or label_format.has_grid:
        return False
    return labels in (Geometry(labels.shape), plane_geometry(labels.shape[1:]))


def _rearrangement(image: Geometry, labels: Geometry) -> str:
    """How the label axes run, seen from the image."""
    overlap = np.array(image.direction).reshape(3, 3) @ np.array(labels.direction).reshape(3, 3).T
    sources = np.abs(overlap).argmax(axis=1)
    order = "" if (sources == np.arange(3)).all() else f"axes in the order {', '.join(_AXES[i] for i in sources)}"
    flipped = [_AXES[axis] for axis in range(3) if overlap[axis, sources[axis]] < 0]
    reversed_axes = f"{', '.join(flipped)} reversed" if flipped else ""
    return "; ".join(part for part in (order, reversed_axes) if part) or "another axis order"


def _differences(image: Geometry, labels: Geometry) -> str:
    parts = []
    if image.shape != labels.shape:
        parts.append(f"image {_shown(image.shape)} voxels (z, y, x), labels {_shown(labels.shape)}")
    if not np.allclose(image.spacing_mm, labels.spacing_mm, rtol=1e-3):
        parts.append(f"spacing {_shown(image.spacing_mm)} and {_shown(labels.spacing_mm)}")
    if not np.allclose(image.direction, labels.direction, atol=1e-3):
        parts.append("directions differ")
    shift = np.subtract(labels.origin_mm, image.origin_mm)
    if np.abs(shift).max() > 1e-3 * min(image.spacing_mm):
        parts.append(f"first voxel shifted by {_shown(tuple(shift.tolist()))} mm (x, y, z)")
    return "; ".join(parts) or "the corners lie apart"


def _shown(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)
