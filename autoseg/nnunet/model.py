"""Models that nnU-Net v2 trained, as models of ours: same plans, same weights, same predictions."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from autoseg.core.errors import MissingInput, PlanFault, UsageError
from autoseg.core.files import sha256_of_file
from autoseg.core.records import content_hash, read_table
from autoseg.models.files import Member, ModelFiles, Weights
from autoseg.networks.weights import read_tensors
from autoseg.nnunet.checkpoints import NnunetCheckpoint, parameter_shapes, read_checkpoints, refuse_other_weights
from autoseg.nnunet.choice import Choice, choose_folders
from autoseg.nnunet.folders import (
    DATASET,
    PLANS,
    NnunetFolder,
    looks_like_nnunet,
    trained_folders,
    unpack,
)
from autoseg.nnunet.plans import read_nnunet_plans
from autoseg.planning.plan import Plan

__all__ = ["find_nnunet_model", "looks_like_nnunet"]

_log = logging.getLogger(__name__)

TRAINING_ONLY = re.compile(
    r"nnUNetTrainer(_|\d+epochs?|\d+ep|NoMirroring|onlyMirror01|NoDA|noDummy2DDA|DASegOrd0|DA5|Segord0|ord0"
    r"|CELoss|DiceCELoss|DiceLoss|noSmooth|DiceTopK10Loss|Topk10Loss|LS01|CosAnneal|warmup|VanillaAdam|Adam|Adan"
    r"|\den\d|NoDeepSupervision|probabilisticOversampling|0\d\d|Benchmark|noDataLoading)*"
)
"""Names of nnU-Net's own trainers that change how a network is trained, and nothing that a prediction depends on."""

_PRECISION, _MEMORY_FORMAT, _DEVICE = "fp32", "channels_last", "cpu"
"""On CPUs nnU-Net computes in single precision, so do we; on other devices in what they are fast at, as it does."""


class _Scratch:
    """A temporary folder that lives as long as anybody holds this object."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="autoseg-nnunet-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Gives the weights of a fold; holds on to the folder that they lie in."""

    file: Path
    scratch: _Scratch

    def __call__(self) -> dict[str, Tensor]:
        """The weights by parameter name."""
        return read_tensors(self.file)


def find_nnunet_model(path: Path, configuration: str | None = None, folds: Sequence[int] = ()) -> ModelFiles:
    """The model in an nnU-Net v2 results folder or export.

    Weights are read by a process of their own (`networks.nnunet_weights`) and compared with the plans.

    Args:
        path: a model's folder, one of its folds, a dataset's folder of models, the results folder, or a zip.
        configuration: which one; by default what nnU-Net's find_best_configuration chose, else the only one there is,
            else 3d_fullres.
        folds: which ones; by default all that were trained.

    Raises:
        MissingInput: no trained model is there.
        UsageError: the configuration or a fold is not there, or several models fit.
        PlanFault: the model asks for something that AutoSeg does not compute as nnU-Net does.
        IntegrityRefusal: a checkpoint or zip is damaged, not safe to read, or of another network.

    Source: nnU-Net v2 inference/predict_from_raw_data.py (`initialize_from_trained_model_folder`).
    """
    scratch = _Scratch()
    root = path
    if path.is_file():
        root = scratch.folder / "unpacked"
        root.mkdir()
        unpack(path, root)
    found = trained_folders(root)
    if not found:
        raise MissingInput("there is no trained nnU-Net model", where=str(path), do="give the folder with plans.json")
    choice = choose_folders(found, configuration, root)
    share = 1 / len(choice.folders)
    members = tuple(replace(_member(folder, folds, scratch), share=share) for folder in choice.folders)
    _refuse_other_label_sets(members)
    stages = _first_stages(members, choice, found, folds, scratch)
    return ModelFiles(_name(members, stages), _because(members, choice), members, stages)


