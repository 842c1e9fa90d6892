"""nnU-Net v2 raw datasets: dataset.json, imagesTr/<case>_0000<ending> and labelsTr/<case><ending>.

Source: nnU-Net v2 documentation/dataset_format.md and utilities/utils.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autoseg.core.errors import DataRefused, RecordFault
from autoseg.data.inputs import may_have_colors
from autoseg.data.layouts.description import DESCRIPTION, Description, describe_nnunet, entry, read_description
from autoseg.data.layouts.layout import Found, Layout, Remark, pair, unused_files, with_channels
from autoseg.data.model import Case, Dataset, Problem
from autoseg.data.naming import by_channel, by_name, image_files, name_of, partners, split_channel
from autoseg.images.foreign import foreign_files
from autoseg.images.formats.files import file_ending

IMAGES = "imagesTr"
LABELS = "labelsTr"
CASES = "dataset"
"""Entry of the description that lists the cases; without it they are found by their files."""

_OWN_ENTRIES = ("channel_names", "modality", "file_ending")

_SHOWN_FILES = 4


def detect_nnunet(root: Path) -> Found | None:
    """What is in a folder of nnU-Net's raw format; None where the folder is something else.

    Cases are found by the files `imagesTr/<case>_0000<ending>`, or listed under the key `dataset` with paths that lie
    anywhere; a relative one starts from the folder. One file `_0000` per case holds all channels where no other
    index occurs: RGB in natural images, the fourth axis elsewhere.

    Raises:
        RecordFault: dataset.json is faulty.
        DataRefused: no image follows the naming.
    """
    data = read_description(root)
    if data is None or not _is_nnunet(root, data):
        return None
    described = describe_nnunet(data, str(root / DESCRIPTION), (CASES,))
    ending = described.file_ending
    if entry(data, CASES) is not None:
        cases = _listed_cases(described, str(root / DESCRIPTION))
        reason = f"nnU-Net raw data: {DESCRIPTION} lists {len(cases)} cases with their paths"
    else:
        cases = _scanned_cases(root, described)
        reason = f"nnU-Net raw data: {DESCRIPTION} and {len(cases)} cases <case>_0000{ending} in {IMAGES}/"
    holds_all = len(described.channels) > 1 and all(len(case.images) == 1 for case in cases)
    seen = f"{reason}, one file with all channels" if holds_all else reason
    return Found(cases, seen, described, four_d=holds_all and not may_have_colors(Path(f"case{ending}")))


def _is_nnunet(root: Path, data: Mapping[str, Any]) -> bool:
    if isinstance(entry(data, CASES), dict):
        return True
    if not (root / IMAGES).is_dir() or all(entry(data, key) is None for key in _OWN_ENTRIES):
        return False
    if isinstance(listed := entry(data, "training"), list):
        return not _believes(root, listed)
    return not _has_whole_names(root)


def _believes(root: Path, listed: Sequence[object]) -> bool:
    """Whether a `training` list says more than the file names: it names files that are there, not all as nnU-Net does.

    nnU-Net v1 left out the channel index in its lists, so that no file of them was there.
    """
    pairs = [(one.get("image"), one.get("label")) for one in listed if isinstance(one, dict)]
    there = [
        (name_of(Path(image)), name_of(Path(str(label))))
        for image, label in pairs
        if isinstance(image, str) and (root / image).exists()
    ]
    if not there:
        return not by_channel(image_files(root / IMAGES))
    return any(image != f"{label}_0000" for image, label in there)


def _has_whole_names(root: Path) -> bool:
    """Whether numbers at the end of the names are part of them: the label files have them too (frame_0001)."""
    images, labels = image_files(root / IMAGES), by_name(image_files(root / LABELS))
    numbered = by_channel(images)
    return bool(numbered) and not partners(numbered, labels) and bool(partners(by_name(images), labels))


def _listed_cases(described: Description, where: str) -> tuple[Case, ...]:
    without = [case.identifier for case in described.cases if case.labels is None]
    if without or not described.cases:
        raise RecordFault(
            f"{CASES} must name the label file of every case; without: {', '.join(without) or 'all'}",
            where=where,
            do=f'write {{"images": [path of each channel], "label": path}} for each case, or remove the key {CASES}',
        )
    return tuple(described.cases)


def _scanned_cases(root: Path, described: Description) -> tuple[Case, ...]:
    ending = described.file_ending
    files = _files_with(ending, root / IMAGES)
    found = by_channel(files)
    if not found:
        raise _without_images(root, ending)
    # one index only: the file may hold all channels; otherwise a missing channel is named by the check of its case
    indices = range(len(described.channels) if any(max(entry) for entry in found.values()) else 1)
    return pair(with_channels(found, indices), by_name(_files_with(ending, root / LABELS)), root)


def _without_images(root: Path, ending: str) -> DataRefused:
    folder = root / IMAGES
    seen = ", ".join(file.name for file in sorted(folder.iterdir())[:_SHOWN_FILES]) or "nothing"
    others = Counter(file_ending(file) for file in image_files(folder) if split_channel(name_of(file))[1] is not None)
    foreign = foreign_files([folder])
    if others:
        do = f'correct the entry in {DESCRIPTION}: "file_ending": "{others.most_common(1)[0][0]}"'
    elif foreign and not image_files(folder):
        do = "; ".join(found.kind.remedy for found in foreign)
    else:
        do = f"rename the images (liver_001_0000{ending}), or remove {DESCRIPTION} so that they are paired by name"
    why = f"{DESCRIPTION} declares the ending {ending!r}, and every image needs its channel index"
    return DataRefused(
        f"{IMAGES}/ holds no image named <case>_0000{ending}; it holds {seen}",
        where=str(root),
        why="; ".join(map(str, foreign)) or why,
        do=do,
    )


def _files_with(ending: str, folder: Path) -> list[Path]:
    return [file for file in image_files(folder) if file_ending(file) == ending]


def unused_nnunet_files(dataset: Dataset) -> Iterable[Problem]:
    """A problem for each file in imagesTr and labelsTr that belongs to no case, unless the description lists them."""
    root = Path(dataset.root)
    if entry(read_description(root) or {}, CASES) is not None:
        return ()
    return unused_files(dataset, (root / IMAGES, root / LABELS), partial(_remark, dataset))


def _remark(dataset: Dataset, file: Path) -> Remark:
    index = split_channel(name_of(file))[1]
    if file_ending(file) != dataset.file_ending:
        what = f"is not used: dataset.json declares the ending {dataset.file_ending!r}"
        return "E0206", what, "convert it to this ending, or move it elsewhere"
    if file.parent.name != IMAGES:
        return "E0206", "is a label file without an image", None
    if index is None:
        return "E0207", "has no channel index (_0000)", None
    what = f"has the channel index {index}, but dataset.json declares {len(dataset.channels)} channels"
    return "E0206", what, "declare the channel in channel_names, or move the file elsewhere"


NNUNET = Layout(
    detect_nnunet,
    "dataset.json, imagesTr/liver_001_0000.nii.gz, labelsTr/liver_001.nii.gz",
    unused_nnunet_files,
    label_folder=Path(LABELS),
)
