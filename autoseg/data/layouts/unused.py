"""Files that lie among a dataset's images and labels but belong to no case."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from autoseg.data.layouts.description import read_description
from autoseg.data.layouts.nnunet import IMAGES, LABELS
from autoseg.data.layouts.scan import image_files, split_channel
from autoseg.data.model import Dataset, Problem
from autoseg.data.problems import PROBLEM_CODES
from autoseg.images.formats.files import file_ending, stem

SCANNED_LAYOUTS = ("nnunet", "paired", "cellpose")
"""Layouts whose cases are found by looking into folders; the others list them, and leave out what they do not want."""

_LOSSY = (".jpg", ".jpeg")


def unused_files(dataset: Dataset) -> Iterator[Problem]:
    """A problem for each image or label file that no case refers to."""
    if dataset.layout not in SCANNED_LAYOUTS or _lists_its_cases(dataset):
        return
    root = Path(dataset.root)
    files = [file for case in dataset.cases for file in (*case.images, *filter(None, (case.labels,)))]
    used = {root / file for file in files}
    folders = {path.parent for path in used} | ({root / IMAGES, root / LABELS} if dataset.layout == "nnunet" else set())
    for folder in sorted(folders):
        for file in sorted((*image_files(folder), *_lossy_files(folder))):
            if file not in used:
                yield _problem(dataset, file)


def _lists_its_cases(dataset: Dataset) -> bool:
    return dataset.layout == "nnunet" and "dataset" in (read_description(Path(dataset.root)) or {})


def _lossy_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix.lower() in _LOSSY] if folder.is_dir() else []


def _problem(dataset: Dataset, file: Path) -> Problem:
    name = file.relative_to(dataset.root).as_posix()
    code, what, do = "E0206", "belongs to no case", None
    index = split_channel(stem(file))[1]
    if file.suffix.lower() in _LOSSY:
        what, do = (
            "is not used: JPEG changes the values it stores",
            "convert the original (not the JPEG) to PNG or TIFF",
        )
    elif dataset.layout == "nnunet" and file_ending(file) != dataset.file_ending:
        what = f"is not used: dataset.json declares the ending {dataset.file_ending!r}"
        do = "convert it to this ending, or move it elsewhere"
    elif dataset.layout == "nnunet" and file.parent.name == IMAGES and index is None:
        code, what = "E0207", "has no channel index (_0000)"
    elif dataset.layout == "nnunet" and file.parent.name == IMAGES:
        what = f"has the channel index {index}, but dataset.json declares {len(dataset.channels)} channels"
        do = "declare the channel in channel_names, or move the file elsewhere"
    elif dataset.layout == "nnunet":
        what = "is a label file without an image"
    return Problem(code, "warning", None, name, f"{file.name} {what}", do or PROBLEM_CODES[code].remedy)
