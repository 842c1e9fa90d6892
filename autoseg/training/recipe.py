"""How a network is trained: everything a user may want to change, as plain values in one YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib import import_module
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from autoseg.core.configs import find_config, read_yaml
from autoseg.core.records import from_data, record
from autoseg.core.registry import choose
from autoseg.planning.plan import Configuration

FEWEST_BOTTLENECK_VOXELS = {2: (2, 2), 3: (3, 2, 2)}
"""That the axes of a small patch keep at the coarsest stage, by the number of axes. With two along the first of three,
gradients of the weights in bfloat16 come from memory that nobody wrote (oneDNN of torch 2.13 with AVX512-BF16: those of
a conv3d of 128 to 128 channels, kernel 3, of 2 x 3 x 2 voxels were not-a-number in 6 of 6 trials)."""

STEP_OVERHEAD = 0.07
"""Part of a step's cost that does not follow its voxels / cost of a step with the planned patch.

Measured on a CPU core with 40 x 56 x 40 voxels, 16 channels, bf16: patches of 7, 21 and 55 % of the voxels cost 13, 27
and 56 % of a step."""

PAST_TRAINING = "past training"
"""Context in which a recipe is read that was trained with: predicting does not need its losses and transforms."""


def _known(table: str, what: str) -> AfterValidator:
    """Lets a name pass that is a key of a table, `module.TABLE`; otherwise a UsageError names the nearest one.

    The table is looked up when a name is: reading what was trained with, as a prediction does, imports no torch.
    """
    module, _, kinds = table.rpartition(".")

    def check(name: str, info: ValidationInfo) -> str:
        if info.context != PAST_TRAINING:
            choose(name, getattr(import_module(f"autoseg.training.{module}"), kinds), what)
        return name

    return AfterValidator(check)


def _shaped(asked: Any) -> Any:
    """Answers in one sentence what is neither a name nor a list of transforms; each alternative has its own fault."""
    if isinstance(asked, str):
        return asked
    tables = asked if isinstance(asked, list | tuple) else [None]
    if all(isinstance(own, Mapping) and isinstance(own.get("name"), str) for own in tables):
        return tuple(tables)
    raise ValueError("must be a name, or a list such as [{name: noise, probability: 0.1}, {name: mirror}]")


def _makeable(asked: Any, info: ValidationInfo) -> Any:
    if info.context != PAST_TRAINING:
        from autoseg.augmentation.kinds import make_augmentation

        make_augmentation(asked)
    return asked


def _ascending(shares: tuple[float, ...]) -> tuple[float, ...]:
    if any(former >= share for former, share in pairwise((*shares, 1.0))):
        raise ValueError("must ascend to less than 1, such as [0.4, 0.6, 0.8]; the planned patch follows by itself")
    return shares


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Growth = Annotated[tuple[Positive, ...], AfterValidator(_ascending)]
Transforms = Annotated[str | tuple[dict[str, Any], ...], BeforeValidator(_shaped), AfterValidator(_makeable)]


@record
class Recipe:
    """A training recipe; values not given are nnU-Net v2's (training/nnUNetTrainer/nnUNetTrainer.py).

    Every name is resolved when a recipe is made or read, before any work.

    Attributes:
        epochs: validation, history and checkpoints come once per epoch.
        steps_per_epoch: optimizer steps of an epoch.
        validation_steps: batches scored after each epoch.
        optimizer: a key of `optimization.OPTIMIZERS`.
        lr: learning rate at the start (after the warm-up).
        momentum: of SGD (with Nesterov's correction), or the first beta of AdamW.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        schedule: a key of `optimization.SCHEDULES`.
        lr_update: whether the learning rate changes every "epoch" or every "step".
        warmup_steps: steps over which the learning rate rises linearly from 0; 0 = none.
        ema_decay: decay per step of the moving average of the weights, which is then validated and used for
            prediction; 0 = no average.
        gradient_clip: largest global norm of the gradient.
        loss: a key of `losses.LOSSES`.
        augmentation: a key of `augmentation.kinds.AUGMENTATIONS`, or for each transform its `name` (a key of
            `TRANSFORMS`) and its settings, in order.
        patch_growth: edges of the patch / edges of the planned one in the stages before the last, ascending; each stage
            has the same number of steps, and the last has the planned patch. Empty: the planned patch throughout.
        batch_scale: patches per step / those that the plan says.
        oversample_foreground: share of a batch, its last part, that is centered on foreground.
        precision: "auto" (measured at the start), "fp32", "bf16" or "fp16" (CUDA only).
        memory_format: "auto" (measured at the start), "contiguous" or "channels_last".
        compile: whether to use `torch.compile` where measuring shows that it saves more time than it takes.
        callbacks: keys of `callbacks.kinds.CALLBACKS`, in order; history and checkpoints are always written.
    """

    epochs: Annotated[int, Field(ge=1)] = 1000
    steps_per_epoch: Annotated[int, Field(ge=1)] = 250
    validation_steps: Count = 50
    optimizer: Annotated[str, _known("optimization.OPTIMIZERS", "optimizer")] = "sgd"
    lr: Positive = 1e-2
    momentum: Fraction = 0.99
    weight_decay: Fraction = 3e-5
    schedule: Annotated[str, _known("optimization.SCHEDULES", "schedule")] = "poly"
    lr_update: Literal["epoch", "step"] = "epoch"
    warmup_steps: Count = 0
    ema_decay: Fraction = 0.0
    gradient_clip: Positive = 12.0
    loss: Annotated[str, _known("losses.LOSSES", "loss")] = "dice_ce"
    augmentation: Transforms = "default"
    patch_growth: Growth = ()
    batch_scale: Positive = 1.0
    oversample_foreground: Fraction = 0.33
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    compile: bool = False
    callbacks: tuple[Annotated[str, _known("callbacks.kinds.CALLBACKS", "callback")], ...] = ("epoch_logger", "curves")


def usual_recipes(preset: str, *, has_budget: bool) -> tuple[str, ...]:
    """Names of the recipes that train where none is named: the first, unless another of them did so before.

    Under a budget the preset `cpu` has `fast`, the better one after the same time wherever it was measured
    (docs/time-to-quality.md). Other presets are for GPUs, on which it was not; they keep nnU-Net's training.

    Args:
        preset: that was planned with.
        has_budget: whether the training has a time limit.
    """
    if preset != "cpu":
        return ("default",)
    return ("fast", "cpu") if has_budget else ("cpu", "fast")


def load_recipe(name: str, *, epochs: int | None = None, steps: int | None = None) -> Recipe:
    """The recipe shipped under a name or stored in the user's YAML file, with the numbers given on the command line.

    Raises:
        MissingInput: there is no such file.
        UsageError: the file names a recipe, a setting or a kind that does not exist.
        RecordFault: with every fault of the file.
    """
    path = find_config(name, "recipes")
    data = read_yaml(path)
    settings = {field.name: field for field in fields(Recipe)}
    for key in data:
        choose(str(key), settings, f"setting in {path.name}")
    given = {"epochs": epochs, "steps_per_epoch": steps}
    return from_data(Recipe, data | {key: value for key, value in given.items() if value is not None}, str(path))


def stage_configurations(configuration: Configuration, recipe: Recipe) -> tuple[Configuration, ...]:
    """What is trained in each stage of the recipe: the configuration with the stage's patch and the recipe's batch.

    Edges are rounded to multiples of the network's total stride; the last stage has the planned patch.

    Source: Fischer et al. 2025, "Progressive Growing of Patch Size" (arXiv 2510.23241).
    """
    batch = max(1, round(configuration.batch_size * recipe.batch_scale))
    patches = (_stage_patch(configuration, share) for share in (*recipe.patch_growth, 1.0))
    return tuple(replace(configuration, patch_size=patch, batch_size=batch) for patch in patches)


def _stage_patch(configuration: Configuration, share: float) -> tuple[int, ...]:
    fewest = FEWEST_BOTTLENECK_VOXELS[configuration.dimensions]
    axes = zip(configuration.patch_size, configuration.network.total_stride, fewest, strict=True)
    return tuple(max(round(share * edge / stride) * stride, min(edge, least * stride)) for edge, stride, least in axes)


def relative_costs(stages: Sequence[Configuration]) -> tuple[float, ...]:
    """Cost of a training step in each stage / cost in the last: most of it follows the voxels, an overhead does not."""
    voxels = [math.prod(stage.patch_size) for stage in stages]
    return tuple((own / voxels[-1] + STEP_OVERHEAD) / (1 + STEP_OVERHEAD) for own in voxels)
