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
from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon

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
    every_case = sorted(set().union(*scores.values()))
    classes = list(dict.fromkeys(label for own in scores.values() for case in own.values() for label in case))
    table = np.array([_table(own, every_case, classes) for own in scores.values()])
    is_common = np.isfinite(table).any(axis=2).all(axis=0)
    if is_common.sum() < 2:
        raise UsageError(
            f"{is_common.sum()} cases are scored by all contenders: nothing to compare",
            do="train all of them to the end",
        )
    table = table[:, is_common]
    overall = np.nanmean(table, axis=2)
    ranks = mean_ranks(overall)
    order = np.argsort(ranks, kind="stable")
    names, table, overall, ranks = [list(scores)[index] for index in order], table[order], overall[order], ranks[order]
    difference = critical_difference(*overall.shape)
    letters = groups(list(ranks), difference)
    return Comparison(
        contenders=tuple(_contender(*own, classes, seed) for own in zip(names, table, ranks, letters, strict=True)),
        pairs=_pairs(names, table, overall, seed),
        cases=tuple(np.array(every_case)[is_common].tolist()),
        left_out=tuple(np.array(every_case)[~is_common].tolist()),
        friedman_p=friedman_p(overall),
        critical_difference=difference,
    )


def mean_ranks(scores: Floats) -> Floats:
    """Mean rank of each contender over the cases; 1 is the largest score, ties share their ranks.

    Args:
        scores: (contenders, cases).
    """
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
    return float(friedmanchisquare(*scores).pvalue)


def critical_difference(contenders: int, cases: int, significance: float = SIGNIFICANCE) -> float:
    """The smallest difference of two mean ranks that is more than noise.

    Source: Nemenyi's test; Demsar 2006, section 3.2.2.
    """
    quantile = float(studentized_range.ppf(1 - significance, contenders, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(contenders * (contenders + 1) / (6 * cases))


def groups(ranks: Sequence[float], difference: float) -> list[str]:
    """Letters for contenders in ascending order of rank; two share one if they differ by at most the difference given.

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
    order = np.argsort(p_values, kind="stable")
    stepwise = np.minimum(1.0, np.array(p_values)[order] * np.arange(len(p_values), 0, -1))
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(stepwise)
    return corrected.tolist()


def wilcoxon_p(first: Floats, second: Floats) -> float:
    """Two-sided p-value of the signed-rank test of paired scores; 1 if they are all equal.

    Args:
        first: scores (cases,).
        second: scores of the same cases.
    """
    differences = first - second
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences).pvalue)


def _table(own: Mapping[str, Mapping[str, float | None]], cases: Sequence[str], classes: Sequence[str]) -> Floats:
    """Scores (cases, classes) of one contender, NaN where undefined or missing."""
    return np.array([[own.get(case, {}).get(label) for label in classes] for case in cases], np.float64)


def _contender(name: str, table: Floats, rank: float, group: str, classes: Sequence[str], seed: int) -> Contender:
    means = {label: foreground_mean(column) for label, column in zip(classes, table.T, strict=True)}
    class_scores = {label: None if math.isnan(mean) else mean for label, mean in means.items()}
    interval = bootstrap_interval(table, seed)
    return Contender(name, foreground_mean(table), interval, class_scores, float(rank), group)


def _pairs(names: Sequence[str], table: Floats, overall: Floats, seed: int) -> tuple[Pair, ...]:
    pairs = list(combinations(range(len(names)), 2))
    p_values = [wilcoxon_p(overall[a], overall[b]) for a, b in pairs]
    made = []
    for (a, b), p_value, corrected in zip(pairs, p_values, holm(p_values), strict=True):
        mean, low, high = paired_difference(table[a], table[b], seed)
        made.append(Pair(names[a], names[b], mean, (low, high), p_value, corrected, corrected < SIGNIFICANCE))
    return tuple(made)
