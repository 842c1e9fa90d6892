"""Headers of medical formats: fields of text, numbers in them, and whether places and spacings can be true."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from autoseg.images.image_errors import unreadable

SMALLEST_SPACING = 1e-7
"""Millimeters; below a tenth of a nanometer no voxel is real. Assumption."""

LARGEST_SPACING = 1e6
"""Millimeters; leaves room for the slice spacing of 999 pixels that stands for 2D. Assumption."""

FARTHEST = 1e12
"""Largest number of a position, in the unit of the file: far beyond any true one. Assumption."""

LARGEST_RATIO = 1032
"""No deflate stream expands further: 258 bytes for every 2 bits (zlib's technical notes)."""

LONGEST_HEADER = 4 << 20
"""Text headers (NRRD, MetaImage) longer than 4 MiB are refused; segmentations with many segments have about 1 MiB."""


def check_spacing(spacing_mm: Sequence[float], path: Path) -> None:
    """Checks the spacings along x, y, z and further axes.

    Raises:
        UnreadableFile: one of them is not a positive, finite, plausible number.
    """
    for axis, spacing in enumerate(spacing_mm):
        if not is_plausible(spacing):
            raise unreadable(
                path,
                f"has an impossible voxel spacing: {spacing} along axis {'xyz'[axis] if axis < 3 else axis}",
                why="readers silently replace such values by 1, and every length would be wrong",
                do="write the true spacing into the header, or export the file again",
            )


def is_plausible(spacing: float) -> bool:
    """Whether a spacing in millimeters can be true; NaN cannot."""
    return SMALLEST_SPACING <= spacing <= LARGEST_SPACING


def check_place(numbers: tuple[float, ...], path: Path) -> None:
    """Checks the numbers of a header's origin, axes or affine.

    Raises:
        UnreadableFile: one of them is NaN, infinite or too large.
    """
    if not is_place(numbers):
        raise unreadable(
            path,
            "has an impossible position or orientation: its header holds NaN, infinity or a number above 1e12 for it",
            why="readers silently replace such values by 0",
            do="write the true position and axes into the header, or export the file again",
        )


def is_place(numbers: tuple[float, ...]) -> bool:
    """Whether all numbers of an origin, of axes or of an affine can be true; NaN cannot."""
    return all(abs(number) <= FARTHEST for number in numbers)


def beside(path: Path, name: str) -> Path:
    """The data file `name` that the header `path` points to.

    Raises:
        UnreadableFile: it is missing, one of several, or lies outside the header's folder.
    """
    if name.split()[:1] == ["LIST"] or "%" in name:
        raise unreadable(
            path, "spreads its data over several files", do="store the volume as one .nii.gz, .nrrd or .mha"
        )
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise unreadable(path, "points to data outside its own folder", do="put the data file beside the header")
    if not (path.parent / name).is_file():
        raise unreadable(path, f"needs {Path(name).name}, which is not there", do="copy header and data file together")
    return path.parent / name


_PASSED_OVER = re.compile(r"[\x00-\x20\x7f-\xa0]")
"""What is no part of a field's name: blanks, and characters that steer terminals."""

_DAMAGE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Fields(Mapping[str, str]):
    """The fields of a text header by their names in lower case without blanks.

    One that is given twice with different values, or that holds control characters, is refused where it is asked for:
    comments and a writer's own fields, which nobody asks for, may be and hold anything.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._values = path, dict[str, dict[str, str]]()

    def add(self, name: str, value: str) -> None:
        """Adds a field as it stands in the header."""
        value = value.lstrip(" \t").rstrip(" \t\r")
        self._values.setdefault(_PASSED_OVER.sub("", name.lower()), {})[value] = name.strip(" \t")

    def __getitem__(self, name: str) -> str:
        value, *others = self._values[name]
        shown = self._values[name][value]
        if others:
            raise unreadable(self._path, f"gives the field {shown!r} twice, with different values")
        if _DAMAGE.search(value) or _PASSED_OVER.search(shown.replace(" ", "").replace("\t", "")):
            raise unreadable(self._path, f"has a damaged header: control characters in the field {shown!r}")
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def read_fields(path: Path, separators: str, end: bytes) -> tuple[Fields, re.Match[bytes] | None]:
    """The fields of a text header with one field per line, and the match of `end` where the header ends.

    Returns:
        the fields, and None where `end` is not found.

    Raises:
        UnreadableFile: a line holds another line's end, so that two fields may have become one.
    """
    with path.open("rb") as stream:
        start = stream.read(LONGEST_HEADER)
    match = re.search(end, start + b"\n")
    fields = Fields(path)
    for line in start[: match.end() if match else None].decode("latin-1").split("\n"):
        name, *rest = re.split(f"[{separators}]", line, maxsplit=1)
        if rest and not line.startswith("#") and ":=" not in line.partition(": ")[0]:  # NRRD's key:=value is free text
            if "\r" in line.rstrip("\r"):
                raise unreadable(path, f"has a damaged header: a line end within a line, near {name[:30]!r}")
            fields.add(name, rest[0])
    return fields, match


def numbers(text: str, path: Path) -> tuple[float, ...]:
    """The numbers of a text, separated by blanks or commas.

    Raises:
        UnreadableFile: something else stands there.
    """
    parts = [part for part in re.split(r"[,\s]+", text.strip()) if part]
    try:
        if "_" not in text:  # which Python takes for a part of a number
            return tuple(map(float, parts))
    except ValueError:
        pass  # refused as well
    raise unreadable(path, f"has an impossible header: {text[:60]!r} should be numbers")


def integers(text: str, path: Path) -> tuple[int, ...]:
    """The whole numbers of a text, separated by blanks.

    Raises:
        UnreadableFile: something else stands there.
    """
    parts = text.split()
    if not all(re.fullmatch(r"[+-]?\d{1,18}", part) for part in parts):
        raise unreadable(path, f"has an impossible header: {text[:60]!r} should be whole numbers")
    return tuple(map(int, parts))


def integer(text: str, path: Path) -> int:
    """The whole number that a text is.

    Raises:
        UnreadableFile: it is none.
    """
    if len(found := integers(text, path)) != 1:
        raise unreadable(path, f"has an impossible header: {text[:60]!r} should be a whole number")
    return found[0]
