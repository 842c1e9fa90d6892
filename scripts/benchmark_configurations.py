#!/usr/bin/env python3
r"""Compares configurations and recipes on one dataset: equal folds, equal budget, paired statistics.

    autoseg plan DATASET
    scripts/benchmark_configurations.py DATASET --configurations 2d 3d_fullres --recipes default cpu \
        --seeds 0 1 --budget 20m --out comparison

A contender is a configuration trained with a recipe. Every contender is trained on the same folds with each seed, each
run with the same `--budget` of wall time (or the same `--epochs` and `--steps`), and scored on the cases that the fold
kept back; runs of different contenders take turns, so that a slow hour of the machine meets all of them. Scores are
averaged over the seeds, and contenders are compared case by case. The same command again goes on.

Written into `--out`: comparison.json, scores.csv, pairs.csv, comparison.html (one file, opens offline) and
comparison.png (Dice against training time). Of the dataset's work
folder only the store of prepared cases is used and filled.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import click

from autoseg.api.preprocess import preprocess
from autoseg.cli.output import show_error
from autoseg.cli.train import Duration
from autoseg.core.configs import find_config
from autoseg.core.errors import AutoSegError, Interrupted, MissingInput, UsageError
from autoseg.core.files import sha256_of_file, write_atomic
from autoseg.core.records import load, to_data
from autoseg.core.registry import choose
from autoseg.core.workspace import RunFolder, Workspace, workspace_of
from autoseg.launch.interrupts import stoppable
from autoseg.planning.plan import Plan
from autoseg.runs.queue import TrainOptions, make_queue
from autoseg.runs.run import SCORES_FILE, FoldScores, RunRecord, RunStatus
from autoseg.runs.train import train_queue
from autoseg.training.callbacks.history import read_history
from autoseg.training.splits import save_folds

sys.path.insert(0, str(Path(__file__).resolve().parent))

from comparison_pages import Curve, draw, write_html, write_tables
from comparison_statistics import Comparison, compare

SOME_FAILED = 4

CaseDice = dict[str, dict[str, float | None]]  # case -> class -> Dice


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for; the runs of one output folder all share it, except for contenders, seeds and folds."""

    dataset: str
    plan: str
    budget_seconds: float | None
    epochs: int | None
    steps: int | None
    device: str


@dataclass(frozen=True, slots=True)
class Run:
    """One training: a contender, a seed, a fold."""

    configuration: str
    recipe: str
    seed: int
    fold: int
    folder: RunFolder

    @property
    def contender(self) -> str:
        """Name of what is compared."""
        return contender_name(self.configuration, self.recipe)


