"""Medical Segmentation Decathlon: dataset.json with a `training` list; a fourth image axis holds the channels.

Source: medicaldecathlon.com; Antonelli et al. 2022, Nature Communications.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoseg.data.layouts.description import DESCRIPTION, read_description
from autoseg.data.layouts.nnunet_description import (
    LEGACY_FILE_ENDING,
    is_name,
    read_announced,
    read_channels,
    read_label_set,
    refuse_faults,
)
from autoseg.data.layouts.scan import most_common_ending, name_faults, split_channel
from autoseg.data.model import Case, Dataset
from autoseg.images.formats.files import stem


def detect_decathlon(root: Path) -> Dataset | None:
    """The dataset in a Decathlon folder; None where the folder is something else.

    Raises:
        RecordFault: dataset.json is faulty; every fault is listed.
    """
    data = read_description(root)
    if data is None or not isinstance(data.get("training"), list):
        return None
    faults: list[str] = []
    channels = read_channels(data, faults)
    labels = read_label_set(data, faults)
    announced = read_announced(data, faults)
    cases = listed_cases(data["training"], "training", faults)
    refuse_faults(faults, str(root / DESCRIPTION))
    four_d = len(channels) > 1 and all(len(case.images) == 1 for case in cases)
    return Dataset(
        name=root.resolve().name,
        root=str(root),
        layout="decathlon",
        layout_reason=f"Medical Segmentation Decathlon: {DESCRIPTION} lists {len(cases)} training images with labels"
        + (f", the fourth axis holds {len(channels)} channels" if four_d else ""),
        channels=channels,
        labels=labels,
        cases=cases,
        file_ending=most_common_ending(case.labels for case in cases) or LEGACY_FILE_ENDING,
        four_d=four_d,
        announced_cases=announced,
    )


def listed_cases(entries: list[Any], key: str, faults: list[str]) -> tuple[Case, ...]:
    """Cases of a list of {"image": path or paths, "label": path}, sorted by name; faults are appended to the list.

    The name is `case` where an entry has one, otherwise the file name of the label or image without its ending.
    """
    cases: dict[str, Case] = {}
    for number, entry in enumerate(entries):
        case = _listed_case(entry)
        if case is None:
            faults.append(f'{key}[{number}] must be {{"image": path, "label": path}}')
        elif case.identifier in cases:
            faults.append(f"{key}[{number}]: the case {case.identifier!r} is listed twice")
        else:
            cases[case.identifier] = case
    faults += name_faults(cases)
    if not entries:
        faults.append(f"{key} lists no case")
    return tuple(cases[name] for name in sorted(cases))


def _listed_case(entry: object) -> Case | None:
    if not isinstance(entry, dict):
        return None
    images = entry.get("image", entry.get("images"))
    images = images if isinstance(images, list) else [images]
    label = entry.get("label") or None
    if not images or not all(is_name(path) for path in images) or not (label is None or is_name(label)):
        return None
    first = stem(Path(images[0]))
    name = entry.get("case") or (stem(Path(label)) if label else split_channel(first)[0])
    plain = tuple(Path(path).as_posix() for path in images)
    return Case(str(name), plain, None if label is None else Path(label).as_posix())
