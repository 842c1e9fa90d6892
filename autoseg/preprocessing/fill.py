"""Filling a store: every case that is not there yet is read, prepared and written by supervised processes."""

from __future__ import annotations

import errno
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from autoseg.core.errors import AutoSegError, Busy, NotEnoughResources, error_for, is_machine_fault
from autoseg.core.files import remove_leftovers, write_atomic
from autoseg.core.machine import BYTES_PER_GIB, holder_of
from autoseg.core.progress import Progress, silent
from autoseg.core.records import to_json
from autoseg.core.workers import ITEM_TIMEOUT_S, map_supervised
from autoseg.data.check import check_case
from autoseg.data.fingerprint import CaseStatistics, Fingerprint
from autoseg.data.model import Case, Dataset
from autoseg.images.resample import resampled_shape
from autoseg.planning.plan import BYTES_PER_STORED_VOXEL
from autoseg.preprocessing.locations import MOST_KEPT, SHARE_KEPT, class_locations
from autoseg.preprocessing.prepare import prepare
from autoseg.preprocessing.store import StoreRecipe, is_intact, write_case

DISK_MARGIN = 1.1
"""Free disk space asked for, as a multiple of the estimate."""

LONGEST_WAIT_S = ITEM_TIMEOUT_S
"""For another process that fills the same store and prepares no case meanwhile: no case takes longer."""

_POLL_S = 1.0
_BYTES_PER_LOCATION = 3 * 2
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
class CaseSize:
    """How much a case will be once it is prepared, estimated from its fingerprint.

    Attributes:
        voxels: of the prepared image.
        disk_bytes: of its files.
        memory_bytes: that preparing it takes at most: of the image as read, its copies in single precision and the
            masks of the crop; of the prepared one, the channels and those that are interpolated just now.
            Measured: 66 to 99 % of it, with 1 and 4 channels, resampled to an eighth up to 64 times the voxels.
    """

    voxels: int
    disk_bytes: int
    memory_bytes: int


Task = tuple[Case, str]
"""A case to prepare, and the hash of the files that it was planned from."""


def fill_store(
    dataset: Dataset,
    fingerprint: Fingerprint,
    recipe: StoreRecipe,
    store: Path,
    *,
    jobs: int = 1,
    progress: Progress = silent,
) -> StoreResult:
    """Prepares every case of the fingerprint that the store of a recipe does not hold yet.

    May be stopped at any moment and run again. Another process that fills the same store is waited for. A case that
    cannot be prepared is reported, the others are done.

    Args:
        dataset: where the files are.
        fingerprint: the one that was planned from; its cases are prepared.
        recipe: how cases are prepared, by `store_recipe`.
        store: `Workspace.store`.
        jobs: worker processes; 0 to prepare in this process.
        progress: called for every case, those already there included.

    Raises:
        NotEnoughResources: the disk is too small, or became full.
        Busy: another process fills the store and does not get on.
    """
    folder = store / recipe.name
    cases = {case.identifier: case for case in dataset.cases}
    wanted = [(cases[entry.identifier], entry.content) for entry in fingerprint.cases if entry.identifier in cases]
    gone = sorted({entry.identifier for entry in fingerprint.cases} - set(cases))
    with hold_store(folder, lambda: progress(0, len(wanted))):
        remove_leftovers(folder)
        write_atomic(folder / "store.json", to_json(recipe))
        missing, reused = _missing_and_reused(folder, wanted, jobs)
        sizes = _sizes_of(missing, fingerprint, recipe)
        _refuse_full_disk(folder, sizes)
        progress(len(reused), len(wanted))
        failures = _store_missing(
            partial(_store_case, folder, replace(dataset, cases=()), recipe),  # a worker needs no other case
            missing,
            sizes,
            jobs,
            lambda done, _: progress(len(reused) + done, len(wanted)),
        )
    done = [case.identifier for case, _ in missing if case.identifier not in failures]
    failures |= dict.fromkeys(gone, "the case is not in the dataset any more; plan the dataset again")
    return StoreResult(folder, tuple(done), tuple(reused), failures)


def _store_missing(
    store_case: Callable[[Task], AutoSegError | str | None],
    tasks: Sequence[Task],
    sizes: Sequence[CaseSize],
    jobs: int,
    progress: Progress,
) -> dict[str, str]:
    """Stores the cases and returns by case why one could not be prepared; a full disk ends the work."""
    failures = {}
    jobs = min(jobs, 1) if sum(size.voxels for size in sizes) < _FEW_VOXELS else jobs
    needs = [size.memory_bytes for size in sizes]
    for done, outcome in enumerate(map_supervised(store_case, tasks, jobs, needs=needs), start=1):
        failure = outcome.value or outcome.failure
        if isinstance(failure, AutoSegError):
            raise failure
        if failure:
            identifier = tasks[outcome.index][0].identifier
            failures[identifier] = failure
            logger.warning("%s could not be prepared: %s", identifier, failure)
        progress(done, len(tasks))
    return failures


