"""Which files are supported, how they are called, and whether one is whole before it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from autoseg.images.formats.headers import (
    GIPL_HEADER_BYTES,
    NIFTI_HEADER_BYTES,
    Layout,
    parse_gipl,
    parse_nifti,
)
from autoseg.images.formats.raster_structure import verify_bmp, verify_png
from autoseg.images.formats.streams import GZIP, LARGEST_RATIO, ZLIB, inflated
from autoseg.images.formats.text_headers import parse_meta, parse_nrrd
from autoseg.images.formats.tiff_structure import verify_tiff
from autoseg.images.image_errors import refused

SUPPORTED_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl", ".png", ".bmp", ".tif", ".tiff")
"""Endings of files that can be read and written; a longer one comes before one it ends with."""

RASTER_ENDINGS = (".png", ".bmp")
TIFF_ENDINGS = (".tif", ".tiff")

_LOSSY_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")

_PADDING_BYTES = 1024
"""Bytes after the voxels that are taken for a writer's padding; more means that the header lies. Assumption."""


def file_ending(path: Path) -> str | None:
    """The supported ending of a file name in lower case, dot included (".nii.gz"), or None."""
    name = path.name.lower()
    return next((ending for ending in SUPPORTED_ENDINGS if name.endswith(ending) and name != ending), None)


def stem(path: Path) -> str:
    """The file name without its supported ending ("case_0000" of "case_0000.nii.gz")."""
    return path.name[: len(path.name) - len(file_ending(path) or "")]


def supported_ending(path: Path) -> str:
    """The ending of a file that is to be read.

    Raises:
        UnreadableFile: the kind is not supported; JPEG is refused with the reason.
    """
    ending = file_ending(path)
    if ending is not None:
        return ending
    if path.suffix.lower() in _LOSSY_ENDINGS:
        raise refused(
            path,
            "is compressed with loss (JPEG or WebP)",
            why="lossy compression changes intensities and invents label values at every edge",
            do="go back to the original and store it as PNG",
        )
    raise refused(path, "is of a kind that is not supported", do=f"convert it to one of {', '.join(SUPPORTED_ENDINGS)}")


def verify_file(path: Path) -> None:
    """Checks in one pass and with bounded memory that a file is whole.

    Every gzip member's checksum and length; the header's promises against the bytes there are, before anything is
    allocated for them; voxel spacings; PNG chunks; TIFF pages and strips. The bytes of formats without checksums
    (raw NIfTI, NRRD, MetaImage, GIPL, BMP, TIFF) may still differ from what was written: hashes find that later.

    Raises:
        UnreadableFile: the file is missing, truncated, damaged, of an unsupported kind, or its header cannot be true.
    """
    verify = _VERIFIERS[supported_ending(path)]
    try:
        if not path.stat().st_size:
            raise refused(path, "is empty")
        verify(path)
    except OSError as error:
        raise refused(path, f"cannot be read: {error.strerror or error}", do="check the name and the rights") from error


def _verify_nifti(path: Path) -> None:
    with path.open("rb") as stream:
        layout = parse_nifti(stream.read(NIFTI_HEADER_BYTES), path)
    _verify_data(layout, path)


def _verify_nifti_gz(path: Path) -> None:
    with path.open("rb") as stream:
        blocks = inflated(stream, GZIP, path)
        header = b""
        while len(header) < NIFTI_HEADER_BYTES and (block := next(blocks, b"")):
            header += block
        layout = parse_nifti(header, path)
        promised = layout.offset + layout.promised_bytes
        _refuse_impossible_ratio(promised, path.stat().st_size, path)
        _compare(promised, _count(blocks, len(header), promised), path)


def _verify_gipl(path: Path) -> None:
    with path.open("rb") as stream:
        layout = parse_gipl(stream.read(GIPL_HEADER_BYTES), path)
    _verify_data(layout, path)


def _verify_nrrd(path: Path) -> None:
    _verify_data(parse_nrrd(path), path)


def _verify_meta(path: Path) -> None:
    _verify_data(parse_meta(path), path)


def _verify_data(layout: Layout, path: Path) -> None:
    """Compares what the header of `path` promises with the data, wherever they lie."""
    size = layout.data.stat().st_size
    stored = size - layout.offset
    if layout.encoding == "raw":
        found = min(stored, layout.promised_bytes) if layout.is_at_end else stored
        _compare(layout.promised_bytes, found, path)
    elif layout.encoding == "text":
        if 2 * layout.promised_bytes // layout.voxel_bytes - 1 > stored:  # a digit and a blank for each number
            raise refused(path, f"is cut short: {stored} characters cannot hold {layout.dims} numbers")
    else:
        _refuse_impossible_ratio(layout.promised_bytes, stored, path)
        with layout.data.open("rb") as stream:
            stream.seek(layout.offset)
            blocks = inflated(stream, GZIP if layout.encoding == "gzip" else ZLIB, path)
            _compare(layout.promised_bytes, _count(blocks, 0, layout.promised_bytes), path)


def _refuse_impossible_ratio(promised: int, compressed: int, path: Path) -> None:
    if promised > LARGEST_RATIO * max(compressed, 0):
        raise refused(path, f"promises {promised} bytes, which {compressed} compressed bytes cannot hold")


def _count(blocks: Iterator[bytes], found: int, promised: int) -> int:
    """Bytes found so far and in all blocks; stops reading once they are more than any padding explains."""
    for block in blocks:
        found += len(block)
        if found > promised + _PADDING_BYTES:
            break
    return found


def _compare(promised: int, found: int, path: Path) -> None:
    """Refuses a file with fewer bytes than promised, or with more than a writer's padding beyond."""
    if found < promised:
        raise refused(path, f"is cut short: {found} bytes of data where its header promises {promised}")
    if found > promised + _PADDING_BYTES:
        raise refused(
            path,
            f"holds more data than its header promises ({promised} bytes)",
            why="the header is damaged, or does not belong to these voxels",
        )


_VERIFIERS: dict[str, Callable[[Path], None]] = {
    ".nii.gz": _verify_nifti_gz,
    ".nii": _verify_nifti,
    ".nrrd": _verify_nrrd,
    ".mha": _verify_meta,
    ".mhd": _verify_meta,
    ".gipl": _verify_gipl,
    ".png": verify_png,
    ".bmp": verify_bmp,
    ".tif": verify_tiff,
    ".tiff": verify_tiff,
}
