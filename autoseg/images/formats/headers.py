"""What the headers of medical formats promise, parsed here before any library allocates memory for it."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from autoseg.images.image_errors import refused

SMALLEST_SPACING = 1e-7
"""Millimeters; below a tenth of a nanometer no voxel is real. Assumption."""

LARGEST_SPACING = 1e6
"""Millimeters; leaves room for the slice spacing of 999 pixels that stands for 2D. Assumption."""

NIFTI_HEADER_BYTES = 544
"""Enough of a file to parse NIfTI-1 (348) and NIfTI-2 (540)."""

TEXT_HEADER_BYTES = 4 << 20
"""Text headers (NRRD, MetaImage) longer than 4 MiB are refused; segmentations with many segments have about 1 MiB."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The voxel data that a header promises.

    Attributes:
        dims: entries along each axis, fastest axis first, channels included.
        voxel_bytes: bytes of one entry.
        spacing_mm: as written, fastest axis first; checked, not used. Empty where the header has none.
        offset: first byte of the data in its file.
        encoding: "raw", "gzip", "zlib" or "text".
        data: file that holds the data.
        is_at_end: whether the data are the last bytes of the file, wherever after `offset` they begin.
    """

    dims: tuple[int, ...]
    voxel_bytes: int
    spacing_mm: tuple[float, ...]
    offset: int
    encoding: str
    data: Path
    is_at_end: bool = False

    @property
    def promised_bytes(self) -> int:
        """Bytes of the decompressed data."""
        return math.prod(self.dims) * self.voxel_bytes


def checked(layout: Layout, path: Path) -> Layout:
    """The layout itself, once its sizes and spacings can be true.

    Raises:
        UnreadableFile: a size is not positive, or a spacing is not a positive, finite, plausible number.
    """
    if not layout.dims or min(layout.dims) < 1:
        raise refused(path, f"has an impossible header: sizes {layout.dims}")
    for axis, spacing in enumerate(layout.spacing_mm):
        if not SMALLEST_SPACING <= spacing <= LARGEST_SPACING:  # NaN fails both comparisons
            raise refused(
                path,
                f"has an impossible voxel spacing: {spacing} along axis {'xyz'[axis] if axis < 3 else axis}",
                why="readers replace such values by 1 without a word, and every length would be wrong",
                do="write the true spacing into the header, or export the file again",
            )
    return layout


def refuse_unknown_place(numbers: tuple[float, ...], path: Path) -> None:
    """Refuses a header whose origin, axes or affine hold numbers that are not finite.

    Raises:
        UnreadableFile: one of `numbers` is NaN or infinite.
    """
    if not all(math.isfinite(number) for number in numbers):
        raise refused(
            path,
            "has an impossible position or orientation: its header holds NaN or infinity for it",
            why="readers replace such values by 0 without a word",
            do="write the true position and axes into the header, or export the file again",
        )


_NIFTI_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 2304: 4}


def parse_nifti(header: bytes, path: Path) -> Layout:
    """The layout that the first `NIFTI_HEADER_BYTES` of a (decompressed) NIfTI-1 or -2 file promise.

    Raises:
        UnreadableFile: these are not such bytes, or what they say cannot be true.

    Source: the NIfTI-1.1 and NIfTI-2 standards (nifti1.h, nifti2.h).
    """
    for order in "<>":
        length = struct.unpack_from(order + "i", header)[0] if len(header) >= 4 else 0
        if length == 348 and header[344:348] == b"n+1\0" and len(header) >= 348:
            dims, kind = struct.unpack_from(order + "8h", header, 40), struct.unpack_from(order + "h", header, 70)[0]
            pixdim = struct.unpack_from(order + "8f", header, 76)
            (offset,) = struct.unpack_from(order + "f", header, 108)
            refuse_unknown_place(struct.unpack_from(order + "18f", header, 256), path)
            return _nifti_layout(dims, kind, pixdim, offset, path)
        if length == 540 and header[4:8] == b"n+2\0" and len(header) >= 540:
            dims, kind = struct.unpack_from(order + "8q", header, 16), struct.unpack_from(order + "h", header, 12)[0]
            pixdim = struct.unpack_from(order + "8d", header, 104)
            (offset,) = struct.unpack_from(order + "q", header, 168)
            refuse_unknown_place(struct.unpack_from(order + "18d", header, 352), path)
            return _nifti_layout(dims, kind, pixdim, offset, path)
    hint = "it is gzip-compressed: name it .nii.gz" if header[:2] == b"\x1f\x8b" else None
    raise refused(path, "is not a NIfTI file, or its header is damaged", why=hint)


def _nifti_layout(dims: tuple[int, ...], kind: int, pixdim: tuple[float, ...], offset: float, path: Path) -> Layout:
    if kind not in _NIFTI_BYTES:
        raise refused(
            path,
            f"holds voxels of a kind that is not supported (NIfTI datatype {kind}: complex, 1 bit or damaged)",
            do="export it as integers or floats",
        )
    count = dims[0]
    if not 1 <= count <= 7:
        raise refused(path, f"has an impossible header: {count} dimensions")
    if not 348 <= offset < 2**31:
        raise refused(path, f"has an impossible header: voxel data at byte {offset}")
    sizes = dims[1 : 1 + count]
    # a single slice often carries a spacing of 0; there is no second slice for it to misplace
    spacing = tuple(
        1.0 if size == 1 and step == 0 else step for size, step in zip(sizes[:3], pixdim[1:4], strict=False)
    )
    return checked(Layout(sizes, _NIFTI_BYTES[kind], spacing, int(offset), "raw", path), path)


_GIPL_BYTES = {1: 1, 7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
_GIPL_MAGIC = (0xEFFFE9B0, 0x2AE389B8)
GIPL_HEADER_BYTES = 256


def parse_gipl(header: bytes, path: Path) -> Layout:
    """The layout that the first 256 bytes of a GIPL file promise.

    Raises:
        UnreadableFile: these are not such bytes, or what they say cannot be true.
    """
    if len(header) < GIPL_HEADER_BYTES or struct.unpack_from(">I", header, 252)[0] not in _GIPL_MAGIC:
        raise refused(path, "is not a GIPL file, or its header is damaged")
    dims = struct.unpack_from(">4H", header, 0)
    (kind,) = struct.unpack_from(">H", header, 8)
    if kind not in _GIPL_BYTES:
        raise refused(path, f"holds voxels of a kind that is not supported (GIPL image type {kind})")
    while len(dims) > 1 and dims[-1] <= 1:
        dims = dims[:-1]
    spacing = struct.unpack_from(">3f", header, 10)[: len(dims)]
    return checked(Layout(dims, _GIPL_BYTES[kind], spacing, GIPL_HEADER_BYTES, "raw", path), path)


def beside(path: Path, name: str) -> Path:
    """The data file `name` that the header `path` points to.

    Raises:
        UnreadableFile: it is missing, one of several, or lies outside the header's folder.
    """
    if name.split()[:1] == ["LIST"] or "%" in name:
        raise refused(path, "spreads its data over several files", do="store the volume as one .nii.gz, .nrrd or .mha")
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    if not inside:
        raise refused(path, "points to data outside its own folder", do="put the data file beside the header")
    if not (path.parent / name).is_file():
        raise refused(path, f"needs {Path(name).name}, which is not there", do="copy header and data file together")
    return path.parent / name
