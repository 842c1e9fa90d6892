"""Saving and restoring everything a run needs to go on exactly where it was: safetensors and JSON, never a pickle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from autoseg.core.errors import AutoSegError, IntegrityRefusal, TrainingStopped
from autoseg.core.files import atomic_folder, sha256_of_file, sync, temporary_beside
from autoseg.core.records import load, save
from autoseg.networks.weights import (
    AVERAGED_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    generations,
    newest_intact,
    read_tensors,
)
from autoseg.training.step import TrainingProgress, TrainingState

CHECKPOINT_VERSION = 1
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
GENERATIONS_KEPT = 2
"""The newest may be damaged by a power cut; the one before it then serves."""

_RANDOM = "random"
_PROGRESS = tuple(field.name for field in fields(TrainingProgress))


@dataclass(slots=True, kw_only=True)
class SavedProgress(TrainingProgress):
    """state.json of a checkpoint; what older versions wrote beside it (`best_dice`) is passed over.

    Attributes:
        version: of the checkpoint's format.
        loss_scale: `scale` and `growth_tracker` of the loss scaler; None without one.
        started_with: SHA-256 of the record that the training was started with; earlier versions did not note it.
    """

    version: int
    loss_scale: dict[str, float] | None
    started_with: str = ""


def save_checkpoint(state: TrainingState, folder: Path) -> Path:
    """Writes the next generation, whole or not at all, and removes all but the newest two.

    Raises:
        TrainingStopped: a weight is not finite; nothing is written.
    """
    _refuse_non_finite(state.network)
    path = _next_generation(folder)
    with atomic_folder(path) as temporary:
        _write_weights(state, temporary)
        _write_tensors(_optimizer_tensors(state), temporary / OPTIMIZER_FILE)
        save(_saved(state), temporary / STATE_FILE)
        hashes = {file.name: sha256_of_file(file) for file in sorted(temporary.iterdir())}
        save({"sha256": hashes}, temporary / MANIFEST_FILE)
    _prune(folder)
    return path


def has_checkpoint(folder: Path) -> bool:
    """Whether there is anything to resume from."""
    return bool(generations(folder))


def foreign_fault(folder: Path, record: Path) -> str | None:
    """Whether the newest intact generation is of another training than the one started with this record, in words.

    None where there is none, and where it does not say.
    """
    try:
        saved = load(SavedProgress, newest_intact(folder) / STATE_FILE)
        return "has a checkpoint of another training" if _is_of_other(saved, sha256_of_file(record)) else None
    except (AutoSegError, FileNotFoundError):
        return None


def _is_of_other(saved: SavedProgress, started_with: str) -> bool:
    return saved.started_with not in ("", started_with)


def restore(state: TrainingState, folder: Path) -> Path:
    """Puts the newest intact generation into a freshly started state and returns its folder.

    On the same machine the training then goes on bit for bit as if it had never stopped. Batches need nothing saved for
    that: batch i is a function of its number, and the next number is `step`. Saved are weights, their average, what the
    optimizer and the loss scaler keep, the losses of the epoch begun, and the random state that a network draws from.

    Raises:
        MissingInput: there is no checkpoint.
        IntegrityRefusal: none is intact, or it belongs to another training or network.
    """
    generation = newest_intact(folder)
    saved = load(SavedProgress, generation / STATE_FILE)
    if _is_of_other(saved, state.started_with):
        raise IntegrityRefusal(
            "the checkpoint is of another training",
            where=str(generation),
            why="it was copied here from another run, or restored from a backup of a former one",
            do="put the checkpoints of this run back, or train with --fresh",
        )
    _copy_into(state.network, read_tensors(generation / WEIGHTS_FILE), generation)
    if state.averaged is not None:
        _copy_into(state.averaged, read_tensors(generation / AVERAGED_FILE), generation)
    tensors = read_tensors(generation / OPTIMIZER_FILE)
    if not _is_of_optimizer(state, tensors):
        raise IntegrityRefusal(
            "what the checkpoint's optimizer kept is incomplete, or of another network",
            where=str(generation),
            why="the file was changed, or written by something else",
            do="put the checkpoints of this run back, or train with --fresh",
        )
    _restore_optimizer(state, tensors)
    for name in _PROGRESS:
        setattr(state, name, getattr(saved, name))
    if state.scaler is not None and saved.loss_scale is not None:
        growth = int(saved.loss_scale["growth_tracker"])
        state.scaler.load_state_dict({**state.scaler.state_dict(), **saved.loss_scale, "_growth_tracker": growth})
    return generation


def _saved(state: TrainingState) -> SavedProgress:
    scale = None
    if state.scaler is not None:
        values = state.scaler.state_dict()
        scale = {"scale": float(values["scale"]), "growth_tracker": float(values["_growth_tracker"])}
    progress = {name: getattr(state, name) for name in _PROGRESS}
    return SavedProgress(**progress, version=CHECKPOINT_VERSION, loss_scale=scale, started_with=state.started_with)


def _optimizer_tensors(state: TrainingState) -> dict[str, Tensor]:
    """Momentum and the like as `<parameter number>.<name>`, and torch's random state."""
    tensors = {_RANDOM: torch.get_rng_state()}
    if state.step and torch.cuda.is_available() and next(state.network.parameters()).is_cuda:
        tensors[f"{_RANDOM}.cuda"] = torch.cuda.get_rng_state()
    for number, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{name}": value for name, value in values.items() if isinstance(value, Tensor)}
    return tensors


