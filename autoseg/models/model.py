"""Trained models: found, loaded, and applied to arrays without any files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.core.errors import IntegrityRefusal, UsageError
from autoseg.core.geometry import Geometry
from autoseg.core.progress import Progress, silent
from autoseg.data.labels import to_file_values
from autoseg.images.volume import Volume
from autoseg.inference.ensemble import Ensemble, EnsembleMember
from autoseg.inference.predictor import Predictor
from autoseg.launch.convolutions import Convolution
from autoseg.launch.devices import choose_device
from autoseg.launch.numerics import check_prediction
from autoseg.models.record import Member, ModelFiles
from autoseg.networks.weights import shape_fault
from autoseg.planning.lateral import lateral_swap
from autoseg.planning.plan import Plan
from autoseg.preprocessing.prepare import preparation_of
from autoseg.training.step import AUTOCAST_TYPES

_log = logging.getLogger(__name__)


def make_ensemble(
    files: ModelFiles, device: str = "auto", overlap: float = 0.5, mirroring: bool = True, scratch: Path | None = None
) -> Ensemble:
    """The model's networks, ready to predict.

    Args:
        files: the model.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        overlap: fraction of a tile that neighbors share at least.
        mirroring: whether to average over mirrored images.
        scratch: folder for what memory does not hold; None for the system's.

    Raises:
        UsageError: there is no such device.
        IntegrityRefusal: stored weights do not match their hash, or are of another network.
    """
    chosen, why = choose_device(device)
    _log.info(why)
    model = files.record
    load = partial(_ensemble_member, device=chosen, overlap=overlap, mirroring=mirroring, scratch=scratch)
    made = {name: load(member, files) for name, member in model.by_configuration.items()}
    return Ensemble(
        members=tuple(made[member.configuration.name] for member in model.members),
        labels=model.plan.labels,
        stages={stage.configuration.name: made[stage.configuration.name] for stage in model.stages},
        postprocessing=model.postprocessing,
        scratch=scratch,
    )


def _ensemble_member(
    member: Member, files: ModelFiles, device: torch.device, overlap: float, mirroring: bool, scratch: Path | None
) -> EnsembleMember:
    networks = tuple(_load_network(member, fold, files) for fold in member.folds)
    configuration = member.configuration
    channels = member.plan.input_channels(configuration.name)
    found = check_prediction(networks[0], configuration, channels, device, member.precision)
    compute = found.compute(device)
    _log.info("%s: %s", configuration.name, found.because)
    dtype = AUTOCAST_TYPES.get(compute.precision, torch.float32)
    if device.type == "cpu":
        for network in networks:
            round_convolutions(network, dtype)
    predictor = Predictor(
        networks=networks,
        configuration=configuration,
        heads=member.plan.labels.head_count,
        mirror_axes=configuration.mirror_axes if mirroring else (),
        swap=lateral_swap(member.plan, configuration),
        overlap=overlap,
        device=device,
        dtype=dtype,
        channels_last=compute.memory_format == "channels_last",
        scratch=scratch,
    )
    return EnsembleMember(predictor, preparation_of(member.plan, configuration), member.share)


def round_convolutions(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Keeps the weights of convolutions in the precision that autocast computes them in, which changes no result.

    Without gradients autocast rounds them again in every pass: 12 % of the time of a 2D network of 16 to 256 channels
    and 256 x 256 pixels, nothing to be noticed in 3D (AVX512-BF16, torch 2.13). A device that may be left for another,
    in another precision, needs them as they were.
    """
    for module in network.modules():
        if isinstance(module, Convolution):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


class Model:
    """A trained model that segments arrays; `autoseg.load_model` makes one.

    Args:
        files: what it was loaded from.
        ensemble: its networks.
    """

    def __init__(self, files: ModelFiles, ensemble: Ensemble) -> None:
        self.files = files
        self.ensemble = ensemble

    @property
    def plan(self) -> Plan:
        """The plan it was trained with: channels, classes, spacing."""
        return self.files.record.plan

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
                a single slice. An array cannot say how it lies in the body, so its axes have to be those of
                `plan.orientation`, if there is one.
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
        geometry = Geometry((z, y, x), (step_z, step_y, step_x), has_orientation=False)
        labels = self.predict_volume(Volume(image, geometry))
        return to_file_values(labels, self.plan.labels)

    def predict_volume(self, volume: Volume, progress: Progress = silent) -> NDArray[np.integer[Any]]:
        """Training values (z, y, x) on the grid of a volume."""
        return self.ensemble.predict(self.ensemble.prepare(volume), progress=progress).labels


def _load_network(member: Member, fold: int, files: ModelFiles) -> torch.nn.Module:
    plan, configuration = member.plan, member.configuration
    tensors = files.read(configuration.name, fold)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    fault = shape_fault(found, plan.parameter_shapes(configuration.name))  # before anything is allocated for it
    if fault is not None:
        raise IntegrityRefusal(
            f"the weights do not belong to the planned network: {fault}", where=f"{configuration.name}, fold {fold}"
        )
    network = plan.build_network(configuration.name)
    network.load_state_dict(tensors)
    return network
