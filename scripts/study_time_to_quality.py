#!/usr/bin/env python3
r"""Which recipe reaches which Dice in which time: curves over time budgets, several datasets and seeds.

    OMP_NUM_THREADS=1 nice -n 10 python scripts/study_time_to_quality.py --data DATA --out STUDY
    python scripts/study_time_to_quality.py --data DATA --out STUDY --report docs

The first command goes on where it stopped, for days if need be: every run leaves one JSON file in STUDY/results, small
budgets first, and a run whose file is there is never done again. The second writes tables, a figure and the raw results
of whatever is done.

A machine with other work must not change what is found, so time is **virtual**: the CPU seconds of a training step of
every contender are measured once, in turns, on one thread, and a budget of so many minutes on two cores is as many
steps as fit into twice the seconds. Steps of each stage of a growing patch count with their own cost. Training alone
counts, with the quick validation after each epoch, not the validation of the fold.

Cases are set aside by a random draw before anything else, whole patients where a patient has several; networks are
planned and trained (fold 0) on the rest by the commands that users have, and scored on the cases set aside.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from autoseg.api.evaluate import evaluate
from autoseg.api.plan import plan_dataset
from autoseg.api.predict import predict
from autoseg.api.preprocess import preprocess
from autoseg.core.files import write_atomic
from autoseg.core.records import to_data
from autoseg.core.workspace import Workspace
from autoseg.data.layouts.detect import detect_dataset
from autoseg.launch.precision import native_types
from autoseg.planning.plan import load_plan
from autoseg.planning.planner import PlanOptions
from autoseg.preprocessing.store import open_case
from autoseg.runs.queue import TrainOptions, make_queue
from autoseg.runs.train import train_queue
from autoseg.training.batches import BatchSource
from autoseg.training.callbacks.time_budget import fit_epochs
from autoseg.training.grouping import case_groups
from autoseg.training.losses import make_objective
from autoseg.training.optimization import mean_cost
from autoseg.training.recipe import Recipe, load_recipe, stage_configurations
from autoseg.training.step import Compute, start_state, train_step

sys.path.insert(0, str(Path(__file__).resolve().parent))

from study_report import BASELINE, REFERENCE, overall, write_report

CORES = 2
"""Cores of the machine that a virtual minute is one of."""

ROUNDS = 5
"""Of measuring steps, after one that does not count."""


@dataclass(frozen=True, slots=True)
class Contender:
    """What is compared.

    Attributes:
        preset: that the network is planned with.
        recipe: that it is trained with.
        changes: of the recipe's settings.
        first_stage: channels of the network's finest stage, which takes half of the time / those that are planned.
        store_type: of the prepared images' voxels.
    """

    preset: str
    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    first_stage: float = 1.0
    store_type: str = "float32"

    @property
    def plan_name(self) -> str:
        """Of its plan, which contenders that are planned alike share."""
        thin = "" if self.first_stage == 1.0 else f"-{self.first_stage:g}"
        return f"{self.preset}{thin}{'' if self.store_type == 'float32' else '-half'}"

    def load(self, **more: Any) -> Recipe:
        """The recipe, changed."""
        return replace(load_recipe(self.recipe), **self.changes, **more)


CONTENDERS = {
    "nnU-Net": Contender("reference", "default"),
    "cpu": Contender("cpu", "cpu"),
    "fast": Contender("cpu", "fast"),
    "fast-adamw": Contender("cpu", "fast", {"optimizer": "adamw", "momentum": 0.9, "lr": 0.002}),
    "fast-whole": Contender("cpu", "fast", {"patch_growth": ()}),
    "fast-batch": Contender("cpu", "fast", {"batch_scale": 2.0}),
    "fast-thin": Contender("cpu", "fast", first_stage=0.5),
    "cpu-half": Contender("cpu", "cpu", store_type="float16"),
}
"""By name. "nnU-Net" is its plan and its training, with the schedule stretched over the budget, computed by AutoSeg in
the precision that is fastest here, as all contenders are. Those behind `fast` change one thing in it: "fast-adamw"
has the optimizer of `cpu`, "fast-whole" its patch, "fast-batch" twice the batch; "cpu-half" stores its images in half
precision."""

MAIN = (REFERENCE, BASELINE, "fast")


@dataclass(frozen=True, slots=True)
class Studied:
    """A dataset of the study.

    Attributes:
        configuration: that is trained.
        unseen: groups of cases that are set aside.
        group: what a case's group is called, as `--group-by` has it.
    """

    configuration: str
    unseen: int
    group: str = ".*"


STUDIED = {
    "hippocampus": Studied("3d_fullres", 23),
    "acdc_cardiac": Studied("3d_fullres", 10, r"^(acdc_\d+)"),
    "dsb2018_nuclei": Studied("2d", 22),
    "chase_vessels": Studied("2d", 3, r"(\d+)[LR]"),
}


@dataclass(frozen=True, slots=True)
class Contest:
    """A dataset prepared for all contenders.

    Attributes:
        name: of the dataset.
        studied: how.
        root: folder of everything about it.
    """

    name: str
    studied: Studied
    root: Path

    @property
    def train(self) -> Path:
        """The dataset without the cases set aside."""
        return self.root / "train"

    @property
    def unseen(self) -> Path:
        """Cases set aside: images and labels."""
        return self.root / "unseen"

    def workspace(self, contender: str) -> Workspace:
        """With the plan of a contender; those with the same plan share it."""
        return Workspace(self.root / "plans" / CONTENDERS[contender].plan_name, self.train)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    asked = parse(arguments)
    torch.set_num_threads(1)
    contests = [Contest(name, STUDIED[name], asked.out / name) for name in asked.datasets]
    if asked.report is not None:
        write_report(load_results(asked.out / "results"), asked.report)
        return 0
    for contest in contests:
        prepare(contest, asked.data / contest.name, asked.contenders)
    # every dataset and contender gets its short runs first, so that what is done can be looked at any time
    for minutes, seed, contest, contender in product(asked.minutes, asked.seeds, contests, asked.contenders):
        path = asked.out / "results" / f"{contest.name}-{contender}-{minutes:g}m-{seed}.json"
        if not path.exists():
            result = do_run(contest, contender, minutes, seed)
            write_atomic(path, json.dumps(result) + "\n")
            print(f"{path.stem}: {result['steps']} steps, mean Dice {overall(result['dice']):.4f}", flush=True)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets, in nnU-Net's layout")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything written")
    parser.add_argument("--datasets", nargs="+", default=list(STUDIED), choices=list(STUDIED))
    parser.add_argument("--contenders", nargs="+", default=list(MAIN), choices=list(CONTENDERS))
    parser.add_argument("--minutes", nargs="+", type=float, default=[5, 10, 20], help="budgets (default: 5 10 20)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--report", type=Path, help="folder to write tables, figure and raw results into, and end")
    return parser.parse_args(arguments)


def prepare(contest: Contest, source: Path, contenders: Sequence[str]) -> None:
    """Sets cases aside, plans and preprocesses for every preset, measures the cost of steps; once."""
    if not (contest.train / "dataset.json").exists():
        set_aside(contest, source)
    for name in (BASELINE, *contenders):
        workspace = contest.workspace(name)
        if not workspace.plan.exists():
            plan_contender(contest, name)
        preprocess(contest.train, work=workspace.root, configurations=(contest.studied.configuration,))
    path = contest.root / "costs.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in contenders if name not in known.get("seconds", {})]
    if missing:
        write_atomic(path, json.dumps(measured_costs(contest, missing, known), indent=1) + "\n")


def plan_contender(contest: Contest, name: str) -> None:
    """Plans with the contender's preset; then once more, if its finest stage shall have other channels."""
    own, workspace = CONTENDERS[name], contest.workspace(name)
    pins: dict[str, Any] = {"store_type": own.store_type}
    plan = plan_dataset(contest.train, workspace, PlanOptions(own.preset, pins=pins)).plan
    if own.first_stage != 1.0:
        first, *others = plan.configurations[contest.studied.configuration].network.features_per_stage
        pins[contest.studied.configuration] = {"features_per_stage": [round(own.first_stage * first), *others]}
        plan_dataset(contest.train, workspace, PlanOptions(own.preset, pins=pins))


