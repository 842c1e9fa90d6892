"""What the checks on a GPU share: phantoms, networks, a device, and how a call is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.augmentation.kinds import DEFAULT
from autoseg.augmentation.spec import AugmentationSpec, augmentation_spec
from autoseg.data.model import LabelSet
from autoseg.data.synthetic import CHANNELS, CLASSES, phantom
from autoseg.inference.predictor import Predictor
from autoseg.networks.kinds.unet import PlainUNet
from autoseg.planning.plan import Configuration
from autoseg.preprocessing.prepare import Placement, Preparation, prepare
from autoseg.training.losses import make_objective
from autoseg.training.recipe import Recipe
from autoseg.training.sampling import Sampling
from autoseg.training.step import Compute, TrainingState, start_state, train_step

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LABELS = LabelSet({name: (value,) for name, value in CLASSES.items()}, file_values=tuple(CLASSES.values()))
OBJECTIVE = make_objective("dice_ce", LABELS, False)
SPACING_MM = (3.3, 1.18, 1.18)  # about the median of the phantoms
PREPARATION = Preparation((0, 1, 2), SPACING_MM, ("zscore", "zscore"), (False, False), (None, None))


@dataclass(frozen=True)
class Case:
    """A prepared phantom, as the store holds one."""

    image: Any
    labels: Any
    locations: dict[int, Any]
    placement: Placement
    first_stage: Any = None


@dataclass(frozen=True)
class Row:
    """A line of the table: a check that held or not, or a time (held is None)."""

    name: str
    held: bool | None
    found: str


class Bench:
    """Data, networks and device of all checks."""

    def __init__(self, device: torch.device, is_small: bool, out: Path | None = None) -> None:
        self.device, self.out = device, out
        self.is_small = is_small
        self.cases = {f"phantom_{i}": _prepared(i) for i in range(3 if is_small else 8)}
        width = 8 if is_small else 16
        patch_size = (8, 32, 32) if is_small else (16, 48, 48)
        self.learning = _configuration(patch_size, (width, 2 * width, 4 * width), batch_size=2)
        self.timed = (
            self.learning
            if is_small
            else _configuration((128, 128, 128), (32, 64, 128, 256, 320, 320), batch_size=2, isotropic=True)
        )
        self.short = (  # bound by launches: the hippocampus as planned, its batch as large as a GPU's memory suggests
            self.learning
            if is_small
            else _configuration((40, 56, 40), (32, 64, 128, 256), batch_size=9, isotropic=True)
        )
        self.recipe = Recipe(epochs=1, steps_per_epoch=12 if is_small else 150, lr_update="step", momentum=0.95)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Number formats that the device computes; fp16 needs a GPU."""
        return tuple(TYPES) if self.device.type == "cuda" else ("fp32", "bf16")

    def compute(self, precision: str, device: torch.device | None = None) -> Compute:
        """Device, precision and memory format of a training."""
        return Compute(device or self.device, precision, "channels_last")

    def state(self, configuration: Configuration, compute: Compute) -> TrainingState:
        """A fresh training state; the same weights on every device."""
        torch.manual_seed(0)
        network = configuration.network.build(len(CHANNELS), LABELS.head_count)
        return start_state(network, self.recipe, compute, configuration.dimensions)

    def batch(self, spec: AugmentationSpec, index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Batch number `index`, cut from the phantoms, on the CPU."""
        sampling = Sampling(
            tuple(self.cases), self.cases.__getitem__, spec.initial_patch_size, spec.patch_size, batch_size, 0.5, (0, 0)
        )
        drawn = sampling(index)
        return torch.from_numpy(drawn.image), torch.from_numpy(drawn.labels)

    def augmented(self, configuration: Configuration, index: int, compute: Compute) -> tuple[Tensor, Tensor]:
        """The same batch augmented on the device."""
        spec = augmentation_spec(configuration)
        image, labels = self.batch(spec, index, configuration.batch_size)
        generator = torch.Generator().manual_seed(index)
        image, labels = DEFAULT(image.to(compute.device), labels.to(compute.device), spec, generator)
        return compute.place_image(image), labels

    def step(self, state: TrainingState, configuration: Configuration, compute: Compute, index: int) -> float:
        """One training step with batch `index`; its loss."""
        image, labels = self.augmented(configuration, index, compute)
        return float(train_step(state, image, labels, OBJECTIVE, self.recipe, compute))

    def predictor(self, network: nn.Module, precision: str, device: torch.device) -> Predictor:
        """The predictor of one network, with mirroring."""
        heads, axes, dtype = LABELS.head_count, (0, 1, 2), TYPES[precision]
        return Predictor((network,), self.learning, heads, axes, device=device, dtype=dtype, channels_last=True)


def _prepared(number: int) -> Case:
    prepared = prepare(*phantom(np.random.default_rng([1, number])), PREPARATION)
    labels = prepared.labels
    if labels is None:
        raise AssertionError("labels were given")
    locations = {value: np.argwhere(labels == value) for value in CLASSES.values() if value}
    return Case(prepared.image, labels, locations, prepared.placement)


def _configuration(
    patch_size: tuple[int, ...], features: tuple[int, ...], batch_size: int, isotropic: bool = False
) -> Configuration:
    """A configuration as the rules would make it; the first axis is halved less often where slices are thick."""
    first = 2 if isotropic else 1
    strides = ((1, 1, 1), (first, 2, 2), *((2, 2, 2),) * (len(features) - 2))
    network = PlainUNet(
        dimensions=3,
        features_per_stage=features,
        kernel_sizes=((3, 3, 3),) * len(features),
        strides=strides,
        blocks_per_stage=(2,) * len(features),
        decoder_convs_per_stage=(2,) * (len(features) - 1),
    )
    return Configuration(
        name="3d_fullres",
        dimensions=3,
        spacing_mm=SPACING_MM,
        patch_size=patch_size,
        batch_size=batch_size,
        median_shape=tuple(map(float, patch_size)),
        normalization=("zscore", "zscore"),
        use_nonzero_mask=(False, False),
        network=network,
        batch_dice=False,
        mirror_axes=(0, 1, 2),
        cascade_from=None,
        estimated_feature_map_elements=0,
    )


def median_seconds(bench: Bench, call: Callable[[], object], calls: int = 10) -> float:
    """Median over calls that follow two which do not count; fewer on a CPU."""
    calls, warm = (1, 1) if bench.is_small else (calls, 2)
    times = []
    for _ in range(warm + calls):
        begin = time.perf_counter()
        call()
        _wait(bench)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[warm:])


def seconds_of_queue(bench: Bench, call: Callable[[], object]) -> float:
    """Median seconds of a call among ten that are queued one after the other."""
    warm, rounds, calls = (1, 1, 1) if bench.is_small else (6, 5, 10)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    for _ in range(warm):
        call()
    times = []
    for _ in range(rounds):
        _wait(bench)
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        _wait(bench)
        times.append((time.perf_counter() - begin) / calls)
    return statistics.median(times)


def _wait(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)


def peak_memory(bench: Bench) -> str:
    """The most memory of the GPU that was in use, in words that follow a time; nothing on a CPU."""
    if bench.device.type != "cuda":
        return ""
    return f", {torch.cuda.max_memory_allocated(bench.device) / 2**30:.1f} GiB"


def words_of(configuration: Configuration) -> str:
    """Batch, patch and stages of a configuration."""
    patch = " x ".join(map(str, configuration.patch_size))
    return f"batch {configuration.batch_size} of {patch}, {configuration.network.n_stages} stages"
