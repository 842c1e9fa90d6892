"""Names of everything in a work folder. The layout is a contract that scripts rely on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autoseg.core.errors import MissingInput

WORK_FOLDER_NAME = "autoseg"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One training run: a configuration and a fold. Complete by itself: it holds its plan and recipe."""

    root: Path

    @property
    def workspace(self) -> Workspace:
        """The work folder that the run is in: WORK/runs/<configuration>/fold_<k>, of which any part may be a link."""
        named, real = (Workspace([*path.parents][:3][-1]) for path in (self.root.absolute(), self.root.resolve()))
        return named if named.plan.is_file() else real

    @property
    def configuration(self) -> Path:
        """The folder of all runs of the same configuration."""
        return self.root.parent

    @property
    def plan(self) -> Path:
        """The plan this run was started with."""
        return self.root / "plan.json"

    @property
    def recipe(self) -> Path:
        """The recipe with every decision made at the start: epochs, precision, memory format, seed."""
        return self.root / "recipe.json"

    @property
    def history(self) -> Path:
        """One JSON document per line and epoch."""
        return self.root / "history.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint generations."""
        return self.root / "checkpoint"

    @property
    def validation(self) -> Path:
        """Folder of predictions and scores of the fold's validation cases."""
        return self.root / "validation"

    @property
    def curves(self) -> Path:
        """Learning curves as a picture."""
        return self.root / "curves.png"

    @property
    def state(self) -> Path:
        """Where the run stands: epochs done, seconds, scores."""
        return self.root / "state.json"


@dataclass(frozen=True, slots=True)
class Workspace:
    """The work folder of one dataset, by default `DATASET/autoseg`.

    Attributes:
        root: the work folder.
        dataset_folder: where the dataset is, if it was named; None where only the work folder is known.
    """

    root: Path
    dataset_folder: Path | None = None

    def command(self, verb: str) -> str:
        """`autoseg VERB` for this dataset, to be pasted into a shell; where only the work folder is known, DATASET."""
        words = ["autoseg", verb, "DATASET" if self.dataset_folder is None else str(self.dataset_folder)]
        is_usual = self.dataset_folder is not None and self.root == self.dataset_folder / WORK_FOLDER_NAME
        return shlex.join(words if is_usual else [*words, "--work", str(self.root)])

    @property
    def dataset(self) -> Path:
        """What was detected: layout, channels, labels, cases."""
        return self.root / "dataset.json"

    @property
    def check(self) -> Path:
        """Every problem found, and the hashes of the files examined."""
        return self.root / "check.json"

    @property
    def fingerprint(self) -> Path:
        """Statistics of the dataset."""
        return self.root / "fingerprint.json"

    @property
    def plan(self) -> Path:
        """The plan."""
        return self.root / "plan.json"

    @property
    def splits(self) -> Path:
        """Training and validation cases of each fold."""
        return self.root / "splits.json"

    @property
    def selection(self) -> Path:
        """Which configuration or ensemble predicts, and with which postprocessing."""
        return self.root / "selection.json"

    @property
    def selected(self) -> Path:
        """Out-of-fold label maps of what was selected, postprocessing included, one per case."""
        return self.root / "selected"

    @property
    def report(self) -> Path:
        """Everything known about the dataset, as one page."""
        return self.root / "report.html"

    @property
    def store(self) -> Path:
        """Preprocessed cases, content-addressed."""
        return self.root / "store"

    @property
    def logs(self) -> Path:
        """Log files, one per command."""
        return self.root / "logs"

    @property
    def runs(self) -> Path:
        """Folder of all runs, by configuration."""
        return self.root / "runs"

    @property
    def models(self) -> Path:
        """Exported models."""
        return self.root / "models"

    def run(self, configuration: str, fold: int) -> RunFolder:
        """The folder of one run."""
        return RunFolder(self.runs / configuration / f"fold_{fold}")

    def run_folders(self) -> Iterator[tuple[str, int, RunFolder]]:
        """Configuration, fold and folder of every run that is there, in order."""
        for folder in sorted(self.runs.glob("*/fold_*")):
            number = folder.name.removeprefix("fold_")
            if number.isdigit():
                yield folder.parent.name, int(number), RunFolder(folder)


@dataclass(frozen=True, slots=True)
class UserCache:
    """The folder in which a user's programs keep what can be made again."""

    root: Path

    def numerics(self, key: str) -> Path:
        """What a check of this machine's numerics found, by a hash of what was checked."""
        return self.root / "numerics" / f"{key}.json"


def work_folder_of(folder: Path) -> Path:
    """The work folder that a run or a stored case lies in by its name, three floors up; links stay links."""
    return folder.absolute().parents[2]


def workspace_of(dataset: Path, work: Path | None) -> Workspace:
    """The work folder of a dataset: `work` if given, else `autoseg` inside the dataset's folder, or that folder itself.

    Raises:
        MissingInput: neither the dataset nor a work folder is there.
    """
    if work is not None:
        is_named = dataset.exists() and not _is_same(dataset, work)
        return Workspace(work, (dataset if dataset.is_dir() else dataset.parent) if is_named else None)
    if not dataset.exists():
        raise MissingInput(f"there is no folder {dataset}", where=str(dataset), do="check the path of the dataset")
    folder = dataset if dataset.is_dir() else dataset.parent
    if not (folder / WORK_FOLDER_NAME / "plan.json").exists() and (folder / "plan.json").exists():
        return Workspace(folder)  # the work folder itself was named
    return Workspace(folder / WORK_FOLDER_NAME, folder)


def _is_same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)