def set_aside(contest: Contest, source: Path) -> None:
    """Copies a dataset into two folders: what is trained on, and the cases that nothing sees before the end."""
    dataset = detect_dataset(source)
    groups = case_groups(contest.studied.group, [case.identifier for case in dataset.cases])
    names = sorted(set(groups.values()))
    random.Random(20261127).shuffle(names)
    drawn = set(names[: contest.studied.unseen])
    for case in dataset.cases:
        is_unseen = groups[case.identifier] in drawn
        for file in (*case.images, *([case.labels] if case.labels else [])):
            kept = (contest.unseen if is_unseen else contest.train) / file
            kept.parent.mkdir(parents=True, exist_ok=True)
            for own in (source / file).parent.glob(f"{Path(file).name.split('.')[0]}.*"):  # spacings of TIFFs, too
                shutil.copyfile(own, kept.with_name(own.name))
    description = json.loads((source / "dataset.json").read_text())
    description["numTraining"] = sum(groups[case.identifier] not in drawn for case in dataset.cases)
    write_atomic(contest.train / "dataset.json", json.dumps(description))


def measured_costs(contest: Contest, contenders: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """CPU seconds of a step of each contender and stage, in the fastest precision; all take turns on one thread.

    What was measured before stays: the baseline is measured again beside the new ones, which are scaled by it.
    """
    precision = known.get("precision") or fastest_precision(contest)
    names = list(dict.fromkeys([BASELINE, *contenders]))
    seconds = in_turns({key: step for name in names for key, step in steps_of(contest, name, precision).items()})
    former = known.get("seconds", {})
    scale = former[BASELINE][-1] / seconds[BASELINE, len(stages_of(contest, BASELINE)) - 1] if former else 1.0
    new = {name: [scale * own for (of, _), own in seconds.items() if of == name] for name in names}
    return {"precision": precision, "seconds": {**new, **former}}


def fastest_precision(contest: Contest) -> str:
    """Of fp32 and the formats that the CPU computes natively, by the baseline's steps."""
    kinds = ("fp32", *native_types(torch.device("cpu")))
    last = len(stages_of(contest, BASELINE)) - 1
    seconds = in_turns({kind: steps_of(contest, BASELINE, kind)[BASELINE, last] for kind in kinds})
    return min(seconds, key=lambda kind: seconds[kind])


def in_turns(steps: Mapping[Any, Callable[[], object]]) -> dict[Any, float]:
    """Median CPU seconds of each function, which take turns so that a moment of load hits all of them."""
    rounds: dict[Any, list[float]] = {key: [] for key in steps}
    for _ in range(ROUNDS + 1):
        for key, step in steps.items():
            begin = time.process_time()
            step()
            rounds[key].append(time.process_time() - begin)
    return {key: median(own[1:]) for key, own in rounds.items()}


def stages_of(contest: Contest, contender: str) -> tuple[Any, ...]:
    """Configurations of a contender's stages."""
    plan = load_plan(contest.workspace(contender))
    return stage_configurations(plan.configurations[contest.studied.configuration], CONTENDERS[contender].load())


def steps_of(contest: Contest, contender: str, precision: str) -> dict[tuple[str, int], Callable[[], object]]:
    """(contender, stage) -> a function that makes a batch and takes a training step, as a run does."""
    workspace, recipe = contest.workspace(contender), CONTENDERS[contender].load()
    queue = make_queue(workspace, options(contest))
    plan, fold = queue.plan, queue.folds[0]
    name = contest.studied.configuration
    store = preprocess(contest.train, work=workspace.root, configurations=(name,))[name].folder
    compute = Compute(torch.device("cpu"), precision, "channels_last")
    state = start_state(plan.build_network(name), recipe, compute, plan.configurations[name].dimensions)
    state.segment = replace(state.segment, end=10**6)
    objective = make_objective(recipe.loss, plan.labels, plan.configurations[name].batch_dice)

    def step_with(source: BatchSource) -> Callable[[], object]:
        def step() -> None:
            image, labels = source.training(state.step).tensors()
            train_step(state, compute.place_image(image), labels, objective, recipe, compute)

        return step

    return {
        (contender, number): step_with(
            BatchSource(stage, recipe, fold, lambda case: open_case(store / case), (0, 0), compute.device)
        )
        for number, stage in enumerate(stages_of(contest, contender))
    }


def options(contest: Contest, **more: Any) -> TrainOptions:
    """Of a training of the study."""
    grouped = None if contest.studied.group == ".*" else contest.studied.group
    names = (contest.studied.configuration,)
    return TrainOptions(configurations=names, folds=(0,), device="cpu", group_by=grouped, probabilities_gib=0.0, **more)


def do_run(contest: Contest, contender: str, minutes: float, seed: int) -> dict[str, Any]:
    """Trains, predicts the cases set aside, scores them; one that was interrupted goes on from its checkpoint."""
    folder = contest.root / "runs" / f"{contender}-{minutes:g}m-{seed}"
    workspace = work_folder(folder, contest.workspace(contender))
    costs = json.loads((contest.root / "costs.json").read_text())
    recipe = fitting_recipe(contender, minutes, costs)
    write_atomic(folder / "recipe.yaml", json.dumps(to_data(recipe)))  # JSON is YAML
    begin = cpu_seconds()
    trained = train_queue(workspace, options(contest, recipe=str(folder / "recipe.yaml"), seed=seed), lambda: None)
    for error in trained.errors:
        raise error
    spent = cpu_seconds() - begin
    predict(workspace.root, contest.unseen / "imagesTr", folder / "predicted", report=False, device="cpu")
    scores = evaluate(folder / "predicted", contest.unseen / "labelsTr", dataset=contest.train, jobs=0)
    shutil.rmtree(folder)
    return {
        "dataset": contest.name,
        "contender": contender,
        "minutes": minutes,
        "seed": seed,
        "steps": recipe.epochs * recipe.steps_per_epoch,
        "step_seconds": costs["seconds"][contender],
        "cpu_seconds_with_validation": round(spent, 1),
        "precision": costs["precision"],
        "cpu": cpu_kind(),
        "torch": torch.__version__,
        "dice": {case: {name: of["dice"] for name, of in own.items()} for case, own in scores.cases.items()},
    }


def fitting_recipe(contender: str, minutes: float, costs: Mapping[str, Any]) -> Recipe:
    """The contender's recipe with as many epochs as a virtual budget has time for."""
    seconds = costs["seconds"][contender]
    average = seconds[-1] * mean_cost(0.0, [own / seconds[-1] for own in seconds])
    recipe = CONTENDERS[contender].load(precision=costs["precision"], memory_format="channels_last")
    return fit_epochs(recipe, 60 * minutes, average / CORES)


def work_folder(folder: Path, planned: Workspace) -> Workspace:
    """A work folder for one run: a copy of the plan, and the store that all runs share."""
    folder.mkdir(parents=True, exist_ok=True)
    workspace = Workspace(folder / "work", planned.dataset_folder)
    workspace.root.mkdir(exist_ok=True)
    for path in (planned.dataset, planned.check, planned.fingerprint, planned.plan):
        shutil.copyfile(path, workspace.root / path.name)
    if not workspace.store.exists():
        workspace.store.symlink_to(planned.store.resolve(), target_is_directory=True)
    return workspace


def cpu_seconds() -> float:
    """Of this process and those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(own.ru_utime + own.ru_stime for own in used)


def cpu_kind() -> str:
    """What matters of a CPU for the speed of convolutions."""
    formats = "+".join(native_types(torch.device("cpu"))) or "no native half precision"
    return f"{torch.backends.cpu.get_cpu_capability()}, {formats}, {platform.machine()}"


def load_results(folder: Path) -> list[dict[str, Any]]:
    """Every run that is done."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


if __name__ == "__main__":
    sys.exit(main())
