"""Tensors in a file that somebody else made: nothing is believed that the network does not ask for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from autoseg.core.archives import without_duplicates
from autoseg.core.errors import IntegrityRefusal
from autoseg.networks.build import build_network
from autoseg.planning.plan import Plan

LARGEST_HEADER_BYTES = 16 << 20
"""A network of a thousand layers needs a hundredth of it."""

_LENGTH_BYTES = 8
_TYPE, _TYPE_BYTES = "F32", 4

Shapes = dict[str, tuple[int, ...]]


def network_shapes(plan: Plan, configuration: str) -> Shapes:
    """Shape of every parameter of a configuration's network; none is allocated."""
    spec = plan.configurations[configuration].network
    with torch.device("meta"):
        network = build_network(spec, plan.input_channels(configuration), plan.labels.head_count)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def file_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The most that a file with single-precision tensors of these shapes has."""
    return LARGEST_HEADER_BYTES + sum(_bytes_of(shape) for shape in shapes.values())


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors by name as a safetensors file, in single precision."""
    from safetensors.torch import save

    packed: bytes = save({name: tensor.detach().to(torch.float32).contiguous() for name, tensor in tensors.items()})
    return packed


def unpack_tensors(data: bytes, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Tensor]:
    """Tensors by name out of a safetensors file that holds exactly these shapes in single precision.

    Args:
        data: the file's bytes.
        shapes: name and shape of every tensor that must be there.
        where: the file, for the error.

    Raises:
        IntegrityRefusal: the header is damaged or promises something else, or a weight is not finite.
    """
    fault = _fault_of(data, shapes)
    tensors = {} if fault else _tensors(data, where)
    if not fault:
        wild = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
        fault = f"{wild[0]} holds weights that are infinite or undefined" if wild else None
    if fault:
        raise IntegrityRefusal(
            f"the weights cannot be used: {fault}",
            where=where,
            why="the file was changed, or is of another network",
            do="get the model again from where it was made",
        )
    return tensors


def _tensors(data: bytes, where: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(data)
    except SafetensorError as error:
        raise IntegrityRefusal("the weights cannot be used", where=where, why=str(error)) from error
    return tensors


def _fault_of(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or length > min(LARGEST_HEADER_BYTES, len(data) - _LENGTH_BYTES):
        return "the header is longer than it may be"
    try:
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length], object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        return f"the header cannot be read ({error})"
    if not isinstance(header, dict) or set(header) != set(shapes):
        different = min(set(header) ^ set(shapes), default="") if isinstance(header, dict) else "all"
        return f"{different[:80]!r} is not in the network, or missing"
    spans = []
    for name, shape in shapes.items():
        span = _span(header[name], shape)
        if span is None:
            return f"{name} is not of the planned type and shape"
        spans.append(span)
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            return "tensors overlap or leave gaps"
        position = end
    return None if position == len(data) - _LENGTH_BYTES - length else "there are bytes that belong to no tensor"


def _span(entry: Any, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """First byte of a tensor and the first behind, or None if its entry is not what it should be."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return None
    offsets = entry["data_offsets"]
    if entry["dtype"] != _TYPE or entry["shape"] != list(shape) or not isinstance(offsets, list):
        return None
    if len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        return None
    begin, end = offsets
    return (begin, end) if begin >= 0 and end - begin == _bytes_of(shape) else None


def _bytes_of(shape: tuple[int, ...]) -> int:
    return _TYPE_BYTES * torch.Size(shape).numel()
