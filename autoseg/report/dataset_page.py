"""The report of a dataset as a page: what the data is, the plan, the runs, the choice, and every case."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from autoseg.data.fingerprint import CaseStatistics
from autoseg.data.model import Problem
from autoseg.evaluation.confusion import shares, value_names
from autoseg.evaluation.statistics import bootstrap_interval
from autoseg.planning.plan import Configuration, Decision
from autoseg.report.charts import (
    Interval,
    agreement,
    agreement_chart,
    dice_chart,
    interval_chart,
    loss_chart,
    strip_chart,
)
from autoseg.report.content import CaseEntry, DatasetReport, mean_dice
from autoseg.report.page import MISSING, edges, interval, render, score

MOST_CLASSES = 12
"""Columns of a table of cases, rows of a chart; more are named but not shown."""

_SHOWN_PROBLEMS = 200
_MOST_CANDIDATES = 20  # of the chart; the table has all
_MM3_PER_ML = 1000.0

_SEVERITIES = {
    "refused": ("bad", "refused", "these cases are not used"),
    "warning": ("warn", "suspicious", "these cases are used; look at them"),
    "note": ("", "notes", "settled while reading"),
}


@dataclass(frozen=True, slots=True)
class _Card:
    title: str
    value: str
    note: str = ""


def dataset_page(report: DatasetReport) -> str:
    """The page, complete in itself."""
    stage, why, command = _stage(report)
    foreground = report.plan.labels.foreground
    return render(
        "dataset.html",
        report=report,
        version=report.version,
        written=report.written,
        stage=stage,
        next_step={"why": why, "command": command},
        cards=_cards(report),
        classes=foreground,
        table_classes=foreground[:MOST_CLASSES],
        left_out_classes=foreground[MOST_CLASSES:],
        mean=mean_dice(report.cases),
        annotated=_annotated_share(report),
        pictured=sum(case.picture is not None for case in report.cases),
        **_data(report),
        **_plan(report),
        **_training(report),
        **_results(report),
    )


def _stage(report: DatasetReport) -> tuple[str, str, str]:
    """Where the dataset stands, what to do next, and the command for it."""
    started = [run for run in report.runs if run.status is not None]
    done = sum(run.is_done for run in started)
    if not started:
        return "planned, not trained", "train what the plan holds.", "autoseg train DATASET"
    counted = f"{done} of {len(report.runs)} runs done"
    if report.choice is not None:
        return f"selected; {counted}", "segment new images.", "autoseg predict DATASET -i IMAGES -o OUT"
    if done < len(report.runs):
        return f"{counted}", "the same command goes on.", "autoseg train DATASET"
    return f"{counted}", "compare configurations and ensembles.", "autoseg select DATASET"


def _cards(report: DatasetReport) -> list[_Card]:
    refused = len(report.dataset.cases) - len(report.fingerprint.cases)
    done = sum(run.is_done for run in report.runs)
    names = report.plan.configurations
    cards = [
        _Card(
            "training cases", str(len(report.fingerprint.cases)), f"{refused} refused" if refused else "none refused"
        ),
        _Card("classes", str(len(report.plan.labels.foreground)), _few(report.plan.labels.foreground)),
        _Card("configurations", str(len(names)), _few(tuple(names))),
        _Card("runs done", f"{done} of {len(report.runs)}"),
    ]
    mean = mean_dice(report.cases)
    if report.choice is not None and report.choice.nested_dice is not None:
        ends = f"95 % interval {interval(report.choice.nested_interval)}"
        cards.append(_Card("Dice, cross-validated", score(report.choice.nested_dice), f"{report.choice.name}; {ends}"))
    if mean is not None and (report.choice is None or report.references):
        cards.append(_Card("mean Dice of cases", score(mean), report.references or report.source))
    return cards


def _annotated_share(report: DatasetReport) -> float | None:
    """Share of the voxels that are annotated; None where all are by declaration."""
    ignored = report.plan.labels.ignore
    if ignored is None:
        return None
    counts = [case.class_voxels or {} for case in report.fingerprint.cases]
    total = sum(sum(own.values()) for own in counts)
    return 1 - sum(own.get(str(ignored), 0) for own in counts) / max(total, 1)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _data(report: DatasetReport) -> dict[str, Any]:
    unit = "pixels" if _is_flat(report.fingerprint.cases) else "ml"
    labels = report.plan.labels
    file_values = labels.file_values or tuple(range(labels.largest_value + 1))
    rows = []
    for name in labels.foreground:
        seen = [size for case in report.fingerprint.cases if (size := _class_size(case, labels.classes[name], unit))]
        values = ", ".join(str(file_values[value]) for value in labels.classes[name])
        extremes = (float(np.median(seen)), min(seen), max(seen)) if seen else (None, None, None)
        rows.append(dict(zip(("median", "low", "high"), extremes, strict=True)) | _row(name, values, len(seen)))
    return {
        "unit": unit,
        "class_rows": rows,
        "data_charts": _data_charts(report),
        "problem_groups": _problem_groups(report.problems),
    }


def _row(name: str, values: str, cases: int) -> dict[str, Any]:
    return {"name": name, "file_values": values, "cases": cases}


def _is_flat(cases: Sequence[CaseStatistics]) -> bool:
    return bool(cases) and all(case.shape[0] == 1 for case in cases)


def _class_size(case: CaseStatistics, values: Iterable[int], unit: str) -> float:
    voxels = sum((case.class_voxels or {}).get(str(value), 0) for value in values)
    return float(voxels) if unit == "pixels" else voxels * math.prod(case.spacing_mm) / _MM3_PER_ML


def _data_charts(report: DatasetReport) -> list[dict[str, Any]]:
    cases = report.fingerprint.cases
    axes = [(index, name) for index, name in enumerate("zyx") if not (name == "z" and _is_flat(cases))]
    spacing = {name: {case.identifier: case.spacing_mm[axis] for case in cases} for axis, name in axes}
    extent = {
        name: {case.identifier: case.spacing_mm[axis] * case.shape[axis] for case in cases} for axis, name in axes
    }
    middle = len(cases[0].quantiles[0]) // 2 if cases and cases[0].quantiles else 0
    medians = {
        channel: {case.identifier: case.quantiles[index][middle] for case in cases if case.quantiles}
        for index, channel in enumerate(report.plan.channels)
    }
    shown = (
        (spacing, "mm", "Spacing of the voxels along each axis of the files"),
        (extent, "mm", "Extent of the images along each axis of the files"),
        (medians, "intensity", "Median intensity of each case, per channel"),
    )
    return [{"picture": strip_chart(rows, unit, caption), "caption": caption} for rows, unit, caption in shown]


def _problem_groups(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    groups = []
    for severity, (style, title, note) in _SEVERITIES.items():
        own = [problem for problem in problems if problem.severity == severity]
        if own:
            groups.append(
                {
                    "style": style,
                    "title": f"{len(own)} {title}",
                    "note": note,
                    "problems": own[:_SHOWN_PROBLEMS],
                    "more": max(len(own) - _SHOWN_PROBLEMS, 0),
                    "is_open": severity == "refused",
                }
            )
    return groups


def _plan(report: DatasetReport) -> dict[str, Any]:
    described = [_described(configuration) for configuration in report.plan.configurations.values()]
    names = list(described[0]) if described else []
    groups: dict[str, list[Decision]] = {}
    for decision in report.plan.decisions:
        groups.setdefault(decision.configuration or "all configurations", []).append(decision)
    return {
        "plan_rows": [{"name": name, "values": [entry[name] for entry in described]} for name in names],
        "decision_groups": groups,
    }


def _described(configuration: Configuration) -> dict[str, str]:
    network = configuration.network
    pooling = edges([math.prod(stride[axis] for stride in network.strides) for axis in range(network.dimensions)])
    return {
        "spacing, mm": edges(configuration.spacing_mm),
        "median image, voxels": edges(configuration.median_shape),
        "patch, voxels": edges(configuration.patch_size),
        "batch": str(configuration.batch_size),
        "normalization": ", ".join(configuration.normalization),
        "network": f"{network.kind.replace('_', ' ')}, {network.n_stages} stages, downsampled {pooling}",
        "features": ", ".join(map(str, network.features_per_stage)),
        "mirrored axes": ", ".join(map(str, configuration.mirror_axes)) or "none",
        "first stage": configuration.cascade_from or MISSING,
    }


def _training(report: DatasetReport) -> dict[str, Any]:
    groups = []
    for name in report.plan.configurations:
        histories = {
            f"fold {run.fold}": run.history for run in report.runs if run.configuration == name and run.history
        }
        if histories:
            groups.append(
                {
                    "configuration": name,
                    "loss": loss_chart(histories, f"Losses of {name} over epochs"),
                    "dice": dice_chart(histories, f"Dice of {name} on validation patches over epochs"),
                    "names": list(histories),
                }
            )
    return {"curve_groups": groups, "has_runs": any(run.status is not None or run.remark for run in report.runs)}


def _results(report: DatasetReport) -> dict[str, Any]:
    names = report.plan.labels.foreground[:MOST_CLASSES]
    strips = {
        name: {case.identifier: value for case in report.cases if (value := case.dice.get(name)) is not None}
        for name in names
    }
    rows, columns, counted = _confusion(report)
    return {
        "candidate_chart": _candidate_chart(report),
        "summaries": [_summary(report.cases, name) for name in report.plan.labels.foreground],
        "dice_strips": strip_chart(strips, "Dice", "Dice of every case, per class", (_floor(strips), 1.0)),
        "confusion_rows": rows,
        "confusion_names": columns,
        "confusion_cases": counted,
        "agreements": [found for index, name in enumerate(names) if (found := _agreement(report.cases, name, index))],
    }


def _summary(cases: Sequence[CaseEntry], name: str) -> dict[str, Any]:
    """How good a class is over all cases: mean with interval, median, worst; where it was missed or made up."""
    known = [value for case in cases if (value := case.dice.get(name)) is not None]
    volumes = [case.volumes[name] for case in cases if name in case.volumes]
    return {
        "name": name,
        "cases": len(known),
        "mean": float(np.mean(known)) if known else None,
        "interval": bootstrap_interval(np.array(known)) if len(known) > 1 else None,
        "median": float(np.median(known)) if known else None,
        "worst": min(known, default=None),
        "missed": sum(bool(reference) and not predicted for predicted, reference in volumes),
        "made_up": sum(bool(predicted) and not reference for predicted, reference in volumes),
    }


def _floor(strips: Mapping[str, Mapping[str, float]]) -> float:
    """The tenth below every value."""
    lowest = min((value for cases in strips.values() for value in cases.values()), default=0.0)
    return math.floor(min(lowest, 0.9) * 10) / 10


def _candidate_chart(report: DatasetReport) -> Markup:
    candidates = () if report.choice is None else report.choice.candidates
    chosen = [entry for index, entry in enumerate(candidates) if index < _MOST_CANDIDATES or entry.is_chosen]
    rows = [
        Interval(
            entry.name,
            entry.dice,
            entry.interval and entry.interval[0],
            entry.interval and entry.interval[1],
            entry.is_chosen,
        )
        for entry in chosen
    ]
    return interval_chart(rows, "mean Dice", "Mean Dice of the candidates with 95 % intervals")


def _confusion(report: DatasetReport) -> tuple[list[dict[str, Any]], list[str], int]:
    """Rows and column names of the table without values that never occur, and the number of cases counted."""
    tables = [case.confusion for case in report.cases if case.confusion is not None]
    if not tables:
        return [], [], 0
    total = np.sum(tables, axis=0)
    occurs = [int(value) for value in np.flatnonzero(total.sum(0) + total.sum(1))]
    names, parts = value_names(report.plan.labels), shares(total)
    rows = [
        {
            "name": names[value],
            "voxels": f"{total[value].sum():,}",
            "cells": [
                {
                    "shown": _percent(parts[value, other]),
                    "heat": f"{parts[value, other]:.3f}",
                    "count": f"{total[value, other]:,}",
                    "is_same": value == other,
                }
                for other in occurs
            ],
        }
        for value in occurs
        if total[value].any()
    ]
    return rows, [names[value] for value in occurs], len(tables)


def _percent(share: float) -> str:
    if not share:
        return MISSING
    return "< 0.01 %" if share < 1e-4 else f"{100 * share:.2f} %"


def _agreement(cases: Sequence[CaseEntry], name: str, color: int) -> dict[str, Any] | None:
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
