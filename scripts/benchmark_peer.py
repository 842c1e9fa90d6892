#!/usr/bin/env python3
"""Measures AutoSeg against nnU-Net: same data, same machine, taking turns.

    scripts/benchmark_peer.py HIPPOCAMPUS --also OPENKBP_CT --rounds 5

Installs nothing: run it with a Python that has `nnunetv2`, torch and what AutoSeg needs. Datasets are folders in
nnU-Net's raw layout; they are linked, never changed. Every round runs nnU-Net and then AutoSeg, each as a process of
its own; the ratio of a round is nnU-Net's seconds by AutoSeg's. Reported are the ratios' median and range.

    step         one optimizer step, batch 2, of the network planned for the first dataset; without data loading
    plan         fingerprint and plan of the first dataset, from its files
    preprocess   filling the store of 3d_fullres, for every dataset
    predict      20 cases of the first dataset, 3d_fullres, one fold, mirroring on, equal weights
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- peer: written by scripts/benchmark_peer.py -->", "<!-- peer: end -->"
CONFIGURATION = "3d_fullres"
STEP_BATCH = 2
FIRST_IDENTIFIER = 901  # of the linked datasets; nnU-Net wants numbers
PEER_MODEL = f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"


@dataclass(frozen=True)
class Comparison:
    """One thing to measure: each side is called once per round and returns its seconds."""

    name: str
    peer: Callable[[], float]
    own: Callable[[], float]


class Bench:
    """The scratch folder and how both sides are called in it."""

    def __init__(self, scratch: Path, datasets: Sequence[Path], cases: int, steps: int) -> None:
        self.scratch = scratch
        self.raw = scratch / "nnUNet_raw"
        self.preprocessed = scratch / "nnUNet_preprocessed"
        self.results = scratch / "nnUNet_results"
        self.cases = cases
        self.steps = steps
        self.jobs = str(len(os.sched_getaffinity(0)))
        self.datasets = {f"Dataset{FIRST_IDENTIFIER + i}_{path.name}": path for i, path in enumerate(datasets)}
        self.first = next(iter(self.datasets))
        for name, path in self.datasets.items():
            (self.raw / name).mkdir(parents=True, exist_ok=True)
            for entry in ("dataset.json", "imagesTr", "labelsTr"):
                (self.raw / name / entry).unlink(missing_ok=True)
                (self.raw / name / entry).symlink_to((path / entry).resolve())

    def run(self, *command: str) -> float:
        """Wall seconds of a command, its start-up included."""
        environment = os.environ | {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))),
        }
        begin = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begin
        if done.returncode != 0:
            printed = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            sys.exit(f"{' '.join(command)} failed with {done.returncode}:\n{printed}")
        self.printed = done.stdout
        return seconds

    def peer(self, verb: str, *options: str) -> float:
        """Seconds of a command of nnU-Net."""
        return self.run(str(Path(sys.executable).parent / f"nnUNetv2_{verb}"), *options)

    def own(self, *arguments: str) -> float:
        """Seconds of a command of AutoSeg."""
        return self.run(sys.executable, "-m", "autoseg", *arguments)

    def worker(self, job: str) -> float:
        """The number that a job of this script, run as a process of its own, prints last."""
        script = str(Path(__file__).resolve())
        self.run(sys.executable, script, str(self.scratch), "--job", job, "--steps", str(self.steps))
        return float(self.printed.strip().splitlines()[-1])

    def work(self, dataset: str) -> Path:
        """AutoSeg's work folder of a dataset."""
        return self.scratch / "work" / dataset

    def peer_plan(self, dataset: str) -> float:
        """Fingerprint and plan, from nothing."""
        shutil.rmtree(self.preprocessed / dataset, ignore_errors=True)
        return self.peer(
            "plan_and_preprocess", "-d", dataset[7:10], "-npfp", self.jobs, "--no_pp", "--clean", "--no_pbar"
        )

    def own_plan(self, dataset: str) -> float:
        """Check, fingerprint and plan, from nothing."""
        shutil.rmtree(self.work(dataset), ignore_errors=True)
        return self.own(
            "plan", str(self.datasets[dataset]), *self._work(dataset), "--no-probe", "--jobs", self.jobs, "-q"
        )

    def peer_preprocess(self, dataset: str) -> float:
        """Fills nnU-Net's store."""
        shutil.rmtree(self.preprocessed / dataset / f"nnUNetPlans_{CONFIGURATION}", ignore_errors=True)
        return self.peer("preprocess", "-d", dataset[7:10], "-c", CONFIGURATION, "-np", self.jobs, "--no_pbar")

    def own_preprocess(self, dataset: str) -> float:
        """Fills AutoSeg's store."""
        shutil.rmtree(self.work(dataset) / "store", ignore_errors=True)
        options = ("--configuration", CONFIGURATION, "--jobs", self.jobs, "-q")
        return self.own("preprocess", str(self.datasets[dataset]), *self._work(dataset), *options)

    def _work(self, dataset: str) -> tuple[str, str]:
        return "--work", str(self.work(dataset))

    def own_train(self, budget: str) -> float:
        """Trains the network that both sides predict with."""
        shutil.rmtree(self.work(self.first) / "runs", ignore_errors=True)
        run = ("--configuration", CONFIGURATION, "--fold", "0", "--recipe", "cpu", "--budget", budget, "-q")
        return self.own("train", str(self.datasets[self.first]), *self._work(self.first), *run)

    @property
    def images(self) -> Path:
        """Folder with the cases to predict."""
        folder = self.scratch / "to_predict"
        if not folder.exists():
            folder.mkdir()
            files = sorted((self.raw / self.first / "imagesTr").iterdir())
            names = sorted({file.name.rsplit("_", 1)[0] for file in files})[: self.cases]
            for file in files:
                if file.name.rsplit("_", 1)[0] in names:
                    (folder / file.name).symlink_to(file.resolve())
        return folder

    def peer_predict(self) -> float:
        """Predicts with nnU-Net's own numbers of workers."""
        shutil.rmtree(self.scratch / "peer_predicted", ignore_errors=True)
        paths = ("-i", str(self.images), "-o", str(self.scratch / "peer_predicted"))
        model = ("-d", self.first[7:10], "-c", CONFIGURATION, "-f", "0", "-device", "cpu")
        return self.peer("predict", *paths, *model, "--disable_progress_bar")

    def own_predict(self) -> float:
        """Predicts as a user does."""
        shutil.rmtree(self.scratch / "own_predicted", ignore_errors=True)
        paths = ("-i", str(self.images), "-o", str(self.scratch / "own_predicted"))
        options = ("--configuration", CONFIGURATION, "--fold", "0", "--device", "cpu", "-q")
        return self.own("predict", str(self.work(self.first)), *paths, *options)


