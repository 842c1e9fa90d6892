"""Where nnU-Net v2 keeps trained models: folders TRAINER__PLANS__CONFIGURATION with one folder per fold, or a zip."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from autoseg.core.errors import IntegrityRefusal, NotEnoughResources
from autoseg.core.records import LARGEST_JSON_BYTES

PLANS = "plans.json"
DATASET = "dataset.json"
CHOICE = "inference_information.json"
"""What nnU-Net's find_best_configuration writes beside the models of a dataset."""

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
"""In order of preference; nnU-Net predicts with the final one."""

LARGEST_RATIO = 1032
"""Of deflate: more is no honest zip."""

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
        return self.path.name.partition("__")[0]

    @property
    def plans_name(self) -> str:
        """The second part of the folder's name, or nothing."""
        return [*self.path.name.split("__"), "", ""][1]

    @property
    def configuration(self) -> str:
        """The third part of the folder's name, or nothing where it has been renamed."""
        return [*self.path.name.split("__"), "", "", ""][2]


def looks_like_nnunet(path: Path) -> bool:
    """Whether the path is a trained nnU-Net v2 model: its folder, one above it, one fold of it, or a zip of it."""
    if path.is_dir():
        return bool(trained_folders(path))
    if not path.is_file():
        return False
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            names = {PurePosixPath(name).name for name in archive.namelist() if _WANTED.fullmatch(name)}
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False
    return PLANS in names and bool(names & set(CHECKPOINTS))


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
        models = [(folder, _as_model(folder)) for folder in level]
        found += [model for _, model in models if model is not None]
        level = [entry for folder, model in models if model is None for entry in _folders_in(folder)]
    return tuple(sorted(found, key=lambda model: model.path))


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
            f"unpacking takes {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free",
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
        parts = member.filename.split("/")
        is_plain = all(part not in ("", ".", "..") and ":" not in part and "\\" not in part for part in parts)
        if not is_plain or stat.S_ISLNK(member.external_attr >> 16):
            raise _refused(archive, f"{member.filename!r} leads out of the folder")
        if member.filename.casefold() in seen:
            raise _refused(archive, f"{member.filename!r} is there twice")
        seen.add(member.filename.casefold())
        is_text = member.filename.endswith(".json") and member.file_size > LARGEST_JSON_BYTES
        if is_text or member.file_size > LARGEST_RATIO * max(member.compress_size, 1):
            raise _refused(archive, f"{member.filename!r} claims {member.file_size} bytes")


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
    candidates = [only] if only is not None else _folders_in(folder)
    named = {entry.name.removeprefix("fold_"): entry for entry in candidates if _FOLD.fullmatch(entry.name)}
    for file in CHECKPOINTS:
        having = {name: entry / file for name, entry in named.items() if (entry / file).is_file()}
        folds = {int(name): path for name, path in having.items() if name != _ALL_CASES}
        notes = [] if file == CHECKPOINTS[0] else [f"its training did not end, so {file} is used"]
        left_out = sorted(set(named) - set(having) - {_ALL_CASES})
        if folds:
            notes += [f"fold {name} has no {file}" for name in left_out]
            return NnunetFolder(folder, dict(sorted(folds.items())), "; ".join(notes))
        if having:
            return NnunetFolder(folder, {0: having[_ALL_CASES]}, "; ".join(["trained on all cases", *notes]))
    return None
