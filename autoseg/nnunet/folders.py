"""Where nnU-Net v2 keeps trained models, and which of several predicts.

A model is a folder TRAINER__PLANS__CONFIGURATION with one folder per fold, or a zip of it.
"""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from autoseg.core.errors import IntegrityRefusal, NotEnoughResources, RecordFault, UsageError
from autoseg.core.machine import BYTES_PER_GIB
from autoseg.core.records import LARGEST_JSON_BYTES, from_data, read_table
from autoseg.models.runs import PREFERRED_CONFIGURATION

PLANS = "plans.json"
DATASET = "dataset.json"
CHOICE = "inference_information.json"
"""What nnU-Net's find_best_configuration writes beside the models of a dataset."""

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
"""In order of preference; nnU-Net predicts with the final one."""

LARGEST_RATIO = 1032
"""Of deflate; a member that claims more is malformed."""

_CHOSEN = "chosen by nnU-Net's find_best_configuration, without its postprocessing (which nnU-Net keeps in a pickle)"
_TRAINER, _PLANS = "nnUNetTrainer", "nnUNetPlans"
_ZIP = b"PK\3\4"
_WANTED = re.compile(
    rf"(.*/)?({PLANS}|{DATASET}|{CHOICE}|postprocessing\.json|fold_[^/]+/checkpoint_(final|best)\.pth)"
)
_FOLD = re.compile(r"fold_(\d{1,6}|all)")
_DEPTH = 2
_ALL_CASES = "all"


@dataclass(frozen=True, slots=True)
class NnunetFolder:
    """A trained model of one configuration.

    Attributes:
        path: of the folder with plans.json.
        folds: checkpoint of each fold; a model trained on all cases counts as fold 0.
        because: which folds and checkpoints were chosen, where that is not obvious.
    """

    path: Path
    folds: dict[int, Path]
    because: str = ""

    @property
    def trainer(self) -> str:
        """The first part of the folder's name, or all of it where it has been renamed."""
        return self._parts[0]

    @property
    def plans_name(self) -> str:
        """The second part of the folder's name, or nothing."""
        return self._parts[1]

    @property
    def configuration(self) -> str:
        """The third part of the folder's name, or nothing where it has been renamed."""
        return self._parts[2]

    @property
    def _parts(self) -> list[str]:
        return [*self.path.name.split("__"), "", ""]


@dataclass(frozen=True, slots=True)
class _Selected:
    """What inference_information.json says of a model that find_best_configuration chose."""

    trainer: str
    plans_identifier: str
    configuration: str


def looks_like_nnunet(path: Path) -> bool:
    """Whether the path is a trained nnU-Net v2 model: its folder, one above it, one fold of it, or a zip of it."""
    if path.is_dir():
        return bool(trained_folders(path))
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            # a file of another format may have a zip at its end; what predicts must not depend on who looks
            begins_as_zip = stream.seek(0) == 0 and stream.read(len(_ZIP)) == _ZIP
            names = {PurePosixPath(name).name for name in archive.namelist() if _WANTED.fullmatch(name)}
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False
    return begins_as_zip and PLANS in names and bool(names & set(CHECKPOINTS))


def trained_folders(path: Path) -> tuple[NnunetFolder, ...]:
    """The trained models at `path` or at most two levels below it, sorted by path; for a fold's folder that fold alone.

    Args:
        path: a model's folder, one of its folds, a dataset's folder of models, or nnU-Net's results folder.
    """
    path = path.resolve()
    if _FOLD.fullmatch(path.name) and (path.parent / PLANS).is_file():
        model = _as_model(path.parent, path)
        return () if model is None else (model,)
    level, found = [path], []
    for _ in range(_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            model = _as_model(folder)
            if model is None:
                below += _folders_in(folder)
            else:
                found.append(model)
        level = below
    return tuple(sorted(found, key=lambda model: model.path))


def choose_folders(
    found: Sequence[NnunetFolder], configuration: str | None, root: Path
) -> tuple[tuple[NnunetFolder, ...], str]:
    """The models to predict with, and why these.

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
        return (_of_configuration(found, configuration, root),), f"{configuration}, as asked for"
    if len(found) == 1:
        return tuple(found), f"{found[0].path.name}, the only one that is trained"
    chosen = _chosen_by_nnunet(found, parents[0] / CHOICE)
    if chosen:
        return chosen, _CHOSEN
    names = sorted({folder.configuration for folder in found})
    name = names[0] if len(names) == 1 else PREFERRED_CONFIGURATION
    if name not in names:
        raise UsageError(
            f"there are the models {_names([folder.path for folder in found])}",
            where=str(root),
            do="choose one with --configuration, or give its folder",
        )
    return (_of_configuration(found, name, root),), f"{name}, the default of {', '.join(names)}"


def unpack(archive: Path, folder: Path) -> None:
    """Writes the files of a model in a zip that predictions need into `folder`, and nothing else, nowhere else.

    Args:
        archive: as nnU-Net's export writes it.
        folder: exists and is empty.

    Raises:
        IntegrityRefusal: the zip is damaged, or holds names or sizes that no export has.
        NotEnoughResources: the disk has no room for it.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            _unpack(opened, archive, folder)
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError, zlib.error) as error:
        raise _refused(archive, f"it cannot be unpacked: {error}") from error


