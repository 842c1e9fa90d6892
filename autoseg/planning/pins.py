"""Decisions that the user takes instead of a rule, and the log of all decisions."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from autoseg.core.configs import read_yaml
from autoseg.core.errors import PlanFault, RecordFault
from autoseg.core.records import from_data, record, to_data
from autoseg.core.registry import choose
from autoseg.networks.kinds import NETWORKS
from autoseg.planning.plan import (
    CONFIGURATION_NAMES,
    AxisOrder,
    Count,
    Decision,
    DistinctAxes,
    Length,
    Normalization,
    StoreType,
)
from autoseg.planning.rules import Chosen

T = TypeVar("T")


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
        store_type: of the voxels of prepared images.
        configurations: decisions about single configurations; they win over those about all.
    """

    spacing_mm: tuple[Length, Length, Length] | None = None
    axis_order: AxisOrder | None = None
    normalization: tuple[Normalization, ...] | None = None
    use_nonzero_mask: tuple[bool, ...] | None = None
    lateral_pairs: tuple[tuple[str, str], ...] | None = None
    lateral_axis: Literal[0, 1, 2] | None = None
    store_type: StoreType | None = None
    configurations: Mapping[str, ConfigurationPins] = field(default_factory=dict)

    def find(self, name: str, configuration: str | None, dimensions: int | None) -> Any:
        """The pinned value of a decision, or None. A patch for all serves the configurations of its length."""
        own = self.configurations.get(configuration or "", ConfigurationPins()).value(name)
        if own is not None:
            return own
        value = self.value(name)
        is_other_length = name == "patch_size" and value is not None and len(value) != dimensions
        return None if is_other_length else value


def read_pins(pins: Path | Mapping[str, Any] | None) -> Pins:
    """Pins of a YAML file, or those of a mapping as such a file holds."""
    if isinstance(pins, Path):
        return parse_pins(read_yaml(pins), str(pins))
    return parse_pins(pins or {}, "pins")


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
        return content  # the record says what was expected
    own = {entry.name for entry in fields(kind)} - {"network", "configurations"}
    network = set().union(*(spec.decisions for spec in NETWORKS.values()))
    for name, value in content.items():
        choose(str(name), dict.fromkeys((*own, *network, *others)), "decision to pin")
        if value is None:
            raise PlanFault(f"{name}: a value is expected, and there is none", do="write one, or remove the line")
    return {**_only(content, own), "network": _only(content, network)}


def _only(content: Mapping[str, Any], names: Set[str]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name in names}


class DecisionLog:
    """Decisions in the order they are made; a pinned one replaces the rule's."""

    def __init__(self, pins: Pins) -> None:
        self.pins = pins
        self.decisions: list[Decision] = []

    def decide(
        self, name: str, chosen: Chosen[T], configuration: str | None = None, dimensions: int | None = None
    ) -> T:
        """The pinned value, or the rule's; recorded with its reason."""
        pinned: Any = self.pins.find(name, configuration, dimensions)
        if pinned is None:
            self.record(name, chosen, configuration)
            return chosen.value
        because = f"set by the user; the rule chose {to_data(chosen.value)} ({chosen.because})"
        self.decisions.append(Decision(name, configuration, to_data(pinned), because, by="user"))
        value: T = pinned
        return value

    def record(self, name: str, chosen: Chosen[Any], configuration: str | None = None) -> None:
        """A decision that no pin replaces."""
        self.decisions.append(Decision(name, configuration, to_data(chosen.value), chosen.because))
