"""Targets: readers of images and label maps, compared with independent readers."""

from __future__ import annotations

import itertools
from functools import lru_cache
from pathlib import Path

import numpy as np

from autoseg.core.errors import AutoSegError
from autoseg.images.formats.files import file_ending, is_image
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume
from tests.fuzz.image_seeds import SEEDS
from tests.fuzz.references import READERS, Reference
from tests.fuzz.target import Target, Trial, Unjudged

Reading = tuple[Volume, Volume | None]
"""An image, and the same file as a label map, None where it is refused as one."""

_CHECKED = (".nii.gz", ".png")
"""Every byte of these is protected by a checksum, or is of no importance."""

_LABELS_AS_IMAGE = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".gipl")
"""Formats in which a label map and an image are read alike."""

_STRETCHED = ((1, 1), (255, 1), (1, 255), (85, 1), (1, 85), (17, 1), (1, 17))
"""Gray of 1, 2 and 4 bits may be given as 0 to 255, by us or by others."""


def read(folder: Path) -> Reading:
    """The image of an input; what is named `four` may have a fourth axis."""
    path = _image_in(folder)
    volume = read_image([path], four_d=path.name.startswith("four"))
    try:
        return volume, read_labels(path)
    except AutoSegError:
        return volume, None


def _image_in(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if is_image(path))


def compare(trial: Trial, reading: Reading) -> str | None:
    """What differs from what an independent reader says, or from what the file held before it was damaged."""
    path = _image_in(trial.folder)
    ending = str(file_ending(path))
    volume, labels = reading
    if trial.is_only_cut or (trial.is_only_damaged and ending in _CHECKED):
        is_text = b"encoding: ascii" in trial.original.get("x.nrrd", b"")
        return _changed(_before(tuple(sorted(trial.original.items())), trial.folder.parent), volume, is_text)
    if labels is not None and ending in _LABELS_AS_IMAGE and not _equal(labels.array, np.rint(volume.array[0])):
        return "its labels are not its voxels"
    try:
        reference = READERS[ending](path)
    except Exception as error:  # whatever others say to it
        raise Unjudged(str(error)) from error
    return _voxel_fault(volume, reference) or _grid_fault(volume, reference)


@lru_cache(maxsize=64)
def _before(original: tuple[tuple[str, bytes], ...], root: Path) -> Volume:
    folder = root / "tmp" / "original"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    for name, content in original:
        (folder / name).write_bytes(content)
    return read(folder)[0]


def _changed(before: Volume, now: Volume, is_text: bool) -> str | None:
    if before.array.shape == now.array.shape and is_text and (before.array != now.array).sum() == 1:
        raise Unjudged("a last number whose end was cut off is a number, too, and no line end is due behind it")
    if not _equal(before.array, now.array):
        return "damaged, and read as other voxels"
    return None if before.geometry == now.geometry else "damaged, and read on another grid"


def _equal(ours: np.ndarray, theirs: np.ndarray) -> bool:
    if ours.shape != theirs.shape:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        other = theirs.astype(np.float32)
        finite = other[np.isfinite(other)]
        tolerance = 1e-5 * float(np.abs(finite).max(initial=0))
        return bool(np.allclose(ours.astype(np.float32), other, 1e-5, tolerance, equal_nan=True))


def _voxel_fault(volume: Volume, reference: Reference) -> str | None:
    ours, theirs = volume.array.T, reference.voxels
    if ours.shape[:3] != theirs.shape[:3]:
        return f"has {ours.shape} voxels (x, y, z, c) where {theirs.shape} are stored"
    candidates = [theirs]
    if volume.notes:  # that an alpha channel was dropped, for example
        candidates.append(theirs[..., :-1])
    if theirs.shape[3] == 3 and (theirs == theirs[..., :1]).all():
        candidates.append(theirs[..., :1])
    pairs = ((ours * factor, own * other) for own in candidates for factor, other in _STRETCHED)
    return None if any(itertools.starmap(_equal, pairs)) else "has other voxels"


def _grid_fault(volume: Volume, reference: Reference) -> str | None:
    geometry = volume.geometry
    straightened = any("straight" in note for note in volume.notes)
    if any("was not used" in note for note in volume.notes):
        return None  # an sform of zeros, which nibabel follows
    if reference.spacing is not None:
        lengths = zip(geometry.spacing_mm[::-1], reference.spacing, geometry.shape[::-1], strict=False)
        wrong = [(ours, own) for ours, own, size in lengths if size > 1 and not np.isclose(ours, own, 1e-3)]
        if wrong and not straightened:
            return "has another spacing"
    if reference.affine is None or volume.geometry.shape[0] == 1:
        return None
    if not geometry.has_orientation:
        return "is said to state no orientation"
    indices = np.array([(x, y, z, 1) for z, y, x in itertools.product(*((0, size - 1) for size in geometry.shape))])
    theirs = indices @ reference.affine.T
    extent = float(np.abs(theirs - theirs.mean(0)).max())
    tolerance = (2e-2 if straightened else 2e-3) * extent + 1e-5 * float(np.abs(theirs).max()) + 1e-4
    return None if np.abs(geometry.corners - theirs).max() <= tolerance else "is at another place"


def _target(name: str) -> Target:
    ending = {"NIfTI gz": "*.nii.gz"}.get(name, "*")
    return Target(name, SEEDS[name], read, compare, (ending,), weight=4.0)


IMAGE_TARGETS = tuple(map(_target, SEEDS))
