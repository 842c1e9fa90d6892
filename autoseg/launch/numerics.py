"""Checking a machine's numerics with the network at hand: which precision and memory format are right, and the fastest.

What computes wrong values is never used, however fast; of the rest, what the network runs fastest with is. The result
is kept in the user's cache folder for this machine, these versions and this network, so that only the first command of
a kind takes time for it.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoseg.core.errors import AutoSegError, UsageError, WrongNumerics
from autoseg.core.machine import is_busy
from autoseg.core.records import content_hash, load, record, save_sealed
from autoseg.core.workspace import UserCache
from autoseg.launch.convolutions import Example, Layer, checked_shape, layers_of, make_example, representatives
from autoseg.launch.devices import cache_folder, identity
from autoseg.launch.precision import growing_batches, native_types, prediction_pass, training_pass, with_what_fits
from autoseg.launch.race import Outcome, race, wall_and_processor_clock, wall_clock
from autoseg.planning.plan import Configuration
from autoseg.training.step import Compute

VERSION = 2
"""Of what is checked; what an earlier one found is found anew."""

ALLOWED_SECONDS = 10.0
"""Time that the race may take (assumption: nobody minds it, once per machine and network)."""

SHARE_FOR_MEASURING = 0.01
"""Of a time budget, what measuring all configurations may take."""

DOUBTED_SECONDS = 3600.0
"""After which a training measures again what was in doubt (assumption: other programs end within an hour or so)."""

OPERATIONS = 8e9
"""Of a pass, for each thread of a CPU: somewhat less than 0.1 s in fp32. Small patches would favor the wrong memory
format: what it gains shows only when caches overflow."""

SLOW = 1.2
"""Times the seconds of single precision from which on the doctor speaks of it (assumption)."""

FAILS = "it fails"
PASSES = {"train": training_pass, "predict": prediction_pass}
"""What is timed, by the verb that asks."""

_log = logging.getLogger(__name__)


@record
class Way:
    """A precision and memory format, and how a network is computed with them.

    Attributes:
        precision: "fp32", "bf16" or "fp16".
        memory_format: "contiguous" or "channels_last".
        fault: what it computes wrong; empty if nothing was found.
        seconds: of the best pass, on a CPU of processor time; None if it was not timed.
    """

    precision: str
    memory_format: str
    fault: str = ""
    seconds: float | None = None

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.precision} {self.memory_format.replace('_', ' ')}"

    def remark(self, single: float) -> str:
        """What is wrong with it, or how slow it is beside the `single` seconds of single precision; or nothing."""
        if self.fault:
            return f"{self.title} computes wrong values ({self.fault})"
        slowness = (self.seconds or 0.0) / single
        is_slow = self.precision != "fp32" and slowness > SLOW
        return f"{self.title} takes {slowness:.1f} times as long as fp32" if is_slow else ""


@record
class NumericsCheck:
    """What a check found, as it is kept in the cache.

    Attributes:
        version: of what is checked.
        machine: what was checked, by name: processor, threads, versions.
        shapes: convolutions whose values were compared.
        patch: voxels of the image that the ways were timed with.
        ways: compared, preferred first.
        chosen: index of the one to be used; None if all are wrong.
        is_clear: whether the times leave no doubt, and were taken while no other programs were at work.
        allowed_seconds: that the race could take.
    """

    version: int
    machine: dict[str, str]
    shapes: int
    patch: tuple[int, ...]
    ways: tuple[Way, ...]
    chosen: int | None
    is_clear: bool
    allowed_seconds: float

    def compute(self, device: torch.device) -> Compute:
        """What is to be used, on the device that was checked."""
        return Compute(device, self._own.precision, self._own.memory_format)

    @property
    def _own(self) -> Way:
        assert self.chosen is not None, "asked of a check that found one"
        return self.ways[self.chosen]

    @property
    def remarks(self) -> list[str]:
        """What is wrong, or slow although the device computes it natively."""
        single = min((way.seconds for way in self.ways if way.precision == "fp32" and way.seconds), default=math.inf)
        return [remark for way in self.ways if (remark := way.remark(single))]

    @property
    def because(self) -> str:
        """One sentence: what is chosen, how much faster it is, and what is wrong with others."""
        own = self._own
        words = f"{own.precision}, {own.memory_format.replace('_', ' ')}"
        wrong = [f"; not {way.title}, which computes wrong values ({way.fault})" for way in self.ways if way.fault]
        doubt = "" if self.is_clear else "; in doubt, as other programs were at work"
        return f"{words}: {self._gain(own)}; checked on {self.shapes} shapes{''.join(wrong)}{doubt}"

    def _gain(self, own: Way) -> str:
        times = {way.title: way.seconds for way in self.ways if way.seconds is not None}
        best = times.pop(own.title, 0.0)
        if not times:
            return "the only choice"
        if "fp32 contiguous" in times:
            return f"{times['fp32 contiguous'] / best:.1f} times as fast as fp32 contiguous"
        return f"{min(times.values()) / best:.1f} times as fast as the next"


@dataclass(frozen=True)
class Trial:
    """What a check is about.

    Attributes:
        network: with any weights, which stay as they are.
        configuration: its patch and batch size.
        channels: of its input.
        device: to compute on.
        verb: a key of `PASSES`.
        smallest: patch that training begins with, if patches grow: the values of its convolutions are compared as well.
    """

    network: nn.Module
    configuration: Configuration
    channels: int
    device: torch.device
    verb: str
    smallest: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """A planned batch (b, c, *patch)."""
        return (self.configuration.batch_size, self.channels, *self.configuration.patch_size)

    @property
    def key(self) -> list[Any]:
        """What tells it from others, beside the device."""
        weights = [list(parameter.shape) for parameter in self.network.parameters()]
        known = [self.configuration.network, self.verb, list(self.shape), weights]
        return [*known, list(self.smallest)] if self.smallest else known

    def layers(self, patch: Sequence[int]) -> list[Layer]:
        """The different convolutions of a batch of patches."""
        small = next(growing_batches(self.configuration, self.channels))
        return layers_of(self.network, small, (*self.shape[:2], *patch))


def check_training(
    network: nn.Module,
    stages: Sequence[Configuration],
    channels: int,
    device: torch.device,
    wanted: tuple[str, str] = ("auto", "auto"),
    allowed_seconds: float = ALLOWED_SECONDS,
) -> NumericsCheck:
    """How to train this network on this device, and why.

    Args:
        network: with any weights, which stay as they are.
        stages: what is trained, smallest patch first; the last, with the planned patch, is timed.
        channels: of the image.
        device: to compute on.
        wanted: the recipe's (precision, memory_format); what is not "auto" is taken as it is, if it is right.
        allowed_seconds: after which nothing more is timed; never more than `ALLOWED_SECONDS`.

    Raises:
        UsageError: the precision asked for does not exist on the device.
        WrongNumerics: nothing that the recipe allows computes right values.
    """
    smallest = stages[0].patch_size if stages[0].patch_size != stages[-1].patch_size else ()
    trial = Trial(network, stages[-1], channels, device, "train", smallest)
    ways = [(kind, layout) for kind in _precisions(device, wanted[0]) for layout in _layouts(device, wanted[1])]
    return _refuse_wrong(check_numerics(trial, ways, min(ALLOWED_SECONDS, allowed_seconds)), trial)


def check_prediction(
    network: nn.Module, configuration: Configuration, channels: int, device: torch.device, trained: str
) -> NumericsCheck:
    """How to predict with this network on this device, and why.

    In single precision, or in that of the training where the device has it: fewer digits may change labels.

    Args:
        network: with any weights, which stay as they are.
        configuration: patch and topology.
        channels: of its input.
        device: to compute on.
        trained: the precision that it was trained with.

    Raises:
        WrongNumerics: nothing computes right values on the device.
    """
    trial = Trial(network, configuration, channels, device, "predict")
    own = [trained] if trained in native_types(device) or (trained, device.type) == ("fp16", "cuda") else []
    precisions = [*own, "fp32"] if device.type == "cuda" else ["fp32", *own]
    ways = [(kind, layout) for kind in precisions for layout in _layouts(device, "auto")]
    return _refuse_wrong(check_numerics(trial, ways, ALLOWED_SECONDS), trial)


def _refuse_wrong(found: NumericsCheck, trial: Trial) -> NumericsCheck:
    if found.chosen is None:
        faults = "; ".join(f"{way.title}: {way.fault}" for way in found.ways)
        raise WrongNumerics(
            f"{trial.device} computes the convolutions of {trial.configuration.name} wrongly ({faults})",
            why=f"a fault of torch {torch.__version__} or of a library under it, on this machine",
            do="install another version of torch, or use another --device",
        )
    return found


def check_numerics(trial: Trial, ways: Sequence[tuple[str, str]], allowed_seconds: float) -> NumericsCheck:
    """What is known about computing a network in these ways, (precision, memory format) each, preferred first.

    Taken from the cache if it was found out before, else found out and kept there.
    """
    machine = identity(trial.device)
    file = _cache_file(trial, ways, machine)
    known = _known(file, machine)
    if file and known and _still_holds(known, file, trial.verb, allowed_seconds):
        return known
    found = _check(trial, ways, allowed_seconds, machine)
    if file:
        try:
            save_sealed(found, file)
        except OSError as error:
            _log.debug("what the check of the numerics found cannot be kept: %s", error)
    return found


def _cache_file(trial: Trial, ways: Sequence[tuple[str, str]], machine: dict[str, str]) -> Path | None:
    folder = cache_folder()
    return None if folder is None else UserCache(folder).numerics(content_hash(machine, *trial.key, list(ways)))


def _known(file: Path | None, machine: dict[str, str]) -> NumericsCheck | None:
    """What a file says of this machine; None if there is none, or a damaged one, or one of something else."""
    if file is None:
        return None
    try:
        found = load(NumericsCheck, file)
    except (AutoSegError, OSError):
        return None
    is_whole = found.chosen is None or found.chosen < len(found.ways)
    return found if is_whole and (found.version, found.machine) == (VERSION, machine) else None


def _still_holds(known: NumericsCheck, file: Path, verb: str, allowed_seconds: float) -> bool:
    """Whether to go on with what is known: what is in doubt may become clear with more time, or at another hour.

    Predictions go on with it in any case: equal images get equal labels.
    """
    is_recent = time.time() - file.stat().st_mtime < DOUBTED_SECONDS
    if any(way.fault.startswith(FAILS) for way in known.ways):  # perhaps for want of memory
        return is_recent and known.chosen is not None
    return known.is_clear or verb == "predict" or (known.allowed_seconds >= allowed_seconds and is_recent)


def _check(
    trial: Trial, ways: Sequence[tuple[str, str]], allowed_seconds: float, machine: dict[str, str]
) -> NumericsCheck:
    """Compares values, then times what is right."""
    begin = time.monotonic()
    layers = trial.layers(trial.configuration.patch_size)
    checked = representatives(layers)
    if trial.smallest:
        checked += representatives(trial.layers(trial.smallest))
    faults = _faults(trial, [Compute(trial.device, *way) for way in ways], checked)
    shape = _timed_shape(trial, sum(layer.operations for layer in layers), allowed_seconds)
    right = [way for way, fault in zip(ways, faults, strict=True) if not fault]
    outcome = _race(trial, [Compute(trial.device, *way) for way in right], shape, begin + allowed_seconds)
    seconds = dict(zip(right, outcome.seconds, strict=False))
    return NumericsCheck(
        version=VERSION,
        machine=machine,
        shapes=len(checked),
        patch=shape[2:],
        ways=tuple(Way(*way, fault, seconds.get(way)) for way, fault in zip(ways, faults, strict=True)),
        chosen=ways.index(right[outcome.winner]) if right else None,
        is_clear=outcome.is_clear,
        allowed_seconds=allowed_seconds,
    )


def _faults(trial: Trial, computes: Sequence[Compute], layers: Sequence[Layer]) -> list[str]:
    """What each way computes wrong; empty where nothing was found."""
    by_layer = [
        with_what_fits(partial(_layer_faults, trial, computes, own), checked_shape(own, trial.device)) for own in layers
    ]
    return [next(filter(None, faults), "") for faults in zip(*by_layer, strict=True)]


def _layer_faults(trial: Trial, computes: Sequence[Compute], layer: Layer, shape: Sequence[int]) -> list[str]:
    example = make_example(layer, tuple(shape), trial.device)
    return [_fault(example, layer, compute, trial.verb) for compute in computes]


def _fault(example: Example, layer: Layer, compute: Compute, verb: str) -> str:
    """What is wrong with a layer when it is computed so, and which one it is."""
    try:
        fault = example.fault(compute, with_gradients=verb == "train")
    except RuntimeError as error:  # a library that has no way to compute it; too little memory says nothing of it
        if isinstance(error, torch.OutOfMemoryError):
            raise
        fault = f"{FAILS}: {str(error).splitlines()[0]}"
    return f"{fault} in a {layer.title}" if fault else ""


def _race(trial: Trial, computes: Sequence[Compute], shape: Sequence[int], end: float) -> Outcome:
    """Which way is the fastest with a batch (b, c, *patch); no round begins after `end` (time.monotonic)."""
    if len(computes) < 2:
        return Outcome(0, (), is_clear=True)

    def compare(shape: Sequence[int]) -> Outcome:
        image = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        ways = [_way(trial, compute, image) for compute in computes]
        for way in ways:
            way()  # libraries prepare themselves
        clock = wall_and_processor_clock if trial.device.type == "cpu" else wall_clock
        return race(ways, 0, end - time.monotonic(), clock)

    found = with_what_fits(compare, shape)
    # libraries' threads that wait for each other count as busy, so that other programs change processor time, too
    return replace(found, is_clear=found.is_clear and not (trial.device.type == "cpu" and is_busy()))


def _timed_shape(trial: Trial, operations: int, allowed_seconds: float) -> tuple[int, ...]:
    """The largest batch (b, c, *patch) that takes a tenth of a second, if a planned one takes `operations` forward."""
    shapes = list(growing_batches(trial.configuration, trial.channels))
    if trial.device.type != "cpu":
        return shapes[-1]
    per_voxel = operations * (3 if trial.verb == "train" else 1) / math.prod(trial.shape)
    most = OPERATIONS * torch.get_num_threads() * min(1.0, allowed_seconds / ALLOWED_SECONDS) / per_voxel
    return max((own for own in shapes[1:] if own[0] == 1 and math.prod(own) <= most), key=math.prod, default=shapes[0])


def _way(trial: Trial, compute: Compute, image: torch.Tensor) -> Callable[[], None]:
    """A pass with a copy of the network."""
    network = compute.place_network(copy.deepcopy(trial.network), trial.configuration.dimensions)
    network.train(trial.verb == "train")
    return partial(PASSES[trial.verb], network, image, compute)


def _precisions(device: torch.device, wanted: str) -> tuple[str, ...]:
    """Number formats to compare, preferred first: on GPUs half precision is what they are made for."""
    if wanted == "fp16" and device.type != "cuda":
        raise UsageError(f"fp16 training needs a CUDA GPU, the device is {device}", do="set `precision: auto`")
    if wanted != "auto":
        return (wanted,)
    native = native_types(device)
    return (*native, "fp32") if device.type == "cuda" else ("fp32", *native)


def _layouts(device: torch.device, wanted: str) -> tuple[str, ...]:
    """Memory formats to compare, preferred first."""
    if wanted != "auto":
        return (wanted,)
    if device.type == "mps":
        return ("contiguous",)
    # on CPUs channels-last gains more the larger the patch, on GPUs it often loses in 3D
    return ("channels_last", "contiguous") if device.type == "cpu" else ("contiguous", "channels_last")
