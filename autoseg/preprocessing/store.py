"""Prepared cases on disk: memory-mapped arrays, complete or absent, found by what they were made from.

A store is a folder named by a hash of how cases are prepared, so configurations that prepare alike share one, and a
changed plan gets another. In it every case has a folder `image.npy labels.npy locations.npy case.json`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, IntegrityRefusal
from autoseg.core.files import sha256_of_file, temporary_beside
from autoseg.core.records import content_hash, load, to_json
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.model import LabelSet
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.placement import Placement
from autoseg.preprocessing.prepare import Preparation, Prepared, preparation_of

STORE_VERSION = 1
"""Changes whenever the same preparation gives other arrays."""

IMAGE, LABELS, LOCATIONS, RECORD = "image.npy", "labels.npy", "locations.npy", "case.json"


@dataclass(frozen=True, slots=True)
class StoreRecipe:
    """Everything that a store's content depends on, the cases aside; its hash names the folder.

    Attributes:
        version: of the code.
        preparation: how images are prepared.
        labels: classes without their names, which change nothing.
    """

    version: int
    preparation: Preparation
    labels: LabelSet


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What a file of a stored case has to be."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CaseRecord:
    """The case.json of a stored case.

    Attributes:
        version: `STORE_VERSION` of the writer.
        identifier: of the case.
        content: hash of the files that it was made from.
        placement: the way back to the grid of the file.
        locations: rows of locations.npy that belong to each key, in this order.
        files: the other files.
    """

    version: int
    identifier: str
    content: str
    placement: Placement
    locations: dict[str, int]
    files: dict[str, StoredFile]


@dataclass(frozen=True, slots=True, eq=False)
class StoredCase:
    """A prepared case, memory-mapped and read-only. Axes in the plan's order.

    Attributes:
        identifier: of the case.
        image: (c, z, y, x) float32.
        labels: (z, y, x) int8 or int16, -1 outside the nonzero mask.
        locations: voxels (n, 3: z, y, x) of each class that occurs; keys as in `locations.location_groups`.
        placement: the way back to the grid of the file.
        previous: (z, y, x) training values that the first stage of a cascade predicted; None without a first stage.
    """

    identifier: str
    image: NDArray[np.float32]
    labels: NDArray[np.signedinteger[Any]]
    locations: dict[int, NDArray[np.integer[Any]]]
    placement: Placement
    previous: NDArray[np.signedinteger[Any]] | None = None


def store_recipe(plan: Plan, configuration: Configuration, fingerprint: Fingerprint) -> StoreRecipe:
    """What the store of a configuration is made by.

    A 2D configuration keeps the slice distance of every case. Where all cases have the same one, this is written as
    the target, so that 2D shares the store of 3D if that resamples to just this distance.
    """
    preparation = preparation_of(plan, configuration)
    own = {case.spacing_mm[plan.axis_order[0]] for case in fingerprint.cases}
    if preparation.spacing_mm[0] is None and len(own) == 1:
        preparation = replace(preparation, spacing_mm=(own.pop(), *preparation.spacing_mm[1:]))
    classes = {f"class_{index}": values for index, values in enumerate(plan.labels.classes.values())}
    return StoreRecipe(STORE_VERSION, preparation, replace(plan.labels, classes=classes, regions_class_order=()))


def store_folder(store: Path, plan: Plan, configuration: Configuration, fingerprint: Fingerprint) -> Path:
    """Where the prepared cases of a configuration lie.

    Args:
        store: `Workspace.store`.
        plan: of the dataset.
        configuration: one of the plan's.
        fingerprint: the one that was planned from.
    """
    return store / content_hash(store_recipe(plan, configuration, fingerprint))


def open_case(folder: Path) -> StoredCase:
    """A stored case, nothing of it read yet but its record.

    Raises:
        MissingInput: the case is not in the store.
        IntegrityRefusal: a file is missing or has another size or shape than its record says.
    """
    record = load(CaseRecord, folder / RECORD)
    _refuse_wrong_sizes(folder, record)
    try:
        image, labels, rows = (
            np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (IMAGE, LABELS, LOCATIONS)
        )
    except (ValueError, OSError) as error:
        raise _damaged(folder, str(error)) from error
    shape = record.placement.prepared_shape
    if image.shape[1:] != shape or labels.shape != shape or len(rows) != sum(record.locations.values()):
        raise _damaged(folder, "its arrays have other shapes than its record says")
    ends = np.cumsum([0, *record.locations.values()])
    locations = {int(key): rows[ends[index] : ends[index + 1]] for index, key in enumerate(record.locations)}
    return StoredCase(record.identifier, image, labels, locations, record.placement)


def is_intact(folder: Path, content: str) -> bool:
    """Whether a stored case is there, complete, made of the files with this hash, and every byte as it was written."""
    if not (folder / RECORD).exists():
        return False
    try:
        record = load(CaseRecord, folder / RECORD)
        _refuse_wrong_sizes(folder, record)
    except AutoSegError:
        return False
    if record.version != STORE_VERSION or record.content != content:
        return False
    return all(sha256_of_file(folder / name) == file.sha256 for name, file in record.files.items())


def write_case(folder: Path, content: str, prepared: Prepared, locations: dict[int, NDArray[np.integer[Any]]]) -> None:
    """Writes a prepared case; it appears complete under its name or not at all.

    Nothing is forced onto the disk, which takes longer than preparing a small case: what a power cut damages,
    `is_intact` finds and the next run prepares anew.

    Args:
        folder: of the case, named by its identifier.
        content: hash of the files that it was made from.
        prepared: the case, with labels.
        locations: voxels of each class.
    """
    assert prepared.labels is not None, "cases without labels are not stored"
    rows = np.concatenate(list(locations.values())) if locations else np.zeros((0, 3), np.int16)
    temporary = temporary_beside(folder)
    temporary.mkdir(parents=True)
    try:
        for name, array in ((IMAGE, prepared.image), (LABELS, prepared.labels), (LOCATIONS, rows)):
            np.save(temporary / name, array, allow_pickle=False)
        files = {
            file.name: StoredFile(file.stat().st_size, sha256_of_file(file)) for file in sorted(temporary.iterdir())
        }
        counts = {str(key): len(found) for key, found in locations.items()}
        record = CaseRecord(STORE_VERSION, folder.name, content, prepared.placement, counts, files)
        (temporary / RECORD).write_text(to_json(record))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one, or one of other files
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_wrong_sizes(folder: Path, record: CaseRecord) -> None:
    for name, file in record.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else 0
        if size != file.size or {IMAGE, LABELS, LOCATIONS} - set(record.files):
            raise _damaged(folder, f"{name} has {size} bytes and should have {file.size}")


def _damaged(folder: Path, why: str) -> IntegrityRefusal:
    return IntegrityRefusal(
        f"the stored case {folder.name} is damaged",
        where=str(folder),
        why=why,
        do="run `autoseg preprocess` again, which prepares damaged cases anew",
    )
