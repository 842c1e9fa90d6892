"""Which of several ways to segment is better, and which differences are more than noise.

The unit is the case: every contender has one score per case and class, all contenders are compared on the cases that
all of them have scored. Source: Demsar 2006, "Statistical comparisons of classifiers over multiple data sets".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import UsageError
from autoseg.evaluation.statistics import bootstrap_interval, foreground_mean, paired_difference

SIGNIFICANCE = 0.05
"""Differences whose corrected p-value is below it count as more than noise."""

CaseScores = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""Contender -> case -> class -> score; None where undefined."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Contender:
    """How one contender did.

    Attributes:
        name: of the contender.
        score: mean over the classes of the mean over the cases.
        interval: 95 % bootstrap interval of the score over the cases.
        class_scores: class -> mean over the cases.
        mean_rank: over the cases; 1 is the best, ties share.
        group: letters; contenders that share one do not differ by more than the critical difference.
    """

    name: str
    score: float
    interval: tuple[float, float]
    class_scores: dict[str, float | None]
    mean_rank: float
    group: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two contenders on the same cases.

    Attributes:
        first: the one with the better mean rank.
        second: the other one.
        difference: score of the first minus that of the second.
        interval: 95 % paired bootstrap interval of the difference.
        p_value: Wilcoxon signed-rank test over the cases, two-sided.
        p_corrected: the same by Holm's correction for all pairs.
        is_different: whether `p_corrected` is below 0.05.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p_value: float
    p_corrected: float
    is_different: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several contenders on the same cases.

    Attributes:
        contenders: best mean rank first.
        pairs: every two of them.
        cases: that all contenders have scored.
        left_out: cases that some have not scored, or in which no class is defined for some.
        friedman_p: of the hypothesis that all rank alike; None for two contenders.
        critical_difference: of mean ranks, Nemenyi's test at 0.05.
    """

    contenders: tuple[Contender, ...]
    pairs: tuple[Pair, ...]
    cases: tuple[str, ...]
    left_out: tuple[str, ...]
    friedman_p: float | None
    critical_difference: float


def compare(scores: CaseScores, seed: int = 0) -> Comparison:
    """Ranks, intervals and tests of two or more contenders.

    Args:
        scores: contender -> case -> class -> score, larger is better; average repetitions beforehand.
        seed: of the bootstrap.

    Raises:
        UsageError: fewer than two contenders, or fewer than two cases that all of them have scored.
    """
    if len(scores) < 2:
        raise UsageError(f"a comparison needs at least two contenders, not {len(scores)}", do="name more of them")
    every_case = sorted({case for cases in scores.values() for case in cases})
    cases = [name for name in every_case if all(_is_scored(own.get(name)) for own in scores.values())]
    if len(cases) < 2:
        raise UsageError(
            f"{len(cases)} cases are scored by all contenders: nothing to compare", do="train all of them to the end"
        )
    classes = list(dict.fromkeys(label for own in scores.values() for case in cases for label in own[case]))
    tables = {name: _table(own, cases, classes) for name, own in scores.items()}
    overall = np.array([_case_means(table) for table in tables.values()])
    ranks = dict(zip(tables, mean_ranks(overall), strict=True))
    order = sorted(tables, key=lambda name: ranks[name])
    difference = critical_difference(len(order), len(cases))
    letters = groups([ranks[name] for name in order], difference)
    contenders = tuple(
        _contender(name, tables[name], classes, ranks[name], letters[index], seed) for index, name in enumerate(order)
    )
    left_out = tuple(name for name in every_case if name not in cases)
    return Comparison(contenders, _pairs(order, tables, seed), tuple(cases), left_out, friedman_p(overall), difference)


def mean_ranks(scores: Floats) -> Floats:
    """Mean rank of each contender over the cases; 1 is the largest score, ties share their ranks.

    Args:
        scores: (contenders, cases).
    """
    from scipy.stats import rankdata

    return np.asarray(rankdata(-scores, axis=0).mean(axis=1), dtype=np.float64)


def friedman_p(scores: Floats) -> float | None:
    """The p-value of the hypothesis that all contenders rank alike; None for fewer than three.

    Args:
        scores: (contenders, cases).
    """
    if len(scores) < 3:
        return None
    if (scores == scores[0]).all():
        return 1.0
    from scipy.stats import friedmanchisquare

    return float(friedmanchisquare(*scores).pvalue)


def critical_difference(contenders: int, cases: int, significance: float = SIGNIFICANCE) -> float:
    """The smallest difference of two mean ranks that is more than noise.

    Source: Nemenyi's test; Demsar 2006, section 3.2.2.
    """
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - significance, contenders, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(contenders * (contenders + 1) / (6 * cases))


def groups(ranks: Sequence[float], difference: float) -> list[str]:
    """Letters for contenders in ascending order of rank: two share a letter if they are not told apart.

    Args:
        ranks: mean ranks, ascending.
        difference: critical difference.
    """
    ends = [max(j for j, rank in enumerate(ranks) if rank - begin <= difference) for begin in ranks]
    letters = [""] * len(ranks)
    count = 0
    for begin, end in enumerate(ends):
        if begin and ends[begin - 1] == end:
            continue  # inside the group before
        for index in range(begin, end + 1):
            letters[index] += chr(ord("a") + count)
        count += 1
    return letters


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for the number of tests, in the order given.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def wilcoxon_p(first: Floats, second: Floats) -> float:
    """Two-sided p-value of the signed-rank test of paired scores; 1 if they are all equal.

    Args:
        first: scores (cases,).
        second: scores of the same cases.
    """
    from scipy.stats import wilcoxon

    differences = first - second
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences).pvalue)


def _is_scored(classes: Mapping[str, float | None] | None) -> bool:
    return classes is not None and any(score is not None for score in classes.values())


def _table(own: Mapping[str, Mapping[str, float | None]], cases: Sequence[str], classes: Sequence[str]) -> Floats:
    """(cases, classes), NaN where undefined."""
    found = [[own[case].get(label) for label in classes] for case in cases]
    return np.array([[math.nan if score is None else score for score in row] for row in found])


def _case_means(table: Floats) -> Floats:
    """Mean over the classes of each case."""
    means: Floats = np.nanmean(table, axis=1)
    return means


def _contender(name: str, table: Floats, classes: Sequence[str], rank: float, group: str, seed: int) -> Contender:
    means = {label: foreground_mean(column) for label, column in zip(classes, table.T, strict=True)}
    class_scores = {label: None if math.isnan(mean) else mean for label, mean in means.items()}
    interval = bootstrap_interval(table, seed)
    return Contender(name, foreground_mean(table), interval, class_scores, float(rank), group)


def _pairs(order: Sequence[str], tables: Mapping[str, Floats], seed: int) -> tuple[Pair, ...]:
    pairs = list(combinations(order, 2))
    p_values = [wilcoxon_p(_case_means(tables[a]), _case_means(tables[b])) for a, b in pairs]
    made = []
    for (first, second), p_value, corrected in zip(pairs, p_values, holm(p_values), strict=True):
        mean, low, high = paired_difference(tables[first], tables[second], seed)
        made.append(Pair(first, second, mean, (low, high), p_value, corrected, corrected < SIGNIFICANCE))
    return tuple(made)
