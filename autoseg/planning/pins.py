"""Decisions that the user takes instead of a rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoseg.core.errors import PlanFault
from autoseg.core.registry import choose
from autoseg.images.normalize import NORMALIZATIONS

_POSITIVE = "positive integers"
_NUMBERS = "positive numbers"
_FLAGS = "true or false"

GLOBAL_PINS = {
    "spacing_mm": _NUMBERS,
    "axis_order": "a permutation of 0, 1, 2",
    "normalization": "normalization names, one per channel",
    "use_nonzero_mask": _FLAGS,
    "lateral_pairs": "pairs of class names, [[left, right], ...]; [] exchanges nothing",
    "lateral_axis": "an axis number: 0, 1 or 2",
}
"""Decisions about the whole dataset, in file order z, y, x, and what they are lists of."""

CONFIGURATION_PINS = {
    "patch_size": _POSITIVE,
    "batch_size": "a positive integer",
    "features_per_stage": _POSITIVE,
    "blocks_per_stage": _POSITIVE,
    "decoder_convs_per_stage": _POSITIVE,
    "batch_dice": _FLAGS,
    "mirror_axes": "axis numbers",
}
"""Decisions about one configuration, in the plan's axis order."""

CONFIGURATION_NAMES = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
_SCALARS = {"batch_size", "batch_dice", "lateral_axis"}
_PER_AXIS = {"patch_size"}


@dataclass(frozen=True, slots=True)
class Pins:
    """Pinned values: for the whole dataset or all configurations, and for single configurations."""

    everywhere: Mapping[str, Any] = field(default_factory=dict)
    configurations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def find(self, name: str, configuration: str | None, dimensions: int | None) -> Any:
        """The pinned value of a decision, or None. A per-axis value serves the configurations of its length."""
        own = self.configurations.get(configuration or "", {})
        if name in own:
            return own[name]
        value = self.everywhere.get(name)
        if name in _PER_AXIS and value is not None and len(value) != dimensions:
            return None
        return value


def parse_pins(content: Mapping[str, Any], where: str) -> Pins:
    """Pins out of a mapping such as `{patch_size: [48, 96, 96], 2d: {batch_size: 8}}`, optionally under `pin:`.

    Raises:
        UsageError: a name that no decision has.
        PlanFault: a value that cannot be what it should be; all such faults at once.
    """
    content = content.get("pin", content)
    if not isinstance(content, Mapping):
        raise PlanFault("`pin` must hold `decision: value` lines", where=where, do="correct the file")
    known = dict.fromkeys((*GLOBAL_PINS, *CONFIGURATION_PINS, *CONFIGURATION_NAMES), "")
    faults: list[str] = []
    everywhere: dict[str, Any] = {}
    configurations: dict[str, Mapping[str, Any]] = {}
    for name, value in content.items():
        choose(str(name), known, "decision to pin")
        if name not in CONFIGURATION_NAMES:
            everywhere[name] = _checked(name, value, faults)
        elif isinstance(value, Mapping):
            for inner in value:
                choose(str(inner), CONFIGURATION_PINS, f"decision to pin for {name}")
            configurations[name] = {inner: _checked(inner, pinned, faults) for inner, pinned in value.items()}
        else:
            faults.append(f"{name}: expected `decision: value` lines below it")
    if faults:
        raise PlanFault("; ".join(faults), where=where, do="correct the file")
    return Pins(everywhere, configurations)


def _checked(name: str, value: Any, faults: list[str]) -> Any:
    """The value as a plan holds it (lists as tuples); what is wrong with it is added to `faults`."""
    kind = {**GLOBAL_PINS, **CONFIGURATION_PINS}[name]
    items = [value] if name in _SCALARS else value
    if not isinstance(items, list) or not _fits(name, kind, items):
        faults.append(f"{name}: expected {kind}, found {value!r}")
        return value
    if name in _SCALARS:
        return value
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _fits(name: str, kind: str, items: list[Any]) -> bool:
    if name == "normalization":
        return all(item in NORMALIZATIONS for item in items)
    if name == "lateral_pairs":
        return all(_is_pair_of_names(item) for item in items)
    if kind == _FLAGS:
        return all(isinstance(item, bool) for item in items)
    if not all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items):
        return False
    fits = _NUMBER_CHECKS.get(name, _are_positive_integers)
    return fits(items)


def _is_pair_of_names(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(isinstance(name, str) for name in item)


def _are_positive_integers(items: list[Any]) -> bool:
    return bool(items) and all(isinstance(item, int) and item > 0 for item in items)


_NUMBER_CHECKS: dict[str, Callable[[list[Any]], bool]] = {
    "spacing_mm": lambda items: len(items) == 3 and all(0 < item < math.inf for item in items),
    "axis_order": lambda items: sorted(items) == [0, 1, 2],
    "lateral_axis": lambda items: items[0] in (0, 1, 2),
    "mirror_axes": lambda items: len(set(items)) == len(items) and all(item in (0, 1, 2) for item in items),
}
