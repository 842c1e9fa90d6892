"""Synthetic phantoms: a small anisotropic, two-channel, three-class dataset that needs no download and no consent.

The phantoms are made up; nothing about them was measured on anybody. They are here to show and test the whole walk on
data with the difficulties of real scans: thick slices, spacing and shape that vary, a bias field, noise, unknown
intensity scale, background that is exactly zero, one structure nested in another that only one channel shows, one thin
structure, and a decoy that looks like a structure but is none.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.core.files import write_atomic
from autoseg.core.geometry import Geometry
from autoseg.core.progress import Progress, silent
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels

SYNTHETIC_NAME = "Synthetic"
CHANNELS = ("echo_1", "echo_2")
CLASSES = {"background": 0, "organ": 1, "lesion": 2, "vessel": 3}

_ORGAN, _LESION, _VESSEL, _BODY, _DECOY = 1, 2, 3, 4, 5
_INTENSITIES = (
    np.array(  # tissue (air, organ, lesion, vessel, body, decoy) x channel; assumption: contrast of a T1/T2 pair
        [[0.0, 0.0], [1.00, 0.50], [0.95, 0.95], [1.40, 0.25], [0.55, 0.65], [0.60, 1.00]]
    )
)
_NOISE = 0.07  # standard deviation, in units of the contrast above; assumption
_BIAS = 0.20  # largest exponent of the multiplicative bias field; assumption

Field = NDArray[np.float64]


def phantom(generator: np.random.Generator) -> tuple[Volume, NDArray[np.uint8]]:
    """A random phantom; equal generators give equal phantoms.

    Returns:
        The image, float32 (c, z, y, x), two channels in arbitrary units, exactly 0 outside the body, with a spacing of
        about 3.3 x 1.2 x 1.2 mm; and its labels (z, y, x), values of `CLASSES`.
    """
    shape = (int(generator.integers(17, 22)), int(generator.integers(48, 61)), int(generator.integers(48, 61)))
    z_mm, in_plane_mm = generator.uniform(3.0, 3.6), generator.uniform(1.08, 1.28)
    spacing_mm = (round(z_mm, 3), round(in_plane_mm, 3), round(in_plane_mm, 3))
    tissue = _tissues(shape, spacing_mm, generator)
    labels = np.where(tissue <= _VESSEL, tissue, 0).astype(np.uint8)
    return Volume(_image(tissue, generator), Geometry(shape, spacing_mm)), labels


def _tissues(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Which tissue each voxel is of: 0 air, 1 organ, 2 lesion, 3 vessel, 4 body, 5 decoy."""
    extent_mm = np.array(shape) * spacing_mm
    axes = [(np.arange(n) + 0.5) * step for n, step in zip(shape, spacing_mm, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))  # (3, z, y, x), millimeters
    middle = extent_mm / 2

    body = _blob(grid, middle, extent_mm * (0.47, 0.46, 0.46), 0.05, generator)
    organ_center = middle + generator.uniform(-1, 1, 3) * (4, 4, 3) + (0, 0, 5)
    organ_radii = generator.uniform((16, 14, 13), (21, 17, 16))
    organ = _blob(grid, organ_center, organ_radii, 0.15, generator)
    lesion_center = organ_center + generator.uniform(-0.35, 0.35, 3) * organ_radii
    lesion = _blob(grid, lesion_center, generator.uniform((7, 6, 6), (10, 8.5, 8.5)), 0.1, generator)
    beside = np.array([generator.uniform(-8, 8), generator.choice([-19.0, 19.0]), generator.uniform(-12, 0)])
    decoy = _blob(grid, organ_center + beside, generator.uniform((5, 4, 4), (8, 6, 6)), 0.1, generator)
    vessel = _tube(grid, extent_mm, generator)

    tissue = np.zeros(shape, dtype=np.uint8)
    for mask, value in (
        (body, _BODY),
        (decoy & body, _DECOY),
        (organ & body, _ORGAN),
        (lesion & organ & body, _LESION),
        (vessel & body & ~organ, _VESSEL),
    ):
        tissue[mask] = value
    return tissue


