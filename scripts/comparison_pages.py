"""What `benchmark_configurations.py` writes for people: two tables, a picture and one self-contained page."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from autoseg.core.files import atomic_file, write_atomic
from autoseg.data.model import CLASS_COLORS
from autoseg.training.callbacks.curves import DOTS_PER_INCH
from comparison_statistics import Comparison

CaseDice = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True, slots=True)
class Curve:
    """How one run learned: (minutes, smoothed Dice of validation patches) after each epoch."""

    contender: str
    points: tuple[tuple[float, float], ...]


def write_tables(out: Path, seeds: Mapping[str, Mapping[int, CaseDice]], comparison: Comparison) -> None:
    """scores.csv, a row per contender, seed, case and class, and pairs.csv, a row per two contenders."""
    scores = [
        (name, seed, case, label, "" if dice is None else dice)
        for name, own in seeds.items()
        for seed, cases in own.items()
        for case, classes in sorted(cases.items())
        for label, dice in classes.items()
    ]
    _write_csv(out / "scores.csv", ("contender", "seed", "case", "class", "dice"), scores)
    pairs = [
        (pair.first, pair.second, pair.difference, *pair.interval, pair.p_value, pair.p_corrected, pair.is_different)
        for pair in comparison.pairs
    ]
    columns = ("first", "second", "difference", "low", "high", "p_wilcoxon", "p_holm", "is_different")
    _write_csv(out / "pairs.csv", columns, pairs)


def _write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def draw(path: Path, comparison: Comparison, curves: Iterable[Curve], minutes: Mapping[str, float]) -> None:
    """A PNG of Dice against training time: each run's online Dice as a line, each contender's final Dice as a mark.

    Args:
        path: of the PNG.
        comparison: scores and intervals.
        curves: of all runs.
        minutes: contender -> mean time of its runs.
    """
    from matplotlib.figure import Figure

    colors = dict(zip((own.name for own in comparison.contenders), cycle(CLASS_COLORS), strict=False))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="minutes of a run", ylabel="Dice")
    for curve in curves:
        if curve.points:
            axes.plot(*zip(*curve.points, strict=True), color=colors[curve.contender], alpha=0.35, linewidth=1)
    for own in comparison.contenders:
        low, high = own.interval
        axes.errorbar(
            minutes[own.name],
            own.score,
            yerr=[[max(0.0, own.score - low)], [max(0.0, high - own.score)]],
            fmt="o",
            capsize=4,
            color=colors[own.name],
            label=f"{own.name}: {own.score:.3f}",
        )
    axes.set_title(f"marks: whole cases ({len(comparison.cases)}) with 95 % interval; lines: patches while training")
    axes.legend(loc="lower right", framealpha=0.8)
    axes.grid(alpha=0.3)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH)


def write_html(path: Path, document: Mapping[str, Any], picture: Path) -> None:
    """One page that opens without a network; what it shows comes from `document` (comparison.json)."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["four"] = _four_digits
    image = base64.b64encode(picture.read_bytes()).decode()
    write_atomic(path, environment.from_string(PAGE).render(**document, image=image))


