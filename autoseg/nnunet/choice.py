"""Which of several nnU-Net models in a folder predicts: the one asked for, nnU-Net's own choice, or the usual best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.core.errors import UsageError
from autoseg.core.records import read_table
from autoseg.models.runs import PREFERRED_CONFIGURATION
from autoseg.nnunet.folders import CHOICE, NnunetFolder

_CHOSEN = "chosen by nnU-Net's find_best_configuration, without its postprocessing (which nnU-Net keeps in a pickle)"

_TRAINER, _PLANS = "nnUNetTrainer", "nnUNetPlans"


@dataclass(frozen=True, slots=True)
class Choice:
    """What predicts.

    Attributes:
        folders: models whose probabilities are averaged.
        because: why these.
    """

    folders: tuple[NnunetFolder, ...]
    because: str


def choose_folders(found: Sequence[NnunetFolder], configuration: str | None, root: Path) -> Choice:
    """The models to predict with.

    Args:
        found: all there are, at least one.
        configuration: the one asked for.
        root: what the user named.

    Raises:
        UsageError: none or several fit.
        RecordFault: nnU-Net's choice cannot be read.
    """
    parents = sorted({folder.path.parent for folder in found})
    if len(parents) > 1:
        raise UsageError(
            f"there are models of {len(parents)} datasets", where=str(root), do=f"give one of {_names(parents)}"
        )
    if configuration is not None:
        return Choice((_of_configuration(found, configuration, root),), f"{configuration}, as asked for")
    chosen = _chosen_by_nnunet(found, parents[0] / CHOICE) if len(found) > 1 else None
    if chosen is not None:
        return chosen
    if len(found) == 1:
        return Choice(tuple(found), f"{found[0].path.name}, the only one that is trained")
    names = {folder.configuration for folder in found}
    wanted = PREFERRED_CONFIGURATION if PREFERRED_CONFIGURATION in names else None
    if wanted is None and len(names) > 1:
        raise UsageError(
            f"there are the models {_names([folder.path for folder in found])}",
            where=str(root),
            do="choose one with --configuration, or give its folder",
        )
    name = wanted or next(iter(names))
    return Choice((_of_configuration(found, name, root),), f"{name}, the default of {', '.join(sorted(names))}")


def _of_configuration(found: Sequence[NnunetFolder], configuration: str, root: Path) -> NnunetFolder:
    """The model of a configuration; among several trainers or plans the default ones."""
    fitting = [folder for folder in found if folder.configuration == configuration]
    if not fitting and len(found) == 1 and not found[0].configuration:
        return found[0]  # a renamed folder; its checkpoint says what it is
    usual = [folder for folder in fitting if (folder.trainer, folder.plans_name) == (_TRAINER, _PLANS)]
    if not fitting:
        raise UsageError(
            f"{configuration} is not trained", where=str(root), do=f"choose from {_names([f.path for f in found])}"
        )
    if len(fitting) > 1 and len(usual) != 1:
        raise UsageError(
            f"{configuration} was trained in several ways",
            where=str(root),
            do=f"give one of the folders {_names([folder.path for folder in fitting])}",
        )
    return fitting[0] if len(fitting) == 1 else usual[0]


def _chosen_by_nnunet(found: Sequence[NnunetFolder], file: Path) -> Choice | None:
    """The models that find_best_configuration named; None where it was not run or its models are not all here."""
    if not file.is_file():
        return None
    best = read_table(file).get("best_model_or_ensemble")
    listed = best.get("selected_model_or_models") if isinstance(best, Mapping) else None
    entries = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    names = [_folder_name(entry) for entry in entries]
    by_name = {folder.path.name: folder for folder in found}
    if not names or any(name not in by_name for name in names):
        return None
    return Choice(tuple(by_name[name] for name in names), _CHOSEN)


def _folder_name(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('trainer')}__{entry.get('plans_identifier')}__{entry.get('configuration')}"


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)
