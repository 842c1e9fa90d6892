"""What the benchmark does in processes of its own: steps, network forward, training loops, weights, comparisons.

    python -m scripts.benchmark.jobs JOB SCRATCH DATA [ARGUMENTS]

Each job prints its result as JSON, one line per round or the last line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autoseg.api.model import find_model
from autoseg.api.train import train_runs
from autoseg.core.records import load
from autoseg.core.workspace import Workspace
from autoseg.data.model import LabelSet
from autoseg.evaluation.confusion import confusion, overlaps_of
from autoseg.images.readers import read_labels
from autoseg.inference.predictor import Predictor
from autoseg.launch.devices import use_cores
from autoseg.launch.numerics import check_prediction, check_training
from autoseg.launch.precision import native_types
from autoseg.models.bundle import write_bundle
from autoseg.models.model import round_convolutions
from autoseg.networks.weights import newest_weights
from autoseg.planning.plan import Configuration, Plan
from autoseg.runs.queue import TrainOptions
from autoseg.runs.train import TrainListeners
from autoseg.training.step import AUTOCAST_TYPES, Compute
from scripts.benchmark.figures import timed, tree_seconds
from scripts.benchmark.rounds import OWN, PEER, turns
from scripts.benchmark.sides import Sides, Task
from scripts.gpu_peer import LABELS, peer_plans
from scripts.gpu_peer import TASKS as GPU_TASKS
from scripts.gpu_peer import Sides as NetworkSides
from scripts.gpu_peer import Task as NetworkTask

CPU = torch.device("cpu")
OWN_FP32 = f"{OWN} in fp32"
NETWORKS = {
    "hippocampus": NetworkTask("hippocampus", (40, 56, 40), (32, 64, 128, 256), 2, (40, 56, 40)),
    "128": replace(GPU_TASKS[0], name="128 x 128 x 128", batch_size=2, image=(128, 128, 128)),
    "64": replace(GPU_TASKS[0], name="64 x 64 x 64", patch_size=(64, 64, 64), batch_size=2, image=(64, 64, 64)),
}
"""The network planned for the hippocampus, and the plain U-Net of a large 3D task, with whole and smaller patches."""

LEARNING = {
    "validation_steps": 1,
    "optimizer": "adamw",
    "lr": 0.002,
    "schedule": "cosine",
    "lr_update": "step",
    "warmup_steps": 20,
    "callbacks": ["epoch_logger"],
}
"""A recipe with which a network has learned something after 200 steps."""

WARM_STEPS, TIMED_STEPS = 2, 4
"""Of a training with its data: few, since a step of the planned batch takes seconds; the queues of nnU-Net's loader are
full by then, and for every batch taken from them its workers make another."""


def network_sides(network: str) -> NetworkSides:
    """Both trainings of one network in this process, with the same weights, batch and number of threads."""
    folder = tempfile.mkdtemp(prefix="benchmark-")
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = folder
    use_cores()
    return NetworkSides(NETWORKS[network], CPU, Path(folder), steps=1)


def chosen_compute(sides: NetworkSides, *, predicting: bool) -> Compute:
    """The number format and memory layout that AutoSeg's check of the machine chooses for this network."""
    if predicting:
        return check_prediction(sides.network, sides.configuration, 1, CPU, own_precision()).compute(CPU)
    return check_training(sides.network, (sides.configuration,), 1, CPU).compute(CPU)


def own_precision() -> str:
    """What AutoSeg trains in where it pays: the half precision of the CPU, if it has one."""
    return next(iter(native_types(CPU)), "fp32")


def step(network: str, first: str, end: str) -> Iterator[Mapping[str, Any]]:
    """Rounds of training steps without data loading: one step of each side; the first of each does not count."""
    sides = network_sides(network)
    compute = chosen_compute(sides, predicting=False)
    calls = {PEER: sides.peer_step(), OWN: sides.own_step(compute)}
    if compute.precision != "fp32":
        calls[OWN_FP32] = sides.own_step(replace(compute, precision="fp32"))
    yield from _in_turns(calls, int(first), int(end))


def forward(network: str, first: str, end: str) -> Iterator[Mapping[str, Any]]:
    """Rounds of predicting one patch, all mirrorings: the logits of both sides' predictors."""
    sides = network_sides(network)
    image = torch.randn((1, *sides.task.image), generator=torch.Generator().manual_seed(1))
    compute = chosen_compute(sides, predicting=True)
    calls: dict[str, Callable[[], object]] = {
        PEER: sides.peer_prediction(image),
        OWN: _own_logits(sides, image, compute),
    }
    if compute.precision != "fp32":
        calls[OWN_FP32] = _own_logits(sides, image, replace(compute, precision="fp32"))
    yield from _in_turns(calls, int(first), int(end))


