"""What is usual for the cases of a dataset, and in which respects a case is unlike them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.data.fingerprint import QUANTILE_LEVELS, CaseStatistics
from autoseg.data.model import LabelSet

FEWEST_CASES = 5
"""Quartiles of fewer cases say nothing (assumption)."""

FENCE = 2.0
"""A value is unusual if it is outside of all values seen, and this many interquartile ranges beyond the quartiles
(assumption: Tukey's fence of 1.5 made wider, as a dozen properties are looked at)."""

SLACK = 0.05
"""Relative distance from the values seen that is never unusual (assumption)."""

_COMPARED_LEVELS = (0.005, 0.05, 0.5, 0.95, 0.995)
_AXES = ("z", "y", "x")
_MM3_PER_ML = 1000.0


@dataclass(frozen=True, slots=True)
class Typical:
    """The values of one property over the cases of a dataset; it names no case.

    Attributes:
        unit: "mm", "ml" or "" for intensities.
        lowest: value seen.
        highest: value seen.
        quartiles: 25 %, 50 % and 75 % of the cases have at most these values.
        cases: number of cases with a value.
        is_everywhere: whether every case has one; a class may be absent.
    """

    unit: str
    lowest: float
    highest: float
    quartiles: tuple[float, float, float]
    cases: int
    is_everywhere: bool = True

    def holds(self, value: float) -> bool:
        """Whether a value is usual. Lengths and volumes are compared as ratios, intensities as differences."""
        if self.cases < FEWEST_CASES or self.lowest <= value <= self.highest:
            return True
        if not value and self.unit:
            return not self.is_everywhere
        places = (value, self.lowest, self.highest, self.quartiles[0], self.quartiles[2])
        if self.unit:
            value, lowest, highest, first, third = (math.log(place) for place in places)
            slack = SLACK
        else:
            value, lowest, highest, first, third = places
            slack = SLACK * max(abs(lowest), abs(highest))
        reach = FENCE * (third - first)
        return min(lowest - slack, first - reach) <= value <= max(highest + slack, third + reach)


@dataclass(frozen=True, slots=True)
class Unlike:
    """A respect in which a case differs from all cases of a dataset.

    Attributes:
        what: the property ("spacing along z", "volume of liver").
        value: of the case.
        typical: of the dataset.
    """

    what: str
    value: float
    typical: Typical

    @property
    def sentence(self) -> str:
        """The difference in words."""
        unit = f" {self.typical.unit}" if self.typical.unit else ""
        low, high = self.typical.lowest, self.typical.highest
        known = f"{_short(low)}{unit}" if math.isclose(low, high) else f"{_short(low)} to {_short(high)}{unit}"
        if not self.value and self.typical.unit == "ml":
            return f"{self.what} is 0; all {self.typical.cases} training cases have it ({known})"
        return f"{self.what} is {_short(self.value)}{unit}; {self.typical.cases} training cases have {known}"


def _short(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def properties(
    case: CaseStatistics, channels: Sequence[str], labels: LabelSet | None = None
) -> dict[str, tuple[float, str]]:
    """Value and unit of every property that is compared; volumes only where the case's classes are known.

    Args:
        case: statistics; its axes in the order of the files.
        channels: their names.
        labels: the classes to give volumes of, or None for none. Where voxels may be unlabeled, what is labeled has
            no volume that could be compared.
    """
    found: dict[str, tuple[float, str]] = {}
    for axis, length, step_mm in zip(_AXES, case.shape, case.spacing_mm, strict=True):
        if length > 1:
            found[f"spacing along {axis}"] = (step_mm, "mm")
            found[f"extent along {axis}"] = (length * step_mm, "mm")
    for channel, quantiles in zip(channels, case.quantiles, strict=False):
        for level, value in zip(QUANTILE_LEVELS, quantiles, strict=True):
            if level in _COMPARED_LEVELS:
                found[f"{level:.4g} quantile of {channel}"] = (value, "")
    if labels is not None and labels.ignore is None and case.class_voxels is not None:
        voxel_ml = math.prod(case.spacing_mm) / _MM3_PER_ML
        for name in labels.foreground:
            voxels = sum(case.class_voxels.get(str(value), 0) for value in labels.classes[name])
            found[f"volume of {name}"] = (voxels * voxel_ml, "ml")
    return found


def typical_of(cases: Iterable[Mapping[str, tuple[float, str]]]) -> dict[str, Typical]:
    """What is usual: for each property its range and quartiles over the cases that have it.

    Args:
        cases: `properties` of each case.
    """
    total = 0
    values: dict[str, list[float]] = {}
    units: dict[str, str] = {}
    for case in cases:
        total += 1
        for name, (value, unit) in case.items():
            units[name] = unit
            if value or not unit:
                values.setdefault(name, []).append(value)
    found = {}
    for name, seen in values.items():
        first, middle, third = (float(value) for value in np.quantile(seen, (0.25, 0.5, 0.75)))
        found[name] = Typical(units[name], min(seen), max(seen), (first, middle, third), len(seen), len(seen) == total)
    return found


def unlike(case: Mapping[str, tuple[float, str]], typical: Mapping[str, Typical]) -> tuple[Unlike, ...]:
    """The respects in which a case differs from what is usual.

    Args:
        case: its `properties`.
        typical: of the cases it is compared with; properties that are not in it are not compared.
    """
    return tuple(
        Unlike(name, value, typical[name])
        for name, (value, _) in case.items()
        if name in typical and not typical[name].holds(value)
    )


def unlike_the_others(cases: Mapping[str, Mapping[str, tuple[float, str]]]) -> dict[str, tuple[Unlike, ...]]:
    """For each case that differs from all the others of its own dataset, in which respects.

    Args:
        cases: identifier -> `properties`.
    """
    found = {}
    for name, own in cases.items():
        remarks = unlike(own, typical_of(other for key, other in cases.items() if key != name))
        if remarks:
            found[name] = remarks
    return found
