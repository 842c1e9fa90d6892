"""`autoseg explain`: the reasons of a plan, or the meaning of an error code."""

from __future__ import annotations

from pathlib import Path

import click

from autoseg.cli.options import output_options, work_option
from autoseg.cli.output import Output, command_line
from autoseg.core.errors import UsageError
from autoseg.core.workspace import workspace_of


@click.command()
@click.argument("subject", metavar="DATASET|CODE")
@click.argument("decision", required=False)
@work_option
@output_options
def explain(subject: str, decision: str | None, work: Path | None, output: Output) -> int:
    """Why the plan is as it is (DATASET, or DATASET patch_size), or what an error code means (E0412)."""
    from autoseg.api.explain import explain_code, explain_plan, is_code
    from autoseg.core.records import to_data

    if is_code(subject) and not Path(subject).exists():
        if decision is not None:
            raise UsageError(f"an error code stands alone, without {decision!r}", do=command_line("explain", subject))
        meaning = explain_code(subject)
        output.say(f"{subject.upper()}: {meaning}")
        output.emit({"code": subject.upper(), "meaning": meaning})
        return 0
    decisions = explain_plan(workspace_of(Path(subject), work), decision)
    for entry in decisions:
        scope = f"{entry.configuration} " if entry.configuration else ""
        output.say(f"{scope}{entry.name} = {to_data(entry.value)}")
        output.say(f"    {entry.because}" + (" (set by the user)" if entry.by == "user" else ""))
    output.emit({"decisions": [to_data(entry) for entry in decisions]})
    return 0
