"""A training step as one CUDA graph: the host queues it as a whole instead of kernel by kernel.

Where patches are small, queuing the thousand kernels of a step takes the host longer than the device needs for them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from autoseg.training.optimization import skips_on_device
from autoseg.training.step import DeviceStep, TrainingState

WARM_UP_STEPS = 3
"""Steps of a shape that run as usual, as PyTorch advises: libraries choose kernels, the optimizer makes its state."""

LARGEST_DIFFERENCE = 0.02
"""Of the change of the weights in a step, between recorded and usual step (assumption: sums in half precision may come
in another order; a kernel left out, or an input read from a wrong place, changes all of it)."""

_log = logging.getLogger(__name__)


class Graph(Protocol):
    """What records work on the device, without doing it, and does it again and again."""

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Records the work; gives the tensor that will hold its result."""
        ...

    def replay(self) -> None:
        """Does the work."""
        ...


class CudaGraph:
    """PyTorch's recorder of what is done on a CUDA GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Records the work; other threads may use the device meanwhile."""
        # a stream of its own on the network's device, left again even where recording fails
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        recording = torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local")
        with torch.cuda.device(self._device), torch.cuda.stream(stream), recording:
            return work()

    def replay(self) -> None:
        """Queues the work on the current stream."""
        self._graph.replay()


class StepGraph:
    """Runs steps as usual at first, then records one and replays it; a batch of another shape is recorded anew.

    Before a recorded step is trusted, it is done twice from the same weights, as usual and replayed. If the weights
    come out differently, or the step cannot be recorded, all go on as usual, and a message says so.
    """

    def __init__(self, state: TrainingState, make_graph: Callable[[torch.device], Graph] = CudaGraph) -> None:
        """Nothing is recorded yet.

        Args:
            state: whose optimizer decides on the device whether a step is skipped; its network stays where it is.
            make_graph: gives an empty recorder of a device.
        """
        self._state, self._make_graph = state, make_graph
        self._is_refused = False
        self._forget(None)

    def __call__(self, step: DeviceStep, image: Tensor, labels: Tensor) -> Tensor:
        """The loss of one step; `step` does the same with every batch of this shape."""
        key = (image.shape, image.stride(), labels.shape, labels.dtype, self._state.parts)
        if key != self._key:
            self._forget(key)
        if self._is_refused or self._usual_steps < WARM_UP_STEPS:
            self._usual_steps += 1
            return step(image, labels)
        if self._graph is None:
            return self._first(step, image, labels)
        return self._replay(image, labels)

    @property
    def is_recorded(self) -> bool:
        """Whether steps of the last batch's shape are replayed."""
        return self._graph is not None

    def _forget(self, key: Any) -> None:
        self._set_capturable(False)
        self._key = key
        self._usual_steps = 0
        self._graph: Graph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._loss = torch.empty(())

    def _first(self, step: DeviceStep, image: Tensor, labels: Tensor) -> Tensor:
        """One step, done as usual and recorded; which of both stays is decided here."""
        before = self._copies()
        loss = step(image, labels)
        if not math.isfinite(loss):
            return loss  # which changed nothing and so shows nothing
        usual = self._copies()
        try:
            self._put(before)
            self._record(step, image, labels)
            self._put(before)  # so that the weights show what replaying does, whatever recording did
            self._replay(image, labels)
            difference = self._difference(before, usual)
        except RuntimeError as error:
            return self._refuse(f"cannot be recorded ({str(error).splitlines()[0]})", usual, loss)
        if not difference <= LARGEST_DIFFERENCE:
            return self._refuse(f"changed the weights differently ({100 * difference:.2g} %)", usual, loss)
        _log.info("steps are replayed as one CUDA graph; a replayed one differed by %.2g %%", 100 * difference)
        return self._loss

    def _record(self, step: DeviceStep, image: Tensor, labels: Tensor) -> None:
        self._set_capturable(True)
        inputs = self._inputs = (image.clone(), labels.clone())
        self._state.optimizer.zero_grad(set_to_none=True)
        graph = self._make_graph(image.device)
        self._loss = graph.record(lambda: step(*inputs))
        self._graph = graph

    def _replay(self, image: Tensor, labels: Tensor) -> Tensor:
        assert self._graph is not None, "only called once a step is recorded"
        for place, batch in zip(self._inputs, (image, labels), strict=True):
            place.copy_(batch)
        self._graph.replay()
        return self._loss

    def _refuse(self, why: str, usual: list[Tensor], loss: Tensor) -> Tensor:
        _log.warning("a CUDA graph of the training step %s; steps are queued kernel by kernel", why)
        self._is_refused = True
        self._forget(self._key)
        self._state.optimizer.zero_grad(set_to_none=True)
        self._put(usual)
        return loss

    def _set_capturable(self, is_so: bool) -> None:
        for group in self._state.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = is_so

    def _changing(self) -> list[Tensor]:
        """What a step changes: weights, and the tensors that the optimizer keeps."""
        kept = [value for entry in self._state.optimizer.state.values() for value in entry.values()]
        return [*self._state.network.parameters(), *(value for value in kept if isinstance(value, Tensor))]

    def _copies(self) -> list[Tensor]:
        # on the host, where a network that just fits on the device has room
        return [tensor.detach().to("cpu", copy=True) for tensor in self._changing()]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self._changing(), values, strict=True):
            tensor.copy_(value)

    def _difference(self, before: list[Tensor], usual: list[Tensor]) -> float:
        """Between what the usual and the replayed step changed, relative to that, of weights and momentum together."""
        own, apart = (
            math.hypot(*(float((one - other).double().norm()) for one, other in zip(usual, others, strict=True)))
            for others in (before, self._copies())
        )
        return apart / own


def step_graph(state: TrainingState) -> StepGraph | None:
    """What replays the steps of a training; None unless they run without the host, on a CUDA GPU and not compiled.

    Before torch 2.12 a graph that cannot be recorded takes memory with it (pytorch#180395), so none is tried there.
    """
    is_plain = state.scaler is None and state.forward is state.network
    can_be_recorded = is_plain and skips_on_device(state.optimizer) and next(state.network.parameters()).is_cuda
    is_safe = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)
    return StepGraph(state) if can_be_recorded and is_safe else None
