"""The layouts that datasets come in, and the recognition of them. A new layout is a module and one line here.

A layout says which files are cases; what it does not declare, channels and classes, is read off the files here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from autoseg.core.errors import AutoSegError, DataRefused, MissingInput
from autoseg.core.limits import name_fault, printable, title_fault
from autoseg.core.registry import choose
from autoseg.core.workers import map_supervised
from autoseg.data.labels import count_label_files, find_classes
from autoseg.data.layouts.cellpose import CELLPOSE
from autoseg.data.layouts.decathlon import DECATHLON
from autoseg.data.layouts.description import LEGACY_FILE_ENDING
from autoseg.data.layouts.layout import Found, Layout
from autoseg.data.layouts.manifest import MANIFEST
from autoseg.data.layouts.nnunet import NNUNET
from autoseg.data.layouts.paired import PAIRED
from autoseg.data.model import Case, Dataset, LabelSet
from autoseg.images.foreign import foreign_files
from autoseg.images.formats.files import file_ending, is_image

LAYOUTS: dict[str, Layout] = {
    "nnunet": NNUNET,
    "decathlon": DECATHLON,
    "manifest": MANIFEST,
    "paired": PAIRED,
    "cellpose": CELLPOSE,
}
"""Tried in this order: what describes itself comes first."""

_SHOWN_ENTRIES = 8
_PEEKED_CASES = 5


class UnknownLayout(DataRefused):
    """A folder is in none of the layouts, or not in the one asked for."""

    code = "E0202"


def detect_dataset(folder: Path, layout: str | None = None) -> Dataset:
    """The dataset in a folder (or of a manifest file), in the first layout that fits; files are not changed.

    Args:
        folder: the dataset's folder, or a manifest file.
        layout: takes this layout instead of the first that fits.

    Raises:
        MissingInput: there is no such folder or file.
        UnknownLayout: no layout fits; the error lists what is there and an example of each layout.
        UsageError: there is no layout of this name.
        RecordFault: the dataset's description is faulty.
        DataRefused: the layout fits, but no case is left or no class is found.
    """
    if not folder.exists():
        raise MissingInput(f"there is no {folder.name}", where=str(folder.parent), do="check the path")
    layouts = LAYOUTS if layout is None else {layout: choose(layout, LAYOUTS, "layout")}
    try:
        dataset = _first_that_fits(folder, layouts)
    except PermissionError as error:
        raise MissingInput(f"{error.filename} may not be read", where=str(folder), do="change its rights") from error
    if dataset is not None:
        return dataset
    arranged = "arrange it in one of these ways: " + "; ".join(
        f"{name}: {one.example}" for name, one in layouts.items()
    )
    name = folder.resolve().name or str(folder)
    foreign = foreign_files([folder, *_folders_in(folder)])
    raise UnknownLayout(
        f"{name} is in none of the known layouts" if layout is None else f"{name} is no {layout} dataset",
        where=str(folder),
        why="; ".join([f"it holds {_seen(folder)}", *map(str, foreign)]),
        do="; ".join([*(found.kind.remedy for found in foreign), arranged]),
    )


def _first_that_fits(folder: Path, layouts: Mapping[str, Layout]) -> Dataset | None:
    for name, layout in layouts.items():
        found = layout.detect(folder) if folder.is_dir() or layout.takes_file else None
        if found is not None:
            is_folder = folder.is_dir()
            dataset = _complete(folder if is_folder else folder.parent, name, _with_usable_names(found))
            return replace(dataset, source="" if is_folder else folder.name)
    return None


def _with_usable_names(found: Found) -> Found:
    """What was found without the cases whose names no record could hold; which are named in the check."""
    faults = {case.identifier: _name_fault(case) for case in found.cases}
    wrong = {printable(name): fault for name, fault in faults.items() if fault is not None}
    if not wrong:
        return found
    kept = tuple(case for case in found.cases if faults[case.identifier] is None)
    if not kept:
        why = "; ".join(f"{name} {fault}" for name, fault in wrong.items())
        raise DataRefused("no case has a usable name", why=why, do="rename the files")
    return replace(found, cases=kept, unusable=wrong)


def _name_fault(case: Case) -> str | None:
    """What is wrong with the name of a case, or with those of its files, which JSON holds as UTF-8."""
    if (fault := name_fault(case.identifier)) is not None:
        return fault
    files = (file for file in (*case.images, case.labels) if file is not None)
    return next((fault for file in files if (fault := title_fault(Path(file).name)) is not None), None)


def _complete(root: Path, layout: str, found: Found) -> Dataset:
    """The dataset that was found, with the channels and classes that it does not declare."""
    declared = found.declared
    labels, how = (declared.labels, found.declares) if declared.classes else _found_classes(root, layout, found.cases)
    endings = Counter(file_ending(Path(case.labels)) for case in found.cases if case.labels is not None)
    return Dataset(
        name=printable(found.name or root.resolve().name),
        root=str(root),
        layout=layout,
        layout_reason=f"{found.seen}; {how}" if how else found.seen,
        channels=declared.channels or _found_channels(root, found),
        labels=labels,
        cases=found.cases,
        file_ending=declared.file_ending or max(endings, key=endings.__getitem__, default=None) or LEGACY_FILE_ENDING,
        four_d=found.four_d,
        announced_cases=declared.announced_cases,
        notes=(*declared.notes, *found.notes),
        unusable=found.unusable,
    )


def _found_classes(root: Path, layout: str, cases: Sequence[Case]) -> tuple[LabelSet, str]:
    """Classes by the values in all label files, and a sentence that says how they were found."""
    files = [root / case.labels for case in cases if case.labels is not None]
    counts = count_label_files(files)
    if not counts.voxels:
        raise DataRefused(
            f"none of the {len(files)} label files can be read, so the classes are unknown",
            where=str(root),
            why=counts.grouped_faults,
            do="correct these files; a label map has one whole number per voxel",
        )
    return find_classes(counts.voxels, made_for_objects=LAYOUTS[layout].made_for_objects)


def _found_channels(root: Path, found: Found) -> tuple[str, ...]:
    """Names for channels that are not declared; they select z-scoring, except that RGB stays recognizable.

    Where a case has one file, the first files are read to count its channels; one where none of them can be read.
    """
    files_per_case = max(len(case.images) for case in found.cases)
    count = files_per_case if files_per_case > 1 else _count_channels(root, found)
    if count == 1:
        return ("image",)
    if count == 3 and files_per_case == 1:
        return ("R", "G", "B")
    return tuple(f"channel_{index}" for index in range(count))


def _count_channels(root: Path, found: Found) -> int:
    files = [[root / image for image in case.images] for case in found.cases[:_PEEKED_CASES]]
    outcomes = map_supervised(partial(_channels_of, four_d=found.four_d), files, 1)
    counts = Counter(outcome.value for outcome in outcomes if outcome.value is not None)
    return counts.most_common(1)[0][0] if counts else 1


def _channels_of(images: Sequence[Path], four_d: bool) -> int | None:
    """Channels of an image, in a process of its own; None where it cannot be read."""
    from autoseg.images.readers import read_image

    try:
        return len(read_image(images, four_d).array)
    except (AutoSegError, OSError):
        return None


def _folders_in(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir()] if folder.is_dir() else []


def _seen(folder: Path) -> str:
    """Entries and endings, in a few words."""
    if not folder.is_dir():
        return "no folder but a file"
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    names = [f"{entry.name}/ ({_endings(entry)})" if entry.is_dir() else entry.name for entry in entries]
    more = [f"and {len(names) - _SHOWN_ENTRIES} more"] if len(names) > _SHOWN_ENTRIES else []
    return ", ".join(names[:_SHOWN_ENTRIES] + more) or "nothing"


def _endings(folder: Path) -> str:
    files = [entry for entry in folder.iterdir() if entry.is_file() or is_image(entry)]
    counts = Counter(file_ending(file) or file.suffix or "no ending" for file in files)
    return ", ".join(f"{count} x {ending}" for ending, count in counts.most_common(3)) or "no files"
