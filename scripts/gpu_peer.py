#!/usr/bin/env python3
"""Times the training step and the tiled prediction of AutoSeg and of nnU-Net on one GPU: equal networks, equal batches.

    scripts/gpu_peer.py                       on the first CUDA GPU, as nnU-Net's users run it: compiled, fp16
    scripts/gpu_peer.py --device cpu --small  on a CPU, in seconds; says nothing about speed

Needs `nnunetv2` beside what `gpu_check.py` needs, and no data. Both sides live in one process, start from the same
weights and take turns of ten steps or one prediction; the ratio of a turn is nnU-Net's seconds by AutoSeg's. Reported
are medians and ranges. nnU-Net has cudnn.benchmark on, as its command sets it. AutoSeg runs in bfloat16 without
torch.compile and cudnn.benchmark, its steps replayed as a CUDA graph, once in each memory format.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402 - the package beside this script comes first on the path
from torch import Tensor  # noqa: E402

from autoseg.data.model import LabelSet  # noqa: E402
from autoseg.inference.predictor import Predictor  # noqa: E402
from autoseg.launch.side_by_side import side_by_side  # noqa: E402
from autoseg.launch.step_graph import step_graph  # noqa: E402
from autoseg.networks.kinds.unet import PlainUNet  # noqa: E402
from autoseg.planning.plan import Configuration  # noqa: E402
from autoseg.training.losses import deep_supervision_targets, make_objective  # noqa: E402
from autoseg.training.recipe import Recipe  # noqa: E402
from autoseg.training.step import Compute, start_state, train_step  # noqa: E402
from scripts.benchmark.machine import machine_line  # noqa: E402

STEPS = 10  # of a turn, queued one after the other
DATASET = "Dataset901_random"
LABELS = LabelSet({"background": (0,), "one": (1,), "two": (2,)}, file_values=(0, 1, 2))
DESCRIPTION = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "one": 1, "two": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


@dataclass(frozen=True)
class Task:
    """A network, its batch, and the image that is predicted (voxels)."""

    name: str
    patch_size: tuple[int, ...]
    features: tuple[int, ...]
    batch_size: int
    image: tuple[int, int, int]

    def configuration(self) -> Configuration:
        """As the rules plan it for isotropic voxels: every stage but the first halves all axes."""
        dimensions, stages = len(self.patch_size), len(self.features)
        network = PlainUNet(
            dimensions=dimensions,
            features_per_stage=self.features,
            kernel_sizes=((3,) * dimensions,) * stages,
            strides=((1,) * dimensions, *((2,) * dimensions,) * (stages - 1)),
            blocks_per_stage=(2,) * stages,
            decoder_convs_per_stage=(2,) * (stages - 1),
        )
        return Configuration(
            name=f"{dimensions}d" if dimensions == 2 else "3d_fullres",
            dimensions=dimensions,
            spacing_mm=(1.0,) * dimensions,
            patch_size=self.patch_size,
            batch_size=self.batch_size,
            median_shape=tuple(map(float, self.image[-dimensions:])),
            normalization=("ct",),
            use_nonzero_mask=(False,),
            network=network,
            batch_dice=False,
            mirror_axes=tuple(range(dimensions)),
            cascade_from=None,
            estimated_feature_map_elements=0,
        )


TASKS = (
    Task("128 x 128 x 128, batch 2", (128, 128, 128), (32, 64, 128, 256, 320, 320), 2, (128, 192, 192)),
    Task("512 x 512, batch 12", (512, 512), (32, 64, 128, 256, 512, 512, 512, 512), 12, (8, 512, 512)),
    Task("40 x 56 x 40, batch 9", (40, 56, 40), (32, 64, 128, 256), 9, (40, 56, 40)),
)
SMALL = (Task("16 x 16 x 16, batch 2", (16, 16, 16), (4, 8), 2, (16, 24, 16)),)


def peer_plans(configuration: Configuration) -> dict[str, Any]:
    """The same network, patch and batch as plans of nnU-Net."""
    kind, spec = f"{configuration.dimensions}d", configuration.network
    arguments = {
        "n_stages": len(spec.features_per_stage),
        "features_per_stage": list(spec.features_per_stage),
        "conv_op": f"torch.nn.modules.conv.Conv{kind}",
        "kernel_sizes": [list(kernel) for kernel in spec.kernel_sizes],
        "strides": [list(stride) for stride in spec.strides],
        "n_conv_per_stage": list(spec.blocks_per_stage),
        "n_conv_per_stage_decoder": list(spec.decoder_convs_per_stage),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{kind}",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    planned = {
        "data_identifier": "random",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": configuration.batch_size,
        "patch_size": list(configuration.patch_size),
        "spacing": [1.0] * configuration.dimensions,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": architecture,
    }
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {configuration.name: planned},
        "continue_training": False,
    }


class Sides:
    """Both trainings of one task, with equal weights, and one batch of random numbers; calls take `steps` steps."""

    def __init__(self, task: Task, device: torch.device, scratch: Path, steps: int = STEPS) -> None:
        self.task, self.device, self.steps = task, device, steps
        self.configuration = task.configuration()
        self.recipe = Recipe(epochs=1000, steps_per_epoch=250)
        torch.manual_seed(0)
        self.network = self.configuration.network.build(1, LABELS.head_count)
        self.objective = make_objective("dice_ce", LABELS, False)
        generator = torch.Generator().manual_seed(0)
        shape = (task.batch_size, 1, *task.patch_size)
        self.image = torch.randn(shape, generator=generator).to(device)
        self.labels = torch.randint(0, LABELS.head_count, shape, generator=generator)[:, 0].to(device)
        self.trainer = self._peer_trainer(scratch)

    def _peer_trainer(self, scratch: Path) -> Any:
        """nnU-Net's trainer, initialized and compiled as its command does, with AutoSeg's weights."""
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        folder = scratch / DATASET / "random"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "case.b2nd").touch()  # names the kind of store; never read
        trainer = nnUNetTrainer(peer_plans(self.configuration), self.configuration.name, 0, DESCRIPTION, self.device)
        trainer.initialize()
        own = self.network.state_dict()
        plain = getattr(trainer.network, "_orig_mod", trainer.network)
        plain.load_state_dict(own, strict=False)  # its state lists shared parameters under several names
        if {name for name, _ in plain.named_parameters()} != own.keys():
            raise SystemExit("the two networks have different parameters")
        trainer.network.train()
        return trainer

    def peer_step(self) -> Callable[[], None]:
        """One call, some steps of nnU-Net."""
        with torch.no_grad():
            outputs = getattr(self.trainer.network, "_orig_mod", self.trainer.network)(self.image[:1])
        targets = deep_supervision_targets(self.labels, [output.shape[2:] for output in outputs])
        batch = {"data": self.image, "target": [target[:, None].float() for target in targets]}
        return _as_set(True, self.steps, lambda: self.trainer.train_step(batch))

    def own_step(self, compute: Compute) -> Callable[[], None]:
        """One call, as many steps of AutoSeg."""
        network = self.configuration.network.build(1, LABELS.head_count)
        network.load_state_dict(self.network.state_dict())
        state = start_state(network, self.recipe, compute, self.configuration.dimensions)
        state.graph = step_graph(state)
        state.gradient = side_by_side(network, compute, self.configuration.batch_size)
        image = compute.place_image(self.image)
        step = partial(train_step, state, image, self.labels, self.objective, self.recipe, compute)
        return _as_set(False, self.steps, step)

    def peer_prediction(self, image: Tensor) -> Callable[[], Tensor]:
        """One call, the logits of the image (c, z, y, x), all mirrorings on."""
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(device=self.device, allow_tqdm=False)
        plain = getattr(self.trainer.network, "_orig_mod", self.trainer.network)
        plain.load_state_dict(self.network.state_dict(), strict=False)
        plain.decoder.deep_supervision = False
        axes = tuple(range(self.configuration.dimensions))
        settings = (self.trainer.plans_manager, self.trainer.configuration_manager, None, DESCRIPTION, "nnUNetTrainer")
        predictor.manual_initialization(plain, *settings, axes)
        with_grad_off = torch.inference_mode()
        return with_grad_off(lambda: predictor.predict_sliding_window_return_logits(image).float().cpu())

    def own_prediction(self, image: Tensor, channels_last: bool) -> Callable[[], Tensor]:
        """The same by AutoSeg."""
        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        network = self.configuration.network.build(1, LABELS.head_count)
        network.load_state_dict(self.network.state_dict())
        axes = tuple(range(self.configuration.dimensions))
        options: dict[str, Any] = {"device": self.device, "dtype": dtype, "channels_last": channels_last}
        predictor = Predictor((network,), self.configuration, LABELS.head_count, axes, **options)
        return lambda: torch.from_numpy(predictor.logits(image.numpy()))


def _as_set(is_benchmarking: bool, count: int, step: Callable[[], object]) -> Callable[[], None]:
    """One call, `count` steps, with cudnn.benchmark as a side has it."""

    def steps() -> None:
        torch.backends.cudnn.benchmark = is_benchmarking
        for _ in range(count):
            step()

    return steps


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall seconds of one call, the device's work included."""
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def in_turns(calls: Sequence[Callable[[], Any]], device: torch.device, warm: int, rounds: int) -> list[list[float]]:
    """Seconds of every call in every round, after `warm` rounds that do not count."""
    times = [[seconds(call, device) for call in calls] for _ in range(warm + rounds)][warm:]
    return [list(column) for column in zip(*times, strict=True)]


