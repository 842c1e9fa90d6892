"""`autoseg plan`: look at the data, decide, say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoseg.cli.options import (
    Real,
    device_option,
    dry_run_option,
    jobs_option,
    output_options,
    work_option,
)
from autoseg.cli.output import Output, command_line
from autoseg.core.errors import UsageError
from autoseg.core.limits import MEMORY_GIB
from autoseg.core.workspace import workspace_of

if TYPE_CHECKING:
    from autoseg.api.plan import Planned
    from autoseg.data.model import Problem
    from autoseg.planning.plan import Plan
    from autoseg.planning.planner import PlanOptions

_SHOWN_PROBLEMS = 40

file_option = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("dataset", required=False, type=click.Path(path_type=Path))
@work_option
@click.option(
    "--preset",
    default="reference",
    show_default=True,
    help="reference, resenc-m, resenc-l, resenc-xl, cpu, or a YAML file.",
)
@click.option("--memory", "memory_gib", type=Real(MEMORY_GIB), help="Memory target in GiB.")
@click.option(
    "--configuration", "configurations", multiple=True, help="2d, 3d_fullres, ..., repeatable.  [default: all]"
)
@click.option("--pin", "pins", type=file_option, help="YAML file of decisions that you take instead of the rules.")
@click.option("--format", "layout", help="Layout of the dataset, if it is not recognized by itself.")
@click.option("--strict", is_flag=True, help="Refuse the whole dataset when any case is refused.")
@click.option("--no-probe", is_flag=True, help="Leave out the seconds per epoch, measured by one training step.")
@click.option("--from-fingerprint", "fingerprint", type=file_option, help="Plan without images: fingerprint file.")
@click.option("--dataset-json", type=file_option, help="The dataset.json that goes with --from-fingerprint.")
@device_option
@jobs_option
@dry_run_option
@output_options
def plan(dataset: Path | None, work: Path | None, output: Output, **options: Any) -> int:
    """Check the data, fingerprint it, apply the rules, print the plan and its reasons."""
    from autoseg.planning.planner import PlanOptions

    fields = ("preset", "memory_gib", "configurations", "pins")
    chosen = PlanOptions(**{name: options.pop(name) for name in fields})
    files = (options.pop("fingerprint"), options.pop("dataset_json"))
    if any(files):
        return _plan_without_images(dataset, files, chosen, output)
    if dataset is None:
        raise UsageError("which dataset?", do="autoseg plan DATASET")
    return _plan_images(dataset, work, chosen, output, options)


def _plan_without_images(
    dataset: Path | None, files: tuple[Path | None, Path | None], chosen: PlanOptions, output: Output
) -> int:
    from autoseg.api.plan import plan_from_fingerprint

    fingerprint, dataset_json = files
    if dataset is not None or fingerprint is None or dataset_json is None:
        raise UsageError(
            "planning without images takes two files and no DATASET",
            do="autoseg plan --from-fingerprint FINGERPRINT.json --dataset-json DATASET.json",
        )
    made = plan_from_fingerprint(fingerprint, dataset_json, chosen)
    show_plan(made, output, {}, {})
    output.emit(made.document())
    return 0


def _plan_images(dataset: Path, work: Path | None, chosen: PlanOptions, output: Output, options: dict[str, Any]) -> int:
    from autoseg.api.plan import CasesRefused, plan_dataset
    from autoseg.core.records import to_data

    workspace = workspace_of(dataset, work)
    no_probe, device, dry_run = options.pop("no_probe"), options.pop("device"), options["dry_run"]

    def log_to_work_folder() -> None:
        output.log_to(workspace.logs, "plan")

    try:
        with output.progress("Checking") as progress:
            planned = plan_dataset(
                dataset, workspace, chosen, **options, progress=progress, on_recognized=log_to_work_folder
            )
    except CasesRefused as refusal:
        show_problems(refusal.problems, output)
        raise
    show_problems(planned.survey.problems, output)
    _show_dataset(planned, output)
    seconds = {} if no_probe else _probe(planned, device)
    made = planned.plan
    disk = {name: made.store_gib(own, planned.survey.fingerprint) for name, own in made.configurations.items()}
    show_plan(made, output, seconds, disk)
    if seconds and _is_cpu(device):
        _say_about_cpu(made, output)
    output.say("nothing was written (--dry-run)" if dry_run else f"wrote {workspace.plan}")
    where = (dataset,) if work is None else (dataset, "--work", work)
    output.say(f"next: {command_line('train', *where)}    why: {command_line('explain', *where)}")
    problems = [to_data(problem) for problem in planned.survey.problems]
    document = {**made.document(), "layout": planned.dataset.layout, "cases": len(planned.survey.fingerprint.cases)}
    output.emit({**document, "problems": problems, "seconds_per_epoch": seconds})
    return 0


def _probe(planned: Planned, device: str) -> dict[str, float]:
    """Seconds per epoch of every configuration on the present device, from one short probe each."""
    from autoseg.runs.forecast import seconds_per_epoch

    return {name: seconds_per_epoch(planned.plan, name, device) for name in planned.plan.configurations}


def _is_cpu(device: str) -> bool:
    from autoseg.launch.devices import choose_device

    return choose_device(device)[0].type == "cpu"


def _say_about_cpu(plan: Plan, output: Output) -> None:
    """What training on this CPU takes, which nnU-Net's measure of memory does not say."""
    import torch

    from autoseg.core.machine import BYTES_PER_GIB, memory_bytes
    from autoseg.launch.precision import native_types

    precision = next(iter(native_types(torch.device("cpu"))), "fp32")
    there = memory_bytes() / BYTES_PER_GIB
    needed = {name: plan.step_gib(name, precision) for name in plan.configurations}
    too_large = [name for name, gib in needed.items() if gib > there]
    listed = ", ".join(f"{name} {gib:.1f}" for name, gib in needed.items())
    output.say(f"memory: on this CPU a training step takes about so many GiB ({precision}): {listed}")
    if too_large:
        output.say(f"memory: this machine has {there:.1f} GiB, too few for {', '.join(too_large)}: lower --memory")
    if plan.preset != "cpu":
        output.say("no GPU here: --preset cpu makes a plan that a CPU trains in minutes to hours")


