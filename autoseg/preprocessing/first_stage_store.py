"""First-stage label maps as an extra of a store: prepared once, found by exactly what they were made from.

The extra is a folder beside the store, named by a hash of its recipe: which run predicted each case, with which
weights, in which file. A first stage that is trained again gives another folder. In it every case has a folder
`previous.npy source.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, IntegrityRefusal
from autoseg.core.files import atomic_folder, remove_leftovers, sha256_of_file, write_atomic
from autoseg.core.records import content_hash, load, to_json
from autoseg.preprocessing.store import StoredCase, StoredFile, open_case

PREVIOUS_VERSION = 1
"""Changes whenever the same label maps give other arrays."""

ARRAY, RECORD, RECIPE = "previous.npy", "source.json", "recipe.json"


@dataclass(frozen=True, slots=True)
class PreviousSource:
    """Where the first stage's label map of a case comes from.

    Attributes:
        fold: of the run that predicted it, which kept the case back.
        weights: hash of that run's weights.
        file: label map, relative to the work folder.
        sha256: of the label map.
    """

    fold: int
    weights: str
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PreviousRecipe:
    """Everything that the extra depends on; its hash names the folder.

    Attributes:
        version: of the code.
        configuration: the first stage.
        store: name of the store that it belongs to.
        sources: by case.
    """

    version: int
    configuration: str
    store: str
    sources: dict[str, PreviousSource]


@dataclass(frozen=True, slots=True)
class PreviousRecord:
    """The source.json of a case.

    Attributes:
        version: `PREVIOUS_VERSION` of the writer.
        identifier: of the case.
        configuration: the first stage.
        content: hash of the files that the prepared case was made from, on whose grid the array is.
        source: of the label map.
        file: the array.
    """

    version: int
    identifier: str
    configuration: str
    content: str
    source: PreviousSource
    file: StoredFile


def start_extra(store: Path, recipe: PreviousRecipe) -> Path:
    """The folder of an extra, made if it is new, without what an interrupted writer left in it."""
    folder = store.with_name(f"{store.name}-previous-{content_hash(recipe)}")
    remove_leftovers(folder)
    write_atomic(folder / RECIPE, to_json(recipe))
    return folder


def write_previous(folder: Path, record: PreviousRecord, previous: NDArray[np.signedinteger[Any]]) -> None:
    """Writes a case of an extra; it appears complete under its name or not at all.

    Args:
        folder: of the extra.
        record: what is known of it; its `file` is filled in.
        previous: (z, y, x) on the grid of the prepared case.
    """
    with atomic_folder(folder / record.identifier) as temporary:
        array = temporary / ARRAY
        np.save(array, previous, allow_pickle=False)
        written = StoredFile(array.stat().st_size, sha256_of_file(array))
        (temporary / RECORD).write_text(to_json(replace(record, file=written)))


def is_previous_intact(folder: Path, record: PreviousRecord) -> bool:
    """Whether a case of an extra is there, of this source, and every byte as it was written."""
    array = folder / record.identifier / ARRAY
    try:
        found = load(PreviousRecord, folder / record.identifier / RECORD)
    except AutoSegError:
        return False
    return (
        replace(found, file=record.file) == record
        and array.is_file()
        and array.stat().st_size == found.file.size
        and sha256_of_file(array) == found.file.sha256
    )


def open_with_previous(store: Path, extra: Path | None, name: str) -> StoredCase:
    """A stored case with what the first stage predicted for it, nothing of both read yet but their records.

    Args:
        store: folder of the prepared cases.
        extra: folder of the first stage's label maps; None without a cascade.
        name: of the case.

    Raises:
        MissingInput: the case is not in the store or not in the extra.
        IntegrityRefusal: a file has another size or shape than its record says, or belongs to another case.
    """
    stored = open_case(store / name)
    if extra is None:
        return stored
    record = load(PreviousRecord, extra / name / RECORD)
    array = extra / name / ARRAY
    try:
        previous = np.load(array, mmap_mode="r", allow_pickle=False)
        size = array.stat().st_size
    except (ValueError, OSError) as error:
        raise _damaged(extra / name, str(error)) from error
    if record.identifier != name or size != record.file.size or previous.shape != stored.image.shape[1:]:
        raise _damaged(extra / name, "its array is not what its record says, or of another case")
    return replace(stored, previous=previous)


def _damaged(folder: Path, why: str) -> IntegrityRefusal:
    return IntegrityRefusal(
        f"the first stage's label map of {folder.name} is damaged in the store",
        where=str(folder),
        why=why,
        do="delete this folder and run the same command again, which prepares it anew",
    )