def _missing_and_reused(folder: Path, tasks: Sequence[Task], jobs: int) -> tuple[list[Task], list[str]]:
    """Tasks whose cases are not in the store or damaged, and the other cases.

    Every stored byte is read and hashed, which releases Python's lock, so threads are enough.
    """
    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        intact = list(pool.map(lambda task: is_intact(folder / task[0].identifier, task[1]), tasks))
    missing = [task for task, is_there in zip(tasks, intact, strict=True) if not is_there]
    return missing, [case.identifier for (case, _), is_there in zip(tasks, intact, strict=True) if is_there]


def _store_case(folder: Path, dataset: Dataset, recipe: StoreRecipe, task: Task) -> AutoSegError | str | None:
    """Reads, prepares and writes one case, in a worker process.

    Returns:
        None; or why the case could not be prepared; or that the disk is full, as a value, because workers turn errors
        into sentences and this one ends the whole work.
    """
    case, content = task
    checked = check_case(dataset, case)
    if checked.volume is None or checked.labels is None:
        return "; ".join(problem.what for problem in checked.problems if problem.severity == "refused")
    if checked.content != content:
        return "its files have changed since the dataset was planned; plan it again"
    prepared = prepare(checked.volume, checked.labels, recipe.preparation)
    assert prepared.labels is not None, "labels were given"
    try:
        locations = class_locations(prepared.labels, recipe.labels)
        write_case(folder / case.identifier, content, prepared, locations, recipe.image_type)
    except OSError as error:
        if not is_machine_fault(error):
            raise
        meant = error_for(error)
        is_full = error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # None: numpy knows no number
        return _full_disk(folder, f"{case.identifier}: {meant.what}") if is_full else meant
    return None


@contextmanager
def hold_store(folder: Path, while_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Lets only one process fill a store, because two would prepare the same cases twice.

    The system releases the lock of a killed process, so no lock file is ever outdated. One that works is waited for as
    long as cases appear.

    Args:
        folder: of the store.
        while_waiting: called about once a second; raises Interrupted when the user wants to stop.

    Raises:
        Busy: another process holds the store, and nothing has appeared in it for long.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    seen, since = -1, time.monotonic()
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0 if seen < 0 else _POLL_S)
        except Timeout:
            while_waiting()
            if seen < 0:
                logger.info("%s fills %s; waiting for it", holder_of(Path(lock.lock_file)), folder)
            if (now := len(list(folder.iterdir()))) != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > LONGEST_WAIT_S:
                raise _hanging(folder, Path(lock.lock_file)) from None
    try:
        yield
    finally:
        lock.release()


def _hanging(folder: Path, lock: Path) -> Busy:
    return Busy(
        f"{holder_of(lock)} holds the store, and has prepared nothing for {LONGEST_WAIT_S:.0f} s",
        where=str(folder),
        do="look at that process, end it if it hangs, and run the same command again",
    )


def _refuse_full_disk(folder: Path, sizes: Sequence[CaseSize]) -> None:
    needed = int(DISK_MARGIN * sum(size.disk_bytes for size in sizes))
    free = shutil.disk_usage(folder).free
    if needed > free:
        needed_gib, free_gib = needed / BYTES_PER_GIB, free / BYTES_PER_GIB
        raise _full_disk(folder, f"{len(sizes)} cases need about {needed_gib:.2f} GiB and {free_gib:.2f} GiB are free")


def _sizes_of(tasks: Sequence[Task], fingerprint: Fingerprint, recipe: StoreRecipe) -> list[CaseSize]:
    statistics = {case.identifier: case for case in fingerprint.cases}
    return [_size_of(statistics[case.identifier], recipe) for case, _ in tasks]


def _size_of(case: CaseStatistics, recipe: StoreRecipe) -> CaseSize:
    preparation, channels = recipe.preparation, len(recipe.preparation.normalization)
    shape, spacing = (
        [values[axis] for axis in preparation.axis_order] for values in (case.shape_after_crop, case.spacing_mm)
    )
    voxels = math.prod(resampled_shape([int(n) for n in shape], spacing, preparation.target_mm(spacing)))
    label_bytes = 1 if recipe.labels.largest_value < 128 else 2
    locations = min(voxels, MOST_KEPT * len(recipe.labels.classes)) + int(SHARE_KEPT * voxels)
    return CaseSize(
        voxels=voxels,
        disk_bytes=voxels * (BYTES_PER_STORED_VOXEL[recipe.image_type] * channels + label_bytes)
        + locations * _BYTES_PER_LOCATION,
        memory_bytes=math.prod(case.shape) * (10 * channels + 4) + voxels * (4 * channels + 6),
    )


def _full_disk(folder: Path, why: str) -> NotEnoughResources:
    return NotEnoughResources(
        "there is not enough space on the disk for the preprocessed cases",
        where=str(folder),
        why=why,
        do="free some space, or choose another work folder with --work; the same command then goes on",
    )
