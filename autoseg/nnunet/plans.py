"""Plans and fingerprints of nnU-Net v2 as ours: `plans.json` with `dataset.json`, and `dataset_fingerprint.json`.

They are read from the first version of v2 to today's.

Only what AutoSeg computes exactly as nnU-Net does is taken over; anything else is refused with a reason, because a
prediction that is nearly right looks like one that is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, Field, ValidationError

from autoseg.core import records
from autoseg.core.errors import PlanFault, RecordFault
from autoseg.data.fingerprint import FINGERPRINT_VERSION, CaseStatistics, Fingerprint, IntensityStatistics
from autoseg.data.layouts.description import describe_nnunet
from autoseg.data.model import LabelSet
from autoseg.nnunet.networks import network_spec
from autoseg.planning.plan import PLAN_VERSION, AxisOrder, Configuration, Decision, Plan

NORMALIZATIONS = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_0_1",
    "RGBTo01Normalization": "rgb_0_1",
}
"""nnU-Net's normalization classes and ours that compute the same."""

PRESETS = {
    "nnUNetResEncUNetPlans": "resenc-m",
    "nnUNetResEncUNetMPlans": "resenc-m",
    "nnUNetResEncUNetLPlans": "resenc-l",
    "nnUNetResEncUNetXLPlans": "resenc-xl",
}
"""Presets of the plans that nnU-Net's planners name; every other name stands for the plain planner."""

READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO", "Tiff3DIO")
"""Readers that hand out voxels in the order and spacing that ours do."""

_RESAMPLING = "resample_data_or_seg_to_shape"
_ORDERS = {"data": (False, 3), "seg": (True, 1), "probabilities": (False, 1)}
_UNKNOWN_MEMORY_GIB = 0.0
_NO_STATISTICS = IntensityStatistics(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
_REMEDY = "predict with nnU-Net itself, or train the dataset with autoseg train"


@dataclass(frozen=True, slots=True)
class _Entry:
    """The fields of a configuration in nnU-Net's file that predictions depend on, inheritance resolved."""

    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    preprocessor_name: str = "DefaultPreprocessor"
    batch_size: int = 2
    batch_dice: bool = True
    median_image_size_in_voxels: tuple[float, ...] = ()
    previous_stage: str | None = None


@dataclass(frozen=True, slots=True)
class _File:
    """The fields of the file itself."""

    plans_name: str
    image_reader_writer: str
    transpose_forward: AxisOrder
    configurations: dict[str, dict[str, Any]]
    dataset_name: str = ""
    label_manager: str = "LabelManager"
    experiment_planner_used: str = "an unknown planner"
    intensities: Annotated[
        dict[str, IntensityStatistics] | None,
        Field(
            validation_alias=AliasChoices(
                "foreground_intensity_properties_per_channel",
                "foreground_intensity_properties_by_modality",  # in the first versions
            )
        ),
    ] = None


def _finite(statistics: IntensityStatistics) -> IntensityStatistics:
    if not _are_finite(statistics):
        raise ValueError("not finite (no foreground in any case?)")
    return statistics


_Spacing = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Edge = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class _FingerprintFile:
    """The fields of a fingerprint's file; the lists hold one entry per training case, axes z, y, x."""

    spacings: Annotated[tuple[tuple[_Spacing, _Spacing, _Spacing], ...], Field(min_length=1)]
    shapes_after_crop: tuple[tuple[_Edge, _Edge, _Edge], ...]
    foreground_intensity_properties_per_channel: dict[str, Annotated[IntensityStatistics, AfterValidator(_finite)]]
    median_relative_size_after_cropping: Annotated[float, Field(gt=0, le=1)]

    def __post_init__(self) -> None:
        if len(self.spacings) != len(self.shapes_after_crop):
            raise ValueError(
                f"{len(self.spacings)} spacings but {len(self.shapes_after_crop)} shapes; there must be one per case"
            )
        channels = self.foreground_intensity_properties_per_channel
        if not channels or set(channels) != {str(channel) for channel in range(len(channels))}:
            raise ValueError(f"channels are {sorted(channels)}, expected '0', '1', ...")


def read_nnunet_plans(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], names: tuple[str, ...], where: str = "plans.json"
) -> Plan:
    """The plan in nnU-Net's files, with the configurations asked for and the first stages of cascades among them.

    Inheritance between configurations is resolved. nnU-Net keeps the mirror axes in its checkpoints, not in its plans:
    the result has none.

    Args:
        plans: the parsed plans.json, of any nnU-Net v2.
        dataset: the parsed dataset.json that lies beside it.
        names: configurations, as nnU-Net names them.
        where: the file, for error messages.

    Raises:
        RecordFault: a file is faulty.
        PlanFault: it asks for something that AutoSeg does not compute as nnU-Net does.

    Source: nnU-Net v2 utilities/plans_handling/plans_handler.py.
    """
    described = describe_nnunet(dataset, f"dataset.json beside {where}")
    file = records.from_data(_File, dict(plans), where)
    _refuse(_file_faults(file), file.plans_name, where)
    configurations = {
        name: _configuration(name, file, described.labels, where) for name in _with_first_stages(names, file, where)
    }
    channels = range(len(described.channels))
    try:
        plan = Plan(
            version=PLAN_VERSION,
            dataset=file.dataset_name or "nnunet",
            preset=PRESETS.get(file.plans_name, "reference"),
            memory_gib=_UNKNOWN_MEMORY_GIB,
            axis_order=file.transpose_forward,
            channels=described.channels,
            labels=described.labels,
            file_ending=described.file_ending,
            four_d=False,
            intensities=tuple(_intensities(file, channel) or _NO_STATISTICS for channel in channels),
            configurations=configurations,
            decisions=(
                Decision(
                    "plans", None, file.plans_name, f"taken over from nnU-Net v2 ({file.experiment_planner_used})"
                ),
            ),
            fingerprint=records.content_hash(json.dumps(plans, sort_keys=True)),
        )
    except ValidationError as error:
        raise _refusal(records.described_faults(error), file.plans_name, where) from error
    _refuse(_intensity_faults(configurations, file), file.plans_name, where)
    return plan


