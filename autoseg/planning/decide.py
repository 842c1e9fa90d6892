"""The rules applied to a fingerprint: no images, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoseg.core.configs import find_config, read_yaml
from autoseg.core.errors import PlanFault
from autoseg.core.records import from_data, to_data
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.model import Dataset
from autoseg.images.resample import resampled_shape
from autoseg.planning.pins import Pins, parse_pins
from autoseg.planning.plan import Configuration, Plan
from autoseg.planning.planner import DatasetFacts, Request, make_plan
from autoseg.planning.presets import Preset

BYTES_PER_ELEMENT = 8 * 2**30 / (2 * 560e6)
"""Training memory per feature-map element: nnU-Net's default planner sizes two patches of 560e6 elements for 8 GiB."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the user may choose about a plan; the defaults ask for nothing.

    Attributes:
        preset: name of a shipped preset, or a YAML file.
        memory_gib: memory target, or None for the preset's own.
        configurations: the only configurations to keep; empty keeps all.
        pins: YAML file of pinned decisions, or None.
    """

    preset: str = "reference"
    memory_gib: float | None = None
    configurations: tuple[str, ...] = ()
    pins: Path | None = None


def facts_of(dataset: Dataset, fingerprint: Fingerprint) -> DatasetFacts:
    """What the planner needs to know about a detected dataset; refused cases do not count."""
    return DatasetFacts(
        name=dataset.name,
        channels=dataset.channels,
        labels=dataset.labels,
        file_ending=dataset.file_ending,
        training_cases=len(fingerprint.cases),
        four_d=dataset.four_d,
    )


def decide(fingerprint: Fingerprint, facts: DatasetFacts, options: PlanOptions) -> Plan:
    """The plan that the rules, the preset and the user's pins make of a fingerprint."""
    preset_file = find_config(options.preset, "presets")
    preset = from_data(Preset, read_yaml(preset_file), str(preset_file))
    memory_gib = preset.default_memory_gib if options.memory_gib is None else options.memory_gib
    if not (math.isfinite(memory_gib) and memory_gib > 0):
        raise PlanFault(f"a memory target of {memory_gib} GiB makes no sense", do="choose --memory greater than 0")
    pins = Pins() if options.pins is None else parse_pins(read_yaml(options.pins), str(options.pins))
    plan = make_plan(fingerprint, facts, Request(preset_file.stem, preset, memory_gib, pins))
    return _narrowed(plan, options.configurations)


def _narrowed(plan: Plan, names: tuple[str, ...]) -> Plan:
    """The plan with only the configurations asked for."""
    missing = [name for name in names if name not in plan.configurations]
    if missing:
        raise PlanFault(
            f"{', '.join(missing)} is not planned for this dataset; planned are {', '.join(plan.configurations)}",
            do="choose --configuration among these; `autoseg explain` says why the others are not planned",
        )
    if not names:
        return plan
    kept = {name: own for name, own in plan.configurations.items() if name in names}
    decisions = tuple(entry for entry in plan.decisions if entry.configuration in (None, *kept))
    return replace(plan, configurations=kept, decisions=decisions)


def estimated_memory_gib(configuration: Configuration) -> float:
    """Memory of one training step, in proportion to the feature maps of a batch."""
    return configuration.estimated_feature_map_elements * configuration.batch_size * BYTES_PER_ELEMENT / 2**30


def store_gib(plan: Plan, configuration: Configuration, fingerprint: Fingerprint) -> float:
    """Disk space of the preprocessed cases of a configuration: 4 bytes per voxel and channel, 1 per label."""
    voxels = 0
    for case in fingerprint.cases:
        spacing = [case.spacing_mm[axis] for axis in plan.axis_order]
        shape = [case.shape_after_crop[axis] for axis in plan.axis_order]
        target = [*spacing[: 3 - configuration.dimensions], *configuration.spacing_mm]
        voxels += math.prod(resampled_shape(tuple(shape), tuple(spacing), tuple(target)))
    return voxels * (4 * len(plan.channels) + 1) / 2**30


def plan_document(plan: Plan) -> dict[str, Any]:
    """The plan as `autoseg plan --json` prints it."""
    return {
        "preset": plan.preset,
        "memory_gib": plan.memory_gib,
        "axis_order": list(plan.axis_order),
        "configurations": {name: _configuration_document(own) for name, own in plan.configurations.items()},
        "decisions": [to_data(decision) for decision in plan.decisions],
    }


def _configuration_document(configuration: Configuration) -> Mapping[str, Any]:
    network = configuration.network
    fields = to_data(configuration)
    topology = fields.pop("network")
    fields.pop("name")
    topology.pop("dimensions")
    topology["network"] = topology.pop("kind")
    return {**fields, **topology, "n_stages": network.n_stages}
