"""The layouts that datasets come in, and the recognition of them. A new layout is a module and one line here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from autoseg.core.errors import DataRefused, MissingInput
from autoseg.core.registry import choose
from autoseg.data.layouts.cellpose import CELLPOSE
from autoseg.data.layouts.decathlon import DECATHLON
from autoseg.data.layouts.layout import Layout
from autoseg.data.layouts.manifest import MANIFEST
from autoseg.data.layouts.nnunet import NNUNET
from autoseg.data.layouts.paired import PAIRED
from autoseg.data.model import Dataset
from autoseg.images.formats.files import file_ending

LAYOUTS: dict[str, Layout] = {
    "nnunet": NNUNET,
    "decathlon": DECATHLON,
    "manifest": MANIFEST,
    "paired": PAIRED,
    "cellpose": CELLPOSE,
}
"""Tried in this order: what describes itself comes first."""

_SHOWN_ENTRIES = 8


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
    raise UnknownLayout(
        f"{folder.name} is in none of the known layouts" if layout is None else f"{folder.name} is no {layout} dataset",
        where=str(folder),
        why=f"it holds {_seen(folder)}",
        do="arrange it in one of these ways: " + "; ".join(f"{name}: {one.example}" for name, one in layouts.items()),
    )


def _first_that_fits(folder: Path, layouts: Mapping[str, Layout]) -> Dataset | None:
    for layout in layouts.values():
        if folder.is_dir() or layout.takes_file:
            dataset = layout.detect(folder)
            if dataset is not None:
                return dataset
    return None


def _seen(folder: Path) -> str:
    """Entries and endings, in a few words."""
    if not folder.is_dir():
        return "no folder but a file"
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    names = [f"{entry.name}/ ({_endings(entry)})" if entry.is_dir() else entry.name for entry in entries]
    more = [f"and {len(names) - _SHOWN_ENTRIES} more"] if len(names) > _SHOWN_ENTRIES else []
    return ", ".join(names[:_SHOWN_ENTRIES] + more) or "nothing"


def _endings(folder: Path) -> str:
    files = [entry for entry in folder.iterdir() if entry.is_file()]
    counts = Counter(file_ending(file) or file.suffix or "no ending" for file in files)
    return ", ".join(f"{count} x {ending}" for ending, count in counts.most_common(3)) or "no files"