def _is_of_optimizer(state: TrainingState, tensors: Mapping[str, Tensor]) -> bool:
    """Whether every tensor is a number of the optimizer or has its parameter's shape, and the random state is there."""
    shapes = [parameter.shape for parameter in state.network.parameters()]
    own, random = torch.get_rng_state(), tensors.get(_RANDOM)
    if random is None or (random.shape, random.dtype) != (own.shape, own.dtype):
        return False
    kept = [(key.partition(".")[0], tensor) for key, tensor in tensors.items() if not key.startswith(_RANDOM)]
    return all(
        number.isdigit() and int(number) < len(shapes) and tensor.shape in (torch.Size(), shapes[int(number)])
        for number, tensor in kept
    )


def _restore_optimizer(state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    values: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        if number.isdigit():
            values.setdefault(int(number), {})[name] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": values, "param_groups": groups})
    for parameter, entry in state.optimizer.state.items():
        # In the memory format of its parameter, as it was: sums over another order of voxels round differently.
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                entry[name] = torch.empty_like(parameter).copy_(value)
    torch.set_rng_state(tensors[_RANDOM])
    if f"{_RANDOM}.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"{_RANDOM}.cuda"])


@torch.no_grad()
def _copy_into(network: nn.Module, tensors: Mapping[str, Tensor], generation: Path) -> None:
    own = network.state_dict()
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in tensors.items()}:
        raise IntegrityRefusal(
            "the checkpoint's weights do not fit the plan's network",
            where=str(generation),
            why="the plan of this run was changed by hand",
            do="train with --fresh",
        )
    for name, value in own.items():
        value.copy_(tensors[name])


def _refuse_non_finite(network: nn.Module) -> None:
    for name, value in network.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise TrainingStopped(
                f"the weights of {name} are not finite any more; this checkpoint is not written",
                why="the learning rate is too high",
                do="lower `lr` in a recipe and train with --fresh; the checkpoint before it is intact",
            )


def _write_weights(state: TrainingState, folder: Path) -> None:
    _write_tensors(state.network.state_dict(), folder / WEIGHTS_FILE)
    if state.averaged is not None:
        _write_tensors(state.averaged.state_dict(), folder / AVERAGED_FILE)


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def _next_generation(folder: Path) -> Path:
    numbers = [int(path.name) for path in generations(folder)]
    return folder / f"{max(numbers, default=0) + 1:08d}"


def _prune(folder: Path) -> None:
    for outdated in generations(folder)[:-GENERATIONS_KEPT]:
        leftover = temporary_beside(outdated)  # renamed first: a stop while deleting leaves no half generation
        outdated.rename(leftover)
        sync(folder)
        shutil.rmtree(leftover, ignore_errors=True)
