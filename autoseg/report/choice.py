"""The choice recorded in selection.json, as a report shows it."""

from __future__ import annotations

from collections.abc import Mapping

from autoseg.core.errors import MissingInput
from autoseg.core.records import load
from autoseg.core.workspace import Workspace
from autoseg.planning.plan import Plan
from autoseg.report.content import CandidateEntry, ChoiceEntry, ClassDice, TrialEntry
from autoseg.selection.record import Selection

KINDS = {"single": "configuration", "pair": "pair", "greedy": "greedy"}

STALE = "The plan or the classes have changed since this choice was made; run `autoseg select` again."


def choice_of(workspace: Workspace, plan: Plan) -> tuple[ChoiceEntry | None, Mapping[str, ClassDice]]:
    """What was selected, and the Dice of each case under it; None if nothing was."""
    try:
        selection = load(Selection, workspace.selection)
    except MissingInput:
        return None, {}
    nested = selection.nested
    is_stale = not selection.is_of(plan)
    entry = ChoiceEntry(
        name=selection.name,
        because=selection.because,
        objective=selection.objective,
        candidates=_candidates(selection),
        trials=tuple(
            TrialEntry(
                title=trial.step.title,
                before=trial.before,
                after=trial.after,
                nested_gain=trial.nested_gain,
                is_accepted=trial.is_accepted,
                because=trial.because,
            )
            for trial in selection.postprocessing
        ),
        nested_dice=None if nested is None else nested.dice,
        nested_interval=None if nested is None else nested.interval,
        naive_dice=None if nested is None else nested.naive_dice,
        notes=(*selection.notes, *([STALE] if is_stale else [])),
    )
    return entry, selection.case_dice


def _candidates(selection: Selection) -> tuple[CandidateEntry, ...]:
    return tuple(
        CandidateEntry(
            name=candidate.name,
            kind=KINDS[candidate.kind],
            dice=candidate.dice,
            interval=candidate.interval,
            difference=candidate.difference,
            difference_interval=candidate.difference_interval,
            seconds_per_case=candidate.seconds_per_case,
            memory_gib=candidate.memory_gib,
            is_chosen=candidate.name == selection.name,
            is_nnunets=candidate.name == selection.nnunet_choice,
        )
        for candidate in selection.candidates
    )