def show_problems(problems: Sequence[Problem], output: Output) -> None:
    """The table of everything found in the data: refused first, then warnings, then notes."""
    rank = {"refused": 0, "warning": 1, "note": 2}
    ordered = sorted(problems, key=lambda problem: (rank[problem.severity], problem.case or "", problem.code))
    rows = [(entry.severity, entry.case, entry.file, f"{entry.what} ({entry.code})", entry.do) for entry in ordered]
    output.table(("", "case", "file", "what", "do"), rows[:_SHOWN_PROBLEMS])
    if len(rows) > _SHOWN_PROBLEMS:
        output.say(f"and {len(rows) - _SHOWN_PROBLEMS} more, all in check.json")


def _show_dataset(planned: Planned, output: Output) -> None:
    dataset, cases = planned.dataset, planned.survey.fingerprint.cases
    refused = {problem.case for problem in planned.survey.problems if problem.severity == "refused"} - {None}
    output.say(f"{dataset.name}: {dataset.layout} layout ({dataset.layout_reason})")
    output.say(
        f"{len(cases)} cases usable, {len(refused)} refused · channels {', '.join(dataset.channels)} · "
        f"classes {', '.join(dataset.labels.foreground)}"
    )


def show_plan(plan: Plan, output: Output, seconds: Mapping[str, float], disk: Mapping[str, float]) -> None:
    """The table of configurations, and every decision that is not one of theirs."""
    from autoseg.planning.plan import edges

    rows = []
    for name, own in plan.configurations.items():
        patch, memory = edges(own.patch_size), f"{own.memory_gib:.1f}"
        pace = f"{seconds[name]:.0f}" if name in seconds else "-"
        gib = f"{disk[name]:.2f}" if name in disk else "-"
        rows.append((name, own.network.description, patch, own.batch_size, edges(own.spacing_mm), memory, pace, gib))
    columns = ("configuration", "network", "patch", "batch", "spacing mm", "memory GiB", "s/epoch", "disk GiB")
    output.table(columns, rows, title=f"Plan, preset {plan.preset}, {plan.memory_gib:g} GiB")
    for decision in plan.decisions:
        if decision.configuration is None or decision.name == "warning":
            output.say(f"{decision.name}: {decision.because}")
