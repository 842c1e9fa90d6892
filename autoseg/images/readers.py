"""Reading images and label maps of every supported kind; each file is verified before it is decoded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import GeometryMismatch
from autoseg.core.geometry import Geometry
from autoseg.images.compare import SAME_FORM_VOXELS, displacement, share_a_form
from autoseg.images.formats.files import decode_image, decode_values
from autoseg.images.image_errors import check_transparency, label_fault, place, unreadable
from autoseg.images.normalize import EPSILON
from autoseg.images.orientation import AS_STORED, stored_and_turned, turn_onto
from autoseg.images.volume import Volume

LABEL_TOLERANCE = 1e-4
"""Distance from a whole number up to which a label value is taken for it: what scaling and single precision leave."""

_SHOWN_VALUES = 5

_FEWEST_STEPS = 256
"""Numbers that single precision has between the smallest and the largest intensity; with fewer of them, details are
lost that 8 bits hold. Assumption."""

_NARROW = 1e-5
"""Range of intensities below which their deviation is looked at, which may be less than `EPSILON`. Assumption."""

_logger = logging.getLogger(__name__)


def read_image(paths: Sequence[Path], four_d: bool = False) -> Volume:
    """The image in one or several files, one per channel or group of channels, in the order given.

    Every file is verified (`verify_file`) before any of its voxels is used, so a damaged one never yields any.

    Args:
        paths: files of one case.
        four_d: whether a fourth axis of a file holds channels (Decathlon).

    Returns:
        float32 intensities (c, z, y, x) on the grid of the first file.

    Raises:
        UnreadableFile: a file is damaged or of a kind that cannot be read; its name is in the message.
        GeometryMismatch: two files are not on the same grid. One that is stored along other axes is turned.
    """
    parts = [decode_image(path, four_d) for path in paths]
    first = parts[0].geometry
    parts[1:] = (_on_grid_of(paths[0], first, path, part) for path, part in zip(paths[1:], parts[1:], strict=True))
    arrays = [_as_float32(part.array, path) for path, part in zip(paths, parts, strict=True)]
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    notes = tuple(
        _noted(path, note)
        for path, part, own in zip(paths, parts, arrays, strict=True)
        for note in (*part.notes, *_notes_on_precision(own))
    )
    return Volume(array, parts[0].geometry, notes)


def read_labels(path: Path) -> Volume:
    """The label map (z, y, x) in a file, verified first; values as in the file.

    Floats within 1e-4 of whole numbers are rounded. Gray pictures with alpha, and RGB(A) pictures whose colors are
    gray, give their gray value; palette pictures their indices.

    Raises:
        UnreadableFile: the file is damaged, 4D, or of a kind that cannot be read.
        LabelFault: values are not whole numbers (with the most frequent of them), not finite, or colors.
    """
    decoded = decode_values(path)
    array, notes = _single_channel(decoded, path)
    notes = tuple(_noted(path, note) for note in notes)
    array = _as_integers(array, path)
    present = set(np.unique(array).tolist()) if decoded.value_names else ()
    names = {value: name for value, name in decoded.value_names.items() if value in present}
    return Volume(array, decoded.geometry, notes, names)


def _noted(path: Path, note: str) -> str:
    sentence = f"{path.name}: {note}"
    _logger.info(sentence)
    return sentence


def _on_grid_of(first_path: Path, first: Geometry, path: Path, part: Volume) -> Volume:
    """A further channel, turned without loss where it is stored along other axes than the first."""
    turn = turn_onto(first, part.geometry)
    if turn != AS_STORED and share_a_form(first, part.geometry):
        apart = displacement(first, part.geometry)
        lies = f"{apart:.2g} voxels from {first_path.name}"
        if apart >= SAME_FORM_VOXELS:
            lies = f"on {first_path.name} by another form (qform, sform) than the one in use"
        return replace(part, notes=(*part.notes, f"it lies {lies}; matched voxel by voxel"))
    if turn is None:
        raise GeometryMismatch(
            f"{path.name} is not on the grid of {first_path.name}: "
            f"{part.geometry.shape} voxels of {part.geometry.spacing_mm} mm (z, y, x), "
            f"the other {first.shape} of {first.spacing_mm} mm",
            where=place(path),
            do="resample all channels of the case onto one grid, or remove the case",
        )
    if turn == AS_STORED:
        return part
    note = f"{stored_and_turned(part.geometry, first)}, as {first_path.name}"
    return replace(turn.apply(part), notes=(*part.notes, note))


def _as_float32(array: NDArray[Any], path: Path) -> NDArray[np.float32]:
    _check_kind(array, path)
    with np.errstate(over="ignore"):  # beyond single precision is infinite, and counted as such by the data check
        return np.ascontiguousarray(array, dtype=np.float32)


def _notes_on_precision(array: NDArray[np.float32]) -> Iterator[str]:
    """What becomes of channels whose numbers lie too close together for single precision or for normalization."""
    for channel in array:
        low, high = float(channel.min()), float(channel.max())
        if not 0 < high - low < np.inf:
            continue  # constant, or not finite, as the data check says
        step = float(np.spacing(np.float32(max(-low, high))))
        if high - low < _FEWEST_STEPS * step:
            yield f"its numbers, {low:.9g} to {high:.9g}, were rounded to steps of {step:g} (single precision)"
        elif high - low < _NARROW and channel.std() < EPSILON:
            yield (
                f"its numbers, {low:.3g} to {high:.3g}, are so small that normalization flattens them; "
                "store them in a smaller unit"
            )


def _check_kind(array: NDArray[Any], path: Path) -> None:
    if array.dtype.kind not in "biuf":
        raise unreadable(
            path,
            f"holds voxels of a kind that is not supported ({array.dtype.name})",
            do="export it as integers or floats",
        )


def _single_channel(decoded: Volume, path: Path) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The only channel (z, y, x), or the first of colors that are all gray."""
    array, alpha = decoded.array, decoded.alpha
    if len(array) == 1:
        if alpha is not None:
            check_transparency(array[0], alpha, path)
        return array[0], decoded.notes
    if len(array) in (3, 4) and (array[1:3] == array[:1]).all():
        if len(array) == 4:
            check_transparency(array[0], array[3], path)
        return array[0], (*decoded.notes, "its gray colors were taken as values")
    raise label_fault(
        path,
        f"holds {len(array)} channels where a label map has one number per voxel",
        why="overlapping segments or colors instead of numbers",
        do="save one number per class: 0 background, 1, 2, ...",
    )


