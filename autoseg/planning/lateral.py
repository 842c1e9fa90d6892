"""Classes that are each other's mirror image: found by their names, and what a mirrored patch has to exchange."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autoseg.core.errors import PlanFault
from autoseg.data.model import LabelSet
from autoseg.planning.plan import Configuration, Plan

LEFT, RIGHT = ("left", "lt", "lh", "l"), ("right", "rt", "rh", "r")
"""Words that name a side, each with its opposite at the same place; from FreeSurfer comes "lh" for a hemisphere."""

HEART_WORDS = ("heart", "cardiac", "atrium", "atrial", "atria", "ventricle", "ventricular")
"""Left and right chambers of the heart differ in build, so a mirrored left one is still a left one (assumption)."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_a-zA-Z]+")


@dataclass(frozen=True, slots=True)
class LateralSwap:
    """What is exchanged where an image of a configuration is mirrored from left to right.

    Attributes:
        axis: spatial axis of the configuration (0 = first axis of the patch) that runs from left to right.
        values: for every training value the one that stands there after mirroring.
        heads: for every output channel the one of the mirrored image that takes its place.
        channels: the same for the input channels of a network.
    """

    axis: int
    values: tuple[int, ...]
    heads: tuple[int, ...]
    channels: tuple[int, ...]


def find_pairs(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs (left, right) of class names that differ in the side they name and in nothing else.

    The side may stand anywhere in a name, in any case: `left_lung`, `LungLeft`, `parotid-L`, `lh_cortex`, `leftkidney`.
    A name without its counterpart is in no pair, nor are the chambers of the heart; `heart_pairs` finds these.
    """
    return tuple(pair for pair in _all_pairs(names) if not _is_of_heart(pair[0]))


def heart_pairs(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs (left, right) of the chambers of the heart, which look different and so are not to be exchanged."""
    return tuple(pair for pair in _all_pairs(names) if _is_of_heart(pair[0]))


def without_counterpart(names: Sequence[str]) -> tuple[str, ...]:
    """Class names with the word left or right that are in no pair; chambers of the heart do not count."""
    paired = {name for pair in _all_pairs(names) for name in pair}
    sides = {LEFT[0], RIGHT[0]}
    return tuple(
        name for name in names if name not in paired and sides & set(_plain_words(name)) and not _is_of_heart(name)
    )


def can_swap(labels: LabelSet, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether exchanging the classes of the pairs is an exchange of training values, as regions may prevent it."""
    return _value_swap(labels, pairs) is not None


def value_swap(labels: LabelSet, pairs: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """For every training value (0 to the largest, the ignore value included) the one that it is exchanged for.

    Values of regions are exchanged for values that lie in the exchanged regions: with `left` in `body`, `right` stands
    for `left` only if it lies in `body` too.

    Raises:
        PlanFault: a pair names an unknown class, or the regions cannot be exchanged.
    """
    swap = _value_swap(labels, pairs)
    if swap is None:
        shown = ", ".join(f"{left} and {right}" for left, right in pairs)
        raise PlanFault(
            f"{shown} cannot be exchanged: they are unknown, named twice, or regions that do not mirror each other",
            do="pin lateral_pairs: [] or pairs of classes that mirror each other",
        )
    return swap


def head_swap(labels: LabelSet, pairs: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """For every head of a network the one that it is exchanged for; arguments and errors as for `value_swap`."""
    values = value_swap(labels, pairs)
    if not labels.has_regions:
        return values[: labels.head_count]
    opposite = _opposites(pairs)
    return tuple(labels.foreground.index(opposite.get(name, name)) for name in labels.foreground)


def lateral_swap(plan: Plan, configuration: Configuration) -> LateralSwap | None:
    """What mirroring has to exchange in a configuration; None without pairs, or if no axis runs from left to right.

    A 2D configuration looks at slices across the plan's first axis, along which nothing is mirrored.
    """
    if plan.lateral_axis is None or not plan.lateral_pairs:
        return None
    axis = plan.lateral_axis - (3 - configuration.dimensions)
    if axis < 0:
        return None
    values = value_swap(plan.labels, plan.lateral_pairs)
    image = tuple(range(len(plan.channels)))
    channels = image
    if configuration.cascade_from is not None:
        previous = plan.labels.foreground_values
        channels += tuple(len(image) + previous.index(values[value]) for value in previous)
    return LateralSwap(axis, values, head_swap(plan.labels, plan.lateral_pairs), channels)


def _all_pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    by_words: dict[tuple[str, ...], str] = {}
    for name in names:
        by_words.setdefault(_words(name), name)
    taken: set[str] = set()
    for name in names:
        for mirrored in _right_forms(_words(name)):
            other = by_words.get(mirrored)
            if other is not None and not {name, other} & taken:
                taken |= {name, other}
                yield name, other


def _words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case, a side that is written together with another word split off."""
    return tuple(part for word in _plain_words(name) for part in _without_side(word))


def _plain_words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(name))


def _without_side(word: str) -> Iterator[str]:
    for side in (LEFT[0], RIGHT[0]):
        if word != side and word.startswith(side):
            return iter((side, word.removeprefix(side)))
        if word != side and word.endswith(side):
            return iter((word.removesuffix(side), side))
    return iter((word,))


def _right_forms(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words with one left side replaced by the right one."""
    for place, word in enumerate(words):
        if word in LEFT:
            yield (*words[:place], RIGHT[LEFT.index(word)], *words[place + 1 :])


def _is_of_heart(name: str) -> bool:
    words = _words(name)
    return any(word in HEART_WORDS for word in words) and "lateral" not in words


def _opposites(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {name: other for left, right in pairs for name, other in ((left, right), (right, left))}


def _value_swap(labels: LabelSet, pairs: Sequence[tuple[str, str]]) -> tuple[int, ...] | None:
    opposite = _opposites(pairs)
    if len(opposite) != 2 * len(pairs) or not set(opposite) <= set(labels.foreground):
        return None
    members: dict[frozenset[str], list[int]] = {}
    for value in range(labels.largest_value + 1):
        members.setdefault(frozenset(n for n, values in labels.classes.items() if value in values), []).append(value)
    swap = list(range(labels.largest_value + 1))
    for names, values in members.items():
        others = members.get(frozenset(opposite.get(name, name) for name in names), [])
        if len(others) != len(values):
            return None
        for value, other in zip(values, others, strict=True):
            swap[value] = other
    return tuple(swap)
