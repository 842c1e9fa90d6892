"""The stages of a prediction: reading, computing and writing overlap, memory is bounded, a bad case fails alone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autoseg.core.errors import AutoSegError, Interrupted, NotEnoughResources
from autoseg.core.files import atomic_file
from autoseg.core.geometry import Geometry
from autoseg.core.machine import BYTES_PER_GIB, available_memory_bytes, resident_memory_bytes
from autoseg.core.progress import Progress
from autoseg.data.labels import to_file_values
from autoseg.data.model import Case
from autoseg.images.formats.files import hash_of_written
from autoseg.images.writers import write_labels
from autoseg.inference.ensemble import Ensemble, Prediction, PreparedCase
from autoseg.inference.manifest import CaseOutcome, PredictionOptions, output_name, read_case
from autoseg.inference.predictor import Predictor
from autoseg.inference.resume import hash_of_images
from autoseg.planning.plan import Plan

_log = logging.getLogger(__name__)

_CASES_IN_WORK = 3
"""One being read, one computed and one written; more would only fill memory."""

_USABLE_MEMORY_SHARE = 0.8
"""Of the memory that is free at the start, when --max-ram does not say; assumption: others need some too."""

_POLL_S = 0.2


def network_bytes(predictor: Predictor) -> int:
    """Estimate of what computing a batch of tiles takes: feature maps of full resolution, and the logits."""
    if torch.device(predictor.device).type != "cpu":
        return 0
    logits = 2 * predictor.heads * int(np.prod(predictor.patch_size))
    features = predictor.configuration.network.prediction_elements(predictor.patch_size)
    return 4 * (features + logits) * predictor.tiles_at_once


@dataclass(slots=True)
class _Read:
    """A case as the reader hands it on."""

    prepared: PreparedCase
    seconds: float


@dataclass(slots=True)
class _Computed:
    """A case as the networks hand it on."""

    prediction: Prediction
    geometry: Geometry
    seconds: float


class PredictionRun:
    """The three stages of all cases, each in a thread of its own, with a bounded number of cases in work."""

    def __init__(
        self,
        plan: Plan,
        ensemble: Ensemble,
        output: Path,
        options: PredictionOptions,
        progress: Progress,
        total: int,
    ) -> None:
        self.plan = plan
        self.ensemble = ensemble
        self.output = output
        self.options = options
        self.progress = progress
        self.total = total
        self.finished = 0
        self.stop = threading.Event()
        self.hashes: dict[str, str] = {}
        allowed = int(available_memory_bytes() * _USABLE_MEMORY_SHARE)
        self.max_ram_bytes = int(options.max_ram_gib * BYTES_PER_GIB) if options.max_ram_gib else allowed

    @property
    def device(self) -> str:
        """Where the last case was computed."""
        return str(self.ensemble.members[0].predictor.device)

    def tell_finished(self) -> None:
        """Reports one more finished case."""
        self.finished += 1
        if self.total > 1:
            self.progress(self.finished, self.total)

    def outcomes(self, cases: Sequence[Case], check: Callable[[], None]) -> Iterator[tuple[str, CaseOutcome]]:
        """What became of each case, in order; `check` is asked all the time and may raise Interrupted."""
        with _stages(self.stop) as (reader, computer, writer):
            waiting: list[tuple[Case, Future[tuple[str, float]]]] = []
            for case in cases:
                reading = reader.submit(self._read, case)
                computing = computer.submit(self._compute, reading)
                del reading  # a finished case must not be kept alive by its future
                waiting.append((case, writer.submit(self._write, case, computing)))
                del computing
                while len(waiting) >= _CASES_IN_WORK:
                    yield self._outcome(*waiting.pop(0), check)
            for case, future in waiting:
                yield self._outcome(case, future, check)

    def _outcome(
        self, case: Case, future: Future[tuple[str, float]], check: Callable[[], None]
    ) -> tuple[str, CaseOutcome]:
        while not wait_for([future], timeout=_POLL_S).done:
            check()
        content = self.hashes.get(case.identifier)
        error = future.exception()
        if error is None:
            name, seconds = future.result()
            written = hash_of_written(self.output / name)
            return case.identifier, CaseOutcome("done", name, round(seconds, 3), None, content, written)
        if isinstance(error, Interrupted):
            check()
        reason = str(error) if isinstance(error, AutoSegError) else f"{type(error).__name__}: {error}"
        _log.warning("%s failed: %s", case.identifier, reason)
        _log.debug("%s failed", case.identifier, exc_info=error)
        return case.identifier, CaseOutcome("failed", None, 0.0, reason, content)

    def _read(self, case: Case) -> _Read:
        begin = time.perf_counter()
        self.hashes[case.identifier] = hash_of_images(case)
        volume = read_case(case, self.plan.four_d)
        return _Read(self.ensemble.prepare(volume), time.perf_counter() - begin)

    def _compute(self, reading: Future[_Read]) -> _Computed:
        read = reading.result()
        begin = time.perf_counter()
        prediction = self._predicted(read.prepared)
        geometry = next(iter(read.prepared.values())).placement.geometry
        return _Computed(prediction, geometry, read.seconds + time.perf_counter() - begin)

    def _predicted(self, prepared: PreparedCase) -> Prediction:
        """Labels and, if wanted, probabilities; goes on with less when memory runs out."""
        while True:
            try:
                return self.ensemble.predict(
                    prepared,
                    keep_probabilities=self.options.probabilities,
                    max_bytes=self._limit(prepared),
                    progress=self._tile_progress,
                )
            except (torch.OutOfMemoryError, MemoryError) as error:
                smaller = self.ensemble.with_less_memory()
                if smaller is None:
                    shapes = {one.image.shape[1:] for one in prepared.values()}
                    raise NotEnoughResources(
                        f"memory is not enough for an image of {' and '.join(map(str, shapes))} voxels",
                        do="close other programs, or lower --max-ram so that more is kept on disk",
                    ) from error
                self.ensemble = smaller
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def _limit(self, prepared: PreparedCase) -> int:
        computing = max(network_bytes(member.predictor) for member in self.ensemble.every)
        images = sum(one.image.nbytes for one in prepared.values())
        return max(0, self.max_ram_bytes - resident_memory_bytes() - computing - images)

    def _tile_progress(self, done: int, total: int) -> None:
        if self.stop.is_set():
            raise Interrupted("stopped between two tiles")
        if self.total == 1:
            self.progress(done, total)

    def _write(self, case: Case, computing: Future[_Computed]) -> tuple[str, float]:
        computed = computing.result()
        begin = time.perf_counter()
        name = output_name(case, self.plan.file_ending)
        probabilities = computed.prediction.probabilities
        if probabilities is not None:
            with atomic_file(self.output / f"{case.identifier}.npz") as temporary:
                np.savez_compressed(temporary, probabilities=probabilities)
        labels = to_file_values(computed.prediction.labels, self.plan.labels)
        write_labels(self.output / name, labels, computed.geometry)
        return name, computed.seconds + time.perf_counter() - begin


@contextmanager
def _stages(stop: threading.Event) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor, ThreadPoolExecutor]]:
    """Threads that read, compute and write; on the way out what waits is dropped and what runs is told to stop."""
    pools = tuple(ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("reader", "computer", "writer"))
    reader, computer, writer = pools
    try:
        yield reader, computer, writer
    finally:
        stop.set()
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown(wait=True)