def rows(task: Task, device: torch.device, scratch: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Step and prediction of one task in both memory formats of AutoSeg."""
    sides = Sides(task, device, scratch)
    precision = "fp32" if device.type == "cpu" else "bf16"
    formats = ("contiguous", "channels_last")
    own = [sides.own_step(Compute(device, precision, memory_format)) for memory_format in formats]
    columns = in_turns([sides.peer_step(), *own], device, 2, rounds)
    peer, *others = [[value / STEPS for value in column] for column in columns]
    for memory_format, column in zip(formats, others, strict=True):
        yield row(f"step, {task.name}", f"{precision} {memory_format}", peer, column)
    torch.backends.cudnn.benchmark = True
    image = torch.randn((1, *task.image), generator=torch.Generator().manual_seed(1))
    calls = [sides.peer_prediction(image), *(sides.own_prediction(image, one == "channels_last") for one in formats)]
    expected = calls[0]().argmax(0)
    equal = [float((call().argmax(0) == expected).float().mean()) for call in calls[1:]]
    peer, *others = in_turns(calls, device, 1, max(2, rounds // 4))
    size = " x ".join(map(str, task.image))
    for memory_format, column, share in zip(formats, others, equal, strict=True):
        name = f"prediction of {size}, patch {' x '.join(map(str, task.patch_size))}"
        yield row(name, f"{precision} {memory_format}", peer, column) | {"equal": share}


def row(name: str, how: str, peer: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    """Medians of both sides and of their ratio, with its range."""
    ratios = [one / other for one, other in zip(peer, own, strict=True)]
    medians = {"peer": statistics.median(peer), "own": statistics.median(own), "ratio": statistics.median(ratios)}
    return {"name": name, "how": how, **medians, "low": min(ratios), "high": max(ratios)}


def table(found: Sequence[dict[str, Any]], title: str) -> str:
    """The rows as Markdown."""
    lines = [
        title,
        "",
        "| what | AutoSeg in | nnU-Net, ms | AutoSeg, ms | ratio (smallest to largest) | equal labels |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for one in found:
        times = f"{1000 * one['peer']:.1f} | {1000 * one['own']:.1f}"
        spread = f"{one['ratio']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
        equal = f"{100 * one['equal']:.2f} %" if "equal" in one else ""
        lines.append(f"| {one['name']} | {one['how'].replace('_', ' ')} | {times} | {spread} | {equal} |")
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="one small network")
    parser.add_argument("--rounds", type=int, default=12, help="turns of the steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for peer.json and peer.md, written again after every task")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    title = f"{machine_line('nnunetv2', 'torch')}; {time.strftime('%Y-%m-%d')}; {asked.device}"
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="gpu-peer-") as folder:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = folder
        for task in SMALL if asked.small else TASKS:
            for one in rows(task, device, Path(folder), asked.rounds):
                found.append(one)
                print(f"{one['name']}, {one['how']}: {one['ratio']:.2f}", file=sys.stderr, flush=True)
            if asked.out:
                asked.out.mkdir(parents=True, exist_ok=True)
                (asked.out / "peer.json").write_text(json.dumps({"title": title, "rows": found}, indent=1) + "\n")
                (asked.out / "peer.md").write_text(table(found, title) + "\n")
            if device.type == "cuda":
                torch.cuda.empty_cache()
    print(table(found, title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
