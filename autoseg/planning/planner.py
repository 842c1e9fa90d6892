"""From a fingerprint to a plan: the rules, called in reading order; no images, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.core.errors import PlanFault, RecordFault
from autoseg.core.limits import MEMORY_GIB
from autoseg.core.records import from_data, to_data
from autoseg.core.registry import choose
from autoseg.data.fingerprint import Fingerprint, fingerprint_hash
from autoseg.data.model import Dataset, LabelSet
from autoseg.data.naming import has_label_words
from autoseg.networks.spec import NetworkSpec
from autoseg.planning import rules
from autoseg.planning.lateral import value_swap, without_counterpart
from autoseg.planning.pins import DecisionLog, Pins, read_pins
from autoseg.planning.plan import (
    CONFIGURATION_NAMES,
    LABEL_WORDS,
    PLAN_VERSION,
    WHOLE_NAMES,
    Configuration,
    Plan,
    StoreType,
    edges,
)
from autoseg.planning.presets import Preset, load_preset
from autoseg.planning.rules import Chosen, Lateral

_STORE_TYPE: Chosen[StoreType] = Chosen("float32", "stored as they were computed; float16 takes half the disk")
_WHY_POOLED = "2D batches are large, so Dice is pooled over them: a class missing from one slice then does no harm"


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the user may choose about a plan; the defaults ask for nothing.

    Attributes:
        preset: name of a shipped preset, or a YAML file.
        memory_gib: memory target, or None for the preset's own.
        configurations: the only configurations to keep; empty keeps all.
        pins: pinned decisions, or a YAML file of them.
    """

    preset: str = "reference"
    memory_gib: float | None = None
    configurations: tuple[str, ...] = ()
    pins: Path | Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    """What a configuration is planned for: plan axes, one entry per dimension."""

    name: str
    spacing_mm: tuple[float, ...]
    median: tuple[float, ...]
    dataset_voxels: float


@dataclass(frozen=True, slots=True)
class _Common:
    """What all configurations of a plan share."""

    preset: Preset
    memory_gib: float
    labels: LabelSet
    normalization: tuple[str, ...]
    use_nonzero_mask: tuple[bool, ...]
    lateral: Lateral
    log: DecisionLog


def make_plan(
    dataset: Dataset, fingerprint: Fingerprint, options: PlanOptions, training_cases: int | None = None
) -> Plan:
    """Every decision for a dataset, with its reason.

    Args:
        dataset: its channels, labels and files; of the cases only the names.
        fingerprint: statistics of its usable cases.
        options: preset, memory target and pins.
        training_cases: that the dataset announces; default: those of the fingerprint.

    Raises:
        PlanFault: the fingerprint has no cases or impossible spacings, or a pin does not fit the dataset.
    """
    preset, memory_gib, pins = read_options(options)
    spacings, shapes = _arrays(fingerprint)
    log = DecisionLog(pins)
    orientation = log.decide("orientation", rules.orientation(fingerprint))
    target = log.decide("spacing_mm", rules.target_spacing(spacings, shapes))
    order = log.decide("axis_order", rules.axis_order(target))
    median = rules.median_shape(spacings, shapes, target, order)
    spacing = tuple(float(target[axis]) for axis in order)
    common = _common(dataset, fingerprint, order, (preset, memory_gib), log)
    count = len(fingerprint.cases) if training_cases is None else training_cases
    slices = _Target("2d", spacing[1:], median[1:], float(np.prod(median, dtype=np.float64) * count))
    configurations = {"2d": _plan_configuration(common, slices, Chosen(True, _WHY_POOLED))}
    configurations |= _configurations_3d(common, spacing, median, count)
    _record_names(dataset, log)
    store_type = log.decide("store_type", _STORE_TYPE)
    plan = Plan(
        version=PLAN_VERSION,
        dataset=dataset.name,
        preset=preset.name,
        memory_gib=memory_gib,
        axis_order=order,
        channels=dataset.channels,
        labels=dataset.labels,
        file_ending=dataset.file_ending,
        four_d=dataset.four_d,
        intensities=fingerprint.intensities,
        configurations=configurations,
        decisions=tuple(log.decisions),
        fingerprint=fingerprint_hash(fingerprint),
        lateral_axis=common.lateral.axis,
        lateral_pairs=common.lateral.pairs,
        orientation=orientation,
        direction=fingerprint.direction,
        store_type=store_type,
    )
    return _narrowed(plan, options.configurations)


