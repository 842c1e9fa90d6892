"""Both programs on the same datasets: their folders and their commands, as a user types them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scripts.benchmark.figures import Figures, lines_of, run_command

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait sleep instead of spinning: under other load, CPU seconds are those of the work on both sides."""

_FIRST_NUMBER = 901  # of the linked datasets; nnU-Net wants numbers


@dataclass(frozen=True)
class Task:
    """A dataset and what is planned for it.

    Attributes:
        dataset: short name, that of its folder.
        configuration: planned, trained and predicted with.
        preset: of AutoSeg.
        pins: decisions of the plan that are not left to the rules, YAML.
        training_pins: the same for training the network that both sides predict with: a smaller patch, a smaller batch.
        steps: of that training; 0 for random weights.
    """

    dataset: str
    configuration: str = "3d_fullres"
    preset: str = "reference"
    pins: str = ""
    training_pins: str = ""
    steps: int = 200

    @property
    def training(self) -> Task:
        """The same dataset as it is planned for that training, in a work folder of its own."""
        return replace(self, pins=self.training_pins or self.pins)


class Sides:
    """The scratch folder and how both programs are called in it."""

    def __init__(self, scratch: Path, data: Path) -> None:
        self.scratch, self.data = scratch, data
        self.jobs = str(len(os.sched_getaffinity(0)))
        self._folders = {name: scratch / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}

    @property
    def environment(self) -> dict[str, str]:
        """Of both sides' commands."""
        return {**os.environ, **{name: str(path) for name, path in self._folders.items()}, **PASSIVE}

    def raw(self, dataset: str) -> Path:
        """The dataset as both sides see it, in nnU-Net's raw layout: linked from the data folder, or drawn."""
        folder = self.raw_folder(dataset)
        if not folder.exists():
            folder.mkdir(parents=True)
            for entry in ("dataset.json", "imagesTr", "labelsTr"):
                (folder / entry).symlink_to((self.data / dataset / entry).resolve())
        return folder

    def raw_folder(self, dataset: str) -> Path:
        """Where the dataset is, or will be linked or drawn."""
        return self._folders["nnUNet_raw"] / self.full_name(dataset)

    def full_name(self, dataset: str) -> str:
        """With the number that nnU-Net wants: the same in every call on this scratch folder."""
        raw = self._folders["nnUNet_raw"]
        known = {path.name[11:]: path.name for path in raw.glob("Dataset*")} if raw.exists() else {}
        return known.get(dataset, f"Dataset{_FIRST_NUMBER + len(known)}_{dataset}")

    def work(self, task: Task) -> Path:
        """AutoSeg's work folder."""
        return self.scratch / "work" / f"{task.dataset}_{hashlib.sha256(task.pins.encode()).hexdigest()[:8]}"

    def own_model(self, task: Task) -> Path:
        """AutoSeg's model, one file, made of nnU-Net's folder."""
        return self.scratch / "models" / f"{task.dataset}.autoseg"

    def peer_preprocessed(self, dataset: str) -> Path:
        """nnU-Net's folder of plans and prepared cases."""
        return self._folders["nnUNet_preprocessed"] / self.full_name(dataset)

    def peer_model(self, task: Task) -> Path:
        """nnU-Net's folder of a trained model."""
        results = self._folders["nnUNet_results"] / self.full_name(task.dataset)
        return results / f"nnUNetTrainer__nnUNetPlans__{task.configuration}"

    def peer(
        self, verb: str, *options: str, peak: bool = False, environment: Mapping[str, str] | None = None
    ) -> Figures:
        """A command of nnU-Net."""
        program = str(Path(sys.executable).parent / f"nnUNetv2_{verb}")
        return run_command([program, *options], environment or self.environment, peak=peak)[0]

    def own(self, *arguments: str, peak: bool = False) -> Figures:
        """A command of AutoSeg."""
        return run_command([sys.executable, "-m", "autoseg", *arguments], self.environment, peak=peak)[0]

    def peer_plan(self, dataset: str) -> Figures:
        """Fingerprint and plan, from nothing."""
        self.raw(dataset)
        shutil.rmtree(self.peer_preprocessed(dataset), ignore_errors=True)
        how = ("-npfp", self.jobs, "--no_pp", "--clean", "--no_pbar")
        return self.peer("plan_and_preprocess", "-d", self._number(dataset), *how)

    def own_plan(self, task: Task) -> Figures:
        """Check, fingerprint and plan, from nothing."""
        shutil.rmtree(self.work(task), ignore_errors=True)
        pins = self.work(task).with_suffix(".yaml")
        if task.pins:
            pins.parent.mkdir(parents=True, exist_ok=True)
            pins.write_text(task.pins, encoding="utf-8")
        how = ("--preset", task.preset, *(("--pin", str(pins)) if task.pins else ()), "--no-probe", "--jobs", self.jobs)
        return self.own("plan", str(self.raw(task.dataset)), *self._work(task), *how, "-q")

    def peer_preprocess(self, task: Task) -> Figures:
        """Fills nnU-Net's store."""
        shutil.rmtree(self.peer_preprocessed(task.dataset) / f"nnUNetPlans_{task.configuration}", ignore_errors=True)
        how = ("-c", task.configuration, "-np", self.jobs, "--no_pbar")
        return self.peer("preprocess", "-d", self._number(task.dataset), *how)

    def own_preprocess(self, task: Task) -> Figures:
        """Fills AutoSeg's store."""
        shutil.rmtree(self.work(task) / "store", ignore_errors=True)
        how = ("--configuration", task.configuration, "--jobs", self.jobs, "-q")
        return self.own("preprocess", str(self.raw(task.dataset)), *self._work(task), *how)

    def predicted(self, task: Task, side: str) -> Path:
        """Where a side's label maps go."""
        return self.scratch / f"{side}_predicted" / task.dataset

    def images(self, task: Task) -> Path:
        """What is predicted."""
        return self.scratch / "to_predict" / task.dataset

    def peer_predict(self, task: Task, *more: str, peak: bool = False, active: bool = False) -> Figures:
        """Predicts with nnU-Net's own numbers of workers; `active`: in an environment that says nothing of OpenMP."""
        paths = (
            "-i",
            str(self.images(task)),
            "-o",
            str(self.predicted(task, "peer")),
            "-m",
            str(self.peer_model(task)),
        )
        how = ("-f", "0", "-device", "cpu", "--disable_progress_bar", *more)
        environment = {name: value for name, value in self.environment.items() if name not in PASSIVE or not active}
        return self.peer("predict_from_modelfolder", *paths, *how, peak=peak, environment=environment)

    def own_predict(self, task: Task, *more: str, peak: bool = False) -> Figures:
        """Predicts as a user does, its report included."""
        paths = (str(self.own_model(task)), "-i", str(self.images(task)), "-o", str(self.predicted(task, "own")))
        return self.own("predict", *paths, "--device", "cpu", "-q", *more, peak=peak)

    def konfai_predict(self, task: Task) -> Figures:
        """Predicts with KonfAI, without mirroring, which its Python interface does not have."""
        return run_command(self._job("konfai", json.dumps(asdict(task))), self.environment)[0]

    def job(self, name: str, *arguments: str) -> Iterator[Any]:
        """Runs a job of `jobs.py` in a process of its own; the JSON lines that it prints, as they come."""
        lines = lines_of(self._job(name, *arguments), self.environment)
        return (json.loads(line) for line in lines if line.startswith("{"))

    def _job(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "scripts.benchmark.jobs", name, str(self.scratch), str(self.data), *arguments]

    def forget_predictions(self, task: Task, side: str) -> None:
        """Removes what a side has predicted."""
        shutil.rmtree(self.predicted(task, side), ignore_errors=True)

    def link_images(self, task: Task, names: Sequence[str], subset: str = "Tr") -> None:
        """Makes the folder of what is predicted: these cases of the dataset."""
        folder = self.images(task)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in sorted((self.raw(task.dataset) / f"images{subset}").iterdir()):
            if file.name.rsplit("_", 1)[0] in names:
                (folder / file.name).symlink_to(file.resolve())

    def _number(self, dataset: str) -> str:
        return self.full_name(dataset)[7:10]

    def _work(self, task: Task) -> tuple[str, str]:
        return "--work", str(self.work(task))