def comparisons(bench: Bench, wanted: Sequence[str]) -> list[Comparison]:
    """What is measured, in an order in which each finds what it needs."""
    first = bench.first
    made = [
        Comparison("step", partial(bench.worker, "peer_step"), partial(bench.worker, "own_step")),
        Comparison("predict", bench.peer_predict, bench.own_predict),
        Comparison("plan", partial(bench.peer_plan, first), partial(bench.own_plan, first)),  # empties both folders
    ]
    made += [
        Comparison(f"preprocess {path.name}", partial(bench.peer_preprocess, name), partial(bench.own_preprocess, name))
        for name, path in bench.datasets.items()
    ]
    return [one for one in made if not wanted or one.name.split()[0] in wanted]


def prepare(bench: Bench, chosen: Sequence[Comparison], budget: str) -> None:
    """Makes what the chosen comparisons need and do not time: plans, a filled store, a trained network for both."""
    for name in bench.datasets:
        bench.peer_plan(name)
        bench.own_plan(name)
    names = {one.name for one in chosen}
    if names & {"step", "predict"}:
        bench.peer_preprocess(bench.first)
    if "predict" in names:
        bench.own_train(budget)
        bench.worker("peer_weights")


def measure(bench: Bench, chosen: Sequence[Comparison], rounds: int) -> list[dict[str, Any]]:
    """Runs every comparison; one row each."""
    rows = []
    for one in chosen:
        pairs = []
        for index in range(rounds):
            pairs.append((one.peer(), one.own()))
            print(
                f"{one.name} {index + 1}/{rounds}: nnU-Net {pairs[-1][0]:.2f} s, AutoSeg {pairs[-1][1]:.2f} s",
                flush=True,
            )
        ratios = [peer / own for peer, own in pairs]
        peer, own = (statistics.median(side) for side in zip(*pairs, strict=True))
        middle = statistics.median(ratios)
        rows.append(
            {"name": one.name, "peer": peer, "own": own, "ratio": middle, "low": min(ratios), "high": max(ratios)}
        )
        if one.name == "predict":
            rows[-1]["agreement"] = agreement(bench)
    return rows