def _as_integers(array: NDArray[Any], path: Path) -> NDArray[Any]:
    _check_kind(array, path)
    if array.dtype.kind == "f":
        array = _rounded(array, path)
    low, high = (int(array.min()), int(array.max()))
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.ascontiguousarray(array, dtype=kind)
    raise label_fault(path, f"holds label values from {low} to {high}", do="number the classes 0, 1, 2, ...")


def _rounded(array: NDArray[Any], path: Path) -> NDArray[Any]:
    finite = np.isfinite(array)
    if not finite.all():
        count = array.size - int(finite.sum())
        raise label_fault(
            path, f"holds NaN or infinity in {count} of {array.size} voxels", do="write 0 where there is background"
        )
    whole: NDArray[Any] = np.rint(array)
    faulty = np.abs(array - whole) > LABEL_TOLERANCE
    if faulty.any():
        raise label_fault(
            path,
            f"holds values that are not whole numbers: {_histogram(array[faulty])}",
            why="an interpolated or antialiased label map, a probability map, or a scale factor in the header",
            do="resample label maps with nearest-neighbor interpolation and save them as integers",
        )
    return whole


def _histogram(values: NDArray[Any]) -> str:
    """The most frequent values with their counts: "0.5 (12 voxels), 1.5 (3 voxels), and 7 more values"."""
    distinct, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_SHOWN_VALUES]
    shown = [f"{distinct[index]:.5g} ({counts[index]} voxels)" for index in order]
    more = [f"and {len(distinct) - len(order)} more values"] if len(distinct) > len(order) else []
    return ", ".join(shown + more)