def _own_logits(sides: NetworkSides, image: torch.Tensor, compute: Compute) -> Callable[[], object]:
    network = sides.configuration.network.build(1, LABELS.head_count)
    network.load_state_dict(sides.network.state_dict())
    dtype = AUTOCAST_TYPES.get(compute.precision, torch.float32)
    round_convolutions(network, dtype)
    predictor = Predictor(
        (network,),
        sides.configuration,
        LABELS.head_count,
        sides.configuration.mirror_axes,
        dtype=dtype,
        channels_last=compute.memory_format == "channels_last",
    )
    return lambda: predictor.logits(image.numpy())


def peer_training(sides: Sides, task: Task) -> None:
    """Prints the figures of a step of nnU-Net's command, its data loading included, and ends this process."""
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(os.cpu_count() or 1)  # as nnUNetv2_train does
    trainer = get_trainer_from_args(sides.full_name(task.dataset), task.configuration, 0, device=CPU)
    clock, take_step = _StepClock(), trainer.train_step

    def counted(batch: Any) -> Any:
        result = take_step(batch)
        clock.count()
        return result

    trainer.train_step = counted
    trainer.run_training()


def own_training(sides: Sides, task: Task) -> None:
    """Prints the figures of a step of AutoSeg's command, its data loading included, and ends this process."""
    clock = _StepClock()
    _train(sides, task, lambda *_: clock.count(), recipe="default")


