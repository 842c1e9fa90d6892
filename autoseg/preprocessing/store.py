"""Prepared cases on disk: memory-mapped arrays, complete or absent, found by what they were made from.

A store is a folder named by a hash of how cases are prepared, so configurations that prepare alike share one, and a
changed plan gets another. In it every case has a folder `image.npy labels.npy locations.npy case.json`.
"""

from __future__ import annotations

import shutil
import threading
import tokenize
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, IntegrityRefusal, RecordFault, error_for
from autoseg.core.files import remove_made, sha256_of_file, temporary_beside
from autoseg.core.limits import Name
from autoseg.core.records import content_hash, load, to_data, to_sealed_json
from autoseg.core.workspace import work_folder_of
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.model import LabelSet
from autoseg.planning.plan import Configuration, Plan, StoreType
from autoseg.preprocessing.prepare import Placement, Preparation, Prepared, preparation_of

STORE_VERSION = 1
"""Changes whenever the same preparation gives other arrays."""

ARRAYS = IMAGE, LABELS, LOCATIONS = "image.npy", "labels.npy", "locations.npy"
RECORD = "case.json"


_mapping = threading.Lock()


@dataclass(frozen=True, slots=True)
class StoreRecipe:
    """Everything that a store's content depends on, the cases aside; its hash names the folder.

    Attributes:
        version: of the code.
        preparation: how images are prepared.
        labels: classes without their names, which change nothing.
        image_type: of the voxels of images.
    """

    version: int
    preparation: Preparation
    labels: LabelSet
    image_type: StoreType = "float32"

    @property
    def name(self) -> str:
        """The folder's name: a hash, so that a changed plan finds another folder instead of cases of the old one.

        Where nothing is turned, or stored in another precision, it is the name that stores had before that existed.
        """
        data = to_data(self)
        if self.image_type == "float32":
            del data["image_type"]
        for name in ("orientation", "direction"):
            if data["preparation"][name] is None:
                del data["preparation"][name]
        return content_hash(data)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What a file of a stored case has to be.

    Attributes:
        size: bytes.
        sha256: of the content.
    """

    size: int
    sha256: str

    def has_size(self, path: Path) -> bool:
        """Whether the file is there with as many bytes; quick enough for every opening."""
        return path.is_file() and path.stat().st_size == self.size

    def is_intact(self, path: Path) -> bool:
        """Whether the file is there, every byte as it was written."""
        return self.has_size(path) and sha256_of_file(path) == self.sha256


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
    identifier: Name
    content: str
    placement: Placement
    locations: dict[str, int]
    files: dict[str, StoredFile]


@dataclass(frozen=True, slots=True, eq=False)
class StoredCase:
    """A prepared case, memory-mapped and read-only. Axes in the plan's order.

    Attributes:
        identifier: of the case.
        image: (c, z, y, x) float32, or float16 where the plan says so.
        labels: (z, y, x) int8 or int16, -1 outside the nonzero mask.
        locations: voxels (n, 3: z, y, x) of each class that occurs; keys as in `locations.location_groups`.
        placement: the way back to the grid of the file.
        first_stage: (z, y, x) training values that the first stage of a cascade predicted; None without a cascade.
    """

    identifier: str
    image: NDArray[np.floating[Any]]
    labels: NDArray[np.signedinteger[Any]]
    locations: dict[int, NDArray[np.integer[Any]]]
    placement: Placement
    first_stage: NDArray[np.signedinteger[Any]] | None = None


def store_recipe(plan: Plan, configuration: Configuration, fingerprint: Fingerprint) -> StoreRecipe:
    """What the store of a configuration is made by.

    A 2D configuration keeps the slice distance of every case. Where all cases have the same one, this is written as
    the target, so that 2D shares the store of 3D if that resamples to just this distance. The orientation counts only
    where a case is turned to it.
    """
    preparation = preparation_of(plan, configuration)
    if not any(case.turned_to for case in fingerprint.cases):
        preparation = replace(preparation, orientation=None, direction=None)
    own = {case.spacing_mm[plan.axis_order[0]] for case in fingerprint.cases}
    if preparation.spacing_mm[0] is None and len(own) == 1:
        preparation = replace(preparation, spacing_mm=(own.pop(), *preparation.spacing_mm[1:]))
    classes = {f"class_{index}": values for index, values in enumerate(plan.labels.classes.values())}
    labels = replace(plan.labels, classes=classes, regions_class_order=())
    return StoreRecipe(STORE_VERSION, preparation, labels, plan.store_type)


def store_folder(store: Path, plan: Plan, configuration: Configuration, fingerprint: Fingerprint) -> Path:
    """Where the prepared cases of a configuration lie, in `Workspace.store`."""
    return store / store_recipe(plan, configuration, fingerprint).name


def stored_file(path: Path) -> StoredFile:
    """A file as it is now."""
    return StoredFile(path.stat().st_size, sha256_of_file(path))


def map_array(path: Path) -> NDArray[Any]:
    """The array in an .npy file, mapped into memory read-only.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """
    # One thread at a time: numpy reads the header with Python's parser, which Python 3.11 has been seen to abort with
    # "AST constructor recursion depth mismatch" where threads parse at once (python/cpython issue 106905).
    with _mapping:
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (SyntaxError, tokenize.TokenError, EOFError, TypeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"{path.name} has no sound header: {error}") from error  # what that parser raises
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path.name} is an archive of arrays")
    return array


def open_case(folder: Path) -> StoredCase:
    """A stored case, nothing of it read yet but its record.

    Raises:
        MissingInput: the case is not in the store.
        IntegrityRefusal: a file is missing or has another size or shape than its record says.
    """
    record = _record_of(folder)
    try:
        image, labels, rows = (map_array(folder / name) for name in ARRAYS)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise error_for(error) from error  # the file may be whole
        raise damaged(folder, str(error)) from error
    shape, counts = record.placement.prepared_shape, list(record.locations.values())
    if image.shape[1:] != shape or labels.shape != shape or len(rows) != sum(counts):
        raise damaged(folder, "its arrays have other shapes than its record says")
    parts = np.split(rows, np.cumsum(counts, dtype=int))  # views, of which nothing is read; the last one is empty
    locations = {int(key): part for key, part in zip(record.locations, parts, strict=False)}
    return StoredCase(record.identifier, image, labels, locations, record.placement)


def _record_of(folder: Path) -> CaseRecord:
    try:
        record = load(CaseRecord, folder / RECORD)
    except RecordFault as error:
        raise damaged(folder, error.what) from error
    if not all(name in record.files and record.files[name].has_size(folder / name) for name in ARRAYS):
        raise damaged(folder, f"{', '.join(ARRAYS)} are not of the sizes that its record says")
    return record


def is_intact(folder: Path, content: str) -> bool:
    """Whether a stored case is there, complete, made of the files with this hash, and every byte as it was written."""
    try:
        record = load(CaseRecord, folder / RECORD)
    except AutoSegError:  # not there, or damaged
        return False
    return (record.version, record.content) == (STORE_VERSION, content) and all(
        name in record.files and record.files[name].is_intact(folder / name) for name in ARRAYS
    )


def write_case(
    folder: Path,
    content: str,
    prepared: Prepared,
    locations: dict[int, NDArray[np.integer[Any]]],
    image_type: StoreType = "float32",
) -> None:
    """Writes a prepared case; it appears complete under its name or not at all.

    Nothing is forced onto the disk, which takes longer than preparing a small case: what a power cut damages,
    `is_intact` finds and the next run prepares anew.

    Args:
        folder: of the case, named by its identifier.
        content: hash of the files that it was made from.
        prepared: the case, with labels.
        locations: voxels of each class.
        image_type: of the voxels that are written; an image that float16 cannot hold is written as float32.
    """
    assert prepared.labels is not None, "cases without labels are not stored"
    rows = np.concatenate(list(locations.values())) if locations else np.zeros((0, 3), np.int16)
    temporary = temporary_beside(folder)
    temporary.mkdir(parents=True)
    try:
        for name, array in zip(ARRAYS, (_of_type(prepared.image, image_type), prepared.labels, rows), strict=True):
            np.save(temporary / name, array, allow_pickle=False)
        files = {name: stored_file(temporary / name) for name in sorted(ARRAYS)}
        counts = {str(key): len(found) for key, found in locations.items()}
        record = CaseRecord(STORE_VERSION, folder.name, content, prepared.placement, counts, files)
        (temporary / RECORD).write_text(to_sealed_json(record))
        # a damaged one, or one of other files; WORK/store/<hash>/<case> must not lead out of WORK
        remove_made(folder, work_folder_of(folder), (RECORD, *ARRAYS))
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


LEAST_IN_HALF = 2.0**-4
"""Largest absolute value that each channel of an image has at least to be stored in half precision: small values are
rounded to multiples of 2^-24, a millionth of it."""


def _of_type(image: NDArray[np.float32], kind: StoreType) -> NDArray[np.floating[Any]]:
    """The image as it is stored; in single precision where half precision would lose what is in it."""
    if kind == "float32" or any(
        not LEAST_IN_HALF <= np.abs(channel).max(initial=0.0) <= np.finfo(np.float16).max for channel in image
    ):
        return image
    return image.astype(np.float16)


def damaged(
    folder: Path,
    why: str,
    what: str = "stored case",
    do: str = "run `autoseg preprocess` again, which prepares damaged cases anew",
) -> IntegrityRefusal:
    """The error that refuses the folder of a case in a store or in what belongs to it."""
    return IntegrityRefusal(f"the {what} {folder.name} is damaged", where=str(folder), why=why, do=do)
