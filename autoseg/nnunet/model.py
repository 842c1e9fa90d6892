"""Models that nnU-Net v2 trained, as models of ours: same plans, same weights, same predictions."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.core.errors import MissingInput, PlanFault, UsageError
from autoseg.core.files import sha256_of_file
from autoseg.core.records import content_hash, read_table
from autoseg.models.record import Member, ModelFiles, ModelRecord, Provenance
from autoseg.networks.weights import read_tensors
from autoseg.nnunet.checkpoints import NnunetCheckpoint, read_checkpoints, refuse_other_weights
from autoseg.nnunet.folders import (
    DATASET,
    PLANS,
    NnunetFolder,
    choose_folders,
    looks_like_nnunet,
    trained_folders,
    unpack,
)
from autoseg.nnunet.plans import read_nnunet_plans
from autoseg.planning.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["find_nnunet_model", "looks_like_nnunet"]

_log = logging.getLogger(__name__)

TRAINING_ONLY = re.compile(
    r"nnUNetTrainer(_|\d+epochs?|\d+ep|NoMirroring|onlyMirror01|NoDA|noDummy2DDA|DASegOrd0|DA5|Segord0|ord0"
    r"|CELoss|DiceCELoss|DiceLoss|noSmooth|DiceTopK10Loss|Topk10Loss|LS01|CosAnneal|warmup|VanillaAdam|Adam|Adan"
    r"|\den\d|NoDeepSupervision|probabilisticOversampling|0\d\d|Benchmark|noDataLoading)*"
)
"""Names of nnU-Net's own trainers that change how a network is trained, and nothing that a prediction depends on."""


class _Scratch:
    """A temporary folder that is removed when nothing refers to this object any more."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="autoseg-nnunet-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def find_nnunet_model(path: Path, configuration: str | None = None, folds: Sequence[int] = ()) -> ModelFiles:
    """The model in an nnU-Net v2 results folder or export.

    Weights are read by a process of their own (`nnunet.checkpoints`) and compared with the plans.

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
    folders, why = choose_folders(found, configuration, root)
    loaded = [_load(folder, folds, scratch) for folder in folders]
    stages = _first_stages(loaded, found, folds, scratch)
    record = ModelRecord(
        name=_name(loaded, stages),
        because=_because(loaded, why),
        members=tuple(replace(one.member, share=1 / len(loaded)) for one in loaded),
        stages=tuple(one.member for one in stages),
        provenance=Provenance(loaded[0].member.plan.dataset, "nnU-Net v2"),
    )
    files = {one.member.configuration.name: one.weights for one in (*loaded, *stages)}
    return ModelFiles(record, partial(_read, scratch, files))


def _read(scratch: _Scratch, files: dict[str, dict[int, Path]], name: str, fold: int) -> dict[str, Tensor]:  # noqa: ARG001
    """The weights of a fold; as an argument, `scratch` lives as long as the model that reads with this function."""
    return read_tensors(files[name][fold])


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The model in a folder.

    Attributes:
        folder: that it was found in.
        member: what it is.
        weights: safetensors file of each fold.
    """

    folder: NnunetFolder
    member: Member
    weights: dict[int, Path]


def _load(folder: NnunetFolder, folds: Sequence[int], scratch: _Scratch) -> _Loaded:
    missing = [fold for fold in folds if fold not in folder.folds]
    if missing:
        there = ", ".join(map(str, folder.folds))
        raise UsageError(
            f"fold {missing[0]} of {folder.path.name} is not trained", where=str(folder.path), do=f"choose from {there}"
        )
    chosen = tuple(sorted(folds or folder.folds))
    paths = [folder.folds[fold] for fold in chosen]
    own = Path(tempfile.mkdtemp(dir=scratch.folder))
    files = {fold: own / f"{fold}.safetensors" for fold in chosen}
    checkpoints = read_checkpoints(paths, tuple(files.values()))
    plan = _plan(folder, checkpoints[0])
    name = checkpoints[0].configuration
    shapes = plan.parameter_shapes(name)
    for path, file, checkpoint in zip(paths, files.values(), checkpoints, strict=True):
        if checkpoint.configuration != name:
            raise PlanFault(f"its folds are of {name} and of {checkpoint.configuration}", where=str(folder.path))
        refuse_other_weights(file, shapes, checkpoint.trainer, str(path))
    _warn_of_trainer(checkpoints[0].trainer)
    # on GPUs nnU-Net trains and predicts in half precision, elsewhere in single precision; so do we
    member = Member(plan, chosen, precision="fp16", memory_format="contiguous", device="cuda")
    return _Loaded(folder, member, files)


def _plan(folder: NnunetFolder, checkpoint: NnunetCheckpoint) -> Plan:
    """The plan of the configuration that the checkpoint is of, with the mirror axes that the checkpoint allows."""
    name = checkpoint.configuration
    plan = read_nnunet_plans(
        read_table(folder.path / PLANS), read_table(folder.path / DATASET), (name,), str(folder.path / PLANS)
    )
    own = plan.configurations[name]
    axes = tuple(axis for axis in checkpoint.mirror_axes if axis < own.dimensions)
    return replace(plan, configurations={name: replace(own, mirror_axes=axes)})


def _first_stages(
    loaded: Sequence[_Loaded], found: Sequence[NnunetFolder], folds: Sequence[int], scratch: _Scratch
) -> list[_Loaded]:
    """The first stage of each cascade among the models, from the folder beside it."""
    stages: dict[str, _Loaded] = {}
    for one in loaded:
        name, folder = one.member.configuration.cascade_from, one.folder
        if name is None or name in stages:
            continue
        beside = folder.path.with_name(f"{folder.trainer}__{folder.plans_name}__{name}")
        stage = next((other for other in (*found, *trained_folders(beside)) if other.path == beside), None)
        if stage is None:
            raise MissingInput(
                f"{one.member.configuration.name} continues a prediction of {name}, which is not there",
                where=str(beside),
                do=f"copy the folder {beside.name} beside it",
            )
        shared = tuple(fold for fold in folds if fold in stage.folds)
        stages[name] = _load(stage, shared, scratch)
    return list(stages.values())


def _warn_of_trainer(trainer: str) -> None:
    """Says that of a trainer that is not nnU-Net's own, only names and shapes of weights can be checked."""
    if not TRAINING_ONLY.fullmatch(trainer):
        _log.warning(
            "the trainer %s is not one of nnU-Net's own: every weight fits nnU-Net's network in name and shape, but "
            "whether it computes something else with them cannot be seen",
            "".join(letter for letter in trainer if letter.isprintable())[:80],
        )


def _name(loaded: Sequence[_Loaded], stages: Sequence[_Loaded]) -> str:
    """Dataset, configurations, folds and a hash that changes with plans and weights."""
    hashes = [sha256_of_file(one.folder.folds[fold]) for one in (*loaded, *stages) for fold in one.member.folds]
    content = content_hash([one.member.plan.fingerprint for one in (*loaded, *stages)], hashes)
    configurations = "+".join(one.member.configuration.name for one in loaded)
    first = loaded[0].member
    return f"{first.plan.dataset}/{configurations}/folds {','.join(map(str, first.folds))}/{content}"


def _because(loaded: Sequence[_Loaded], why: str) -> str:
    parts = [f"nnU-Net v2 model, {why}"]
    for one in loaded:
        note = f" ({one.folder.because})" if one.folder.because else ""
        parts.append(f"{one.member.configuration.name}: {one.member.folds_title}{note}")
    return "; ".join(parts)