def read_nnunet_fingerprint(data: Mapping[str, Any], where: str = "dataset_fingerprint.json") -> Fingerprint:
    """The fingerprint in nnU-Net's file.

    The file names no cases and knows nothing of the images before the crop, so cases are numbered, their shape before
    the crop is given as that after it, and each carries the dataset's median relative size.

    Args:
        data: the parsed JSON document.
        where: the file, for error messages.

    Raises:
        RecordFault: fields are missing, of the wrong kind, or cannot be true.

    Source: nnU-Net v2 experiment_planning/dataset_fingerprint/fingerprint_extractor.py.
    """
    file = records.from_data(_FingerprintFile, dict(data), where)
    channels = file.foreground_intensity_properties_per_channel
    relative_size = file.median_relative_size_after_cropping
    return Fingerprint(
        version=FINGERPRINT_VERSION,
        cases=tuple(
            CaseStatistics(f"case_{index:05d}", shape, shape, spacing, relative_size)
            for index, (shape, spacing) in enumerate(zip(file.shapes_after_crop, file.spacings, strict=True))
        ),
        intensities=tuple(channels[str(channel)] for channel in range(len(channels))),
        relative_size=relative_size,
    )


def _resolved(name: str, configurations: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Any]:
    """A configuration with the fields that it inherits."""
    chain: list[str] = []
    current: object = name
    while current is not None:
        title = str(current)
        if title not in configurations or title in chain:
            wrong = "inherits from itself" if title in chain else f"names {title!r}, which is not there"
            raise RecordFault(
                f"the configuration {name} {wrong}; there are {', '.join(configurations)}",
                where=where,
                do="copy the original plans.json again",
            )
        chain.append(title)
        current = configurations[title].get("inherits_from")
    return {key: value for link in reversed(chain) for key, value in configurations[link].items()}


def _with_first_stages(names: tuple[str, ...], file: _File, where: str) -> tuple[str, ...]:
    wanted = dict.fromkeys(names)
    for name in names:
        previous = _resolved(name, file.configurations, where).get("previous_stage")
        if isinstance(previous, str):
            wanted.setdefault(previous)
    return tuple(wanted)


