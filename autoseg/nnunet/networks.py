"""Network architectures in nnU-Net v2's plans, as topologies of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autoseg.core import records
from autoseg.core.errors import PlanFault, RecordFault
from autoseg.networks.kinds.unet import MOST_STAGES, PlainUNet, ResidualUNet, UNetSpec

ARCHITECTURES: dict[str, tuple[type[UNetSpec], str]] = {
    "PlainConvUNet": (PlainUNet, "n_conv_per_stage"),
    "ResidualEncoderUNet": (ResidualUNet, "n_blocks_per_stage"),
}
"""Last part of the class name in dynamic-network-architectures, the network of ours that computes the same, and the
argument that says how many blocks its encoder has."""

_PACKAGE = "dynamic_network_architectures.architectures."

_HARMLESS = {"deep_supervision", "dropout_op", "dropout_op_kwargs"}
"""Arguments that change training only."""

_TOPOLOGY = {"n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder"}


@dataclass(frozen=True, slots=True)
class _Legacy:
    """The fields that described a network before July 2024, when nnU-Net had two architectures only."""

    UNet_class_name: str
    UNet_base_num_features: int
    unet_max_num_features: int
    n_conv_per_stage_encoder: tuple[int, ...]
    n_conv_per_stage_decoder: tuple[int, ...]
    pool_op_kernel_sizes: tuple[tuple[int, ...], ...]
    conv_kernel_sizes: tuple[tuple[int, ...], ...]


def network_spec(configuration: Mapping[str, Any], dimensions: int, where: str) -> UNetSpec:
    """The topology of a configuration in nnU-Net's plans, in the notation of today or that of before 2024.

    Args:
        configuration: the configuration, inheritance resolved.
        dimensions: 2 or 3, as the patch has.
        where: the source, for error messages.

    Raises:
        PlanFault: another architecture than nnU-Net's plain and residual-encoder U-Nets, or with other bricks.
        RecordFault: the entries are faulty.

    Source: nnU-Net v2 utilities/plans_handling/plans_handler.py; dynamic-network-architectures, unet.py.
    """
    if "architecture" not in configuration:
        return _legacy_spec(configuration, dimensions, where)
    architecture = configuration["architecture"]
    table = architecture if isinstance(architecture, Mapping) else {}
    kind, blocks = _kind_of(str(table.get("network_class_name")), where)
    arguments = table.get("arch_kwargs")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    faults = list(_brick_faults(arguments, blocks, dimensions))
    if faults:
        raise PlanFault(
            f"the network is built of other bricks than nnU-Net's U-Nets: {'; '.join(faults)}",
            where=where,
            do="predict with the program that trained it",
        )
    stages = arguments.get("n_stages")
    if not isinstance(stages, int) or not 1 <= stages <= MOST_STAGES:
        raise PlanFault(f"a network of {stages} stages", where=where, do="copy the original plans.json again")
    return _built(
        kind,
        where,
        dimensions=dimensions,
        features_per_stage=_repeated(arguments.get("features_per_stage"), stages),
        kernel_sizes=_per_axis(arguments.get("kernel_sizes"), stages, dimensions),
        strides=_per_axis(arguments.get("strides"), stages, dimensions),
        blocks_per_stage=_repeated(arguments.get(blocks), stages),
        decoder_convs_per_stage=_repeated(arguments.get("n_conv_per_stage_decoder"), stages - 1),
    )


def _kind_of(class_name: str, where: str) -> tuple[type[UNetSpec], str]:
    name = class_name.rpartition(".")[2]
    if name not in ARCHITECTURES or not class_name.startswith((_PACKAGE, name)):
        raise PlanFault(
            f"the model is a network of another architecture, {class_name}",
            where=where,
            why=f"AutoSeg has nnU-Net's {' and '.join(ARCHITECTURES)}",
            do="predict with the program that trained it",
        )
    return ARCHITECTURES[name]


def _legacy_spec(configuration: Mapping[str, Any], dimensions: int, where: str) -> UNetSpec:
    kind, _ = _kind_of(str(configuration.get("UNet_class_name")), where)
    legacy = records.from_data(_Legacy, dict(configuration), where)
    stages = len(legacy.n_conv_per_stage_encoder)
    limit = min(stages, MOST_STAGES)
    return _built(
        kind,
        where,
        dimensions=dimensions,
        features_per_stage=tuple(
            min(legacy.UNet_base_num_features * 2**stage, legacy.unet_max_num_features) for stage in range(limit)
        ),
        kernel_sizes=legacy.conv_kernel_sizes,
        strides=legacy.pool_op_kernel_sizes,
        blocks_per_stage=legacy.n_conv_per_stage_encoder,
        decoder_convs_per_stage=legacy.n_conv_per_stage_decoder,
    )


def _repeated(value: Any, times: int) -> Any:
    """A number that stands for all stages or axes written out; anything else as it is, for the record to check."""
    return [value] * times if isinstance(value, int) else value


def _per_axis(value: Any, stages: int, dimensions: int) -> Any:
    rows = _repeated(value, stages)
    return [_repeated(row, dimensions) for row in rows] if isinstance(rows, list) else rows


def _built(kind: type[UNetSpec], where: str, **fields: object) -> UNetSpec:
    try:
        return records.from_data(kind, fields, where)
    except RecordFault as fault:
        raise PlanFault(
            f"the network's topology cannot be built: {fault.what}",
            where=where,
            do="copy the original plans.json again",
        ) from fault


def _brick_faults(arguments: Mapping[str, Any], blocks: str, dimensions: int) -> Iterator[str]:
    """Everything in which the network differs from the bricks of ours; names are compared by their last part."""
    bricks = {
        "conv_op": f"Conv{dimensions}d",
        "norm_op": f"InstanceNorm{dimensions}d",
        "nonlin": "LeakyReLU",
    }
    for argument, expected in bricks.items():
        found = arguments.get(argument)
        if str(found).rpartition(".")[2] != expected or not str(found).startswith("torch.nn."):
            yield f"{argument} is {found}, not {expected}"
    if arguments.get("conv_bias") is not True:
        yield "convolutions have no bias"
    yield from _argument_faults(arguments.get("norm_op_kwargs"), "norm_op_kwargs", {"eps": 1e-5, "affine": True})
    yield from _argument_faults(arguments.get("nonlin_kwargs"), "nonlin_kwargs", {"negative_slope": 0.01})
    known = {*bricks, *_TOPOLOGY, *_HARMLESS, blocks, "conv_bias", "norm_op_kwargs", "nonlin_kwargs"}
    for argument in sorted(set(arguments) - known):
        if arguments[argument] not in (None, False):
            yield f"{argument} is {arguments[argument]!r}"


def _argument_faults(found: object, name: str, expected: Mapping[str, Any]) -> Iterator[str]:
    """Arguments of a brick that are not as expected; one left out has torch's default."""
    defaults = {"eps": 1e-5, "affine": False, "negative_slope": 0.01, "inplace": False, "track_running_stats": False}
    given = {**defaults, **(found if isinstance(found, Mapping) else {})}
    for key in sorted(set(given) - {"inplace", "momentum"}):
        wanted = expected.get(key, defaults.get(key))
        if given[key] != wanted:
            yield f"{name} has {key} = {given[key]!r}, not {wanted!r}"
