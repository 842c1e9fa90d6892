"""Models: found, loaded, exported into one file, imported from one, described."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.core.errors import MissingInput, UsageError, for_users
from autoseg.models.bundle import BUNDLE_ENDING, bundle_path, find_bundle_model, write_bundle, write_report
from autoseg.models.record import ModelFiles
from autoseg.models.runs import find_run_model, has_runs, workspace_of_model
from autoseg.nnunet.model import find_nnunet_model, looks_like_nnunet

if TYPE_CHECKING:
    from autoseg.models.model import Model


@dataclass(frozen=True, slots=True)
class Loader:
    """A kind of model.

    Attributes:
        recognizes: whether a path leads to a model of this kind.
        load: finds it, given the path, one configuration or None, and folds or none; nothing is computed yet.
        can_import: whether `import_model` makes a bundle of it.
    """

    recognizes: Callable[[Path], bool]
    load: Callable[[Path, str | None, Sequence[int]], ModelFiles]
    can_import: bool = True


LOADERS = {
    "runs": Loader(has_runs, find_run_model, can_import=False),
    "nnU-Net v2": Loader(looks_like_nnunet, find_nnunet_model),
    "bundle": Loader(Path.is_file, find_bundle_model),
}
"""The first one that recognizes a path reads it: own runs go before models of others further down in the folder."""


def _loader_of(path: Path) -> Loader | None:
    return next((loader for loader in LOADERS.values() if loader.recognizes(path)), None)


@for_users()
def find_model(path: str | Path, configuration: str | None = None, folds: Sequence[int] = ()) -> ModelFiles:
    """The model that `path` stands for, before its networks are loaded.

    Args:
        path: a dataset's folder, its work folder (what was selected predicts), one run, a bundle, or a model of
            nnU-Net v2 (results folder or zip).
        configuration: this one alone; by default what was selected, else 3d_fullres, else the best by Dice.
        folds: which ones; by default those selected, else all that were trained.

    Raises:
        MissingInput: there is no such path, or no trained model.
        UsageError: the configuration or a fold is not there, or the selection is out of date.
        PlanFault: its networks were trained with plans that do not fit together.
        IntegrityRefusal: a file is damaged, or not safe to read.
    """
    if not Path(path).exists():
        raise MissingInput(f"there is no file or folder {Path(path).name}", where=str(path), do="check the path")
    loader = _loader_of(Path(path))
    if loader is None:
        raise MissingInput("there is no trained model", where=str(path), do="run autoseg train DATASET first")
    return loader.load(Path(path), configuration, tuple(folds))


@for_users()
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
    from autoseg.models.model import Model, make_ensemble

    files = find_model(path, configuration, folds or ())
    return Model(files, make_ensemble(files, device))


@for_users()
def show_model(path: str | Path) -> ModelFiles:
    """What is known about a model; all its weights are read and verified on the way.

    Raises:
        MissingInput: there is no trained model.
        IntegrityRefusal: it is not sound.
    """
    files = find_model(path)
    files.verify()
    return files


@for_users()
def export_model(
    path: str | Path,
    out: Path | None = None,
    configuration: str | None = None,
    folds: Sequence[int] = (),
    *,
    has_report: bool = True,
    overwrite: bool = False,
) -> Path:
    """Writes the model that `path` stands for into one file, and returns it.

    Args:
        path: a dataset's folder, its work folder, or one run.
        out: the file; by default `models/<name>.autoseg` in the work folder.
        configuration: as `find_model` takes it.
        folds: likewise.
        has_report: whether report.html of the work folder is copied beside the file, as `<name>.report.html`. It shows
            pictures and names of training cases.
        overwrite: whether another file of the same name may be replaced.

    Raises:
        UsageError: there is another file already.
    """
    files = find_model(path, configuration, folds)
    target = out or bundle_path(workspace_of_model(Path(path)).models, files.record.name)
    if target.suffix != BUNDLE_ENDING:
        raise UsageError(
            f"{target.name} does not end with {BUNDLE_ENDING}", do=f"choose a name that ends with {BUNDLE_ENDING}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(target, files, overwrite=overwrite)
    if has_report and files.report is not None:
        write_report(target, files.report, overwrite=overwrite)
    return target


@for_users()
def import_model(source: str | Path, folder: Path) -> Path:
    """Verifies a bundle, or reads a model of nnU-Net v2, and puts it into `folder` as one file, which is returned.

    Nothing that exists is replaced, and nothing outside of `folder` is written.

    Raises:
        UsageError: another model of the same name is there, or `source` is neither.
        IntegrityRefusal: the model is not sound.
    """
    if not Path(source).exists():
        raise MissingInput(f"there is no file or folder {Path(source).name}", where=str(source), do="check the path")
    loader = _loader_of(Path(source))
    if loader is None or not loader.can_import:
        raise UsageError(
            "there is neither a bundle nor a model of nnU-Net",
            where=str(source),
            do="autoseg model export DATASET makes a bundle",
        )
    folder.mkdir(parents=True, exist_ok=True)
    files = loader.load(Path(source), None, ())
    target = bundle_path(folder, files.record.name)
    write_bundle(target, files)
    return target
