"""What is measured: the stages of both programs, each with what it needs made first and not timed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from autoseg.core.machine import BYTES_PER_GIB, available_memory_bytes
from scripts.benchmark.figures import CommandFailed, Figures
from scripts.benchmark.phantoms import LARGE_CASE, Drawing, draw
from scripts.benchmark.rounds import OWN, PEER, Comparison, Round, turns
from scripts.benchmark.sides import Sides, Task

SMALLEST_DICE = 0.5
"""Predictions of a network that has learned less say nothing about equal labels (assumption)."""

STORES = "nnU-Net stores compressed .b2nd, AutoSeg .npy"
KONFAI = "KonfAI"
PEER_ACTIVE = f"{PEER}, threads spinning"
_LARGE_NETWORK_GIB = 14.0  # of a step of 128^3, batch 2, with both sides' weights and feature maps; measured

HIPPOCAMPUS = Task("hippocampus", training_pins="3d_fullres: {patch_size: [32, 32, 32], batch_size: 2}\n")
HEAD_CT = Task("openkbp_ct")
PICTURES = Task("dsb2018_nuclei", "2d", preset="cpu", training_pins="2d: {batch_size: 2}\n")
NARROW = "3d_fullres: {patch_size: [40, 64, 64], features_per_stage: [8, 16, 32, 64, 128]}\n"
LARGE_CT = Task("large_ct")
VOLUME = Task("volume_ct", pins=NARROW, steps=800)  # 200 are not enough for its eight channels
ORGANS = Task("organs_ct", pins=NARROW, steps=0)


@dataclass(frozen=True)
class Sizes:
    """How much is measured, volumes as (z, y, x); with `SMALL` the script shows that it works, and nothing else."""

    cases: int = 20
    pictures: int = 100
    large_ct: tuple[int, int, int] = (300, 512, 512)
    volume: tuple[int, int, int] = (200, 256, 256)
    organs: tuple[int, int, int] = (128, 224, 224)
    organ_classes: int = 60
    large_network: str = "128"

    def drawing(self, dataset: str) -> Drawing | None:
        """What the script draws of a dataset; None if it is in the data folder."""
        return {
            LARGE_CT.dataset: Drawing(3, "Tr", self.large_ct, (3.0, 0.977, 0.977)),
            VOLUME.dataset: Drawing(3, "Ts", self.volume, (2.0, 1.0, 1.0)),
            ORGANS.dataset: Drawing(self.organ_classes, "Ts", self.organs, (2.0, 1.0, 1.0)),
        }.get(dataset)


SMALL = Sizes(3, 6, (24, 96, 96), (24, 72, 72), (24, 72, 72), 6, "64")


class Stages:
    """Makes the comparisons."""

    def __init__(self, sides: Sides, sizes: Sizes, *, with_active: bool = False) -> None:
        self.sides, self.sizes, self.with_active = sides, sizes, with_active

    def comparisons(self, wanted: Sequence[str]) -> list[Comparison]:
        """Those of the stages wanted, or all; the slowest one last."""
        made = [
            *self._networks(),
            self._plan(),
            *(self._preprocess(task, title) for task, title in self._stores()),
            *self._predictions(),
            *self._konfai(),
            self._again(),
            self._memory(),
            self._training(),
        ]
        return [one for one in made if not wanted or one.stage in wanted]

    def _networks(self) -> Iterator[Comparison]:
        large = self.sizes.large_network
        how = "nnU-Net fp32, AutoSeg as its probe chooses"
        steps = {"hippocampus": "step, hippocampus, batch 2", large: f"step, {large}^3 plain U-Net, batch 2"}
        for network, name in steps.items():
            yield Comparison("step", name, how, partial(self._job_rounds, "step", network))
        name = "logits of 40 x 56 x 40, mirrored"
        yield Comparison("forward", name, "nnU-Net fp32", partial(self._job_rounds, "forward", "hippocampus"))

    def _job_rounds(self, job: str, network: str, numbers: Sequence[int]) -> Iterator[Round]:
        if network == "128" and available_memory_bytes() < _LARGE_NETWORK_GIB * BYTES_PER_GIB:
            raise SystemExit(f"{job} of 128^3 needs {_LARGE_NETWORK_GIB:.0f} GiB of free memory; --small takes 64^3")
        return self.sides.job(job, network, str(numbers[0]), str(numbers[-1] + 1)) if numbers else iter(())

    def _training(self) -> Comparison:
        def prepare() -> None:
            self._plan_both(HIPPOCAMPUS)
            self._fill_both(HIPPOCAMPUS)

        one = {PEER: partial(self._train, "peer"), OWN: partial(self._train, "own")}
        how = "planned batch of 9; nnU-Net fp32, AutoSeg as its probe chooses"
        return Comparison("train", "training, hippocampus, per step", how, partial(_prepared, prepare, one))

    def _train(self, side: str) -> Figures:
        return dict(list(self.sides.job(f"{side}_training", json.dumps(asdict(HIPPOCAMPUS))))[-1])

    def _plan(self) -> Comparison:
        sides = self.sides
        one = {PEER: partial(sides.peer_plan, HIPPOCAMPUS.dataset), OWN: partial(sides.own_plan, HIPPOCAMPUS)}
        how = "AutoSeg checks every file as well"
        return Comparison("plan", "fingerprint and plan, hippocampus", how, partial(turns, one))

    def _stores(self) -> Iterator[tuple[Task, str]]:
        yield HIPPOCAMPUS, "hippocampus"
        yield HEAD_CT, "openkbp_ct"
        yield LARGE_CT, f"one CT of {_by(self.sizes.large_ct)}"

    def _preprocess(self, task: Task, title: str) -> Comparison:
        one = {
            PEER: partial(self.sides.peer_preprocess, task),
            OWN: partial(self.sides.own_preprocess, task),
        }
        ready = partial(self._plan_both, task)
        return Comparison("preprocess", f"preprocess, {title}", STORES, partial(_prepared, ready, one))

    def _predictions(self) -> Iterator[Comparison]:
        sizes, how = self.sizes, "equal weights, all mirrorings; nnU-Net fp32, AutoSeg bf16 where the CPU computes it"
        cases = partial(self._ready_cases, HIPPOCAMPUS, sizes.cases)
        yield self._predict("predict", f"predict {sizes.cases} hippocampus cases", HIPPOCAMPUS, how, cases)
        name = f"predict one CT of {_by(sizes.volume)}, 3 classes, narrow network"
        yield self._predict("predict", name, VOLUME, how, partial(self._ready_volume, VOLUME))
        pictures = partial(self._ready_cases, PICTURES, sizes.pictures)
        yield self._predict("pictures", f"predict {sizes.pictures} small pictures", PICTURES, how, pictures)

    def _predict(self, stage: str, name: str, task: Task, how: str, ready: Callable[[], None]) -> Comparison:
        one = {PEER: partial(self._peer_predict, task), OWN: partial(self._own_predict, task)}
        if self.with_active:
            one[PEER_ACTIVE] = partial(self._peer_predict, task, active=True)
        return Comparison(stage, name, how, partial(_prepared, ready, one), partial(self._compare, task))

    def _konfai(self) -> Iterator[Comparison]:
        """All three on the large volume without mirroring; nothing where KonfAI is not installed."""
        if importlib.util.find_spec("konfai") is None:
            return
        one = {
            PEER: partial(self._peer_predict, VOLUME, "--disable_tta"),
            OWN: partial(self._own_predict, VOLUME, "--no-mirroring"),
            KONFAI: partial(self.sides.konfai_predict, VOLUME),
        }
        measure = partial(_prepared, partial(self._ready_volume, VOLUME), one)
        how = "no mirroring; nnU-Net and KonfAI fp32, KonfAI's own resampling"
        facts = partial(self._compare, VOLUME, "konfai")
        yield Comparison("konfai", f"predict one CT of {_by(self.sizes.volume)}, unmirrored", how, measure, facts)

    def _peer_predict(self, task: Task, *more: str, peak: bool = False, active: bool = False) -> Figures:
        self.sides.forget_predictions(task, "peer")
        return self.sides.peer_predict(task, *more, peak=peak, active=active)

    def _own_predict(self, task: Task, *more: str, peak: bool = False) -> Figures:
        self.sides.forget_predictions(task, "own")
        return self.sides.own_predict(task, *more, peak=peak)

    def _compare(self, task: Task, other: str = "peer") -> Mapping[str, float]:
        peer, own = (self.sides.predicted(task, side) for side in (other, "own"))
        if not peer.exists() or not own.exists():
            return {}  # resumed after the last round
        references = self.sides.raw(task.dataset) / ("labelsTs" if self.sizes.drawing(task.dataset) else "labelsTr")
        found = dict(list(self.sides.job("compare", str(peer), str(own), str(references)))[-1])
        if found["mean Dice of AutoSeg"] < SMALLEST_DICE:
            raise CommandFailed(f"{task.dataset}: the network has not learned enough to compare predictions: {found}")
        return found

    def _again(self) -> Comparison:
        task = HIPPOCAMPUS
        one = {
            PEER: partial(self.sides.peer_predict, task, "--continue_prediction"),
            OWN: partial(self.sides.own_predict, task),
        }

        def ready() -> None:
            self._ready_cases(task, self.sizes.cases)
            if not self.sides.predicted(task, "peer").exists():
                self.sides.peer_predict(task)
            self.sides.own_predict(task)

        return Comparison("again", "predict, everything done already", "", partial(_prepared, ready, one))

    def _memory(self) -> Comparison:
        one = {
            PEER: partial(self._peer_predict, ORGANS, "--disable_tta", peak=True),
            OWN: partial(self._own_predict, ORGANS, "--no-mirroring", peak=True),
        }
        name = f"peak memory, {self.sizes.organ_classes} classes, {_by(self.sizes.organs)}"
        how = "proportional set size of all processes; random weights, no mirroring"
        return Comparison("memory", name, how, partial(_prepared, partial(self._ready_volume, ORGANS), one))

    def _ready_cases(self, task: Task, count: int) -> None:
        """A model on both sides, and the cases to predict: of pictures the smallest ones, else the first."""
        self._model(task)
        files = list((self.sides.raw(task.dataset) / "imagesTr").glob("*_0000.*"))
        files.sort(key=lambda file: (file.stat().st_size if task == PICTURES else 0, file.name))
        self.sides.link_images(task, [file.name.rsplit("_", 1)[0] for file in files[:count]])

    def _ready_volume(self, task: Task) -> None:
        self._model(task)
        self.sides.link_images(task, [LARGE_CASE], "Ts")

    def _plan_both(self, task: Task) -> None:
        """Plans of both sides that are not there yet, on the data that the script draws or links."""
        drawing = self.sizes.drawing(task.dataset)
        if drawing:
            draw(self.sides.raw_folder(task.dataset), drawing)
        if not (self.sides.peer_preprocessed(task.dataset) / "nnUNetPlans.json").exists():
            self.sides.peer_plan(task.dataset)
        if not (self.sides.work(task) / "plan.json").exists():
            self.sides.own_plan(task)

    def _fill_both(self, task: Task) -> None:
        if not (self.sides.peer_preprocessed(task.dataset) / f"nnUNetPlans_{task.configuration}").exists():
            self.sides.peer_preprocess(task)
        self.sides.own_preprocess(task)

    def _model(self, task: Task) -> None:
        """A network that both sides predict with, if there is none yet."""
        if self.sides.own_model(task).exists():
            return
        self._plan_both(task)
        asked = json.dumps(asdict(task))
        list(self.sides.job("align", asked))
        if task.steps:
            self.sides.own_plan(task.training)
            list(self.sides.job("learn", asked))
        list(self.sides.job("weights", asked))
        list(self.sides.job("import", asked))


def _prepared(
    ready: Callable[[], None], sides: Mapping[str, Callable[[], Figures]], numbers: Sequence[int]
) -> Iterator[Round]:
    """Rounds, after what they need was made; nothing is made where no round is left to do."""
    if numbers:
        ready()
    return turns(sides, numbers)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
