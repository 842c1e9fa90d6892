"""Which files and folders are images, and what is known about their formats: a new format is a line of `FORMATS`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from autoseg.core.errors import AutoSegError, UnreadableFile, is_machine_fault
from autoseg.core.files import sha256_of_file
from autoseg.images.format import Format
from autoseg.images.formats.gipl import GIPL
from autoseg.images.formats.meta import META
from autoseg.images.formats.nifti import NIFTI
from autoseg.images.formats.nrrd import NRRD
from autoseg.images.formats.raster import BMP, PNG
from autoseg.images.formats.tiff.format import TIFF
from autoseg.images.image_errors import unreadable
from autoseg.images.volume import Volume

FORMATS: dict[str, Format] = {
    "NIfTI": NIFTI,
    "NRRD": NRRD,
    "MetaImage": META,
    "GIPL": GIPL,
    "PNG": PNG,
    "BMP": BMP,
    "TIFF": TIFF,
}

SUPPORTED_ENDINGS = tuple(ending for found in FORMATS.values() for ending in found.endings)
"""Endings of images that can be read, in the order of the table."""

WRITTEN_ENDINGS = tuple(ending for found in FORMATS.values() if found.write for ending in found.endings)
"""Endings of images that can be written."""

LOSSY_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
"""Of pictures whose compression changes their values; they are named, and not read."""


_RENAME = "give it the ending of what it is, or convert it"
_PAGE = ("a web page, as servers send instead of a file", "download it again; perhaps you have to sign in first")

_MARKS: tuple[tuple[int, bytes, tuple[str, ...], str, str], ...] = (
    (0, b"version https://git-lfs", (), "a pointer of Git LFS, not the file itself", "git lfs pull"),
    (
        0,
        b"/annex/objects/",
        (),
        "a pointer of git-annex, not the file itself",
        "git annex get FILE, or datalad get FILE",
    ),
    *((0, mark, (), *_PAGE) for mark in (b"<!doctype html", b"<html")),
    (128, b"dicm", (), "DICOM", "convert each series: dcm2niix -z y -o OUT SERIES_FOLDER"),
    (0, b"pk\x03\x04", (), "a zip archive", "unpack it"),
    (0, b"\x89hdf", (), "HDF5 (MINC, MATLAB, Imaris)", "convert it to NIfTI or TIFF"),
    (0, b"\x89png", (".png",), "a PNG picture", _RENAME),
    (0, b"objecttype", (".mha", ".mhd"), "MetaImage", _RENAME),
    (0, b"\xff\xd8\xff", (".png",), "a JPEG picture, which has lost detail", "go back to the original, stored as PNG"),
    (0, b"nrrd000", (".nrrd",), "NRRD", _RENAME),
    *((0, mark, (".tif", ".tiff"), "a TIFF", _RENAME) for mark in (b"ii*\0", b"mm\0*", b"ii+\0", b"mm\0+")),
    (344, b"n+1\0", (".nii", ".nii.gz"), "NIfTI", _RENAME),
    (0, b"\x1f\x8b", (".nii", ".nii.gz"), "compressed with gzip", "unpack it, or name it .nii.gz if it is NIfTI"),
)
"""Byte and what stands there (in lower case), endings for which that is right, what such a file is, what helps."""


def _named_by(path: Path) -> tuple[str, Format | None]:
    """The longest supported ending of a name and its format; without one "" and None."""
    name = path.name.lower()
    fitting = [(e, found) for found in FORMATS.values() for e in found.endings if name.endswith(e) and name != e]
    return max(fitting, key=lambda pair: len(pair[0]), default=("", None))


def file_ending(path: Path) -> str | None:
    """The supported ending of a name in lower case, dot included (".nii.gz"), or None."""
    return _named_by(path)[0] or None


def stem(path: Path) -> str:
    """The name without its supported ending ("case_0000" of "case_0000.nii.gz")."""
    return path.name[: len(path.name) - len(_named_by(path)[0])]


def find_format(path: Path) -> Format | None:
    """The format that a path's ending names, or None."""
    return _named_by(path)[1]


