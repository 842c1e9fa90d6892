"""The stages of a prediction: reading, computing and writing overlap, memory is bounded, a bad case fails alone."""

from __future__ import annotations

import logging
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, Interrupted, NotEnoughResources
from autoseg.core.files import atomic_file, sha256_of_file
from autoseg.core.progress import Progress
from autoseg.core.records import content_hash
from autoseg.datasets.labels import to_file_values
from autoseg.datasets.model import Case
from autoseg.images.writers import write_labels
from autoseg.inference.predictor import Predictor
from autoseg.inference.restore import predict_case, predict_case_probabilities
from autoseg.launch.machine import BYTES_PER_GIB, available_memory_bytes
from autoseg.preprocessing.prepare import Prepared, preparation_of, prepare
from autoseg.workflow.model import ModelFiles
from autoseg.workflow.prediction_records import CaseOutcome, PredictionOptions, output_name, read_case

_log = logging.getLogger(__name__)

_CASES_IN_WORK = 3
"""One being read, one computed and one written; more would only fill memory."""

_USABLE_MEMORY_SHARE = 0.8
"""Of the memory that is free at the start, when --max-ram does not say; assumption: others need some too."""

_POLL_S = 0.2

_ACTIVATIONS_AT_ONCE = 4
"""Feature maps of full resolution that a network holds together while predicting; assumption, for the estimate."""


def peak_memory_bytes() -> int:
    """The most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def network_bytes(predictor: Predictor) -> int:
    """Estimate of what computing a batch of tiles takes: feature maps of full resolution, and the logits."""
    if torch.device(predictor.device).type != "cpu":
        return 0
    channels = _ACTIVATIONS_AT_ONCE * predictor.configuration.network.features_per_stage[0] + 2 * predictor.heads
    return 4 * channels * int(np.prod(predictor.patch_size)) * predictor.tiles_at_once


@dataclass(slots=True)
class _Read:
    """A case as the reader hands it on."""

    prepared: Prepared
    seconds: float


class PredictionRun:
    """The three stages of all cases, each in a thread of its own, with a bounded number of cases in work."""

    def __init__(
        self,
        files: ModelFiles,
        predictor: Predictor,
        output: Path,
        options: PredictionOptions,
        progress: Progress,
        total: int,
    ) -> None:
        self.plan = files.plan
        self.predictor = predictor
        self.output = output
        self.options = options
        self.progress = progress
        self.total = total
        self.finished = 0
        self.stop = threading.Event()
        self.hashes: dict[str, str] = {}
        free = available_memory_bytes()
        allowed = free and int(free * _USABLE_MEMORY_SHARE)
        self.max_ram_bytes = int(options.max_ram_gib * BYTES_PER_GIB) if options.max_ram_gib else allowed
        self.preparation = preparation_of(files.plan, files.configuration)

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
            return case.identifier, CaseOutcome("done", name, round(seconds, 3), None, content)
        if isinstance(error, Interrupted):
            check()
        reason = str(error) if isinstance(error, AutoSegError) else f"{type(error).__name__}: {error}"
        _log.warning("%s failed: %s", case.identifier, reason)
        _log.debug("%s failed", case.identifier, exc_info=error)
        return case.identifier, CaseOutcome("failed", None, 0.0, reason, content)

    def _read(self, case: Case) -> _Read:
        begin = time.perf_counter()
        self.hashes[case.identifier] = content_hash([sha256_of_file(Path(image)) for image in case.images])
        volume = read_case(case, self.plan.four_d)
        return _Read(prepare(volume, None, self.preparation), time.perf_counter() - begin)

    def _compute(self, reading: Future[_Read]) -> tuple[NDArray[Any], NDArray[Any] | None, Prepared, float]:
        read = reading.result()
        begin = time.perf_counter()
        labels, probabilities = self._predicted(read.prepared)
        return labels, probabilities, read.prepared, read.seconds + time.perf_counter() - begin

    def _predicted(self, prepared: Prepared) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Labels and, if wanted, probabilities; goes on with less when memory runs out."""
        own = self.plan.labels
        while True:
            predictor = replace(self.predictor, max_slab_bytes=self._slab_limit(prepared))
            try:
                if self.options.probabilities:
                    return predict_case_probabilities(
                        predictor, prepared.image, prepared.placement, own, self._tile_progress
                    )
                return predict_case(predictor, prepared.image, prepared.placement, own, self._tile_progress), None
            except (torch.OutOfMemoryError, MemoryError) as error:
                smaller = self.predictor.with_less_memory()
                if smaller is None:
                    raise NotEnoughResources(
                        f"memory is not enough for an image of {prepared.image.shape[1:]} voxels",
                        do="close other programs, or lower --max-ram so that more is kept on disk",
                    ) from error
                self.predictor = smaller
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def _slab_limit(self, prepared: Prepared) -> int | None:
        if self.max_ram_bytes is None:
            return None
        return max(0, self.max_ram_bytes - _resident_bytes() - network_bytes(self.predictor) - prepared.image.nbytes)

    def _tile_progress(self, done: int, total: int) -> None:
        if self.stop.is_set():
            raise Interrupted("stopped between two tiles")
        if self.total == 1:
            self.progress(done, total)

    def _write(self, case: Case, computing: Future[Any]) -> tuple[str, float]:
        labels, probabilities, prepared, seconds = computing.result()
        begin = time.perf_counter()
        plan, geometry = self.plan, prepared.placement.geometry
        name = output_name(case, plan.file_ending)
        if probabilities is not None:
            with atomic_file(self.output / f"{case.identifier}.npz") as temporary:
                np.savez_compressed(temporary, probabilities=probabilities)
        write_labels(self.output / name, to_file_values(labels, plan.labels), geometry)
        return name, seconds + time.perf_counter() - begin


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


def _resident_bytes() -> int:
    """Memory that this process has now, or the most it has had where the system does not tell."""
    table = Path("/proc/self/statm")
    if not table.is_file():
        return peak_memory_bytes()
    return int(table.read_text().split()[1]) * resource.getpagesize()