def read_options(options: PlanOptions) -> tuple[Preset, float, Pins]:
    """Preset, memory target in GiB and pins that the options name, every name and value checked.

    Raises:
        UsageError: there is no such preset, configuration or decision, or the memory target is out of bounds.
        RecordFault: the preset is faulty.
        PlanFault: a pinned value is impossible.
    """
    for name in options.configurations:
        choose(name, dict.fromkeys(CONFIGURATION_NAMES), "configuration")
    preset = load_preset(options.preset)
    memory_gib = preset.default_memory_gib if options.memory_gib is None else options.memory_gib
    MEMORY_GIB.check("--memory", memory_gib)
    return preset, memory_gib, read_pins(options.pins)


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


def _arrays(fingerprint: Fingerprint) -> tuple[np.ndarray, np.ndarray]:
    """Spacings and shapes after the crop, (cases, 3) each, in file order."""
    if not fingerprint.cases:
        raise PlanFault(
            "the fingerprint holds no case", do="check the dataset: every case was refused or none is there"
        )
    spacings = np.array([case.spacing_mm for case in fingerprint.cases], dtype=np.float64)
    shapes = np.array([case.shape_after_crop for case in fingerprint.cases], dtype=np.float64)
    is_sound = np.logical_and.reduce(np.isfinite(spacings) & (spacings > 0) & (shapes > 0), axis=1)
    bad = [case.identifier for case, sound in zip(fingerprint.cases, is_sound.tolist(), strict=True) if not sound]
    if bad:
        raise PlanFault(
            f"{len(bad)} cases have a spacing or shape that is zero, negative or not finite: {', '.join(bad[:5])}",
            do="correct the spacing in these files, or remove the cases",
        )
    return spacings, shapes


def _record_names(dataset: Dataset, log: DecisionLog) -> None:
    """Notes what new files are called, where it is not as nnU-Net calls them."""
    names = rules.whole_names(dataset.cases)
    if names.value:
        log.record(WHOLE_NAMES, names)
    if has_label_words((image, case.labels) for case in dataset.cases for image in case.images):
        because = "training images are called as label files of others are, so a new image called so is one as well"
        log.record(LABEL_WORDS, Chosen(True, because))


def _common(
    dataset: Dataset,
    fingerprint: Fingerprint,
    order: tuple[int, int, int],
    scale: tuple[Preset, float],
    log: DecisionLog,
) -> _Common:
    """What all configurations share, decided.

    Args:
        dataset: its channels and labels.
        fingerprint: of its usable cases.
        order: of the axes.
        scale: preset and memory target in GiB.
        log: of the decisions.
    """
    schemes = log.decide("normalization", rules.normalization(dataset.channels))
    masks = log.decide("use_nonzero_mask", rules.use_nonzero_mask(schemes, fingerprint.relative_size))
    _check_channel_count(dataset, fingerprint, schemes, masks)
    lateral = _lateral(fingerprint, dataset.labels, order, log)
    return _Common(*scale, dataset.labels, schemes, masks, lateral, log)


def _lateral(fingerprint: Fingerprint, labels: LabelSet, order: tuple[int, int, int], log: DecisionLog) -> Lateral:
    """What mirroring has to exchange or spare; which axis runs from left to right matters only if there is something.

    Pinned pairs stand for all classes: those of one side then have no counterpart either.
    """
    pairs = log.decide("lateral_pairs", rules.lateral_pairs(labels))
    is_pinned = log.pins.find("lateral_pairs", None, None) is not None
    unpaired = () if is_pinned else without_counterpart(labels.foreground)
    if not pairs and not unpaired:
        return Lateral()
    value_swap(labels, pairs)  # pinned pairs may be impossible
    axis = log.decide("lateral_axis", rules.lateral_axis(fingerprint))
    return Lateral(None if axis is None else order.index(axis), pairs, unpaired)


