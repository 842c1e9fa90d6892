"""Sharing models: exported into one file, installed from one, described."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from autoseg import __version__
from autoseg.core.errors import IntegrityRefusal, UsageError
from autoseg.core.files import temporary_beside
from autoseg.core.records import load
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.data.model import Dataset
from autoseg.inference.manifest import PredictorOptions
from autoseg.models.bundle import BUNDLE_ENDING, Bundle, bundle_path, find_bundle_model, open_bundle, write_bundle
from autoseg.models.bundle_record import BundledScores, Provenance
from autoseg.models.files import ModelFiles
from autoseg.models.model import Model, make_ensemble
from autoseg.models.runs import find_run_model, work_folder_of
from autoseg.nnunet.model import find_nnunet_model, looks_like_nnunet
from autoseg.selection.record import Selection

MODELS_FOLDER = "models"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known about a model.

    Attributes:
        files: the model.
        provenance: where it comes from.
        scores: how good it is, if cross-validation told.
        content: hash of a bundle's content, None for other models.
        has_report: whether a report is in the bundle, or in the work folder.
    """

    files: ModelFiles
    provenance: Provenance
    scores: BundledScores | None
    content: str | None
    has_report: bool


def find_model(path: Path, configuration: str | None = None, folds: Sequence[int] = ()) -> ModelFiles:
    """The model that `path` stands for.

    Args:
        path: a dataset's folder, its work folder (what was selected predicts), one run, a bundle, or a model of
            nnU-Net v2 (results folder or zip).
        configuration: this one alone; by default what was selected, else 3d_fullres, else the best by Dice.
        folds: which ones; by default those selected, else all that were trained.

    Raises:
        MissingInput: there is no trained model.
        UsageError: the configuration or a fold is not there, or the selection is out of date.
        PlanFault: its networks were trained with plans that do not fit together.
        IntegrityRefusal: a file is damaged, or not safe to read.
    """
    origin = origin_of(path)
    if origin == "nnU-Net v2":
        return find_nnunet_model(path, configuration, folds)
    if origin == "bundle":
        return find_bundle_model(path, configuration, tuple(folds))
    return find_run_model(path, configuration, folds)


def origin_of(path: Path) -> Literal["runs", "bundle", "nnU-Net v2"]:
    """What kind of model a path leads to, if to any; own runs go before models of others further down."""
    if path.is_file():
        is_other = path.suffix != BUNDLE_ENDING and looks_like_nnunet(path)
        return "nnU-Net v2" if is_other else "bundle"
    has_runs = RunFolder(path).checkpoint.is_dir() or (work_folder_of(path).root / "runs").is_dir()
    return "nnU-Net v2" if not has_runs and looks_like_nnunet(path) else "runs"


def load_model(
    path: str | Path, configuration: str | None = None, folds: Sequence[int] | None = None, device: str = "auto"
) -> Model:
    """A trained model, ready to segment arrays.

    Args:
        path: a dataset's folder, its work folder, one run, a bundle, or a model of nnU-Net v2.
        configuration: this one alone; by default what was selected, else 3d_fullres, else the best by Dice.
        folds: which ones are averaged; by default those selected, else all that were trained.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        MissingInput: there is no trained model.
        UsageError: the configuration, a fold or the device is not there.
    """
    files = find_model(Path(path), configuration, folds or ())
    return Model(files, make_ensemble(files, PredictorOptions(device=device)))