def contender_name(configuration: str, recipe: str) -> str:
    """A configuration trained with a recipe, for people."""
    return f"{configuration}, {Path(recipe).stem}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    asked = parse(arguments)
    try:
        return benchmark(asked)
    except AutoSegError as error:
        show_error(error)
        return error.exit_code


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="planned with autoseg plan")
    parser.add_argument("--work", type=Path, help="its work folder (default: DATASET/autoseg)")
    parser.add_argument("--configurations", nargs="+", metavar="NAME", help="default: all of the plan but cascades")
    parser.add_argument("--recipes", nargs="+", default=["default"], metavar="NAME|FILE", help="default: default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    parser.add_argument("--folds", nargs="+", type=int, metavar="N", help="default: all five")
    parser.add_argument("--budget", type=duration, metavar="TIME", help="wall time of each run: 20m, 8h")
    parser.add_argument("--epochs", type=int, help="of each run, instead of --budget")
    parser.add_argument("--steps", type=int, help="per epoch")
    parser.add_argument("--device", default="auto", help="as for autoseg train")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder of everything written")
    return parser.parse_args(arguments)


def duration(text: str) -> float:
    """Seconds of a time span such as 20m."""
    try:
        return Duration().convert(text, None, None)
    except click.BadParameter as error:
        raise argparse.ArgumentTypeError(error.message) from error


def benchmark(asked: argparse.Namespace) -> int:
    """Trains what is missing, compares, writes; 4 if a run failed."""
    source = workspace_of(asked.dataset, asked.work)
    if not source.plan.is_file():
        raise MissingInput("there is no plan yet", where=str(source.plan), do=f"autoseg plan {asked.dataset}")
    plan = load(Plan, source.plan)
    settings = settle(asked, source)
    runs = make_runs(asked, plan, source)
    prepare(runs, asked.jobs)
    with stoppable() as check_stop:
        for number, run in enumerate(runs, start=1):
            print(f"{number}/{len(runs)} {run.contender}, seed {run.seed}, fold {run.fold}: ", end="", flush=True)
            print(train_run(run, asked, settings, check_stop))
    return finish(runs, settings, asked.out)


def settle(asked: argparse.Namespace, source: Workspace) -> Settings:
    """The settings of this comparison; those that the output folder began with must be the same.

    Raises:
        UsageError: neither a budget nor a number of epochs, both, or others than before.
    """
    if (asked.budget is None) == (asked.epochs is None):
        raise UsageError("equal effort for all: name either --budget or --epochs", do="--budget 20m")
    where, plan = str(asked.dataset.resolve()), sha256_of_file(source.plan)
    settings = Settings(where, plan, asked.budget, asked.epochs, asked.steps, asked.device)
    path = asked.out / "settings.json"
    if path.exists() and (before := json.loads(path.read_text())) != to_data(settings):
        changed = [name for name, value in to_data(settings).items() if before.get(name) != value]
        raise UsageError(
            f"{asked.out} was begun with another {', '.join(changed)}",
            where=str(path),
            do="name another --out, or delete the folder",
        )
    write_atomic(path, json.dumps(to_data(settings), indent=1) + "\n")
    return settings


def make_runs(asked: argparse.Namespace, plan: Plan, source: Workspace) -> list[Run]:
    """Every run, contenders taking turns; a cascade after all runs of the stage before it.

    Raises:
        UsageError: an unknown configuration or recipe, or two recipes of the same name.
    """
    plain = [name for name, own in plan.configurations.items() if own.cascade_from is None]
    names = list(dict.fromkeys(asked.configurations or plain))
    for name in names:
        choose(name, plan.configurations, "configuration of this plan")
    stems = [find_config(recipe, "recipes").stem for recipe in asked.recipes]
    if len(set(stems)) < len(stems):
        raise UsageError(f"two recipes of the same name: {', '.join(sorted(stems))}", do="rename one of the files")
    splits = fixed_folds(asked.out, source)
    works = {pair: work_folder(asked.out, *pair, source, splits) for pair in product(asked.recipes, asked.seeds)}
    folds = asked.folds or range(len(json.loads(splits.read_text())))
    runs = []
    for stage in ([name for name in names if name in plain], [name for name in names if name not in plain]):
        for fold, seed, recipe, name in product(folds, asked.seeds, asked.recipes, stage):
            runs.append(Run(name, recipe, seed, fold, works[recipe, seed].run(name, fold)))
    return runs


def fixed_folds(out: Path, source: Workspace) -> Path:
    """The folds of this comparison: those of the dataset's work folder, or those that `autoseg train` would make."""
    path = out / "splits.json"
    if not path.exists() and source.splits.exists():
        write_atomic(path, source.splits.read_bytes())
    elif not path.exists():
        save_folds(make_queue(source, TrainOptions()).folds, path)
    return path


def work_folder(out: Path, recipe: str, seed: int, source: Workspace, splits: Path) -> Workspace:
    """A work folder for the runs of one recipe and seed: the same plan and folds, and the dataset's store."""
    work = Workspace(out / "work" / Path(recipe).stem / f"seed_{seed}")
    work.root.mkdir(parents=True, exist_ok=True)
    for path in (source.dataset, source.check, source.fingerprint, source.plan, splits):
        if path.exists():
            shutil.copyfile(path, work.root / path.name)
    source.store.mkdir(exist_ok=True)
    if not work.store.exists():
        work.store.symlink_to(source.store.resolve(), target_is_directory=True)
    return work


def train_run(run: Run, asked: argparse.Namespace, settings: Settings, check_stop: Callable[[], None]) -> str:
    """Does one run, unless it is done; a sentence on what became of it. A run that fails does not stop the others.

    Raises:
        Interrupted: by the user; the same command goes on.
    """
    options = TrainOptions(
        configurations=(run.configuration,),
        folds=(run.fold,),
        recipe=run.recipe,
        epochs=settings.epochs,
        steps=settings.steps,
        budget_seconds=settings.budget_seconds,
        seed=run.seed,
        device=settings.device,
        jobs=asked.jobs,
    )
    status = status_of(run)
    if status is None or status.state != "done":
        report = train_queue(run.folder.workspace, options, check_stop)
        if isinstance(report.stop, Interrupted):
            raise report.stop
        if report.stop is not None or any(own.error for own in report.results):
            return f"failed: {report.stop or report.results[-1].error}"
        status = status_of(run)
    if status is None or status.foreground_dice is None:
        return "done, without a score"
    return f"mean Dice {status.foreground_dice:.4f}, {status.epochs} epochs, {status.seconds:.0f} s"


def prepare(runs: Sequence[Run], jobs: int) -> None:
    """Fills the store before any run's time counts."""
    names = dict.fromkeys(run.configuration for run in runs)
    preprocess(runs[0].folder.workspace.root, configurations=tuple(names), jobs=jobs)


def status_of(run: Run) -> RunStatus | None:
    """Where a run stands; None before it has begun."""
    try:
        return load(RunStatus, run.folder.state)
    except MissingInput:
        return None


def finish(runs: Sequence[Run], settings: Settings, out: Path) -> int:
    """Compares what is done and writes everything; 4 if a run is missing."""
    done = [run for run in runs if (status := status_of(run)) is not None and status.state == "done"]
    check_same_folds(done)
    seeds = seed_scores(done)
    comparison = compare({name: mean_over_seeds(list(own.values())) for name, own in seeds.items()})
    rows = [row(run) for run in runs]
    document = {
        "settings": to_data(settings),
        "comparison": to_data(comparison),
        "seeds": {name: {str(seed): overall(cases) for seed, cases in own.items()} for name, own in seeds.items()},
        "minutes_per_run": minutes(done),
        "runs": rows,
    }
    write_atomic(out / "comparison.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_tables(out, seeds, comparison)
    draw(out / "comparison.png", comparison, curves(done), document["minutes_per_run"])
    write_html(out / "comparison.html", document, out / "comparison.png")
    show(comparison, out)
    return 0 if len(done) == len(runs) else SOME_FAILED


def check_same_folds(runs: Iterable[Run]) -> None:
    """Refuses runs of one fold that kept back different cases.

    Raises:
        UsageError: the dataset's folds changed while the comparison was going on.
    """
    kept: dict[int, tuple[str, ...]] = {}
    for run in runs:
        cases = load(RunRecord, run.folder.recipe).val
        if kept.setdefault(run.fold, cases) != cases:
            raise UsageError(
                f"{run.contender}, seed {run.seed}: fold {run.fold} kept back other cases than the other runs",
                where=str(run.folder.root),
                do="begin again with another --out",
            )


def seed_scores(runs: Iterable[Run]) -> dict[str, dict[int, CaseDice]]:
    """Contender -> seed -> case -> class -> Dice on the cases that each fold kept back."""
    found: dict[str, dict[int, CaseDice]] = {}
    for run in runs:
        cases = load(FoldScores, run.folder.validation / SCORES_FILE).cases
        own = found.setdefault(run.contender, {}).setdefault(run.seed, {})
        own.update({name: {label: scores["dice"] for label, scores in of.items()} for name, of in cases.items()})
    return found


def mean_over_seeds(seeds: Sequence[CaseDice]) -> CaseDice:
    """Case -> class -> mean over the seeds, for cases that every seed has scored."""
    common = [name for name in seeds[0] if all(name in cases for cases in seeds)]
    return {
        name: {label: average(cases[name].get(label) for cases in seeds) for label in seeds[0][name]} for name in common
    }


def overall(cases: CaseDice) -> float | None:
    """Mean over the classes of the mean over the cases."""
    labels = dict.fromkeys(label for own in cases.values() for label in own)
    return average(average(own.get(label) for own in cases.values()) for label in labels)


def average(values: Iterable[float | None]) -> float | None:
    """Mean of what is defined."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def row(run: Run) -> dict[str, Any]:
    """What became of a run."""
    status = status_of(run)
    made = {"contender": run.contender, "seed": run.seed, "fold": run.fold, "folder": str(run.folder.root)}
    return {**made, **({"state": "missing"} if status is None else to_data(status))}


def minutes(runs: Iterable[Run]) -> dict[str, float]:
    """Contender -> mean wall time of its runs, validation included."""
    seconds: dict[str, list[float]] = {}
    for run in runs:
        status = status_of(run)
        seconds.setdefault(run.contender, []).append(0.0 if status is None else status.seconds)
    return {name: mean(values) / 60 for name, values in seconds.items()}


def curves(runs: Iterable[Run]) -> Iterator[Curve]:
    """The smoothed Dice of validation patches over the minutes of each run."""
    for run in runs:
        entries = read_history(run.folder.history)
        points = [
            (entry["total_seconds"] / 60, entry["ema_dice"]) for entry in entries if entry["ema_dice"] is not None
        ]
        yield Curve(run.contender, tuple(points))


def show(comparison: Comparison, out: Path) -> None:
    """The result in a few lines."""
    print(f"\n{len(comparison.cases)} cases; critical difference of mean ranks {comparison.critical_difference:.2f}")
    for own in comparison.contenders:
        low, high = own.interval
        print(f"  {own.name:<32} Dice {own.score:.4f} ({low:.4f} to {high:.4f})  rank {own.mean_rank:.2f} {own.group}")
    print(f"wrote {out / 'comparison.html'}")


if __name__ == "__main__":
    sys.exit(main())