def agreement(bench: Bench) -> float:
    """Share of voxels with equal labels in both sides' predictions."""
    import numpy as np
    import SimpleITK

    equal = total = 0
    for path in sorted((bench.scratch / "peer_predicted").glob("*.nii.gz")):
        one, other = (
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(bench.scratch / side / path.name)))
            for side in ("peer_predicted", "own_predicted")
        )
        equal, total = equal + int(np.count_nonzero(one == other)), total + one.size
    return equal / max(total, 1)


def peer_trainer(bench: Bench) -> Any:
    """nnU-Net's trainer of fold 0 of the first dataset on the CPU, initialized, as its command makes it."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.manual_seed(0)
    folder = bench.preprocessed / bench.first
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    described = json.loads((bench.raw / bench.first / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, CONFIGURATION, 0, described, torch.device("cpu"))
    trainer.initialize()
    return trainer


def random_batch(patch: Sequence[int], channels: int, classes: int) -> tuple[Any, Any]:
    """Image (b, c, *patch) and labels (b, 1, *patch), equal for both sides."""
    import torch

    generator = torch.Generator().manual_seed(0)
    image = torch.randn((STEP_BATCH, channels, *patch), generator=generator)
    return image, torch.randint(0, classes, (STEP_BATCH, 1, *patch), generator=generator)


def timed_steps(take: Callable[[], object], steps: int) -> float:
    """Median seconds of `steps` calls, after two that are not counted."""
    take()
    take()
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        take()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def peer_step(bench: Bench) -> float:
    """Seconds of `nnUNetTrainer.train_step`."""
    trainer = peer_trainer(bench)
    configuration = trainer.configuration_manager
    classes = trainer.label_manager.num_segmentation_heads
    image, labels = random_batch(configuration.patch_size, trainer.num_input_channels, classes)
    from autoseg.training.losses import deep_supervision_targets

    trainer.network.train()
    shapes = [output.shape[2:] for output in trainer.network(image)]
    targets = [target[:, None].float() for target in deep_supervision_targets(labels[:, 0], shapes)]
    return timed_steps(lambda: trainer.train_step({"data": image, "target": targets}), bench.steps)


def own_step(bench: Bench) -> float:
    """Seconds of AutoSeg's `train_step`, with the number format and memory layout that its probe chooses."""
    import torch

    from autoseg.core.records import load
    from autoseg.launch.devices import use_cores
    from autoseg.launch.numerics import check_training
    from autoseg.planning.plan import Plan
    from autoseg.training.losses import make_objective
    from autoseg.training.recipe import load_recipe
    from autoseg.training.step import start_state, train_step

    torch.manual_seed(0)
    use_cores()
    plan = load(Plan, bench.work(bench.first) / "plan.json")
    configuration, recipe = plan.configurations[CONFIGURATION], load_recipe("default")
    network = plan.build_network(configuration.name)
    cpu = torch.device("cpu")
    compute = check_training(network, configuration, len(plan.channels), cpu).compute(cpu)
    state = start_state(network, recipe, compute, configuration.dimensions)
    image, labels = random_batch(configuration.patch_size, len(plan.channels), plan.labels.head_count)
    image, labels = compute.place_image(image), labels[:, 0]
    loss = make_objective(recipe.loss, plan.labels, configuration.batch_dice)
    return timed_steps(lambda: train_step(state, image, labels, loss, recipe, compute), bench.steps)


