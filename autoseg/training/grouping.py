"""Which cases belong together, and folds that keep them on one side and spread rare classes."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.core.errors import MissingInput, RecordFault, UsageError
from autoseg.core.records import read_text

RARE_BELOW = 0.5
"""A class in less than this share of the cases is spread over the folds (assumption: others spread by themselves)."""


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """What is known about the cases of a dataset beside their names.

    Attributes:
        images: hash of the image by case; empty where it is not known. Cases with equal hashes show the same image.
        classes: foreground classes that occur in a case.
        groups: name of the group of each case (a patient, say), or None if each case stands for itself.
        is_stratified: whether the user wants rare classes spread, cases not being grouped.
        on_all_cases: whether the user wants every case trained on and none kept back.
    """

    images: Mapping[str, str]
    classes: Mapping[str, frozenset[str]]
    groups: Mapping[str, str] | None = None
    is_stratified: bool = False
    on_all_cases: bool = False

    @property
    def are_chosen(self) -> bool:
        """Whether the user wants other folds than nnU-Net's."""
        return self.groups is not None or self.is_stratified or self.on_all_cases


def case_groups(group_by: str, identifiers: Collection[str]) -> dict[str, str]:
    """The group of each case, by `--group-by`.

    Args:
        group_by: a CSV file with the columns `case` and `group`, or a regular expression that is searched in the
            identifiers; the group's name is what its parentheses match, or the whole match without any.
        identifiers: of the cases.

    Raises:
        UsageError: not a regular expression, or it does not match some cases.
        MissingInput: there is no such CSV file.
        RecordFault: the file does not give every case a group.
    """
    if group_by.lower().endswith(".csv"):
        return _groups_of_file(Path(group_by), identifiers)
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UsageError(
            f"{group_by!r} is not a regular expression: {error}",
            where="--group-by",
            do=r"write for example '^(patient\d+)', or name a CSV file with the columns case,group",
        ) from error
    found = {name: pattern.search(name) for name in sorted(identifiers)}
    if unmatched := [name for name, match in found.items() if match is None]:
        raise UsageError(
            f"{group_by!r} does not match {len(unmatched)} of {len(found)} cases, {unmatched[0]} for example",
            where="--group-by",
            do="write an expression that matches every case",
        )
    return {name: "/".join(map(str, m.groups())) if m.groups() else m.group() for name, m in found.items() if m}


def _groups_of_file(path: Path, identifiers: Collection[str]) -> dict[str, str]:
    if not path.is_file():
        raise MissingInput(f"there is no file {path}", where="--group-by", do="check its path")
    columns, rows = _rows(path)
    if not {"case", "group"} <= set(columns):
        raise RecordFault(
            f"it has the columns {', '.join(columns) or 'none'} and needs case and group",
            where=str(path),
            do="name the columns case,group in the first line",
        )
    groups = {row["case"]: row["group"] for row in rows if row["case"] and row["group"]}
    if missing := sorted(set(identifiers) - set(groups)):
        raise RecordFault(
            f"{len(missing)} cases have no group, {missing[0]} for example",
            where=str(path),
            do="add a line for each of them",
        )
    return {name: groups[name] for name in sorted(identifiers)}


def _rows(path: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        return reader.fieldnames or (), list(reader)
    except csv.Error as error:
        what = f"line {reader.line_num} cannot be read: {error}"
        raise RecordFault(what, where=str(path), do="correct this line, or write the file again") from error


def units_of(facts: SplitFacts, identifiers: Collection[str]) -> list[tuple[str, ...]]:
    """Cases that must stay together, sorted: one patient, or one image that is there several times."""
    from scipy.cluster.hierarchy import DisjointSet

    # Both relations chain: a patient's second image may be another patient's first one, and then all of them stay
    # together. So cases are merged, not sorted by a key.
    together = DisjointSet(sorted(identifiers))
    images = {name: image for name, image in facts.images.items() if image}
    for keys in (images, facts.groups or {}):
        first: dict[str, str] = {}
        for name in sorted(identifiers):
            if name in keys:
                together.merge(name, first.setdefault(keys[name], name))
    return sorted(tuple(sorted(unit)) for unit in together.subsets())


def spread(
    units: list[tuple[str, ...]], classes: Mapping[str, frozenset[str]], count: int, seed: int
) -> list[tuple[str, ...]]:
    """The cases of each fold, sorted: units stay whole, rare classes and cases come evenly.

    The rarest class is dealt out first, each unit to the fold that has least of it.

    Args:
        units: cases that must stay together.
        classes: that occur in each case.
        count: of folds, at most the number of units.
        seed: of the order in which equals are dealt out.

    Source: Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data".
    """
    shuffled = [units[index] for index in np.random.RandomState(seed).permutation(len(units))]
    left = sorted(shuffled, key=len, reverse=True)  # large ones first, so that small ones even the folds out
    held = {unit: _cases_by_class(unit, classes) for unit in units}
    folds: list[list[str]] = [[] for _ in range(count)]
    had = [Counter[str]() for _ in folds]
    for label in (*_rarest_first(held), ""):  # last those without a rare class, of which every fold has none
        for unit in filter(lambda own: not label or label in held[own], tuple(left)):
            fold = _least_supplied(label, folds, had)
            folds[fold] += unit
            had[fold].update(held[unit])
            left.remove(unit)
    return [tuple(sorted(fold)) for fold in folds]


def _cases_by_class(unit: tuple[str, ...], classes: Mapping[str, frozenset[str]]) -> Counter[str]:
    return Counter(label for name in unit for label in classes.get(name, ()))


def _least_supplied(label: str, folds: list[list[str]], had: list[Counter[str]]) -> int:
    """The fold with the fewest cases of a class; among equals the one with the fewest cases."""
    return min(range(len(folds)), key=lambda number: (had[number][label], len(folds[number]), number))


def _rarest_first(held: Mapping[tuple[str, ...], Counter[str]]) -> list[str]:
    """The rare classes by their number of cases, of what units hold."""
    cases = sum(held.values(), Counter[str]())
    total = sum(map(len, held))
    return sorted((own for own in cases if cases[own] < RARE_BELOW * total), key=lambda own: (cases[own], own))
