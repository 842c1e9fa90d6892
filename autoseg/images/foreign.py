"""Files that could be images but are in no format that is read: what they are, and what turns them into one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from autoseg.images.formats.files import LOSSY_ENDINGS, find_format, is_image

_DICOM_MARK = (128, b"DICM")


class ForeignKind(NamedTuple):
    """A kind of file that is not read.

    Attributes:
        what: the kind in words.
        remedy: what to do with such a file.
        endings: of its names, dot included, in lower case.
    """

    what: str
    remedy: str
    endings: tuple[str, ...]


DICOM = ForeignKind(
    "DICOM, one file per slice", "convert each series: dcm2niix -z y -o OUT SERIES_FOLDER", (".dcm", ".dicom", ".ima")
)

LINK = ForeignKind(
    "links to what is not there",
    "fetch what they lead to (git annex get FILE, or datalad get FILE), or copy the files themselves",
    (),
)

FOLDER = ForeignKind("folders that are named as files are", "move the files in them one folder up", ())

FOREIGN_KINDS = (
    ForeignKind(
        "JPEG or WebP, which change the values they store",
        "convert the original (not this file) to PNG or TIFF",
        LOSSY_ENDINGS,
    ),
    DICOM,
    ForeignKind(
        "copies or downloads that are not finished", "fetch the file again", (".part", ".crdownload", ".partial")
    ),
    ForeignKind("FreeSurfer's format", "mri_convert FILE.mgz FILE.nii.gz", (".mgz", ".mgh")),
    ForeignKind(
        "Analyze or NIfTI in two files",
        "fslchfiletype NIFTI_GZ FILE, or load and save it with nibabel",
        (".hdr", ".img"),
    ),
    ForeignKind("MINC", "mnc2nii FILE.mnc FILE.nii", (".mnc",)),
    ForeignKind("AFNI's format", "3dAFNItoNIFTI FILE", (".head", ".brik", ".brik.gz")),
    ForeignKind("Philips PAR/REC", "dcm2niix -z y -o OUT FOLDER", (".par", ".rec")),
    ForeignKind("NIfTI in another compression than gzip", "unpack it", (".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip")),
    ForeignKind("NRRD with its voxels in another file", "save it as one .nrrd file", (".nhdr",)),
    ForeignKind(
        "a microscope's or slide scanner's own format",
        "bfconvert FILE FILE.ome.tif (Bio-Formats), or export it as OME-TIFF from QuPath or Fiji",
        (
            *(".czi", ".lif", ".nd2", ".oib", ".oif", ".vsi", ".lsm", ".ims", ".zvi", ".dv", ".stk", ".vms"),
            *(".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".qptiff"),
        ),
    ),
    ForeignKind(
        "arrays without a grid",
        "save each array with its voxel spacing as NIfTI, NRRD or TIFF",
        (".npy", ".npz", ".h5", ".hdf5", ".mat", ".pkl", ".pt", ".pth"),
    ),
    ForeignKind("Zarr", "save it as OME-TIFF or NIfTI", (".zarr", ".n5")),
    ForeignKind(
        "pictures of another kind", "convert them to PNG or TIFF", (".gif", ".jp2", ".j2k", ".pgm", ".ppm", ".heic")
    ),
    ForeignKind("videos", "extract their frames: ffmpeg -i FILE frame_%04d.png", (".avi", ".mp4", ".mov", ".mkv")),
    ForeignKind("surfaces, not voxels", "export them as a label map", (".stl", ".obj", ".ply", ".vtk", ".vtp", ".gii")),
    ForeignKind(
        "archives", "unpack them", (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".tar.bz2", ".gz", ".bz2", ".xz")
    ),
)
"""Tried in this order."""


@dataclass(frozen=True, slots=True)
class ForeignFiles:
    """Files of one kind that are not read, in the order of their names; at least one."""

    kind: ForeignKind
    files: tuple[Path, ...]

    def __str__(self) -> str:
        """The files in words: "12 files such as a.dcm are not used: DICOM, one file per slice"."""
        first = self.files[0].name
        one = f"{first} is" if len(self.files) == 1 else f"{len(self.files)} files such as {first} are"
        return f"{one} not used: {self.kind.what}"


def foreign_kind(file: Path) -> ForeignKind | None:
    """The kind of a file (or of a folder such as FILE.zarr) that is not read; None for images and everything else."""
    if find_format(file) is not None:
        return None if is_image(file) else FOLDER if file.is_dir() else LINK if file.is_symlink() else None
    name = file.name.lower()
    known = next((kind for kind in FOREIGN_KINDS if name.endswith(kind.endings)), None)
    return DICOM if known is None and _is_unnamed_dicom(file) else known


def foreign_files(folders: Iterable[Path]) -> tuple[ForeignFiles, ...]:
    """What lies in folders and could be an image but is not read, kind by kind; hidden files are left out."""
    found: dict[ForeignKind, list[Path]] = {}
    for folder in folders:
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            kind = None if file.name.startswith(".") else foreign_kind(file)
            if kind is not None:
                found.setdefault(kind, []).append(file)
    return tuple(ForeignFiles(kind, tuple(files)) for kind, files in found.items())


def _is_unnamed_dicom(file: Path) -> bool:
    """Whether a file without an ending, or named by a number (1.2.840.113619), begins as DICOM does."""
    if (file.suffix[1:] and not file.suffix[1:].isdigit()) or not file.is_file():
        return False
    offset, mark = _DICOM_MARK
    try:
        with file.open("rb") as stream:
            return stream.read(offset + len(mark))[offset:] == mark
    except OSError:
        return False