def _check_channel_count(
    dataset: Dataset, fingerprint: Fingerprint, schemes: Sequence[str], masks: Sequence[bool]
) -> None:
    """Pinned normalizations must name every channel, and the fingerprint must be of this dataset."""
    channels = f"the dataset has {len(dataset.channels)} channels ({', '.join(dataset.channels)})"
    if not len(dataset.channels) == len(schemes) == len(masks):
        raise PlanFault(
            f"{channels}, but {len(schemes)} normalizations and {len(masks)} mask flags are pinned",
            do="pin one entry per channel",
        )
    if len(dataset.channels) != len(fingerprint.intensities):
        raise PlanFault(
            f"{channels}, but the fingerprint is of {len(fingerprint.intensities)}",
            do="use the fingerprint and the description of one dataset",
        )


def _configurations_3d(
    common: _Common, spacing: tuple[float, ...], median: tuple[float, ...], training_cases: int
) -> dict[str, Configuration]:
    """3d_fullres, and the low-resolution stage with its cascade where a patch sees too little."""
    is_3d = rules.needs_3d(median)
    common.log.record("needs_3d", is_3d)
    if not is_3d.value:
        return {}
    silent = replace(common, log=DecisionLog(common.log.pins))
    voxels = float(np.prod(median, dtype=np.float64))
    full_target = _Target("3d_fullres", spacing, median, voxels * training_cases)
    full = _plan_configuration(silent, full_target, Chosen(False, ""))
    low_target, why = _lowres_target(silent, full, training_cases)
    common.log.record("needs_lowres", Chosen(low_target is not None, why))
    pools = "the low-resolution stage sees whole structures, so" if low_target else "without a cascade"
    because = f"{pools} 3d_fullres {'pools Dice over the batch' if low_target else 'takes Dice sample by sample'}"
    planned = {"3d_fullres": _plan_configuration(common, full_target, Chosen(low_target is not None, because))}
    if low_target is None:
        return planned
    low = _plan_configuration(
        common, low_target, Chosen(False, "patches of the low-resolution stage hold most classes")
    )
    cascade = replace(planned["3d_fullres"], name="3d_cascade_fullres", cascade_from="3d_lowres")
    return {"3d_lowres": low, **planned, "3d_cascade_fullres": cascade}


def _lowres_target(common: _Common, full: Configuration, training_cases: int) -> tuple[_Target | None, str]:
    """The coarsening at which a patch sees a quarter of the median case, or None, and why."""
    spacing = np.array(full.spacing_mm)
    median = np.array(full.median_shape)
    full_voxels = voxels = float(np.prod(median, dtype=np.float64))
    patch: Sequence[int] = full.patch_size
    share = math.prod(patch) / full_voxels
    seen = f"a 3d_fullres patch sees {share:.0%} of the median case"
    coarse = full.spacing_mm
    target = None
    while rules.needs_lowres(patch, voxels):
        coarse = rules.lowres_spacing(coarse)
        scaled = spacing / np.array(coarse) * median
        voxels = float(np.prod(scaled, dtype=np.float64))
        rounded = tuple(float(round(float(edge))) for edge in scaled)
        target = _Target("3d_lowres", coarse, rounded, voxels * training_cases)
        patch = _fitted_patch(common, target)[0]
    if target is None:
        return None, f"{seen}, enough context ({rules.LOWRES_BELOW:.0%}): no low-resolution stage"
    if full_voxels / voxels < rules.LOWRES_GAIN:
        return None, f"{seen}, but a low-resolution stage would have hardly fewer voxels: none is planned"
    return target, f"{seen}, less than {rules.LOWRES_BELOW:.0%}: a stage at {edges(coarse)} mm adds context"


def _fitted_patch(common: _Common, target: _Target) -> tuple[tuple[int, ...], NetworkSpec, str]:
    """The largest patch that fits the memory target, with its network and the reason."""
    preset, spacing = common.preset, target.spacing_mm
    size = rules.initial_patch_size(spacing, target.median)
    because = f"the median case is {edges(target.median)} voxels"
    relative_to = target.median
    enlarged = preset.enlarged_patch(spacing, size)
    if enlarged is not None:
        # what had to grow must not shrink again: relative to infinity it is never the largest axis
        grown = zip(enlarged, size, target.median, strict=True)
        relative_to = tuple(math.inf if edge > before else median for edge, before, median in grown)
        size = enlarged
        because += (
            f"; too small for a {preset.network.replace('_', ' ')}: the patch is larger, images are padded with zeros"
        )
    network, patch = preset.network_for_patch(spacing, size)
    first = patch
    budget = rules.budget_elements(preset, len(spacing), common.memory_gib)
    while rules.is_too_large(network.feature_map_elements(patch, common.labels.declared_count), preset, patch, budget):
        smaller = rules.shrink_patch(preset, spacing, (network, patch), relative_to)
        if smaller is None:
            break
        network, patch = smaller
    if patch == first:
        because += "; a patch that covers it, rounded up to what the network divides it by, fits the memory target"
    else:
        because += f"; {edges(first)} does not fit {common.memory_gib:g} GiB, "
        because += "so the relatively largest axis shrank until it did"
    return patch, network, because


