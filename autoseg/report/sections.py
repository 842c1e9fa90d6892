"""The report of a dataset as a page: what the data is, the plan, the runs, the choice, and every case."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoseg.data.fingerprint import CaseStatistics
from autoseg.data.model import Dataset
from autoseg.data.outliers import Outlier, outliers_among, properties
from autoseg.data.survey import Survey
from autoseg.evaluation.confusion import shares, value_names
from autoseg.evaluation.metrics import COUNT_METRICS
from autoseg.evaluation.statistics import bootstrap_interval
from autoseg.planning.plan import Decision, Plan
from autoseg.report.cases import ReportedCase, mean_dice
from autoseg.report.charts import (
    agreement,
    agreement_chart,
    dice_chart,
    interval_chart,
    loss_chart,
    strip_chart,
)
from autoseg.report.pages import MISSING, MOST_CLASSES, render
from autoseg.runs.run import Run, RunStatus
from autoseg.selection.record import Selection

_SHOWN_PROBLEMS = 200
_MOST_CANDIDATES = 20  # of the chart; the table has all
_MM3_PER_ML = 1000.0

_SEVERITIES = {  # style, title, note
    "refused": ("bad", "refused", "these cases are not used"),
    "warning": ("warn", "suspicious", "these cases are used; look at them"),
    "note": ("", "notes", "settled while reading"),
}


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """What is known of a run when the report is written.

    Attributes:
        run: configuration and fold.
        status: where it stands, or None if it was not started.
        history: lines of its history.jsonl.
        device: "cpu", "cuda" or "mps"; empty if it was not started.
        remark: what is not as usual, or empty.
    """

    run: Run
    status: RunStatus | None = None
    history: Sequence[Mapping[str, Any]] = ()
    device: str = ""
    remark: str = ""

    @property
    def is_done(self) -> bool:
        """Whether training and validation are finished."""
        return self.status is not None and self.status.state == "done"


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """Everything that the report of a dataset shows; what does not exist yet is empty.

    Attributes:
        plan: of the dataset.
        dataset: as detected.
        survey: problems found and statistics of the usable cases.
        runs: every configuration and fold, in the order of the plan.
        selection: what was selected, or None.
        source: what predicted the cases below.
        cases: worst first.
        references: folder of other label maps that the cases are compared with; empty for the dataset's own.
        own_dice: then the mean Dice of the cases on the dataset's own label maps.
        stale: sentences about what is not of the files, runs and plan of now.
    """

    plan: Plan
    dataset: Dataset
    survey: Survey
    runs: tuple[ReportedRun, ...]
    selection: Selection | None
    source: str
    cases: tuple[ReportedCase, ...]
    references: str = ""
    own_dice: float | None = None
    stale: tuple[str, ...] = ()

    @property
    def usable(self) -> tuple[CaseStatistics, ...]:
        """Statistics of the cases that are used."""
        return self.survey.fingerprint.cases

    @property
    def outliers(self) -> dict[str, tuple[Outlier, ...]]:
        """Respects in which cases are unlike the others, of those that are."""
        compared = {case.identifier: properties(case, self.plan.channels, self.plan.labels) for case in self.usable}
        return outliers_among(compared)

    @property
    def done(self) -> int:
        """Number of runs of which training and validation are finished."""
        return sum(own.is_done for own in self.runs)


def dataset_page(report: DatasetReport) -> str:
    """The page, complete in itself."""
    foreground = report.plan.labels.foreground
    return render(
        "dataset.html",
        report=report,
        outliers=report.outliers,
        stage=_stage(report),
        severities=_SEVERITIES,
        most_problems=_SHOWN_PROBLEMS,
        classes=foreground,
        most_classes=MOST_CLASSES,
        mean=mean_dice(report.cases),
        annotated=_annotated_share(report),
        is_stale=report.selection is not None and not report.selection.is_of(report.plan),
        **_data(report),
        decisions=_decisions(report.plan),
        curves=_curves(report),
        **_results(report),
    )


def _stage(report: DatasetReport) -> tuple[str, str, str]:
    """Where the dataset stands, what to do next, and the command for it."""
    if all(own.status is None for own in report.runs):
        return "planned, not trained", "train what the plan holds.", "autoseg train DATASET"
    counted = f"{report.done} of {len(report.runs)} runs done"
    if report.selection is not None:
        return f"selected; {counted}", "segment new images.", "autoseg predict DATASET -i IMAGES -o OUT"
    if report.done < len(report.runs):
        return counted, "the same command goes on.", "autoseg train DATASET"
    if not any(scores.cases for own in report.runs if (scores := own.run.scores) is not None):
        return f"{counted}, no case validated", "segment new images.", "autoseg predict DATASET -i IMAGES -o OUT"
    return counted, "compare configurations and ensembles.", "autoseg select DATASET"


def _annotated_share(report: DatasetReport) -> float | None:
    """Share of the voxels that are annotated; None where all are by declaration."""
    ignored = report.plan.labels.ignore
    if ignored is None:
        return None
    counts = [case.class_voxels or {} for case in report.usable]
    total = sum(sum(own.values()) for own in counts)
    return 1 - sum(own.get(str(ignored), 0) for own in counts) / max(total, 1)


def _data(report: DatasetReport) -> dict[str, Any]:
    is_flat = bool(report.usable) and all(case.shape[0] == 1 for case in report.usable)
    unit = "pixels" if is_flat else "ml"
    return {
        "unit": unit,
        "class_rows": [_class_row(report, name, unit) for name in report.plan.labels.foreground],
        "data_charts": _data_charts(report, is_flat),
    }


def _class_row(report: DatasetReport, name: str, unit: str) -> dict[str, Any]:
    """How often and how large a class is in the training cases."""
    labels = report.plan.labels
    file_values = labels.file_values or tuple(range(labels.largest_value + 1))
    sizes = [_class_size(case, labels.classes[name], unit) for case in report.usable]
    seen = [size for size in sizes if size]
    return {
        "name": name,
        "file_values": ", ".join(str(file_values[value]) for value in labels.classes[name]),
        "cases": len(seen),
        "median": float(np.median(seen)) if seen else None,
        "low": min(seen, default=None),
        "high": max(seen, default=None),
    }


def _class_size(case: CaseStatistics, values: Iterable[int], unit: str) -> float:
    voxels = sum((case.class_voxels or {}).get(str(value), 0) for value in values)
    return float(voxels) if unit == "pixels" else voxels * math.prod(case.spacing_mm) / _MM3_PER_ML


def _data_charts(report: DatasetReport, is_flat: bool) -> list[dict[str, Any]]:
    """A dot for each case: spacing and extent along each axis, and median intensity of each channel."""
    spacing: dict[str, dict[str, float]] = {}
    extent: dict[str, dict[str, float]] = {}
    medians: dict[str, dict[str, float]] = {channel: {} for channel in report.plan.channels}
    for case in report.usable:
        for name, step_mm, length in list(zip("zyx", case.spacing_mm, case.shape, strict=True))[is_flat:]:
            spacing.setdefault(name, {})[case.identifier] = step_mm
            extent.setdefault(name, {})[case.identifier] = step_mm * length
        for channel, quantiles in zip(report.plan.channels, case.quantiles, strict=False):
            medians[channel][case.identifier] = quantiles[len(quantiles) // 2]
    shown = (
        (spacing, "mm", "Spacing of the voxels along each axis of the files"),
        (extent, "mm", "Extent of the images along each axis of the files"),
        (medians, "intensity", "Median intensity of each case, per channel"),
    )
    return [{"picture": strip_chart(rows, unit, caption), "caption": caption} for rows, unit, caption in shown]


def _decisions(plan: Plan) -> dict[str, list[Decision]]:
    groups: dict[str, list[Decision]] = {}
    for decision in plan.decisions:
        groups.setdefault(decision.configuration or "all configurations", []).append(decision)
    return groups


def _curves(report: DatasetReport) -> dict[str, dict[str, Any]]:
    """Learning curves of each configuration that has any."""
    histories: dict[str, dict[str, Sequence[Mapping[str, Any]]]] = {}
    for own in report.runs:
        if own.history:
            histories.setdefault(own.run.configuration, {})[f"fold {own.run.fold}"] = own.history
    return {
        name: {
            "loss": loss_chart(curves, f"Losses of {name} over epochs"),
            "dice": dice_chart(curves, f"Dice of {name} on validation patches over epochs"),
            "names": list(curves),
        }
        for name, curves in histories.items()
    }


def _results(report: DatasetReport) -> dict[str, Any]:
    names = report.plan.labels.foreground
    strips = {name: _defined(report.cases, name, "dice") for name in names[:MOST_CLASSES]}
    lowest = min((value for own in strips.values() for value in own.values()), default=0.0)
    limits = (math.floor(min(lowest, 0.9) * 10) / 10, 1.0)  # from the tenth below every value
    agreements = [_agreement(report.cases, name, index) for index, name in enumerate(strips)]
    return {
        "metrics": COUNT_METRICS,
        "candidate_chart": "" if report.selection is None else _candidate_chart(report.selection),
        "summaries": [_summary(report.cases, name) for name in names],
        "dice_strips": strip_chart(strips, "Dice", "Dice of every case, per class", limits),
        "confusion": _confusion(report),
        "agreements": [found for found in agreements if found is not None],
    }


def _defined(cases: Sequence[ReportedCase], name: str, metric: str) -> dict[str, float]:
    """Case -> score of a class, where it is defined; recorded scores may lack a metric."""
    scores = {case.identifier: case.scores.get(name, {}).get(metric) for case in cases}
    return {case: value for case, value in scores.items() if value is not None}


def _summary(cases: Sequence[ReportedCase], name: str) -> dict[str, Any]:
    """How good a class is over all cases, and where it was missed or made up."""
    volumes = [case.volumes[name] for case in cases if name in case.volumes]
    return {
        "name": name,
        "cases": len(_defined(cases, name, "dice")),
        "scores": [_spread(_defined(cases, name, metric).values(), metric) for metric in COUNT_METRICS],
        "missed": sum(bool(reference) and not predicted for predicted, reference in volumes),
        "made_up": sum(bool(predicted) and not reference for predicted, reference in volumes),
    }


def _spread(values: Iterable[float], metric: str) -> dict[str, Any]:
    """Mean of a score with its interval, median and worst value."""
    known = np.array(list(values))
    if not known.size:
        return dict.fromkeys(("mean", "interval", "median", "worst"))
    return {
        "mean": float(known.mean()),
        "interval": bootstrap_interval(known) if known.size > 1 else None,
        "median": float(np.median(known)),
        "worst": float(known.min() if COUNT_METRICS[metric].is_higher_better else known.max()),
    }


def _candidate_chart(selection: Selection) -> Any:
    shown = [
        own for index, own in enumerate(selection.candidates) if index < _MOST_CANDIDATES or own.name == selection.name
    ]
    return interval_chart(shown, selection.name, "Mean Dice of the candidates with 95 % intervals")


def _confusion(report: DatasetReport) -> dict[str, Any] | None:
    """The table without values that never occur."""
    tables = [case.confusion for case in report.cases if case.confusion is not None]
    if not tables:
        return None
    total = np.sum(tables, axis=0)
    occurs = [int(value) for value in np.flatnonzero(total.sum(0) + total.sum(1))]
    names, parts = value_names(report.plan.labels), shares(total)

    def cell(value: int, other: int) -> dict[str, Any]:
        share, count = parts[value, other], f"{total[value, other]:,}"
        return {"shown": _percent(share), "heat": f"{share:.3f}", "count": count, "is_same": value == other}

    rows = [
        {
            "name": names[value],
            "voxels": f"{total[value].sum():,}",
            "cells": [cell(value, other) for other in occurs],
        }
        for value in occurs
        if total[value].any()
    ]
    return {"rows": rows, "names": [names[value] for value in occurs], "cases": len(tables)}


def _percent(share: float) -> str:
    if not share:
        return MISSING
    return "< 0.01 %" if share < 1e-4 else f"{100 * share:.2f} %"


def _agreement(cases: Sequence[ReportedCase], name: str, color: int) -> dict[str, Any] | None:
    """How predicted and reference volumes of a class agree; None without references."""
    volumes = {}
    for case in cases:
        predicted, reference = case.volumes.get(name, (0.0, None))
        if reference is not None:
            volumes[case.identifier] = (predicted, reference)
    if not volumes:
        return None
    unit = cases[0].unit
    picture = agreement_chart(volumes, unit, f"Agreement of predicted and reference volumes of {name}", color)
    return {"name": name, "unit": unit, "picture": picture, "found": agreement(list(volumes.values()))}
