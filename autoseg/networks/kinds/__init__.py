"""The kinds of networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator

from autoseg.core.errors import RecordFault
from autoseg.core.records import from_data
from autoseg.core.registry import one_of
from autoseg.networks.kinds.unet import PlainUNet, ResidualUNet
from autoseg.networks.spec import NetworkSpec

NETWORKS: dict[str, type[NetworkSpec]] = {
    "plain_unet": PlainUNet,
    "residual_unet": ResidualUNet,
}


_known = one_of(NETWORKS, "network")


def _of_its_kind(value: Any) -> NetworkSpec:
    """The network that plain data describes, as the record that its `kind` names."""
    if isinstance(value, NetworkSpec):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("expected a mapping with a `kind`")
    kind = NETWORKS[_known(str(value.get("kind")))]
    try:
        return from_data(kind, dict(value), "network")
    except RecordFault as fault:
        raise ValueError(fault.what) from fault


AnyNetwork = Annotated[NetworkSpec, PlainValidator(_of_its_kind)]
"""Type of a record's field that holds a network of any kind.

Kinds are looked up when a record is read, not put together into a union, so that one added to `NETWORKS` later counts.
"""
