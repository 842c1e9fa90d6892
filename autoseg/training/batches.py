"""Batches of a run: drawn, augmented and put on the device ahead of the training.

Batch i is a function of (seed, fold, stage, stream, i) alone: threads can change neither it nor the order of batches,
and a resumed run goes on with the batch that comes next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.augmentation.kinds import AUGMENTATIONS, Augment, make_augmentation
from autoseg.augmentation.spec import AugmentationSpec, augmentation_spec
from autoseg.core.errors import TrainingStopped
from autoseg.planning.lateral import LateralSwap
from autoseg.planning.plan import Configuration
from autoseg.preprocessing.store import StoredCase
from autoseg.training.recipe import Recipe
from autoseg.training.sampling import (
    AUGMENTATION_STREAM,
    TRAINING_STREAM,
    VALIDATION_STREAM,
    Batch,
    Sampling,
)
from autoseg.training.splits import Fold

T = TypeVar("T")

_of_thread = threading.local()

TIMEOUT_SECONDS = 300.0
"""Longest wait for one batch before the training stops (assumption: the slowest network disk needs seconds)."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A batch on the device.

    Attributes:
        image: (b, c, *patch).
        labels: (b, *patch).
        cases: of each patch.
    """

    image: Tensor
    labels: Tensor
    cases: tuple[str, ...]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Image and labels for the work that is queued from now on."""
        if self.image.is_cuda:
            stream = torch.cuda.current_stream(self.image.device)
            for tensor in (self.image, self.labels):
                tensor.record_stream(
                    stream
                )  # made on another one, to which their memory goes back: not before this one
        return self.image, self.labels


@dataclass(frozen=True, slots=True)
class BatchSource:
    """Makes the batches of a run by number, for training and for the validation after each epoch.

    Attributes:
        configuration: patch size, batch size, mirror axes.
        recipe: augmentation, share of foreground.
        fold: its cases.
        open_case: gives the stored case of an identifier.
        seed: (seed of the run, number of the fold).
        device: of the batches.
        first_stage_values: in a cascade the label values of its first stage.
        swap: labels that change places where a patch is mirrored from left to right; None if there are none.
    """

    configuration: Configuration
    recipe: Recipe
    fold: Fold
    open_case: Callable[[str], StoredCase]
    seed: tuple[int, int]
    device: torch.device
    first_stage_values: tuple[int, ...] = ()
    swap: LateralSwap | None = None

    def training(self, index: int) -> Placed:
        """Training batch number `index`, augmented."""
        spec = augmentation_spec(self.configuration, self.first_stage_values, self.swap)
        batch = self._sampling(self.fold.train, spec.initial_patch_size, TRAINING_STREAM)(index)
        seeds = np.random.SeedSequence([*self.seed, AUGMENTATION_STREAM, index])
        generator = torch.Generator().manual_seed(int(seeds.generate_state(1)[0]))
        return self._placed(batch, make_augmentation(self.recipe.augmentation), spec, generator)

    def validation(self, index: int) -> Placed:
        """Validation batch number `index`, not augmented."""
        spec = augmentation_spec(self.configuration, self.first_stage_values)
        batch = self._sampling(self.fold.val, spec.patch_size, VALIDATION_STREAM)(index)
        return self._placed(batch, AUGMENTATIONS["none"], spec, torch.Generator())

    def _sampling(self, cases: tuple[str, ...], initial_patch: tuple[int, ...], stream: int) -> Sampling:
        return Sampling(
            cases=cases,
            open_case=self.open_case,
            initial_patch=initial_patch,
            patch=self.configuration.patch_size,
            batch_size=self.configuration.batch_size,
            oversample_foreground=self.recipe.oversample_foreground,
            seed=(*self.seed, stream),
            allocate=_pinned if self.device.type == "cuda" else np.empty,
        )

    def _placed(self, batch: Batch, augment: Augment, spec: AugmentationSpec, generator: torch.Generator) -> Placed:
        with self._stream() as stream:
            image, labels = self._on_device(batch.image), self._on_device(batch.labels)
            first_stage = None if batch.first_stage is None else self._on_device(batch.first_stage)
            image, labels = augment(image, labels, spec, generator, first_stage)
            if stream is not None:
                stream.synchronize()  # here, ahead of the training, which then need not wait for another stream
        return Placed(image, labels, batch.cases)

    def _stream(self) -> AbstractContextManager[torch.cuda.Stream | None]:
        """On a GPU a stream of this thread: copies and augmentation run beside the training, and wait for nothing."""
        if self.device.type != "cuda":
            return nullcontext()
        if not hasattr(_of_thread, "stream"):
            _of_thread.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return _entered(_of_thread.stream)

    def _on_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def _pinned(shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """Memory that a GPU copies from by itself; PyTorch keeps it for the next batch."""
    types = {np.dtype(np.float32): torch.float32, np.dtype(np.int16): torch.int16}
    array: NDArray[Any] = torch.empty(shape, dtype=types[kind], pin_memory=True).numpy()
    return array


@contextmanager
def _entered(stream: torch.cuda.Stream) -> Iterator[torch.cuda.Stream]:
    with torch.cuda.stream(stream):
        yield stream


class Prefetcher(Generic[T]):
    """Iterates over make(start), make(start + 1), ... made ahead in threads; use it in a `with` block.

    What it yields does not depend on the number of threads. With 0 threads every batch is made when it is asked for.

    Attributes:
        waited_seconds: time spent waiting for batches so far.
    """

    def __init__(
        self, make: Callable[[int], T], start: int, threads: int, *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self.waited_seconds = 0.0
        self._make = make
        self._numbers = count(start)
        self._timeout_seconds = timeout_seconds
        # A ring of two batches per thread: the oldest leaves at the left when it is asked for, and only then is the
        # next one ordered at the right. So order does not depend on which thread is faster, and memory is bounded.
        self._ahead: deque[tuple[int, Future[T]]] = deque()
        self._orders: SimpleQueue[tuple[int, Future[T]] | None] = SimpleQueue()
        # Daemons, unlike the threads of concurrent.futures, which Python waits for when it ends: a thread that is stuck
        # in a dead file system must not keep the process.
        self._threads = [threading.Thread(target=self._work, daemon=True, name="batches") for _ in range(threads)]

    def __enter__(self) -> Prefetcher[T]:
        for thread in self._threads:
            thread.start()
        for _ in range(2 * len(self._threads)):
            self._order()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, batch in self._ahead:
            batch.cancel()
        for _ in self._threads:
            self._orders.put(None)
        for thread in self._threads:
            thread.join(timeout=1.0)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next batch.

        Raises:
            TrainingStopped: it did not come in time.
        """
        begin = time.perf_counter()
        try:
            return self._take() if self._threads else self._make(next(self._numbers))
        finally:
            self.waited_seconds += time.perf_counter() - begin

    def _take(self) -> T:
        number, batch = self._ahead.popleft()
        try:
            return batch.result(self._timeout_seconds)
        except TimeoutError as error:
            if batch.done():  # it was the batch that failed
                raise
            raise TrainingStopped(
                f"batch {number} was not ready after {self._timeout_seconds:g} s",
                why="the disk of the work folder does not answer",
                do="check the disk, then run the same command again",
            ) from error
        finally:
            self._order()

    def _order(self) -> None:
        order = (next(self._numbers), Future[T]())
        self._ahead.append(order)
        self._orders.put(order)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            number, batch = order
            if batch.set_running_or_notify_cancel():
                try:
                    batch.set_result(self._make(number))
                except BaseException as error:  # raised where the batch is asked for
                    batch.set_exception(error)
