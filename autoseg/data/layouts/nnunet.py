"""nnU-Net v2 raw datasets: dataset.json, imagesTr/<case>_0000<ending> and labelsTr/<case><ending>.

Source: nnU-Net v2 documentation/dataset_format.md and utilities/utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg.core.errors import DataRefused, RecordFault
from autoseg.data.layouts.description import DESCRIPTION, read_description
from autoseg.data.layouts.nnunet_description import Description, describe_nnunet, is_name, refuse_faults
from autoseg.data.layouts.scan import by_channel, image_files, name_faults, pair
from autoseg.data.model import Case, Dataset
from autoseg.images.formats.files import file_ending, find_format, stem

IMAGES = "imagesTr"
LABELS = "labelsTr"

_SHOWN_FILES = 4


def detect_nnunet(root: Path) -> Dataset | None:
    """The dataset in a folder of nnU-Net's raw format; None where the folder is something else.

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
    described = describe_nnunet(data, str(root / DESCRIPTION))
    if "dataset" in data:
        cases = _listed_cases(data["dataset"], str(root / DESCRIPTION))
        reason = f"nnU-Net raw data: {DESCRIPTION} lists {len(cases)} cases with their paths"
    else:
        cases = _scanned_cases(root, described)
        reason = (
            f"nnU-Net raw data: {DESCRIPTION} and {len(cases)} cases <case>_0000{described.file_ending} in {IMAGES}/"
        )
    holds_all = len(described.channels) > 1 and all(len(case.images) == 1 for case in cases)
    return Dataset(
        name=root.resolve().name,
        root=str(root),
        layout="nnunet",
        layout_reason=f"{reason}, one file with all channels" if holds_all else reason,
        channels=described.channels,
        labels=described.labels,
        cases=cases,
        file_ending=described.file_ending,
        four_d=holds_all and not _has_colors(described.file_ending),
        announced_cases=described.announced_cases,
    )


def _has_colors(ending: str) -> bool:
    found = find_format(Path(f"case{ending}"))
    return found is not None and found.has_colors


def _is_nnunet(root: Path, data: Mapping[str, Any]) -> bool:
    if isinstance(data.get("dataset"), dict):
        return True
    if not (root / IMAGES).is_dir() or not ({"channel_names", "modality", "file_ending"} & set(data)):
        return False
    return not isinstance(data.get("training"), list) or bool(by_channel(image_files(root / IMAGES)))


def _scanned_cases(root: Path, described: Description) -> tuple[Case, ...]:
    ending = described.file_ending
    files = [file for file in image_files(root / IMAGES) if file_ending(file) == ending]
    found = by_channel(files)
    if not found:
        seen = ", ".join(entry.name for entry in sorted((root / IMAGES).iterdir())[:_SHOWN_FILES]) or "nothing"
        raise DataRefused(
            f"{IMAGES}/ holds no image named <case>_0000{ending}; it holds {seen}",
            where=str(root),
            why=f"{DESCRIPTION} declares the ending {ending!r}, and every image needs its channel index",
            do=f"rename the images (liver_001_0000{ending}), or remove {DESCRIPTION} so that they are paired by name",
        )
    indices = range(len(described.channels)) if any(index for entry in found.values() for index in entry) else range(1)
    expected = {
        case: tuple(entry.get(index, root / IMAGES / f"{case}_{index:04d}{ending}") for index in indices)
        for case, entry in found.items()
    }
    labels = {stem(file): file for file in image_files(root / LABELS) if file_ending(file) == ending}
    return pair(expected, labels, root)


def _listed_cases(table: object, where: str) -> tuple[Case, ...]:
    if not isinstance(table, dict) or not table:
        raise RecordFault(
            "dataset must be a table of cases", where=where, do="list at least one case, or remove the key"
        )
    faults = name_faults(table)
    cases = []
    for name, entry in sorted(table.items()):
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if isinstance(images, list) and images and all(is_name(path) for path in (*images, label)):
            cases.append(Case(name, tuple(Path(path).as_posix() for path in images), Path(str(label)).as_posix()))
        else:
            faults.append(f'dataset.{name} must be {{"images": [path of each channel], "label": path}}')
    refuse_faults(faults, where)
    return tuple(cases)