def export_model(
    path: Path,
    out: Path | None = None,
    configuration: str | None = None,
    folds: Sequence[int] = (),
    *,
    has_report: bool = True,
) -> Path:
    """Writes the model that `path` stands for into one file, and returns it.

    Args:
        path: a dataset's folder, its work folder, or one run.
        out: the file; by default `models/<name>.autoseg` in the work folder.
        configuration: as `find_model` takes it.
        folds: likewise.
        has_report: whether report.html of the work folder goes along. It shows pictures and names of training cases.

    Raises:
        UsageError: there is another file already.
    """
    files = find_model(path, configuration, folds)
    workspace = _workspace(path)
    target = out or bundle_path(workspace.root / MODELS_FOLDER, files)
    if target.suffix != BUNDLE_ENDING:
        raise UsageError(
            f"{target.name} does not end with {BUNDLE_ENDING}", do=f"choose a name that ends with {BUNDLE_ENDING}"
        )
    report = workspace.root / "report.html"
    scores = _scores(workspace) if configuration is None and not folds else None
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        provenance = _provenance(files, workspace)
        bundle = write_bundle(temporary, files, provenance, scores, report if has_report and report.exists() else None)
        _publish(bundle, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def install_model(source: Path, folder: Path) -> Path:
    """Verifies a bundle, or reads a model of nnU-Net v2, and puts it into `folder` as one file, which is returned.

    Nothing that exists is replaced, and nothing outside of `folder` is written.

    Raises:
        UsageError: another model of the same name is there, or `source` is neither.
        IntegrityRefusal: the model is not sound.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder / f"model{BUNDLE_ENDING}")
    try:
        origin = origin_of(source)
        if origin == "nnU-Net v2":
            files = find_nnunet_model(source)
            bundle = write_bundle(temporary, files, _made_here(files, origin, None))
        elif origin == "runs":
            raise UsageError(
                "there is neither a bundle nor a model of nnU-Net",
                where=str(source),
                do="autoseg model export DATASET makes a bundle",
            )
        else:
            open_bundle(source).verify()
            shutil.copyfile(source, temporary)
            bundle = open_bundle(temporary)
            bundle.verify()
        target = folder / bundle.file_name
        _publish(bundle, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def describe_model(path: Path) -> ModelCard:
    """What is known about a model; a bundle is verified entirely.

    Raises:
        MissingInput: there is no trained model.
        IntegrityRefusal: it is not sound.
    """
    files = find_model(path)
    origin = origin_of(path)
    if origin == "bundle":
        bundle = open_bundle(path)
        bundle.verify()
        record = bundle.record
        return ModelCard(files, record.provenance, record.scores, bundle.archive.content, bundle.has_report)
    if origin == "nnU-Net v2":
        return ModelCard(files, _made_here(files, origin, None), None, None, has_report=False)
    workspace = _workspace(path)
    has_report = (workspace.root / "report.html").exists()
    return ModelCard(files, _provenance(files, workspace), _scores(workspace), None, has_report)


def _workspace(path: Path) -> Workspace:
    if RunFolder(path).checkpoint.is_dir():
        return Workspace(path.resolve().parent.parent.parent)
    return work_folder_of(path)


def _scores(workspace: Workspace) -> BundledScores | None:
    if not workspace.selection.exists():
        return None
    selection = load(Selection, workspace.selection)
    return BundledScores(selection.name, selection.because, selection.candidates, selection.nested)


def _provenance(files: ModelFiles, workspace: Workspace) -> Provenance:
    cases = len(load(Dataset, workspace.dataset).cases) if workspace.dataset.exists() else None
    return _made_here(files, "autoseg", cases)


def _made_here(files: ModelFiles, origin: str, cases: int | None) -> Provenance:
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return Provenance(files.plan.dataset, origin, __version__, versions, cases)


def _publish(bundle: Bundle, target: Path) -> None:
    """Gives a finished file its name unless the name is taken; an equal bundle there is as good.

    Raises:
        UsageError: the name is taken by something else.
    """
    try:
        _take(bundle.archive.path, target)
    except FileExistsError:
        if _is_content(target, bundle.archive.content):
            return
        raise UsageError(
            f"{target.name} exists already and is something else",
            where=str(target),
            do="choose another name or folder, or move the file away",
        ) from None


def _take(finished: Path, target: Path) -> None:
    """Names a finished file; raises FileExistsError if the name is taken, whoever took it and whenever."""
    try:
        target.hardlink_to(finished)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        target.touch(exist_ok=False)
        finished.replace(target)


def _is_content(target: Path, content: str) -> bool:
    try:
        return target.is_file() and not target.is_symlink() and open_bundle(target).archive.content == content
    except IntegrityRefusal:
        return False
