"""Layouts that datasets come in, and the recognition of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from autoseg.core.errors import DataRefused, MissingInput
from autoseg.core.registry import choose
from autoseg.data.layouts.cellpose import detect_cellpose
from autoseg.data.layouts.decathlon import detect_decathlon
from autoseg.data.layouts.manifest import detect_manifest
from autoseg.data.layouts.nnunet import detect_nnunet
from autoseg.data.layouts.paired import detect_paired
from autoseg.data.model import Dataset
from autoseg.images.formats.files import file_ending

Detector = Callable[[Path], Dataset | None]
"""Returns the dataset in a folder (or manifest file), None where it is something else; raises where it is faulty."""

LAYOUTS: dict[str, Detector] = {
    "nnunet": detect_nnunet,
    "decathlon": detect_decathlon,
    "manifest": detect_manifest,
    "paired": detect_paired,
    "cellpose": detect_cellpose,
}
"""Tried in this order: what describes itself comes first."""

EXAMPLES = {
    "nnunet": "dataset.json, imagesTr/liver_001_0000.nii.gz, labelsTr/liver_001.nii.gz",
    "decathlon": "dataset.json with a `training` list of images (4D for several channels) and labels",
    "manifest": "manifest.csv with the columns case,image,label (or image_<channel>); or manifest.json",
    "paired": "images/a.png and labels/a.png (also images/masks, img/mask, imagesTr/labelsTr)",
    "cellpose": "a.tif and a_masks.tif side by side",
}
"""One example of each layout, as shown to users."""

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
    detectors = LAYOUTS if layout is None else {layout: choose(layout, LAYOUTS, "layout")}
    try:
        fitting = (detect(folder) for name, detect in detectors.items() if folder.is_dir() or name == "manifest")
        dataset = next((dataset for dataset in fitting if dataset is not None), None)
    except PermissionError as error:
        raise MissingInput(f"{error.filename} may not be read", where=str(folder), do="change its rights") from error
    if dataset is not None:
        return dataset
    raise UnknownLayout(
        f"{folder.name} is in none of the known layouts" if layout is None else f"{folder.name} is no {layout} dataset",
        where=str(folder),
        why=f"it holds {_seen(folder)}",
        do="arrange it in one of these ways: " + "; ".join(f"{name}: {EXAMPLES[name]}" for name in detectors),
    )


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