def learn(sides: Sides, task: Task) -> None:
    """Trains the network that both sides predict with, and stops before its validation."""
    recipe = sides.scratch / "learn.yaml"
    recipe.write_text(json.dumps({**LEARNING, "epochs": 4, "steps_per_epoch": task.steps // 4}), encoding="utf-8")

    def stop(done: int, total: int) -> None:
        if done == total - 1:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: a checkpoint is written

    _train(sides, task.training, stop, recipe=str(recipe))


def _train(sides: Sides, task: Task, on_steps: Callable[[int, int], None], recipe: str) -> None:
    options = TrainOptions(configurations=(task.configuration,), folds=(0,), recipe=recipe, device="cpu", is_fresh=True)
    train_runs(Workspace(sides.work(task)), options, TrainListeners(on_steps=on_steps))


class _StepClock:
    """Counts steps; after the last one that counts, prints the figures and ends this process and its children."""

    def __init__(self) -> None:
        self._steps = 0

    def count(self) -> None:
        self._steps += 1
        if self._steps == WARM_STEPS:
            self._begin, self._cpu, self._load = time.perf_counter(), tree_seconds(), os.getloadavg()[0]
        if self._steps == WARM_STEPS + TIMED_STEPS:
            figures = {"wall": time.perf_counter() - self._begin, "cpu": tree_seconds() - self._cpu, "load": self._load}
            print(json.dumps({name: value / (TIMED_STEPS if name != "load" else 1) for name, value in figures.items()}))
            sys.stdout.flush()
            _end_children()
            os._exit(0)


def _end_children() -> None:
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        child.kill()
    psutil.wait_procs(children, timeout=10)


def align_plan(sides: Sides, task: Task) -> None:
    """Gives nnU-Net's plan the network, patch and batch of AutoSeg's; everything else must be equal already.

    Raises:
        SystemExit: spacing or normalization differ, so predictions would not be comparable.
    """
    plan = load(Plan, sides.work(task) / "plan.json")
    own = plan.configurations[task.configuration]
    path = sides.peer_preprocessed(task.dataset) / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    planned = plans["configurations"][task.configuration]
    if max(abs(a - b) for a, b in zip(planned["spacing"], own.spacing_mm, strict=False)) > 1e-3:
        raise SystemExit(f"{task.dataset}: spacings differ: {planned['spacing']} and {own.spacing_mm}")
    wanted = peer_plans(own)["configurations"][own.name]
    planned |= {name: wanted[name] for name in ("architecture", "patch_size", "batch_size")}
    path.write_text(json.dumps(plans, indent=1), encoding="utf-8")


def write_weights(sides: Sides, task: Task) -> None:
    """Writes the weights of AutoSeg's run, or random ones, as a trained model of nnU-Net (same parameter names)."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    plan = load(Plan, sides.work(task) / "plan.json")
    configuration = plan.configurations[task.configuration]
    plans = json.loads((sides.peer_preprocessed(task.dataset) / "nnUNetPlans.json").read_text())
    built = plans["configurations"][task.configuration]["architecture"]
    kind, arguments, imports = built["network_class_name"], built["arch_kwargs"], built["_kw_requires_import"]
    network = get_network_from_plans(kind, arguments, imports, len(plan.channels), plan.labels.head_count)
    weights = _weights(sides, task, plan)
    network.load_state_dict(weights, strict=False)  # its state lists shared parameters under several names
    if {name for name, _ in network.named_parameters()} != set(weights):
        raise SystemExit(f"{task.dataset}: the two networks have different parameters")
    _save_peer_model(sides, task, network.state_dict(), configuration)


def _weights(sides: Sides, task: Task, plan: Plan) -> dict[str, Any]:
    if not task.steps:
        torch.manual_seed(0)
        return dict(plan.build_network(task.configuration).state_dict())
    checkpoint = Workspace(sides.work(task.training)).run(task.configuration, 0).checkpoint
    return dict(newest_weights(checkpoint))


def _save_peer_model(sides: Sides, task: Task, state: Mapping[str, Any], configuration: Configuration) -> None:
    folder = sides.peer_model(task)
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "network_weights": dict(state),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": task.configuration},
        "inference_allowed_mirroring_axes": configuration.mirror_axes or None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    plans = sides.peer_preprocessed(task.dataset)
    (folder / "plans.json").write_text((plans / "nnUNetPlans.json").read_text())
    (folder / "dataset.json").write_text((sides.raw(task.dataset) / "dataset.json").read_text())


def import_model(sides: Sides, task: Task) -> None:
    """Makes AutoSeg's model of nnU-Net's folder, with the precision that AutoSeg would have trained it in."""
    files = find_model(sides.peer_model(task))
    (member,) = files.record.members
    trained = replace(member, precision=own_precision())
    sides.own_model(task).parent.mkdir(parents=True, exist_ok=True)
    write_bundle(sides.own_model(task), replace(files, record=replace(files.record, members=(trained,))))


def konfai_predict(sides: Sides, task: Task) -> None:
    """Predicts with KonfAI as its Python interface offers it: nnU-Net's own network, half a patch of overlap.

    Intensities are clipped and standardized as planned, images resampled with its cubic convolution, logits linearly.
    """
    from konfai.api import predict_model
    from konfai.data.transform import Argmax, Clip, Resample, Standardize, TensorCast
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    use_cores()
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(sides.peer_model(task)), (0,))
    planned = json.loads((sides.peer_model(task) / "plans.json").read_text())
    ct = planned["foreground_intensity_properties_per_channel"]["0"]
    transforms = [
        Clip(ct["percentile_00_5"], ct["percentile_99_5"]),
        Standardize(mean=[ct["mean"]], std=[ct["std"]], inverse=False),
        Resample(spacing=predictor.configuration_manager.spacing[::-1], interpolation="cubic"),
    ]
    scratch, target = sides.scratch / "konfai", sides.predicted(task, "konfai")
    for image in sides.images(task).iterdir():
        case = scratch / "cases" / image.name.removesuffix("_0000.nii.gz")
        case.mkdir(parents=True, exist_ok=True)
        (case / "CT.nii.gz").unlink(missing_ok=True)
        (case / "CT.nii.gz").symlink_to(image.resolve())
    predict_model(
        predictor.network,
        f"{scratch / 'cases'}:nii.gz",
        inputs="CT",
        patch=predictor.configuration_manager.patch_size,
        output=f"{scratch / 'out'}:nii.gz",
        overlap="50%",  # type: ignore[arg-type] - what its files may say
        transforms={"CT": [TensorCast("float32"), *transforms]},
        final_transforms=[Argmax(), TensorCast("uint8")],
        quiet=True,
        overwrite=True,
        predictions_dir=scratch / "runs",
    )
    target.mkdir(parents=True, exist_ok=True)
    for case in (scratch / "out").iterdir():
        shutil.copyfile(case / "PRED.nii.gz", target / f"{case.name}.nii.gz")


def compare(one: Path, other: Path, references: Path) -> dict[str, float]:
    """Percent of voxels with equal labels in both folders, and the mean Dice of the second against the references."""
    equal = total = 0
    scores: list[float] = []
    for path in sorted(file for file in other.iterdir() if (references / file.name).exists()):
        first, second, reference = (read_labels(folder / path.name).array for folder in (one, other, references))
        equal, total = equal + int((first == second).sum()), total + first.size
        labels = LabelSet({str(value): (value,) for value in range(int(max(reference.max(), second.max())) + 1)})
        found = overlaps_of(confusion(second, reference, labels), labels).values()
        scores += [overlap.dice for overlap in found if overlap.dice is not None]
    if not total:
        raise SystemExit(f"{other} holds no label map that {references} has as well")
    return {
        "voxels with equal labels, %": 100 * equal / total,
        "mean Dice of AutoSeg": sum(scores) / max(len(scores), 1),
    }


ON_TASKS: dict[str, Callable[[Sides, Task], None]] = {
    "peer_training": peer_training,
    "own_training": own_training,
    "align": align_plan,
    "learn": learn,
    "weights": write_weights,
    "import": import_model,
    "konfai": konfai_predict,
}
"""Jobs that are about a task."""


def _in_turns(calls: Mapping[str, Callable[[], object]], first: int, end: int) -> Iterator[Mapping[str, Any]]:
    for call in calls.values():
        call()
    yield from turns({name: lambda call=call: timed(call) for name, call in calls.items()}, range(first, end))


def main() -> int:
    """The command."""
    job, scratch, data, *arguments = sys.argv[1:]
    sides = Sides(Path(scratch), Path(data))
    if job in ("step", "forward"):
        for one in {"step": step, "forward": forward}[job](*arguments):
            print(json.dumps(one), flush=True)
    elif job == "compare":
        print(json.dumps(compare(*map(Path, arguments))))
    else:
        ON_TASKS[job](sides, Task(**json.loads(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