def _plan_configuration(common: _Common, target: _Target, batch_dice: Chosen[bool]) -> Configuration:
    """One configuration written out in full, every decision recorded."""
    name, dimensions = target.name, len(target.spacing_mm)
    log, preset = common.log, common.preset
    log.record("target_spacing_mm", Chosen(target.spacing_mm, "the plan's spacing in the plan's axis order"), name)
    fitted, network, because = _fitted_patch(common, target)
    patch = log.decide("patch_size", Chosen(fitted, because), name, dimensions)
    if patch != fitted:
        network = _network_for_pinned(preset, target, patch)
    network = _pinned_network(log, name, network)
    elements = network.feature_map_elements(patch, common.labels.declared_count)
    budget = rules.budget_elements(preset, dimensions, common.memory_gib)
    batch = log.decide("batch_size", rules.batch_size(elements, preset, budget, patch, target.dataset_voxels), name)
    warning = rules.large_batch_warning(batch, dimensions)
    if warning is not None:
        log.record("warning", Chosen(batch, warning), name)
    mirrored = log.decide("mirror_axes", rules.mirror_axes(preset, dimensions, common.lateral), name)
    return Configuration(
        name=name,
        dimensions=dimensions,
        spacing_mm=target.spacing_mm,
        patch_size=patch,
        batch_size=batch,
        median_shape=target.median,
        normalization=common.normalization,
        use_nonzero_mask=common.use_nonzero_mask,
        network=network,
        batch_dice=log.decide("batch_dice", batch_dice, name),
        cascade_from=None,
        estimated_feature_map_elements=elements,
        mirror_axes=tuple(axis for axis in mirrored if axis < dimensions),
    )


def _network_for_pinned(preset: Preset, target: _Target, patch: tuple[int, ...]) -> NetworkSpec:
    """The network for a pinned patch, which must suit it without padding."""
    if len(patch) != len(target.spacing_mm):
        raise PlanFault(
            f"{target.name}: the pinned patch {edges(patch)} has {len(patch)} axes, the configuration "
            f"{len(target.spacing_mm)}",
            do="pin one number of voxels per axis",
        )
    network, padded = preset.network_for_patch(target.spacing_mm, patch)
    if padded != patch:
        raise PlanFault(
            f"{target.name}: the pinned patch {edges(patch)} is not a multiple of {edges(network.total_stride)}",
            do=f"pin patch_size: {list(padded)}, the next that is",
        )
    enlarged = preset.enlarged_patch(target.spacing_mm, patch)
    if enlarged is not None:
        larger = preset.network_for_patch(target.spacing_mm, enlarged)[1]
        raise PlanFault(
            f"{target.name}: the pinned patch {edges(patch)} is too small for a {preset.network.replace('_', ' ')}",
            do=f"pin patch_size: {list(larger)}, the next that is large enough",
        )
    return network


def _pinned_network(log: DecisionLog, name: str, network: NetworkSpec) -> NetworkSpec:
    """The network with the fields that its kind lets users pin, each recorded with its reason."""
    fields = to_data(network)
    for key, reason in network.decisions.items():
        chosen = getattr(network, key)
        fields[key] = log.decide(key, Chosen(chosen, reason.format(spec=network)), name)
        if isinstance(chosen, tuple) and len(fields[key]) != len(chosen):
            raise PlanFault(
                f"{name}: {key} is pinned with {len(fields[key])} entries, but the network needs {len(chosen)}",
                do=f"pin {len(chosen)} entries, for example {list(chosen)}",
            )
    try:
        return from_data(type(network), fields, name)
    except RecordFault as fault:
        raise PlanFault(f"{name}: {fault.what}", do="correct the pinned values") from fault
