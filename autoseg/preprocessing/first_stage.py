"""What the first stage of a cascade predicted, as an input of the second: prepared once, one channel per label value.

The prepared label maps are an extra of a store: a folder beside it, named by a hash of its recipe, which says which run
predicted each case, with which weights, in which file. A first stage that is trained again gives another folder. In it
every case has a folder `previous.npy source.json`. Names on disk say "previous" since the first version; they stay,
because other names would make every existing extra be prepared again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, GeometryMismatch, error_for
from autoseg.core.files import atomic_folder, remove_leftovers, write_atomic
from autoseg.core.records import content_hash, load, to_json, to_sealed_json
from autoseg.data.model import LabelSet
from autoseg.images.crop import slices
from autoseg.images.resample import resample_labels
from autoseg.preprocessing.prepare import Placement, smallest_labels
from autoseg.preprocessing.store import StoredCase, StoredFile, damaged, map_array, open_case, stored_file

FIRST_STAGE_VERSION = 1
"""Changes whenever the same label maps give other arrays."""

ARRAY, RECORD, RECIPE = "previous.npy", "source.json", "recipe.json"

_NOT_WRITTEN = StoredFile(0, "")
_WHAT, _DO = (
    "stored first-stage label map of",
    "delete this folder and run the same command again, which prepares it anew",
)


@dataclass(frozen=True, slots=True)
class FirstStageSource:
    """Where the first stage's label map of a case comes from.

    Attributes:
        fold: of the run that predicted it, which was not trained on the case.
        weights: hash of that run's weights.
        file: label map, relative to the work folder.
        sha256: of the label map.
    """

    fold: int
    weights: str
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class FirstStageRecipe:
    """Everything that the extra depends on; its hash names the folder.

    Attributes:
        version: `FIRST_STAGE_VERSION` of the writer.
        configuration: the first stage.
        store: name of the store that it belongs to.
        sources: by case.
    """

    version: int
    configuration: str
    store: str
    sources: dict[str, FirstStageSource]


@dataclass(frozen=True, slots=True)
class FirstStageRecord:
    """The source.json of a case.

    Attributes:
        version: `FIRST_STAGE_VERSION` of the writer.
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
    source: FirstStageSource
    file: StoredFile = _NOT_WRITTEN


def prepare_first_stage(labels: NDArray[Any], placement: Placement) -> NDArray[np.signedinteger[Any]]:
    """A label map of the first stage on the grid of the prepared image, resampled as labels are.

    Args:
        labels: training values (z, y, x) on the grid of the file.
        placement: of the prepared image.

    Returns:
        (z, y, x) in the plan's order as int8, or int16 where values exceed 127.

    Raises:
        GeometryMismatch: the label map is not on the grid of the file.

    Source: nnU-Net v2 inference/data_iterators.py (at prediction; in training nnU-Net resamples logits instead, which
    networks then never see again).
    """
    if labels.shape != placement.geometry.shape:
        raise GeometryMismatch(
            f"the label map of the first stage is {labels.shape} voxels, the image {placement.geometry.shape}",
            do="predict with the first stage again",
        )
    cropped = smallest_labels(placement.in_plan_order(labels)[slices(placement.box)])
    spacings = placement.cropped_spacing_mm, placement.prepared_spacing_mm
    return np.ascontiguousarray(resample_labels(cropped, placement.prepared_shape, *spacings))


def one_hot(first_stage: NDArray[Any], labels: LabelSet) -> NDArray[np.float32]:
    """One channel (n, z, y, x) per foreground value, ascending: 1 where `first_stage` (z, y, x) has it, 0 elsewhere."""
    channels = np.empty((len(labels.foreground_values), *first_stage.shape), np.float32)
    for channel, value in zip(channels, labels.foreground_values, strict=True):
        np.equal(first_stage, value, out=channel, casting="unsafe")
    return channels


def network_input(stored: StoredCase, labels: LabelSet) -> NDArray[np.float32]:
    """What the network of a stored case's configuration gets: its image, in a cascade with the first stage's channels.

    Returns:
        (c, z, y, x); without a first stage the stored image itself.
    """
    image = np.asarray(stored.image, np.float32)
    return image if stored.first_stage is None else np.concatenate([image, one_hot(stored.first_stage, labels)])


def start_extra(store: Path, recipe: FirstStageRecipe) -> Path:
    """The folder of an extra, made if it is new, without what an interrupted writer left in it."""
    folder = store.with_name(f"{store.name}-previous-{content_hash(recipe)}")
    remove_leftovers(folder)
    write_atomic(folder / RECIPE, to_json(recipe))
    return folder


def write_first_stage(folder: Path, record: FirstStageRecord, array: NDArray[np.signedinteger[Any]]) -> None:
    """Writes a case of an extra; it appears complete under its name or not at all.

    Args:
        folder: of the extra.
        record: what is known of it; its `file` is filled in.
        array: (z, y, x) on the grid of the prepared case.
    """
    with atomic_folder(folder / record.identifier) as temporary:
        np.save(temporary / ARRAY, array, allow_pickle=False)
        written = replace(record, file=stored_file(temporary / ARRAY))
        (temporary / RECORD).write_text(to_sealed_json(written))


def is_first_stage_intact(folder: Path, record: FirstStageRecord) -> bool:
    """Whether a case of an extra is there, of this source, and every byte as it was written."""
    try:
        found = load(FirstStageRecord, folder / record.identifier / RECORD)
    except AutoSegError:
        return False
    same_source = replace(found, file=record.file) == record
    return same_source and found.file.is_intact(folder / record.identifier / ARRAY)


def open_with_first_stage(store: Path, extra: Path | None, name: str) -> StoredCase:
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
    record = load(FirstStageRecord, extra / name / RECORD)
    path = extra / name / ARRAY
    try:
        array = map_array(path)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise error_for(error) from error  # the file may be whole
        raise damaged(extra / name, str(error), _WHAT, _DO) from error
    if record.identifier != name or not record.file.has_size(path) or array.shape != stored.image.shape[1:]:
        why = "its array is not what its record says, or of another case"
        raise damaged(extra / name, why, _WHAT, _DO)
    return replace(stored, first_stage=array)
