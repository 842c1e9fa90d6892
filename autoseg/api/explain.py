"""Why the plan is as it is, and what an error code means."""

from __future__ import annotations

import re
from typing import Any

from autoseg.core import errors
from autoseg.core.errors import AutoSegError, for_users
from autoseg.core.registry import choose
from autoseg.core.workspace import Workspace
from autoseg.data.problems import PROBLEM_CODES
from autoseg.planning.plan import Decision, load_plan

_CODE = re.compile(r"[Ee]\d{4}")


def is_code(word: str) -> bool:
    """Whether a word is an error code such as E0412."""
    return _CODE.fullmatch(word) is not None


def explain_code(code: str) -> str:
    """What an error code means and what to do about it.

    Raises:
        UsageError: there is no such code.
    """
    meanings = {kind.code: _first_line(kind) for kind in _error_classes()}
    problems = {known: f"{entry.meaning} What helps: {entry.remedy}" for known, entry in PROBLEM_CODES.items()}
    return choose(code.upper(), {**meanings, **problems}, "error code")


def _error_classes() -> list[type[AutoSegError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AutoSegError)]
    return [kind for kind in found if kind is not AutoSegError]


def _first_line(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


@for_users()
def explain_plan(workspace: Workspace, decision: str | None) -> tuple[Decision, ...]:
    """The decisions of a dataset's plan, all of them or those of one name.

    Raises:
        MissingInput: the dataset is not planned yet.
        UsageError: no decision has this name.
    """
    plan = load_plan(workspace)
    if decision is None:
        return plan.decisions
    by_name: dict[str, list[Decision]] = {}
    for entry in plan.decisions:
        by_name.setdefault(entry.name, []).append(entry)
    return tuple(choose(decision, by_name, "decision"))