def _unpack(opened: zipfile.ZipFile, archive: Path, folder: Path) -> None:
    wanted = [member for member in opened.infolist() if _WANTED.fullmatch(member.filename)]
    _check_members(wanted, archive)
    needed, free = sum(member.file_size for member in wanted), shutil.disk_usage(folder).free
    if needed > free:
        raise NotEnoughResources(
            f"unpacking takes {needed / BYTES_PER_GIB:.1f} GiB, {free / BYTES_PER_GIB:.1f} GiB are free",
            where=str(folder),
            do="free some space, or unpack the zip elsewhere and give the folder",
        )
    for member in wanted:
        target = folder.joinpath(*PurePosixPath(member.filename).parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(member) as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink)


def _check_members(members: list[zipfile.ZipInfo], archive: Path) -> None:
    seen: set[str] = set()
    for member in members:
        name = member.filename
        if _leads_out(name) or stat.S_ISLNK(member.external_attr >> 16):
            raise _refused(archive, f"{name!r} leads out of the folder")
        if name.casefold() in seen:
            raise _refused(archive, f"{name!r} is there twice")
        seen.add(name.casefold())
        most = LARGEST_RATIO * max(member.compress_size, 1)
        if member.file_size > (min(most, LARGEST_JSON_BYTES) if name.endswith(".json") else most):
            raise _refused(archive, f"{name!r} claims {member.file_size} bytes")


def _leads_out(name: str) -> bool:
    """Whether a member's name could mean a file elsewhere, on any system."""
    return ":" in name or "\\" in name or not {"", ".", ".."}.isdisjoint(name.split("/"))


def _refused(archive: Path, why: str) -> IntegrityRefusal:
    return IntegrityRefusal(
        f"{archive.name} is no export of nnU-Net that is safe to unpack",
        where=str(archive),
        why=why,
        do="export the model again, or unpack it yourself and give the folder",
    )


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError:
        return []


def _as_model(folder: Path, only: Path | None = None) -> NnunetFolder | None:
    """The model in a folder; None where there is no plans.json or no checkpoint."""
    if not (folder / PLANS).is_file():
        return None
    entries = [only] if only is not None else _folders_in(folder)
    named = {found.group(1): entry for entry in entries if (found := _FOLD.fullmatch(entry.name))}
    for file in CHECKPOINTS:
        having = {name: entry / file for name, entry in named.items() if (entry / file).is_file()}
        if having:
            return NnunetFolder(folder, *_folds_of(having, sorted(set(named) - set(having)), file))
    return None


def _folds_of(having: dict[str, Path], lacking: list[str], file: str) -> tuple[dict[int, Path], str]:
    """Checkpoint of each fold, and what is not as usual; a model of all cases predicts only where no fold does."""
    notes = [] if file == CHECKPOINTS[0] else [f"its training did not end, so {file} is used"]
    folds = {int(name): path for name, path in having.items() if name != _ALL_CASES}
    if not folds:
        return {0: having[_ALL_CASES]}, "; ".join(["trained on all cases", *notes])
    notes += [f"fold {name} has no {file}" for name in lacking if name != _ALL_CASES]
    return dict(sorted(folds.items())), "; ".join(notes)


def _of_configuration(found: Sequence[NnunetFolder], configuration: str, root: Path) -> NnunetFolder:
    """The model of a configuration; among several trainers or plans the default ones."""
    if len(found) == 1 and not found[0].configuration:
        return found[0]  # a renamed folder; its checkpoint says what it is
    fitting = {folder.path.name: folder for folder in found if folder.configuration == configuration}
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    usual = fitting.get(f"{_TRAINER}__{_PLANS}__{configuration}")
    if usual is not None:
        return usual
    wrong = "was trained in several ways" if fitting else "is not trained"
    choices = list(fitting.values()) or found
    raise UsageError(
        f"{configuration} {wrong}", where=str(root), do=f"give one of {_names([folder.path for folder in choices])}"
    )


def _chosen_by_nnunet(found: Sequence[NnunetFolder], file: Path) -> tuple[NnunetFolder, ...]:
    """The models that find_best_configuration named; none where it was not run or its models are not all here."""
    if not file.is_file():
        return ()
    best = read_table(file).get("best_model_or_ensemble")
    models = best.get("selected_model_or_models") if isinstance(best, dict) else None
    try:
        chosen = from_data(list[_Selected], models, str(file))
    except RecordFault:  # another version's file: then there is no choice of nnU-Net's
        return ()
    by_name = {folder.path.name: folder for folder in found}
    names = [f"{own.trainer}__{own.plans_identifier}__{own.configuration}" for own in chosen]
    return tuple(by_name[name] for name in names) if set(names) <= set(by_name) else ()


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)
