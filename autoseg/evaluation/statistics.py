"""How sure a mean over cases is: bootstrap intervals, and paired differences of two methods.

Everywhere the mean is the one that nnU-Net reports: over the classes, of the mean over the cases in which a class's
score is defined. Cases are drawn with replacement; all classes of a case go together, as they are not independent.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""Bootstrap resamples; the ends of a 95 % interval then vary by a few hundredths of its width (assumption)."""

COVERAGE = 0.95

Values = NDArray[np.floating[Any]]


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the defined scores; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def foreground_mean(values: Values) -> float:
    """Mean over classes of the mean over cases, undefined scores left out; NaN if none is defined.

    Args:
        values: (cases,) or (cases, classes) with NaN where undefined.

    Source: nnU-Net v2 evaluation/evaluate_predictions.py (foreground_mean).
    """
    return float(_means(_table(values), np.ones((1, len(values))))[0])


def bootstrap_interval(values: Values, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of `foreground_mean` over resampled cases; NaN if no score is defined.

    Args:
        values: (cases,) or (cases, classes) with NaN where undefined.
        seed: of the resampling; the same seed draws the same cases for any values of as many cases.
    """
    return _interval(_means(_table(values), _draws(len(values), seed)))


def paired_difference(a: Values, b: Values, seed: int = 0) -> tuple[float, float, float]:
    """Mean of `a` minus mean of `b` on the same cases, and the ends of its 95 % bootstrap interval.

    Args:
        a: scores of one method, (cases,) or (cases, classes), NaN where undefined.
        b: scores of the other, for the same cases in the same order.
        seed: of the resampling.
    """
    draws = _draws(len(a), seed)
    differences = _means(_table(a), draws) - _means(_table(b), draws)
    return foreground_mean(a) - foreground_mean(b), *_interval(differences)


def _table(values: Values) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    return table[:, None] if table.ndim == 1 else table


@lru_cache(maxsize=16)
def _draws(cases: int, seed: int) -> NDArray[np.float64]:
    """How often each case is drawn in each resample (resamples, cases)."""
    generator = np.random.default_rng(seed)
    draws: NDArray[np.float64] = generator.multinomial(cases, np.full(cases, 1 / cases), RESAMPLES).astype(np.float64)
    return draws


def _means(table: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """`foreground_mean` of each resample; classes that a resample does not hold are left out of it."""
    is_defined = np.isfinite(table)
    counts = draws @ is_defined.astype(np.float64)
    sums = draws @ np.where(is_defined, table, 0.0)
    has_any = counts > 0
    of_classes = np.divide(sums, counts, out=np.zeros_like(sums), where=has_any)
    classes = has_any.sum(1)
    means = np.full(len(draws), np.nan)
    np.divide(of_classes.sum(1), classes, out=means, where=classes > 0)
    return means


def _interval(means: NDArray[np.float64]) -> tuple[float, float]:
    known = means[np.isfinite(means)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)
