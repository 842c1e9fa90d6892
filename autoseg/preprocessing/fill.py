"""Filling a store: every case that is not there yet is read, prepared and written by watched processes."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from autoseg.core.errors import NotEnoughResources
from autoseg.core.files import remove_leftovers, write_atomic
from autoseg.core.progress import Progress, silent
from autoseg.core.records import to_json
from autoseg.core.workers import map_supervised
from autoseg.core.workspace import Workspace
from autoseg.data.check import check_case
from autoseg.data.fingerprint import CaseStatistics, Fingerprint
from autoseg.data.model import Case, Dataset
from autoseg.images.resample import resampled_shape
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.locations import MOST_KEPT, SHARE_KEPT, class_locations
from autoseg.preprocessing.prepare import prepare
from autoseg.preprocessing.store import StoreRecipe, is_intact, store_folder, store_recipe, write_case

DISK_MARGIN = 1.1
"""Free disk space asked for, as a multiple of the estimate."""

_BYTES_PER_LOCATION = 3 * 2
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_FEW_VOXELS = 1 << 18
"""Below this, starting a second process takes longer than the work."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreResult:
    """What became of the cases of a store.

    Attributes:
        folder: the store.
        done: cases prepared now.
        reused: cases that were there, every byte as it was written.
        failures: reason by case, for those that could not be prepared.
    """

    folder: Path
    done: tuple[str, ...]
    reused: tuple[str, ...]
    failures: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Task:
    case: Case
    content: str


@dataclass(frozen=True, slots=True)
class _Stored:
    """What became of one case: nothing to say, a reason why it could not be prepared, or that the disk is full."""

    failure: str | None = None
    disk_is_full: bool = False


def fill_store(
    dataset: Dataset,
    plan: Plan,
    configuration: Configuration,
    fingerprint: Fingerprint,
    workspace: Workspace,
    *,
    jobs: int = 1,
    progress: Progress = silent,
) -> StoreResult:
    """Prepares every case of the fingerprint that the configuration's store does not hold yet.

    May be stopped at any moment and run again. Another process that fills the same store is waited for. A case that
    cannot be prepared is reported, the others are done.

    Args:
        dataset: where the files are.
        plan: of the dataset.
        configuration: one of the plan's.
        fingerprint: the one that was planned from; its cases are prepared.
        workspace: whose store is filled.
        jobs: worker processes.
        progress: told about every case, those already there included.

    Raises:
        NotEnoughResources: the disk is too small, or became full.
    """
    folder = store_folder(workspace.store, plan, configuration, fingerprint)
    recipe = store_recipe(plan, configuration, fingerprint)
    cases = {case.identifier: case for case in dataset.cases}
    wanted = [_Task(cases[entry.identifier], entry.content) for entry in fingerprint.cases if entry.identifier in cases]
    gone = [entry.identifier for entry in fingerprint.cases if entry.identifier not in cases]
    failures = dict.fromkeys(gone, "the case is not in the dataset any more; plan the dataset again")
    with hold_store(folder):
        remove_leftovers(folder)
        write_atomic(folder / "store.json", to_json(recipe))
        with ThreadPoolExecutor(jobs) as pool:
            intact = list(pool.map(lambda task: is_intact(folder / task.case.identifier, task.content), wanted))
        missing = [task for task, is_there in zip(wanted, intact, strict=True) if not is_there]
        reused = [task.case.identifier for task, is_there in zip(wanted, intact, strict=True) if is_there]
        voxels = _refuse_full_disk(folder, recipe, fingerprint, missing)
        progress(len(reused), len(wanted))
        outcomes = _store_all(folder, dataset, recipe, missing, 1 if voxels < _FEW_VOXELS else jobs)
        for count, (identifier, stored) in enumerate(outcomes, start=len(reused) + 1):
            if stored.disk_is_full:
                raise _full_disk(folder, stored.failure or "")
            failures.update({identifier: stored.failure} if stored.failure else {})
            progress(count, len(wanted))
    done = [task.case.identifier for task in missing if task.case.identifier not in failures]
    return StoreResult(folder, tuple(done), tuple(reused), failures)


def _store_all(
    folder: Path, dataset: Dataset, recipe: StoreRecipe, tasks: Sequence[_Task], jobs: int
) -> Iterator[tuple[str, _Stored]]:
    function = partial(_store_one, folder, replace(dataset, cases=()), recipe)
    for outcome in map_supervised(function, tasks, jobs):
        identifier = tasks[outcome.index].case.identifier
        stored = outcome.value or _Stored(outcome.failure)
        if stored.failure:
            logger.warning("%s could not be prepared: %s", identifier, stored.failure)
        yield identifier, stored


def _store_one(folder: Path, dataset: Dataset, recipe: StoreRecipe, task: _Task) -> _Stored:
    """Reads, prepares and writes one case; runs in a worker process."""
    checked = check_case(dataset, task.case)
    if checked.volume is None or checked.labels is None:
        refusals = [problem.what for problem in checked.problems if problem.severity == "refused"]
        return _Stored("; ".join(refusals))
    if checked.content != task.content:
        return _Stored("its files have changed since the dataset was planned; plan it again")
    prepared = prepare(checked.volume, checked.labels, recipe.preparation)
    assert prepared.labels is not None, "labels were given"
    try:
        write_case(
            folder / task.case.identifier, task.content, prepared, class_locations(prepared.labels, recipe.labels)
        )
    except OSError as error:
        if error.errno not in _DISK_IS_FULL:
            raise
        return _Stored(f"{task.case.identifier}: {error.strerror}", disk_is_full=True)
    return _Stored()


@contextmanager
def hold_store(folder: Path) -> Iterator[None]:
    """Only one process fills a store; the lock of a killed one is released by the system."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process fills %s; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _refuse_full_disk(folder: Path, recipe: StoreRecipe, fingerprint: Fingerprint, tasks: Sequence[_Task]) -> int:
    """The voxels that the tasks will make, if the disk has room for them."""
    statistics = {case.identifier: case for case in fingerprint.cases}
    sizes = [_size_of(statistics[task.case.identifier], recipe) for task in tasks]
    needed = int(DISK_MARGIN * sum(size for _, size in sizes))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _full_disk(
            folder, f"{len(tasks)} cases need about {needed / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free"
        )
    return sum(voxels for voxels, _ in sizes)


def _size_of(case: CaseStatistics, recipe: StoreRecipe) -> tuple[int, int]:
    """Voxels and bytes of a prepared case."""
    preparation = recipe.preparation
    shape, spacing = (
        [values[axis] for axis in preparation.axis_order] for values in (case.shape_after_crop, case.spacing_mm)
    )
    z, y, x = resampled_shape([int(n) for n in shape], spacing, preparation.target_mm(spacing))
    voxels = z * y * x
    label_bytes = 1 if recipe.labels.largest_value < 128 else 2
    locations = min(voxels, MOST_KEPT * len(recipe.labels.classes)) + int(SHARE_KEPT * voxels)
    return voxels, voxels * (4 * len(preparation.normalization) + label_bytes) + locations * _BYTES_PER_LOCATION


def _full_disk(folder: Path, why: str) -> NotEnoughResources:
    return NotEnoughResources(
        "there is not enough space on the disk for the preprocessed cases",
        where=str(folder),
        why=why,
        do="free some space, or choose another work folder with --work; the same command then goes on",
    )