def _configuration(name: str, file: _File, labels: LabelSet, where: str) -> Configuration:
    data = _resolved(name, file.configurations, where)
    entry = records.from_data(_Entry, data, f"{where}, configuration {name}")
    title = f"{file.plans_name}, {name}"
    _refuse([*_entry_faults(entry), *_resampling_faults(data)], title, where)
    network = network_spec(data, len(entry.patch_size), f"{where}, configuration {name}")
    try:
        return Configuration(
            name=name,
            dimensions=network.dimensions,
            spacing_mm=entry.spacing,
            patch_size=entry.patch_size,
            batch_size=entry.batch_size,
            median_shape=_median_shape(entry),
            normalization=tuple(NORMALIZATIONS[scheme] for scheme in entry.normalization_schemes),
            use_nonzero_mask=entry.use_mask_for_norm,
            network=network,
            batch_dice=entry.batch_dice,
            cascade_from=entry.previous_stage,
            estimated_feature_map_elements=network.feature_map_elements(entry.patch_size, labels.declared_count),
            mirror_axes=(),
        )
    except ValidationError as error:
        raise _refusal(records.described_faults(error), title, where) from error


def _median_shape(entry: _Entry) -> tuple[float, ...]:
    """As the file has it, for information only; the patch where the file has nothing usable."""
    edges = entry.median_image_size_in_voxels
    is_usable = len(edges) == len(entry.patch_size) and all(math.isfinite(edge) for edge in edges)
    return edges if is_usable else tuple(map(float, entry.patch_size))


def _intensities(file: _File, channel: int) -> IntensityStatistics | None:
    """Foreground statistics of a channel; None where there are none or no foreground was found."""
    found = (file.intensities or {}).get(str(channel))
    return found if found is not None and _are_finite(found) else None


def _are_finite(statistics: IntensityStatistics) -> bool:
    return all(math.isfinite(value) for value in asdict(statistics).values())


def _refuse(faults: Iterable[str], what: str, where: str) -> None:
    found = list(faults)
    if found:
        raise _refusal("; ".join(found), what, where)


def _refusal(faults: str, what: str, where: str) -> PlanFault:
    return PlanFault(f"the nnU-Net plans {what} cannot be reproduced: {faults}", where=where, do=_REMEDY)


def _file_faults(file: _File) -> Iterator[str]:
    if file.image_reader_writer not in READERS:
        yield f"images are read by {file.image_reader_writer}, which orders their axes in its own way"
    if file.label_manager != "LabelManager":
        yield f"labels are decided by {file.label_manager}"


def _entry_faults(entry: _Entry) -> Iterator[str]:
    unknown = sorted(set(entry.normalization_schemes) - set(NORMALIZATIONS))
    if unknown:
        yield f"intensities are normalized by {', '.join(unknown)}"
    if entry.preprocessor_name != "DefaultPreprocessor":
        yield f"images are prepared by {entry.preprocessor_name}"


def _resampling_faults(data: Mapping[str, Any]) -> Iterator[str]:
    """Every function must be nnU-Net's default one with its default arguments, as ours are."""
    for what, (is_seg, order) in _ORDERS.items():
        name = data.get(f"resampling_fn_{what}")
        if name != _RESAMPLING:
            yield f"{what} is resampled by {name}"
            continue
        given = data.get(f"resampling_fn_{what}_kwargs")
        found = {"order_z": 0, "force_separate_z": None, **(given if isinstance(given, Mapping) else {})}
        expected = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
        if found != expected:
            different = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
            yield f"{what} is resampled with other arguments than the defaults ({', '.join(different)})"


def _intensity_faults(configurations: Mapping[str, Configuration], file: _File) -> Iterator[str]:
    """Channels that are normalized by statistics of the foreground which the file does not have."""
    normalized = {
        channel for own in configurations.values() for channel, kind in enumerate(own.normalization) if kind == "ct"
    }
    for channel in sorted(normalized):
        if _intensities(file, channel) is None:
            yield f"channel {channel} needs foreground intensities, and the file has none"
