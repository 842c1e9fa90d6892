"""Images of many cases become label files: read | compute | write, three threads that work on a case each.

A case goes from thread to thread; while one is computed, the next is read and the one before is written. At most three
cases are in work, so memory is bounded, and a case that fails does not stop the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from autoseg.core.errors import AutoSegError, Interrupted, NotEnoughResources, is_machine_fault
from autoseg.core.files import atomic_file
from autoseg.core.geometry import Geometry
from autoseg.core.machine import BYTES_PER_GIB, available_memory_bytes, resident_memory_bytes, return_freed_memory
from autoseg.core.progress import Progress, silent
from autoseg.core.workers import Helper
from autoseg.data.labels import to_file_values
from autoseg.data.model import Case
from autoseg.images.orientation import AS_STORED, orientation_of, spelled, stored_and_turned
from autoseg.images.writers import write_labels
from autoseg.inference.ensemble import Ensemble, Prediction
from autoseg.inference.manifest import CaseOutcome
from autoseg.inference.outputs import OutputFolder, output_name
from autoseg.inference.reading import MemoryLimit, ReadCase, ReadingTask, read_in
from autoseg.inference.restore import label_kind
from autoseg.planning.plan import Plan
from autoseg.preprocessing.prepare import PreparedCase

_log = logging.getLogger(__name__)

_CASES_IN_WORK = 3
"""One being read, one computed and one written; more would only fill memory."""

_USABLE_MEMORY_SHARE = 0.8
"""Of the memory that is free at the start, when --max-ram does not say; assumption: others need some too."""

_POLL_S = 0.2


class PredictionStream:
    """Predicts cases from image files to label files.

    Args:
        plan: of the model: classes, file ending, axes.
        ensemble: its networks.
        outputs: folder of the label files.
        helper: process that reads the images.
        has_probabilities: whether the probabilities are written too.
        max_ram_gib: memory to stay below; what does not fit is kept in a file. None for most of what is free.
    """

    def __init__(
        self,
        plan: Plan,
        ensemble: Ensemble,
        outputs: OutputFolder,
        helper: Helper,
        has_probabilities: bool = False,
        max_ram_gib: float | None = None,
    ) -> None:
        self._plan = plan
        self._ensemble = ensemble
        self._outputs = outputs
        self._helper = helper
        self._has_probabilities = has_probabilities
        allowed = max_ram_gib * BYTES_PER_GIB if max_ram_gib else available_memory_bytes() * _USABLE_MEMORY_SHARE
        self._max_ram_bytes = int(allowed)
        self._progress: Progress = silent
        self._stop = threading.Event()
        self._read_cases: dict[str, ReadCase] = {}
        self._seconds: dict[str, float] = {}

    @property
    def device(self) -> str:
        """Where the last case was computed."""
        return str(self._ensemble.members[0].predictor.device)

    @property
    def numerics(self) -> dict[str, str]:
        """Precision and memory format in which each configuration computed the last case."""
        return {member.name: member.predictor.numerics for member in self._ensemble.every}

    def outcomes(
        self, cases: Sequence[Case], check: Callable[[], None], progress: Progress = silent
    ) -> Iterator[tuple[str, CaseOutcome]]:
        """What became of each case, in order.

        Args:
            cases: with image files.
            check: called several times a second; raises Interrupted when the user wants to stop.
            progress: called with finished and all tiles of each case.
        """
        self._progress = progress
        with self._threads() as (reader, computer, writer):
            waiting: list[tuple[Case, Future[CaseOutcome]]] = []
            for case in cases:
                # each stage waits for the one before; a thread has one case at a time, so they come in order
                reading = reader.submit(self._read, case)
                computing = computer.submit(self._compute, case, reading)
                waiting.append((case, writer.submit(self._write, case, computing)))
                del reading, computing  # the arrays of a finished case must not be kept alive by its futures
                while len(waiting) >= _CASES_IN_WORK:
                    yield self._outcome(*waiting.pop(0), check)
            for case, writing in waiting:
                yield self._outcome(case, writing, check)

    @contextmanager
    def _threads(self) -> Iterator[list[ThreadPoolExecutor]]:
        """One thread for each stage; on the way out what waits is dropped and what runs is asked to stop."""
        threads = [ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("reader", "computer", "writer")]
        try:
            yield threads
        except BaseException:
            self._helper.close()  # a reader at work must not be waited for
            raise
        finally:
            self._stop.set()
            for thread in threads:
                thread.shutdown(wait=False, cancel_futures=True)
            for thread in threads:
                thread.shutdown(wait=True)

    @contextmanager
    def _timed(self, case: Case) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._seconds[case.identifier] = self._seconds.get(case.identifier, 0.0) + time.perf_counter() - begin

    def _read(self, case: Case) -> PreparedCase:
        task = ReadingTask(case, self._plan, self._ensemble.preparations, self._limit(), self._outputs.folder)
        with self._timed(case):
            found = read_in(self._helper, task)
        self._read_cases[case.identifier] = replace(found, prepared={})  # without the arrays, which are large
        if isinstance(found.prepared, AutoSegError):
            raise found.prepared
        placement = next(iter(found.prepared.values())).placement  # of all preparations on the same grid
        notes = [(logging.INFO, note) for note in found.notes]
        notes += orientation_notes(placement.geometry, self._plan)
        for level, note in notes:
            _log.log(level, "%s: %s", case.identifier, note)
        self._read_cases[case.identifier] = replace(found, prepared={}, notes=tuple(note for _, note in notes))
        return found.prepared

    def _limit(self) -> MemoryLimit:
        """The memory of a case, and what the networks, tile by tile, and the results take of it at least."""
        return MemoryLimit(
            most_bytes=self._max_ram_bytes,
            network_bytes=max(member.predictor.tile_bytes for member in self._ensemble.every),
            voxel_bytes=np.dtype(label_kind(self._plan.labels)).itemsize,
        )

    def _compute(self, case: Case, reading: Future[PreparedCase]) -> Prediction:
        prepared = reading.result()
        with self._timed(case):
            while True:
                try:
                    return self._ensemble.predict(
                        prepared,
                        keep_probabilities=self._has_probabilities,
                        max_bytes=self._free_bytes(prepared),
                        progress=self._tile_progress,
                    )
                except (RuntimeError, MemoryError) as error:  # torch has a class of its own for devices only
                    if not is_machine_fault(error):
                        raise
                    self._go_on_with_less(prepared, error)

    def _write(self, case: Case, computing: Future[Prediction]) -> CaseOutcome:
        prediction = computing.result()
        outputs, name, labels = self._outputs, output_name(case, self._plan.file_ending), self._plan.labels
        begin = partial(outputs.begin, case.identifier)
        with self._timed(case):
            path, others = outputs.folder / name, []
            write_labels(path, to_file_values(prediction.labels, labels), prediction.geometry, begin)
            if prediction.probabilities is not None:
                others.append(outputs.folder / f"{case.identifier}.npz")
                with atomic_file(others[0]) as temporary:
                    np.savez_compressed(temporary, probabilities=prediction.probabilities)
                    begin({others[0]: temporary})
            written, beside = outputs.written(path, others)
        found, seconds = self._read_cases[case.identifier], round(self._seconds[case.identifier], 3)
        return CaseOutcome("done", name, seconds, None, found.content, written, found.notes, beside)

    def _outcome(self, case: Case, writing: Future[CaseOutcome], check: Callable[[], None]) -> tuple[str, CaseOutcome]:
        while not wait_for([writing], timeout=_POLL_S).done:
            check()
        error = writing.exception()
        if error is None:
            return case.identifier, writing.result()
        if isinstance(error, Interrupted):
            check()
        reason = str(error) if isinstance(error, AutoSegError) else f"{type(error).__name__}: {error}"
        _log.warning("%s failed: %s", case.identifier, reason)
        _log.debug("%s failed", case.identifier, exc_info=error)
        content = self._read_cases[case.identifier].content if case.identifier in self._read_cases else None
        return case.identifier, CaseOutcome("failed", None, 0.0, reason, content)

    def _free_bytes(self, prepared: PreparedCase) -> int:
        """Memory left for what is added up, beside what the program has now, the image and a batch of tiles."""
        computing = max(member.predictor.network_bytes for member in self._ensemble.every)
        images = sum(one.image.nbytes for one in prepared.values())
        if resident_memory_bytes() > self._max_ram_bytes // 2:  # what is kept counts; the system clears what comes back
            return_freed_memory()
        return max(0, self._max_ram_bytes - resident_memory_bytes() - computing - images)

    def _tile_progress(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Interrupted("stopped between two tiles")
        self._progress(done, total)

    def _go_on_with_less(self, prepared: PreparedCase, error: BaseException) -> None:
        """Makes the ensemble, for this and all later cases, one that needs less memory."""
        smaller = self._ensemble.with_less_memory(of_device=isinstance(error, torch.OutOfMemoryError))
        if smaller is None:
            shapes = {one.image.shape[1:] for one in prepared.values()}
            raise NotEnoughResources(
                f"memory is not enough for an image of {' and '.join(map(str, shapes))} voxels",
                do="close other programs, or lower --max-ram so that more is kept on disk",
            ) from error
        self._ensemble = smaller
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def orientation_notes(geometry: Geometry, plan: Plan) -> list[tuple[int, str]]:
    """What becomes of an image that is not stored in the orientation of the model, with a level for the log.

    Args:
        geometry: of the image.
        plan: of the model.
    """
    own, usual, turn = orientation_of(geometry), plan.orientation, plan.turn(geometry)
    if own == usual:
        return []
    if own is None:
        what = f"no orientation stated, whereas the model takes images as {spelled(usual)}: it is predicted as stored, "
        return [(logging.WARNING, what + "so left and right may be exchanged")]
    if usual is None:  # as in models of nnU-Net
        return [(logging.INFO, f"stored {spelled(own)}; the model knows no orientation, so it is predicted as stored")]
    if turn == AS_STORED:
        return [
            (logging.INFO, f"stored {spelled(own)}, oblique or a slice of another plane: it is predicted as stored")
        ]
    return [(logging.INFO, stored_and_turned(geometry, turn.grid(geometry)))]