def _blob(
    grid: Field, center_mm: Field, radii_mm: Field, bumpiness: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """An ellipsoid with a gently bumpy surface."""
    offset = (grid - center_mm[:, None, None, None]) / radii_mm[:, None, None, None]
    inside: NDArray[np.bool_] = (offset**2).sum(0) < 1 + bumpiness * _waves(offset, generator)
    return inside


def _tube(grid: Field, extent_mm: Field, generator: np.random.Generator) -> NDArray[np.bool_]:
    """A thin winding tube that runs through the slices, left of the organ."""
    height = grid[0, :, :1, :1] / extent_mm[0] * 2 * np.pi
    y0, x0 = extent_mm[1:] * (generator.uniform(0.42, 0.58), generator.uniform(0.20, 0.26))
    phases = generator.uniform(0, 2 * np.pi, 2)
    y = y0 + generator.uniform(3, 6) * np.sin(height * generator.uniform(0.4, 0.8) + phases[0])
    x = x0 + generator.uniform(1, 2.5) * np.sin(height * generator.uniform(0.4, 0.8) + phases[1])
    inside: NDArray[np.bool_] = (grid[1] - y) ** 2 + (grid[2] - x) ** 2 < generator.uniform(3.0, 3.8) ** 2
    return inside


def _waves(position: Field, generator: np.random.Generator, count: int = 6) -> Field:
    """A smooth random field of unit variance: a few plane waves, a third to one and a half periods per unit length."""
    total: Field = np.zeros(position.shape[1:])
    for _ in range(count):
        direction = generator.normal(size=3)
        direction *= 2 * np.pi * generator.uniform(0.1, 0.5) / np.linalg.norm(direction)
        total += np.cos(np.tensordot(direction, position, 1) + generator.uniform(0, 2 * np.pi))
    total *= np.sqrt(2 / count)
    return total


def _image(tissue: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.float32]:
    """Two channels: tissue contrast, soft edges, bias field, noise and an arbitrary scale; 0 in air."""
    from scipy.ndimage import gaussian_filter

    unit = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in tissue.shape], indexing="ij"))
    scale = generator.uniform(200, 600)
    channels = []
    for channel in range(len(CHANNELS)):
        values = _INTENSITIES[tissue, channel] * generator.uniform(0.95, 1.05)
        values = gaussian_filter(values, (0.3, 0.6, 0.6), mode="nearest")
        values *= np.exp(_BIAS * np.tanh(_waves(unit, generator, count=3)))
        values += generator.normal(0, _NOISE, tissue.shape)
        channels.append(np.where(tissue > 0, np.maximum(scale * values, 1.0), 0.0))
    return np.stack(channels).astype(np.float32)


def write_synthetic_dataset(
    folder: Path, training_cases: int = 16, test_cases: int = 4, seed: int = 0, progress: Progress = silent
) -> Path:
    """Writes a synthetic dataset in nnU-Net's raw layout and returns its folder.

    `imagesTr` and `labelsTr` are for training, `imagesTs` and `labelsTs` are held out. A dataset with the same
    description that is already there is kept, so a second call costs nothing.

    Args:
        folder: where it goes; made if missing.
        training_cases: labeled cases to train with.
        test_cases: labeled cases held out.
        seed: of the whole dataset; case i does not depend on how many there are.
        progress: called after each case.
    """
    description = _description(training_cases, test_cases, seed)
    marker = folder / "dataset.json"
    if marker.exists() and marker.read_text() == description:
        return folder
    total = training_cases + test_cases
    for index in range(total):
        kind, number = ("Tr", index) if index < training_cases else ("Ts", index - training_cases)
        # the stream of a case depends on seed, kind and number alone
        generator = np.random.default_rng([seed, kind == "Ts", number])
        _write_case(folder, kind, f"phantom_{kind.lower()}{number:03d}", generator)
        progress(index + 1, total)
    write_atomic(marker, description)
    return folder


def _description(training_cases: int, test_cases: int, seed: int) -> str:
    data = {
        "name": SYNTHETIC_NAME,
        "description": "Synthetic phantoms drawn at random by AutoSeg; not measured on anybody.",
        "channel_names": {str(index): name for index, name in enumerate(CHANNELS)},
        "labels": CLASSES,
        "numTraining": training_cases,
        "numTest": test_cases,
        "file_ending": ".nii.gz",
        "seed": seed,
    }
    return json.dumps(data, indent=1) + "\n"


def _write_case(folder: Path, kind: str, identifier: str, generator: np.random.Generator) -> None:
    volume, labels = phantom(generator)
    x_mm, y_mm, z_mm = generator.uniform(-120, -60, 3).round(2)
    geometry = replace(volume.geometry, origin_mm=(float(x_mm), float(y_mm), float(z_mm)))
    for channel, array in enumerate(volume.array):
        path = folder / f"images{kind}" / f"{identifier}_{channel:04d}.nii.gz"
        write_image(path, Volume(array[None], geometry))
    write_labels(folder / f"labels{kind}" / f"{identifier}.nii.gz", labels, geometry)
