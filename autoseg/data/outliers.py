"""Cases that differ from all others: by their spacing, extent, intensities or volumes."""

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


Properties = dict[str, tuple[float, str]]
"""What is compared of a case: name ("spacing along z") -> value and unit ("mm", "ml", or "" for intensities)."""


@dataclass(frozen=True, slots=True)
class TrainingRange:
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
        if self.unit:  # logarithms make ratios of differences
            value, lowest, highest, first, third = (math.log(place) for place in places)
            slack = SLACK
        else:
            value, lowest, highest, first, third = places
            slack = SLACK * max(abs(lowest), abs(highest))
        reach = FENCE * (third - first)
        return min(lowest - slack, first - reach) <= value <= max(highest + slack, third + reach)


@dataclass(frozen=True, slots=True)
class Outlier:
    """A property in which a case differs from all cases of a dataset.

    Attributes:
        what: the property ("spacing along z", "volume of liver").
        value: of the case.
        known: its range in the dataset.
    """

    what: str
    value: float
    known: TrainingRange

    @property
    def sentence(self) -> str:
        """The difference in words."""
        low, high = self.known.lowest, self.known.highest
        unit = f" {self.known.unit}" if self.known.unit else ""
        seen = f"{_short(low)}{unit}" if math.isclose(low, high) else f"{_short(low)} to {_short(high)}{unit}"
        if not self.value and self.known.unit == "ml":
            return f"{self.what} is 0; all {self.known.cases} training cases have it ({seen})"
        return f"{self.what} is {_short(self.value)}{unit}; {self.known.cases} training cases have {seen}"


def _short(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def properties(case: CaseStatistics, channels: Sequence[str], labels: LabelSet | None = None) -> Properties:
    """Value and unit of every property that is compared; volumes only where the case's classes are known.

    Args:
        case: statistics; its axes in the order of the files.
        channels: their names.
        labels: the classes to give volumes of, or None for none. Where voxels may be unlabeled, what is labeled has
            no volume that could be compared.
    """
    return {**_lengths(case), **_intensities(case, channels), **_volumes(case, labels)}


def _lengths(case: CaseStatistics) -> Properties:
    """Spacing and extent along each axis; a single slice has none across."""
    found: Properties = {}
    for axis, length, step_mm in zip(_AXES, case.shape, case.spacing_mm, strict=True):
        if length > 1:
            found[f"spacing along {axis}"] = (step_mm, "mm")
            found[f"extent along {axis}"] = (length * step_mm, "mm")
    return found


def _intensities(case: CaseStatistics, channels: Sequence[str]) -> Properties:
    return {
        f"{level:.4g} quantile of {channel}": (value, "")
        for channel, quantiles in zip(channels, case.quantiles, strict=False)
        for level, value in zip(QUANTILE_LEVELS, quantiles, strict=True)
        if level in _COMPARED_LEVELS
    }


def _volumes(case: CaseStatistics, labels: LabelSet | None) -> Properties:
    if labels is None or labels.ignore is not None or case.class_voxels is None:
        return {}
    voxel_ml = math.prod(case.spacing_mm) / _MM3_PER_ML
    return {
        f"volume of {name}": (voxel_ml * sum(case.class_voxels.get(str(v), 0) for v in labels.classes[name]), "ml")
        for name in labels.foreground
    }


def training_ranges(cases: Iterable[Mapping[str, tuple[float, str]]]) -> dict[str, TrainingRange]:
    """The range and quartiles of each property over the cases that have it.

    Args:
        cases: `properties` of each case.
    """
    all_cases = list(cases)
    units = {name: unit for case in all_cases for name, (_, unit) in case.items()}
    found = {}
    for name, unit in units.items():
        seen = [case[name][0] for case in all_cases if name in case and (case[name][0] or not unit)]
        if seen:
            first, middle, third = (float(value) for value in np.quantile(seen, (0.25, 0.5, 0.75)))
            is_everywhere = len(seen) == len(all_cases)
            found[name] = TrainingRange(unit, min(seen), max(seen), (first, middle, third), len(seen), is_everywhere)
    return found


def find_outliers(case: Mapping[str, tuple[float, str]], ranges: Mapping[str, TrainingRange]) -> tuple[Outlier, ...]:
    """The properties in which a case differs from the cases of a dataset.

    Args:
        case: its `properties`.
        ranges: of the cases it is compared with; properties that are not in it are not compared.
    """
    return tuple(
        Outlier(name, value, ranges[name])
        for name, (value, _) in case.items()
        if name in ranges and not ranges[name].holds(value)
    )


def outliers_among(cases: Mapping[str, Mapping[str, tuple[float, str]]]) -> dict[str, tuple[Outlier, ...]]:
    """For each case that differs from all the others of its own dataset, in which properties.

    Args:
        cases: identifier -> `properties`.
    """
    found = {}
    for name, own in cases.items():
        outliers = find_outliers(own, training_ranges(other for key, other in cases.items() if key != name))
        if outliers:
            found[name] = outliers
    return found
