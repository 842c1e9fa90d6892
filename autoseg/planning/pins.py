"""Decisions that the user takes instead of a rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Annotated, Any, Literal

from pydantic import Field

from autoseg.core.errors import PlanFault, RecordFault
from autoseg.core.records import from_data, record
from autoseg.core.registry import choose
from autoseg.networks.kinds import NETWORKS
from autoseg.planning.plan import CONFIGURATION_NAMES, AxisOrder, Count, DistinctAxes, Length, Normalization


@record
class ConfigurationPins:
    """Decisions about one configuration, or about all of them, in the plan's axis order; None where a rule decides.

    Attributes:
        network: fields of the network that its kind lets users pin; in the file they stand beside the others.
    """

    patch_size: Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)] | None = None
    batch_size: Count | None = None
    batch_dice: bool | None = None
    mirror_axes: DistinctAxes | None = None
    network: Mapping[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> Any:
        """The pinned value of a decision, or None."""
        return self.network.get(name, getattr(self, name, None))


@record
class Pins(ConfigurationPins):
    """Everything that a user pinned; decisions about the whole dataset are in file order z, y, x.

    Attributes:
        lateral_pairs: names (left, right) of classes that change places in mirrored images; empty exchanges nothing.
        lateral_axis: axis of the files that runs from left to right.
        configurations: decisions about single configurations; they win over those about all.
    """

    spacing_mm: tuple[Length, Length, Length] | None = None
    axis_order: AxisOrder | None = None
    normalization: tuple[Normalization, ...] | None = None
    use_nonzero_mask: tuple[bool, ...] | None = None
    lateral_pairs: tuple[tuple[str, str], ...] | None = None
    lateral_axis: Literal[0, 1, 2] | None = None
    configurations: Mapping[str, ConfigurationPins] = field(default_factory=dict)

    def find(self, name: str, configuration: str | None, dimensions: int | None) -> Any:
        """The pinned value of a decision, or None. A patch for all serves the configurations of its length."""
        own = self.configurations.get(configuration or "", ConfigurationPins()).value(name)
        if own is not None:
            return own
        value = self.value(name)
        is_other_length = name == "patch_size" and value is not None and len(value) != dimensions
        return None if is_other_length else value


def parse_pins(content: Mapping[str, Any], where: str) -> Pins:
    """Pins out of a mapping such as `{patch_size: [48, 96, 96], 2d: {batch_size: 8}}`, optionally under `pin:`.

    Raises:
        UsageError: a name that no decision has.
        PlanFault: a value that cannot be what it should be; all such faults at once.
    """
    content = content.get("pin", content)
    if not isinstance(content, Mapping):
        raise PlanFault("`pin` must hold `decision: value` lines", where=where, do="correct the file")
    single = {name: _arranged(content[name], ConfigurationPins) for name in CONFIGURATION_NAMES if name in content}
    try:
        return from_data(Pins, {**_arranged(content, Pins, CONFIGURATION_NAMES), "configurations": single}, where)
    except RecordFault as fault:
        raise PlanFault(fault.what.removeprefix("not a valid Pins: "), where=where, do="correct the file") from fault


def _arranged(content: Any, kind: type[ConfigurationPins], others: tuple[str, ...] = ()) -> Any:
    """Lines of a file as the record has them, those about the network apart; `others` may stand among them."""
    if not isinstance(content, Mapping):
        return content
    network = {name for spec in NETWORKS.values() for name in spec.decisions}
    own = {entry.name for entry in fields(kind)} - {"network", "configurations"}
    for name, value in content.items():
        choose(str(name), dict.fromkeys((*own, *network, *others)), "decision to pin")
        if value is None:
            raise PlanFault(f"{name}: a value is expected, and there is none", do="write one, or remove the line")
    return {
        **{name: value for name, value in content.items() if name in own},
        "network": {name: value for name, value in content.items() if name in network},
    }