def peer_weights(bench: Bench) -> float:
    """Writes the weights of AutoSeg's run as a finished run of nnU-Net; parameters have equal names."""
    from autoseg.core.workspace import Workspace
    from autoseg.networks.weights import newest_weights

    trainer = peer_trainer(bench)
    checkpoint = Workspace(bench.work(bench.first)).run(CONFIGURATION, 0).checkpoint
    own = newest_weights(checkpoint)
    trainer.network.load_state_dict(own, strict=False)  # its state lists shared parameters under several names
    if {name for name, _ in trainer.network.named_parameters()} != own.keys():
        raise SystemExit("the two networks have different parameters")
    trainer.inference_allowed_mirroring_axes = tuple(range(len(trainer.configuration_manager.patch_size)))
    fold = bench.results / bench.first / PEER_MODEL / "fold_0"
    fold.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(str(fold / "checkpoint_final.pth"))
    shutil.copyfile(bench.preprocessed / bench.first / "nnUNetPlans.json", fold.parent / "plans.json")
    shutil.copyfile(bench.preprocessed / bench.first / "dataset.json", fold.parent / "dataset.json")
    return 0.0


def machine() -> str:
    """One line on the machine and the versions."""
    from autoseg.core.machine import BYTES_PER_GIB, memory_bytes, processor

    memory = (memory_bytes() or 0) / BYTES_PER_GIB
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("nnunetv2", "torch"))
    where = f"{processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, no GPU used"
    return f"{where}; Python {platform.python_version()}, {versions}; {time.strftime('%Y-%m-%d')}"


def table(rows: Sequence[dict[str, Any]], rounds: int, title: str) -> str:
    """The rows as Markdown."""
    head = "| what | nnU-Net, s | AutoSeg, s | ratio (smallest to largest) |\n|---|---|---|---|"
    lines = [f"{title}. {rounds} rounds.", "", head]
    for row in rows:
        spread = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        lines.append(f"| {row['name']} | {row['peer']:.2f} | {row['own']:.2f} | {spread} |")
        if "agreement" in row:
            lines.append(f"| voxels with equal labels in both predictions | | {100 * row['agreement']:.3f} % | |")
    return "\n".join(lines)


def write_between(path: Path, text: str) -> None:
    """Replaces what is between the two markers of a Markdown file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    if not after:
        raise SystemExit(f"{path} has no place for the table: {BEGIN} ... {END}")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


JOBS: dict[str, Callable[[Bench], float]] = {"peer_step": peer_step, "own_step": own_step, "peer_weights": peer_weights}
"""What runs in a process of its own; each prints a number last."""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="the first dataset (for a --job: the scratch folder)")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="more datasets, for preprocess only")
    parser.add_argument("--only", nargs="*", default=[], choices=["plan", "preprocess", "step", "predict"])
    for name, count, meaning in (("rounds", 5, "turns"), ("steps", 5, "steps timed per round"), ("cases", 20, "cases")):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--train", default="3m", metavar="TIME", help="training before the prediction is timed")
    parser.add_argument("--scratch", type=Path, help="folder for everything made; default: a temporary one")
    parser.add_argument("--write", type=Path, help="Markdown file to write the table into, between its markers")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    if asked.job:
        datasets = [Path(path) for path in json.loads((asked.dataset / "datasets.json").read_text())]
        print(JOBS[asked.job](Bench(asked.dataset, datasets, asked.cases, asked.steps)))
        return 0
    with tempfile.TemporaryDirectory(prefix="benchmark-peer-") as temporary:
        scratch = (asked.scratch or Path(temporary)).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        datasets = [path.resolve() for path in (asked.dataset, *asked.also)]
        (scratch / "datasets.json").write_text(json.dumps([str(path) for path in datasets]))
        bench = Bench(scratch, datasets, asked.cases, asked.steps)
        chosen = comparisons(bench, asked.only)
        prepare(bench, chosen, asked.train)
        text = table(measure(bench, chosen, asked.rounds), asked.rounds, machine())
    if asked.write:
        write_between(asked.write, text)
    print(f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
