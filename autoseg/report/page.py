"""Pages from templates: one file with everything inside, no script, and no way to reach out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoseg.report.figures import CLASS_COLORS

TEMPLATES = Path(__file__).parent / "templates"

MISSING = "\N{EN DASH}"
"""Stands for what is undefined or not there."""


def render(template: str, **content: Any) -> str:
    """The page that a template gives; whatever is put in is escaped, apart from drawings.

    Args:
        template: file in `TEMPLATES`.
        content: what the template names.
    """
    page: str = _environment().get_template(template).render(class_colors=CLASS_COLORS, **content)
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
    environment.filters.update(
        score=score, quantity=quantity, duration=duration, interval=interval, heat=heat, signed=signed
    )
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
