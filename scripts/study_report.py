"""What `study_time_to_quality.py` writes for people: tables, a figure, and the raw results in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.core.files import write_atomic
from autoseg.evaluation.statistics import bootstrap_interval, foreground_mean, paired_difference

REFERENCE, BASELINE = "nnU-Net", "cpu"

MARK = "<!-- study: written by scripts/study_time_to_quality.py -->"

CaseDice = Mapping[str, Mapping[str, float | None]]


def overall(cases: CaseDice) -> float:
    """Mean over the classes of the mean over the cases."""
    return foreground_mean(table_of([cases]))


def table_of(seeds: Sequence[CaseDice]) -> np.ndarray:
    """Dice (cases, classes), averaged over the seeds; NaN where undefined."""
    cases = sorted(seeds[0])
    classes = list(dict.fromkeys(name for own in seeds for case in own.values() for name in case))
    stacked = np.array([[[own[case].get(name) for name in classes] for case in cases] for own in seeds], np.float64)
    return np.asarray(stacked.mean(0))


def write_report(results: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Writes time-to-quality.json (raw), the tables between the marks of time-to-quality.md, and the figure."""
    tables: dict[tuple[str, str, float], list[CaseDice]] = {}
    for own in results:
        tables.setdefault((own["dataset"], own["contender"], own["minutes"]), []).append(own["dice"])
    text = "\n".join(report_lines(tables, results))
    page = folder / "time-to-quality.md"
    before, _, rest = page.read_text().partition(MARK)
    after = rest.partition(MARK)[2]
    write_atomic(page, f"{before}{MARK}\n{text}\n{MARK}{after}")
    raw = [{**own, "dice": rounded(own["dice"])} for own in results]
    lines = ",\n".join(json.dumps(own, separators=(",", ":")) for own in raw)
    write_atomic(folder / "time-to-quality.json", f"[\n{lines}\n]\n")
    draw(folder / "time-to-quality.png", tables)


def rounded(cases: CaseDice) -> dict[str, dict[str, float | None]]:
    """Four digits, for the file in the repository."""
    return {
        case: {name: None if value is None else round(value, 4) for name, value in own.items()}
        for case, own in cases.items()
    }


def report_lines(
    tables: Mapping[tuple[str, str, float], Sequence[CaseDice]], results: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Markdown: a table per dataset."""
    machines = sorted({f"{own['cpu']}, torch {own['torch']}, {own['precision']}" for own in results})
    yield f"{len(results)} runs. Machine and precision: {'; '.join(machines)}."
    yield "\n![Dice against virtual minutes](time-to-quality.png)"
    for dataset in dict.fromkeys(key[0] for key in tables):
        own = {key[1:]: seeds for key, seeds in tables.items() if key[0] == dataset}
        yield f"\n### {dataset}, {len(next(iter(own.values()))[0])} unseen cases\n"
        paired_with = f"minus `{BASELINE}`, paired (95 %)"
        yield f"| minutes | contender | mean Dice of each seed | of all (95 % of cases) | {paired_with} |"
        yield "|---|---|---|---|---|"
        for minutes, contender in sorted((key[1], key[0]) for key in own):
            seeds = own[contender, minutes]
            table = table_of(seeds)
            low, high = bootstrap_interval(table)
            paired = ""
            if contender != BASELINE and (BASELINE, minutes) in own:
                mean, *ends = paired_difference(table, table_of(own[BASELINE, minutes]))
                paired = f"{mean:+.4f} ({ends[0]:+.4f} to {ends[1]:+.4f})"
            scored = f"{foreground_mean(table):.4f} ({low:.4f} to {high:.4f})"
            each = ", ".join(f"{overall(one):.4f}" for one in seeds)
            yield f"| {minutes:g} | `{contender}` | {each} | {scored} | {paired} |"
        needed = [f"`{name}` {'-' if time is None else f'{time:.3g}'}" for name, time in minutes_to_reference(own)]
        if needed:
            yield f"\nMinutes to the Dice of `{REFERENCE}` at its longest budget: {', '.join(needed)}."


def minutes_to_reference(own: Mapping[tuple[str, float], Sequence[CaseDice]]) -> Iterator[tuple[str, float | None]]:
    """Contenders, and the minutes in which each comes to the reference's Dice at the largest budget; None if in none.

    Between budgets the Dice is taken as a straight line over time; what the smallest budget exceeds, it has in time.
    """
    scores = {key: foreground_mean(table_of(seeds)) for key, seeds in own.items()}
    longest = max(minutes for _, minutes in own)
    wanted = scores.get((REFERENCE, longest))
    for contender in dict.fromkeys(name for name, _ in own) if wanted is not None else ():
        times = sorted(minutes for name, minutes in own if name == contender)
        curve = [scores[contender, minutes] for minutes in times]
        reached = next((index for index, score in enumerate(curve) if score >= wanted), None)
        if reached is None:
            yield contender, None
        elif reached == 0:
            yield contender, times[0]
        else:
            yield (
                contender,
                float(np.interp(wanted, curve[reached - 1 : reached + 1], times[reached - 1 : reached + 1])),
            )


def draw(path: Path, tables: Mapping[tuple[str, str, float], Sequence[CaseDice]]) -> None:
    """A panel per dataset: Dice against virtual minutes with 95 % of the cases, a line per contender."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(key[0] for key in tables))
    figure = Figure(figsize=(4 * len(datasets), 3.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, dataset in zip(figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True):
        for contender in dict.fromkeys(key[1] for key in tables if key[0] == dataset):
            keys = sorted(key for key in tables if key[:2] == (dataset, contender))
            minutes, scored = [key[2] for key in keys], [table_of(tables[key]) for key in keys]
            means = np.array([foreground_mean(own) for own in scored])
            ends = np.array([bootstrap_interval(own) for own in scored])
            around = np.abs(ends.T - means)  # below and above
            panel.errorbar(minutes, means, around, marker="o", capsize=3, label=contender)
        panel.set(title=dataset, xlabel="virtual minutes on two cores", ylabel="mean Dice, unseen cases")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path)