def format_of(path: Path) -> Format:
    """The format of an image that is to be read.

    Raises:
        UnreadableFile: its ending is not supported; JPEG is refused with the reason.
    """
    if (found := find_format(path)) is not None:
        return found
    if path.suffix.lower() in LOSSY_ENDINGS:
        raise unreadable(
            path,
            "is compressed with loss (JPEG or WebP)",
            why="lossy compression changes intensities and invents label values at every edge",
            do="go back to the original and store it as PNG",
        )
    raise unreadable(
        path, "is of a kind that is not supported", do=f"convert it to one of {', '.join(SUPPORTED_ENDINGS)}"
    )


def is_image(path: Path) -> bool:
    """Whether there is an image at a path: a file, or a folder where that is what the ending's format wants.

    Hidden ones (such as macOS's `._x.nii.gz`) are none.
    """
    found = None if path.name.startswith(".") else find_format(path)
    return found is not None and (path.is_dir() if found.is_folder else path.is_file())


def files_of(image: Path) -> tuple[Path, ...]:
    """All files that are read for the image at a path: spacing and voxels that lie beside a file, files of a folder.

    The first one is the path itself if that is a file, or where there is no image or no format for it.
    """
    found = find_format(image)
    return (found.files(image) if found is not None and is_image(image) else ()) or (image,)


def hash_of_written(image: Path) -> str:
    """The SHA-256 of an image that AutoSeg wrote: of its file, or of the hashes of all files of its folder.

    What was written beside a file, such as the spacing of a TIFF, does not count.

    Raises:
        OSError: there is no such image, or a file of it cannot be read.
    """
    if not image.is_dir():
        return sha256_of_file(image)
    return hashlib.sha256("".join(map(sha256_of_file, files_of(image))).encode()).hexdigest()


def is_as_written(path: Path, sha256: str) -> bool:
    """Whether an image or another file that AutoSeg wrote is there, every byte as it was written."""
    try:
        return hash_of_written(path) == sha256
    except OSError:
        return False


def verify_file(path: Path) -> None:
    """Checks in one pass and with bounded memory that an image is whole.

    Every gzip member's checksum and length; the header's promises against the bytes there are, before anything is
    allocated for them; voxel spacings; PNG chunks; TIFF pages and strips. The bytes of formats without checksums
    (raw NIfTI, NRRD, MetaImage, GIPL, BMP, TIFF) may still differ from what was written: hashes find that later.

    Raises:
        UnreadableFile: the file is missing, truncated, damaged, of an unsupported kind, something else than its name
            says, or its header cannot be true.
    """
    found = format_of(path)
    try:
        if not path.stat().st_size and not found.is_folder:
            raise unreadable(path, "is empty")
        found.verify(path)
    except UnreadableFile as error:
        raise _as_what_it_is(path) or error from error.__cause__
    except OSError as error:
        if is_machine_fault(error):
            raise
        raise unreadable(
            path, f"cannot be read: {error.strerror or error}", do="check the name and the rights"
        ) from error


def decode_image(path: Path, four_d: bool = False) -> Volume:
    """The voxels of a verified image, as `Format.read` gives them.

    Raises:
        UnreadableFile: as `verify_file`; or it holds what cannot be read.
    """
    return _decoded(path, lambda found: found.read(path, four_d))


def decode_values(path: Path) -> Volume:
    """The numbers of a verified label map, as `Format.read_values` gives them where the format has it.

    Raises:
        UnreadableFile: as `decode_image`.
    """
    return _decoded(path, lambda found: found.read_values(path) if found.read_values else found.read(path, False))


def _decoded(path: Path, read: Callable[[Format], Volume]) -> Volume:
    """Verified and read: in one pass where the format can, as reading a compressed file takes most of the time."""
    found = format_of(path)
    if not found.read_verifies:
        verify_file(path)
        return read(found)
    try:
        return read(found)
    except (AutoSegError, OSError, MemoryError, ValueError, OverflowError):
        verify_file(path)  # damage is named before what the file holds, and may be why there is not memory enough
        raise


def _as_what_it_is(path: Path) -> UnreadableFile | None:
    """The error for a file that is something else than its name says; None where nothing known begins like it."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        start = stream.read(512).lstrip(b"\xef\xbb\xbf").lower()
    for place, mark, endings, what, remedy in _MARKS:
        if start[place : place + len(mark)] == mark and file_ending(path) not in endings:
            return unreadable(path, f"is {what}", why="its content, not its name, says so", do=remedy)
    return None
