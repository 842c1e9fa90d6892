"""Pages from templates: one file with everything inside, no script, and no way to reach out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoseg import __version__
from autoseg.data.model import CLASS_COLORS
from autoseg.inference.manifest import PredictionManifest
from autoseg.report.cases import ReportedCase, without_folders
from autoseg.report.charts import PALETTE_SIZE, strip_chart

TEMPLATES = Path(__file__).parent / "templates"

MISSING = "\N{EN DASH}"
"""Stands for what is undefined or not there."""

MOST_CLASSES = 12
"""Columns of a table of cases, rows of a chart; more are named but not shown."""


def render(template: str, **content: Any) -> str:
    """The page that a template gives; whatever is put in is escaped, apart from drawings.

    Args:
        template: file in `TEMPLATES`.
        content: what the template names.
    """
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    shared = {"class_colors": CLASS_COLORS, "palette_size": PALETTE_SIZE, "version": __version__, "written": written}
    page: str = _environment().get_template(template).render(**shared, **content)
    return page


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (score, quantity, duration, interval, heat, signed, edges)
    environment.filters.update({own.__name__: own for own in filters})
    return environment


def score(value: float | None, digits: int = 3) -> str:
    """A score with a fixed number of digits."""
    return MISSING if value is None else f"{value:.{digits}f}"


def interval(ends: tuple[float, float] | None, digits: int = 3) -> str:
    """The ends of an interval."""
    return MISSING if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def edges(shape: Sequence[float]) -> str:
    """Numbers along the axes: 40 x 56 x 40."""
    return " \N{MULTIPLICATION SIGN} ".join(f"{length:.4g}" for length in shape)


def heat(value: float | None) -> str:
    """How strongly a score colors its cell: the worse the more; nothing where it is undefined."""
    return "0" if value is None else f"{min(max(1 - value, 0.0), 1.0):.2f}"


def quantity(value: float | None, unit: str = "") -> str:
    """A number of three significant digits with its unit."""
    if value is None:
        return MISSING
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def signed(value: float, unit: str) -> str:
    """A difference with its sign and unit."""
    return f"+{quantity(value, unit)}" if value > 0 else quantity(value, unit)


def duration(seconds: float | None) -> str:
    """A time span in its largest fitting unit."""
    if seconds is None:
        return MISSING
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"


def prediction_page(manifest: PredictionManifest, cases: Sequence[ReportedCase], is_compared: bool) -> str:
    """The report of a prediction as a page, complete in itself.

    Args:
        manifest: model, device, failures.
        cases: done, those unlike the training data first.
        is_compared: whether the model says what its training data were like.
    """
    failed = {
        name: without_folders(outcome.error or "no reason is known")
        for name, outcome in manifest.cases.items()
        if outcome.status == "failed"
    }
    names, unit = manifest.labels.foreground, cases[0].unit if cases else "ml"
    strips = {
        name: {case.identifier: case.volumes[name][0] for case in cases if name in case.volumes}
        for name in names[:MOST_CLASSES]
    }
    return render(
        "prediction.html",
        manifest=manifest,
        cases=cases,
        failed=failed,
        noted={name: "; ".join(outcome.notes) for name, outcome in manifest.cases.items() if outcome.notes},
        is_compared=is_compared,
        classes=names,
        most_classes=MOST_CLASSES,
        unit=unit,
        volume_strips=strip_chart(strips, unit, "Predicted volumes per class"),
    )