def _four_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Comparison of configurations</title>
<style>
:root { color-scheme: light dark; --line: #8886; --quiet: #667; }
@media (prefers-color-scheme: dark) { :root { --quiet: #aab; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { white-space: nowrap; padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
p, caption { color: var(--quiet); white-space: normal; }
caption { text-align: left; padding-bottom: .4rem; }
</style>
</head>
<body>
<h1>Comparison of configurations</h1>
<p>{{ comparison.cases|length }} cases, each scored by networks that were not trained on it.
{% if settings.budget_seconds is not none %}
Every run had {{ "%.1f"|format(settings.budget_seconds / 60) }} minutes.
{% else %}
Every run had {{ settings.epochs }} epochs{% if settings.steps %} of {{ settings.steps }} steps{% endif %}.
{% endif %}
Folds and seeds are the same for all; scores are averaged over the seeds.</p>
<div class="wide"><table>
<caption>Best mean rank first. Two that share a letter differ by less than the critical difference of mean ranks,
{{ "%.2f"|format(comparison.critical_difference) }} (Nemenyi, 0.05).
{% if comparison.friedman_p is not none %}
Friedman's test of all ranks: p = {{ "%.2g"|format(comparison.friedman_p) }}.
{% endif %}
</caption>
<thead><tr><th scope="col">contender</th><th scope="col">Dice</th><th scope="col">95 % interval</th>
<th scope="col">mean rank</th><th scope="col">group</th><th scope="col">seeds, lowest to highest</th>
<th scope="col">minutes per run</th></tr></thead>
<tbody>
{% for own in comparison.contenders %}
{% set scores = seeds[own.name].values()|reject("none")|list %}
<tr><td>{{ own.name }}</td><td>{{ own.score|four }}</td>
<td>{{ own.interval[0]|four }} to {{ own.interval[1]|four }}</td>
<td>{{ "%.2f"|format(own.mean_rank) }}</td><td>{{ own.group }}</td>
<td>{{ scores|min|four }} to {{ scores|max|four }}</td><td>{{ "%.1f"|format(minutes_per_run[own.name]) }}</td></tr>
{% endfor %}
</tbody></table></div>
<p><img alt="Dice against training time; the numbers are in the table above"
src="data:image/png;base64,{{ image }}"></p>
<h2>Pairs</h2>
<div class="wide"><table>
<caption>Difference of Dice with its paired bootstrap interval over the cases; Wilcoxon's signed-rank test, corrected by
Holm for {{ comparison.pairs|length }} pair{{ "" if comparison.pairs|length == 1 else "s" }}.</caption>
<thead><tr><th scope="col">better rank</th><th scope="col">other</th><th scope="col">difference</th>
<th scope="col">95 % interval</th><th scope="col">p</th><th scope="col">p, corrected</th>
<th scope="col">more than noise</th></tr></thead>
<tbody>
{% for pair in comparison.pairs %}
<tr><td>{{ pair.first }}</td><td>{{ pair.second }}</td><td>{{ pair.difference|four }}</td>
<td>{{ pair.interval[0]|four }} to {{ pair.interval[1]|four }}</td><td>{{ "%.2g"|format(pair.p_value) }}</td>
<td>{{ "%.2g"|format(pair.p_corrected) }}</td><td>{{ "yes" if pair.is_different else "no" }}</td></tr>
{% endfor %}
</tbody></table></div>
<h2>Classes</h2>
<div class="wide"><table>
<thead><tr><th scope="col">contender</th>
{% for label in comparison.contenders[0].class_scores %}<th scope="col">{{ label }}</th>{% endfor %}</tr></thead>
<tbody>
{% for own in comparison.contenders %}
<tr><td>{{ own.name }}</td>{% for score in own.class_scores.values() %}<td>{{ score|four }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% if comparison.left_out %}
<p>Left out, because not all contenders have scored them: {{ comparison.left_out|join(", ") }}.</p>
{% endif %}
<h2>Runs</h2>
<div class="wide"><table>
<thead><tr><th scope="col">contender</th><th scope="col">seed</th><th scope="col">fold</th><th scope="col">state</th>
<th scope="col">epochs</th><th scope="col">seconds</th><th scope="col">Dice</th></tr></thead>
<tbody>
{% for run in runs %}
<tr><td>{{ run.contender }}</td><td>{{ run.seed }}</td><td>{{ run.fold }}</td><td>{{ run.state }}</td>
<td>{{ run.epochs|default("-") }}</td><td>{{ "%.0f"|format(run.seconds|default(0)) }}</td>
<td>{{ run.foreground_dice|default(none)|four }}</td></tr>
{% endfor %}
</tbody></table></div>
<p>Cases are the unit of every test; networks of different folds share training cases, so that p-values are somewhat too
small. Source of ranks and corrections: Demšar 2006.</p>
</body>
</html>
"""
