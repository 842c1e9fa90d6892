"""Trained models: found in a work folder, loaded, and applied to arrays without any files."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.core.errors import IntegrityRefusal, MissingInput, PlanFault, UsageError
from autoseg.core.geometry import Geometry
from autoseg.core.progress import Progress, silent
from autoseg.core.records import content_hash, load
from autoseg.core.workspace import WORK_FOLDER_NAME, RunFolder
from autoseg.datasets.labels import to_file_values
from autoseg.images.volume import Volume
from autoseg.inference.predictor import Predictor
from autoseg.inference.restore import predict_case
from autoseg.launch.devices import choose_device
from autoseg.launch.precision import native_types
from autoseg.networks.build import build_network
from autoseg.networks.weights import MANIFEST_FILE, generations, newest_intact, newest_weights
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.prepare import preparation_of, prepare
from autoseg.training.record import RunRecord, RunStatus
from autoseg.workflow.prediction_records import PredictorOptions

_log = logging.getLogger(__name__)

PREFERRED_CONFIGURATION = "3d_fullres"
"""Used when nobody says otherwise: nnU-Net's usual best single configuration (Isensee et al. 2021)."""

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The runs that make a model.

    Attributes:
        plan: the plan that they were trained with.
        configuration: theirs.
        runs: run folder of each fold.
        because: why this configuration and these folds.
        name: dataset, configuration, folds and a hash of plan and weights, which changes whenever predictions may.
    """

    plan: Plan
    configuration: Configuration
    runs: dict[int, RunFolder]
    because: str
    name: str


def find_model(path: Path, configuration: str | None = None, folds: Sequence[int] = ()) -> ModelFiles:
    """The trained runs that `path` stands for.

    Args:
        path: a dataset's folder, its work folder, or one run (`runs/<configuration>/fold_<k>`).
        configuration: which one; by default 3d_fullres, else the trained one with the best validation Dice.
        folds: which ones; by default all that were trained.

    Raises:
        MissingInput: there is no trained run.
        UsageError: the configuration or a fold was not trained.
        PlanFault: the folds were trained with different plans.
    """
    trained = _trained_runs(path)
    if not trained:
        raise MissingInput("there is no trained model", where=str(path), do="run autoseg train DATASET first")
    name, because = _choose_configuration(trained, configuration)
    runs = trained[name]
    missing = [fold for fold in folds if fold not in runs]
    if missing:
        raise UsageError(
            f"fold {missing[0]} of {name} is not trained", where=str(path), do=f"choose from {_listed(runs)}"
        )
    chosen = {fold: runs[fold] for fold in sorted(folds or runs)}
    plan = _common_plan(chosen, name)
    sentence = f"{because}; {'fold' if len(chosen) == 1 else 'mean of folds'} {_listed(chosen)}"
    title = f"{plan.dataset}/{name}/folds {','.join(map(str, chosen))}/{_weights_hash(plan, chosen)}"
    return ModelFiles(plan, plan.configurations[name], chosen, sentence, title)


def make_predictor(files: ModelFiles, options: PredictorOptions) -> Predictor:
    """The model's networks, ready to predict on the device asked for.

    Raises:
        UsageError: there is no such device.
        IntegrityRefusal: a checkpoint does not match its hash, or is of another network.
    """
    device, why = choose_device(options.device)
    _log.info(why)
    record = load(RunRecord, next(iter(files.runs.values())).recipe)
    precision = _precision(record, device)
    return Predictor(
        networks=tuple(_load_network(files, run) for run in files.runs.values()),
        configuration=files.configuration,
        heads=files.plan.labels.head_count,
        mirror_axes=files.configuration.mirror_axes if options.mirroring else (),
        overlap=options.overlap,
        device=device,
        dtype=_TYPES[precision],
        channels_last=_is_channels_last(record, device),
        max_slab_bytes=options.max_ram_bytes,
        scratch=options.scratch,
    )


class Model:
    """A trained model that segments arrays; `autoseg.load_model` makes one.

    Args:
        files: the runs it was loaded from.
        predictor: their networks.
    """

    def __init__(self, files: ModelFiles, predictor: Predictor) -> None:
        self.files = files
        self.predictor = predictor

    @property
    def plan(self) -> Plan:
        """The plan it was trained with: channels, classes, spacing."""
        return self.files.plan

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """The values in predicted label maps that stand for each class."""
        labels = self.plan.labels
        values = labels.file_values or range(labels.largest_value + 1)
        return {name: tuple(values[value] for value in own) for name, own in labels.classes.items()}

    def predict(self, array: NDArray[Any], spacing_mm: Sequence[float]) -> NDArray[np.integer[Any]]:
        """The label map (z, y, x) of an image, with the values that the dataset's label files use.

        Args:
            array: intensities (c, z, y, x), or (z, y, x) for one channel; not normalized, not changed. A picture is
                a single slice.
            spacing_mm: distance of neighboring voxels along z, y, x.

        Raises:
            UsageError: the array has another number of axes or channels than the model expects.
        """
        image = np.asarray(array, dtype=np.float32)
        image = image[None] if image.ndim == 3 else image
        channels = len(self.plan.channels)
        if image.ndim != 4 or len(image) != channels or len(spacing_mm) != 3:
            raise UsageError(
                f"the array has the shape {np.shape(array)} and {len(spacing_mm)} spacings",
                do=f"give ({channels}, z, y, x) intensities of {', '.join(self.plan.channels)} and spacings of z, y, x",
            )
        z, y, x = image.shape[1:]
        step_z, step_y, step_x = map(float, spacing_mm)
        labels = self.predict_volume(Volume(image, Geometry((z, y, x), (step_z, step_y, step_x))))
        return to_file_values(labels, self.plan.labels)

    def predict_volume(self, volume: Volume, progress: Progress = silent) -> NDArray[np.integer[Any]]:
        """Training values (z, y, x) on the grid of a volume."""
        prepared = prepare(volume, None, preparation_of(self.plan, self.files.configuration))
        return predict_case(self.predictor, prepared.image, prepared.placement, self.plan.labels, progress)


def load_model(
    path: str | Path, configuration: str | None = None, folds: Sequence[int] | None = None, device: str = "auto"
) -> Model:
    """A trained model, ready to segment arrays.

    Args:
        path: a dataset's folder, its work folder, or one run.
        configuration: which one; by default 3d_fullres, else the trained one with the best validation Dice.
        folds: which ones are averaged; by default all that were trained.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        MissingInput: there is no trained run.
        UsageError: the configuration, a fold or the device is not there.
    """
    files = find_model(Path(path), configuration, folds or ())
    return Model(files, make_predictor(files, PredictorOptions(device=device)))


def _trained_runs(path: Path) -> dict[str, dict[int, RunFolder]]:
    """Configuration -> fold -> run, of all runs that have a checkpoint."""
    if RunFolder(path).checkpoint.is_dir():
        run = RunFolder(path)
        record = load(RunRecord, run.recipe)
        return {record.configuration: {record.fold: run}}
    root = path / WORK_FOLDER_NAME if (path / WORK_FOLDER_NAME).is_dir() else path
    trained: dict[str, dict[int, RunFolder]] = {}
    for folder in sorted((root / "runs").glob("*/fold_*")):
        number = folder.name.removeprefix("fold_")
        run_folder = RunFolder(folder)
        if number.isdigit() and generations(run_folder.checkpoint):
            trained.setdefault(folder.parent.name, {})[int(number)] = run_folder
    return trained


def _choose_configuration(trained: dict[str, dict[int, RunFolder]], wanted: str | None) -> tuple[str, str]:
    if wanted is not None:
        if wanted not in trained:
            raise UsageError(f"{wanted} is not trained", do=f"choose from {_listed(trained)}")
        return wanted, f"{wanted}, as asked for"
    if len(trained) == 1:
        name = next(iter(trained))
        return name, f"{name}, the only configuration that is trained"
    if PREFERRED_CONFIGURATION in trained:
        return PREFERRED_CONFIGURATION, f"{PREFERRED_CONFIGURATION}, the default of {_listed(trained)}"
    dice = {name: _mean_dice(runs) for name, runs in trained.items()}
    best = max(trained, key=lambda name: dice[name])
    measured = ", ".join(f"{name} {value:.3f}" for name, value in dice.items())
    return best, f"{best}, the best by Dice ({measured})"


def _mean_dice(runs: dict[int, RunFolder]) -> float:
    """Mean over the folds of the Dice of whole validation cases, or of patches where that is not known yet."""
    values = []
    for run in runs.values():
        status = load(RunStatus, run.state)
        value = status.foreground_dice if status.foreground_dice is not None else status.ema_dice
        values.append(value or 0.0)
    return float(np.mean(values))


def _common_plan(runs: dict[int, RunFolder], configuration: str) -> Plan:
    plans = {fold: load(Plan, run.plan) for fold, run in runs.items()}
    first = next(iter(plans.values()))
    if configuration not in first.configurations:
        raise PlanFault(f"the plan of the run has no configuration {configuration}", do="train it again with --fresh")
    for fold, plan in plans.items():
        pairs = (
            (plan.configurations.get(configuration), first.configurations[configuration]),
            (plan.labels, first.labels),
            (plan.axis_order, first.axis_order),
            (plan.intensities, first.intensities),
            (plan.channels, first.channels),
        )
        if any(own != other for own, other in pairs):
            raise PlanFault(
                f"fold {fold} was trained with another plan than fold {next(iter(plans))}, so they cannot be averaged",
                do="choose one with --fold, or train the others again with --fresh",
            )
    return first


def _weights_hash(plan: Plan, runs: dict[int, RunFolder]) -> str:
    manifests = [newest_intact(run.checkpoint) / MANIFEST_FILE for run in runs.values()]
    return content_hash(plan, [json.loads(manifest.read_bytes()) for manifest in manifests])


def _load_network(files: ModelFiles, run: RunFolder) -> torch.nn.Module:
    network = build_network(
        files.configuration.network,
        files.plan.input_channels(files.configuration.name),
        files.plan.labels.head_count,
    )
    weights = newest_weights(run.checkpoint)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    if expected != found:
        different = min(set(expected.items()) ^ set(found.items()))[0]
        raise IntegrityRefusal(
            f"the weights do not belong to the planned network: {different} differs", where=str(run.checkpoint)
        )
    network.load_state_dict(weights)
    return network


def _precision(record: RunRecord, device: torch.device) -> str:
    """The run's own precision where the device computes it natively, else the device's fastest."""
    native = native_types(device)
    if record.device == device.type and record.precision in ("fp32", *native):
        return record.precision
    return native[0] if native else "fp32"


def _is_channels_last(record: RunRecord, device: torch.device) -> bool:
    """The run's own memory format on the same kind of device; elsewhere CPUs gain from it (measured at training)."""
    if record.device == device.type:
        return record.memory_format == "channels_last"
    return device.type == "cpu"


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))
