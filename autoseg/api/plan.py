"""`autoseg plan` for notebooks and the command line: detect, check, fingerprint, decide, write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.core.errors import DataRefused, Interrupted, MissingInput, RecordFault, for_users
from autoseg.core.files import remove_leftovers
from autoseg.core.progress import Progress, silent
from autoseg.core.records import from_data, load, read_table, save_sealed
from autoseg.core.workspace import Workspace, workspace_of
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.layouts.description import describe_nnunet
from autoseg.data.layouts.detect import detect_dataset
from autoseg.data.model import Dataset, Problem
from autoseg.data.survey import Survey, survey
from autoseg.nnunet.plans import read_nnunet_fingerprint
from autoseg.planning.plan import Plan
from autoseg.planning.planner import PlanOptions, make_plan, read_options

_log = logging.getLogger(__name__)


class CasesRefused(DataRefused):
    """Too much of the dataset is refused; carries every problem found, for the table."""

    def __init__(self, what: str, problems: tuple[Problem, ...], *, where: str, do: str) -> None:
        super().__init__(what, where=where, do=do)
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with what it was made from."""

    plan: Plan
    dataset: Dataset
    survey: Survey


@for_users()
def plan(
    dataset: str | Path,
    *,
    work: str | Path | None = None,
    preset: str = "reference",
    memory_gib: float | None = None,
    configurations: Sequence[str] = (),
    pins: str | Path | None = None,
    layout: str | None = None,
    strict: bool = False,
    jobs: int = 1,
    progress: Progress = silent,
    dry_run: bool = False,
) -> Plan:
    """Checks a dataset, decides how to segment it, and writes the plan into the work folder.

    Args:
        dataset: folder in any layout that `autoseg plan` knows.
        work: work folder; by default `autoseg` inside the dataset's.
        preset: "reference", "resenc-m", "resenc-l", "resenc-xl", "cpu", or a YAML file.
        memory_gib: memory target of the patch and batch sizes; None for the preset's own.
        configurations: the only ones to keep; by default all.
        pins: YAML file of decisions that are yours.
        layout: of the dataset, if it is not recognized by itself.
        strict: whether the whole dataset is refused when any case is.
        jobs: worker processes.
        progress: called with examined cases.
        dry_run: whether nothing is written.

    Raises:
        MissingInput: there is no such dataset.
        DataRefused: none of its cases can be used.
    """
    folder = Path(dataset)
    workspace = workspace_of(folder, None if work is None else Path(work))
    options = PlanOptions(preset, memory_gib, tuple(configurations), None if pins is None else Path(pins))
    planned = plan_dataset(
        folder, workspace, options, layout=layout, strict=strict, jobs=jobs, progress=progress, dry_run=dry_run
    )
    return planned.plan


@for_users()
def plan_dataset(
    folder: Path,
    workspace: Workspace,
    options: PlanOptions,
    *,
    layout: str | None = None,
    strict: bool = False,
    jobs: int = 1,
    progress: Progress = silent,
    dry_run: bool = False,
    on_recognized: Callable[[], object] = lambda: None,
) -> Planned:
    """Plans a dataset and writes dataset.json, check.json, fingerprint.json and plan.json into the work folder.

    Cases examined before are not read again unless their files changed. Nothing is written before the folder was
    recognized as a dataset; `on_recognized` is called then, unless nothing is to be written at all.

    Raises:
        CasesRefused: no usable case is left, or `strict` and any case is refused. What was found is written all the
            same, so that the table of problems can be read.
    """
    read_options(options)  # a wrong name is reported before the images are examined, which may take long
    dataset = detect_dataset(folder.resolve(), layout)
    _log.info("%s: %s", folder, dataset.layout_reason)
    if not dry_run:
        on_recognized()
    found = _survey(dataset, workspace, jobs, progress, dry_run)
    if not dry_run:
        remove_leftovers(workspace.root)
        save_sealed(dataset, workspace.dataset)
        save_sealed(found, workspace.check)
    _refuse(dataset, found, strict)
    plan = make_plan(dataset, found.fingerprint, options)
    if not dry_run:
        save_sealed(found.fingerprint, workspace.fingerprint)
        save_sealed(plan, workspace.plan)
    return Planned(plan, dataset, found)


def _survey(dataset: Dataset, workspace: Workspace, jobs: int, progress: Progress, dry_run: bool) -> Survey:
    """The survey, going on from what an earlier or interrupted run found."""
    kept: list[Survey] = []

    def keep(partial: Survey) -> None:
        save_sealed(partial, workspace.check)
        kept.append(partial)

    try:
        return survey(dataset, _previous_survey(workspace), jobs, progress, None if dry_run else keep)
    except KeyboardInterrupt as interruption:
        if not kept:
            raise
        raise Interrupted(
            f"stopped after {len(kept[-1].cases)} of {len(dataset.cases)} cases were examined and kept",
            where=str(workspace.check),
            do="run the same command again to go on from there",
        ) from interruption


def _previous_survey(workspace: Workspace) -> Survey | None:
    """What an earlier run found; a damaged record only costs the time to examine the cases again."""
    try:
        return load(Survey, workspace.check)
    except MissingInput:
        return None
    except RecordFault as fault:
        _log.warning("%s is damaged, so every case is examined again: %s", workspace.check, fault.what)
        return None


def _refuse(dataset: Dataset, found: Survey, strict: bool) -> None:
    refused = sorted({problem.case for problem in found.problems if problem.severity == "refused" and problem.case})
    if not found.fingerprint.cases:
        raise CasesRefused(
            f"none of the {len(dataset.cases)} cases can be used",
            found.problems,
            where=dataset.root,
            do="correct the problems listed above, then run the same command again",
        )
    if strict and refused:
        raise CasesRefused(
            f"--strict: {len(refused)} of {len(dataset.cases)} cases are refused: {', '.join(refused[:5])}",
            found.problems,
            where=dataset.root,
            do="correct the problems listed above, or leave out --strict to go on with the rest",
        )


@for_users()
def plan_from_fingerprint(fingerprint_file: Path, dataset_file: Path, options: PlanOptions) -> Plan:
    """A plan without images: from AutoSeg's or nnU-Net's fingerprint and dataset description.

    Raises:
        MissingInput: a file is not there.
        RecordFault: a file is not what it should be.
    """
    data = read_table(fingerprint_file)
    is_own = "cases" in data
    where = str(fingerprint_file)
    fingerprint = from_data(Fingerprint, data, where) if is_own else read_nnunet_fingerprint(data, where)
    description = read_table(dataset_file)
    if "layout" in description:
        return make_plan(from_data(Dataset, description, str(dataset_file)), fingerprint, options)
    dataset = _described(description, dataset_file)
    return make_plan(dataset, fingerprint, options, dataset.announced_cases)


def _described(description: dict[str, Any], path: Path) -> Dataset:
    """The dataset that nnU-Net's dataset.json describes, its images unseen."""
    described = describe_nnunet(description, str(path))
    return Dataset(
        name=str(description.get("name", path.parent.name)),
        root=str(path.parent),
        layout="nnunet",
        layout_reason=f"described by {path.name}",
        cases=(),
        channels=described.channels,
        labels=described.labels,
        file_ending=described.file_ending,
        announced_cases=described.announced_cases,
    )
