"""Datasets that do not describe themselves: channels and classes are read off their files."""

from __future__ import annotations

from pathlib import Path

from autoseg.core.errors import DataRefused
from autoseg.data.labels import count_label_files, find_classes
from autoseg.data.layouts.description import DESCRIPTION, read_description
from autoseg.data.layouts.nnunet_description import LEGACY_FILE_ENDING, read_channels, read_label_set, refuse_faults
from autoseg.data.layouts.scan import channel_names, count_channels, most_common_ending
from autoseg.data.model import Case, Dataset, LabelSet


def describe_files(
    root: Path, layout: str, cases: tuple[Case, ...], seen: str, *, made_for_objects: bool = False
) -> Dataset:
    """The dataset of cases found in folders; `channel_names` and `labels` of a dataset.json count, if there is one.

    Args:
        root: folder that the paths of the cases start from.
        layout: its name.
        cases: images paired with labels; at least one has labels.
        seen: what made it this layout; the reason says so and how channels and classes were found.
        made_for_objects: whether the layout is made for one id per object.

    Raises:
        RecordFault: dataset.json is faulty.
        DataRefused: no label file can be read, or none holds a class.
    """
    declared = read_description(root) or {}
    faults: list[str] = []
    channels = read_channels(declared, faults) if "channel_names" in declared else _found_channels(root, cases)
    if "labels" in declared:
        labels, how = read_label_set(declared, faults), f"classes as declared in {DESCRIPTION}"
    else:
        labels, how = found_classes(root, cases, made_for_objects=made_for_objects)
    refuse_faults(faults, str(root / DESCRIPTION))
    return Dataset(
        name=root.resolve().name,
        root=str(root),
        layout=layout,
        layout_reason=f"{seen}; {how}",
        channels=channels,
        labels=labels,
        cases=cases,
        file_ending=most_common_ending(case.labels for case in cases) or LEGACY_FILE_ENDING,
    )


def found_classes(root: Path, cases: tuple[Case, ...], *, made_for_objects: bool = False) -> tuple[LabelSet, str]:
    """Classes by the values in all label files, and a sentence that says how they were found.

    Raises:
        DataRefused: no label file can be read, or none holds a class.
    """
    files = [root / case.labels for case in cases if case.labels is not None]
    counts = count_label_files(files)
    if not counts:
        raise DataRefused(
            f"none of the {len(files)} label files can be read, so the classes are unknown",
            where=str(root),
            do="check one of them with another program; declare the classes in a manifest to see each file's fault",
        )
    return find_classes(counts, made_for_objects=made_for_objects)


def _found_channels(root: Path, cases: tuple[Case, ...]) -> tuple[str, ...]:
    files_per_case = len(cases[0].images)
    count = files_per_case if files_per_case > 1 else count_channels(root, cases)
    return channel_names(count, files_per_case)