def _member(folder: NnunetFolder, folds: Sequence[int], scratch: _Scratch) -> Member:
    missing = [fold for fold in folds if fold not in folder.folds]
    if missing:
        there = ", ".join(map(str, folder.folds))
        raise UsageError(
            f"fold {missing[0]} of {folder.path.name} is not trained", where=str(folder.path), do=f"choose from {there}"
        )
    chosen = {fold: folder.folds[fold] for fold in sorted(folds or folder.folds)}
    own = Path(tempfile.mkdtemp(dir=scratch.folder))
    checkpoints = read_checkpoints(tuple(chosen.values()), own)
    plan = _plan(folder, checkpoints[0])
    name = checkpoints[0].configuration
    shapes = parameter_shapes(plan, name)
    for path, checkpoint in zip(chosen.values(), checkpoints, strict=True):
        if checkpoint.configuration != name:
            raise PlanFault(f"its folds are of {name} and of {checkpoint.configuration}", where=str(folder.path))
        refuse_other_weights(checkpoint, shapes, str(path))
    _warn_of_trainer(checkpoints[0].trainer)
    weights = tuple(
        Weights(fold, str(path), _Reader(checkpoint.weights, scratch))
        for (fold, path), checkpoint in zip(chosen.items(), checkpoints, strict=True)
    )
    return Member(plan, plan.configurations[name], weights, _PRECISION, _MEMORY_FORMAT, _DEVICE)


def _plan(folder: NnunetFolder, checkpoint: NnunetCheckpoint) -> Plan:
    """The plan of the configuration that the checkpoint is of, with the mirror axes that the checkpoint allows."""
    name = checkpoint.configuration
    plan = read_nnunet_plans(
        read_table(folder.path / PLANS), read_table(folder.path / DATASET), (name,), str(folder.path / PLANS)
    )
    own = plan.configurations[name]
    axes = tuple(axis for axis in checkpoint.mirror_axes if axis < own.dimensions)
    return replace(plan, configurations={**plan.configurations, name: replace(own, mirror_axes=axes)})


def _first_stages(
    members: Sequence[Member],
    choice: Choice,
    found: Sequence[NnunetFolder],
    folds: Sequence[int],
    scratch: _Scratch,
) -> dict[str, Member]:
    """The first stage of each cascade among the members, from the folder beside it."""
    stages: dict[str, Member] = {}
    for member, folder in zip(members, choice.folders, strict=True):
        name = member.configuration.cascade_from
        if name is None or name in stages:
            continue
        beside = folder.path.with_name(f"{folder.trainer}__{folder.plans_name}__{name}")
        stage = next((other for other in (*found, *trained_folders(beside)) if other.path == beside), None)
        if stage is None:
            raise MissingInput(
                f"{member.configuration.name} continues a prediction of {name}, which is not there",
                where=str(beside),
                do=f"copy the folder {beside.name} beside it",
            )
        shared = tuple(fold for fold in folds if fold in stage.folds)
        stages[name] = _member(stage, shared, scratch)
        _refuse_other_label_sets((member, stages[name]))
    return stages


def _refuse_other_label_sets(members: Sequence[Member]) -> None:
    first = members[0].plan
    for member in members[1:]:
        own = member.plan
        if (own.labels, own.channels, own.file_ending) != (first.labels, first.channels, first.file_ending):
            raise PlanFault(
                f"{members[0].configuration.name} and {member.configuration.name} were trained for different channels "
                "or classes",
                do="choose one with --configuration",
            )


def _warn_of_trainer(trainer: str) -> None:
    """Says that only names and shapes of weights can be checked where somebody wrote a trainer."""
    if not TRAINING_ONLY.fullmatch(trainer):
        _log.warning(
            "the trainer %s is not one of nnU-Net's own: every weight fits nnU-Net's network in name and shape, but "
            "whether it computes something else with them cannot be seen",
            "".join(letter for letter in trainer if letter.isprintable())[:80],
        )


def _name(members: Sequence[Member], stages: dict[str, Member]) -> str:
    """Dataset, configurations, folds and a hash that changes with plans and weights."""
    everybody = (*members, *stages.values())
    hashes = [sha256_of_file(Path(weights.where)) for member in everybody for weights in member.weights]
    content = content_hash([member.plan.fingerprint for member in everybody], hashes)
    configurations = "+".join(member.configuration.name for member in members)
    listed = ",".join(map(str, members[0].folds))
    return f"{members[0].plan.dataset}/{configurations}/folds {listed}/{content}"


def _because(members: Sequence[Member], choice: Choice) -> str:
    parts = [f"nnU-Net v2 model, {choice.because}"]
    for member, folder in zip(members, choice.folders, strict=True):
        folds = member.folds
        listed = f"{'fold' if len(folds) == 1 else 'mean of folds'} {', '.join(map(str, folds))}"
        parts.append(f"{member.configuration.name}: {listed}{f' ({folder.because})' if folder.because else ''}")
    return "; ".join(parts)
