"""What `autoseg plan` left in a work folder, read again by every later stage."""

from __future__ import annotations

from pathlib import Path

from autoseg.core.errors import MissingInput, PlanFault
from autoseg.core.records import load
from autoseg.core.workspace import Workspace
from autoseg.data.fingerprint import Fingerprint, fingerprint_hash
from autoseg.data.model import Dataset
from autoseg.planning.plan import Plan


def load_planned(workspace: Workspace) -> tuple[Dataset, Fingerprint, Plan]:
    """What `autoseg plan` left in the work folder.

    Raises:
        MissingInput: there is no plan, or the dataset is not where it was planned.
        PlanFault: the plan was made from another fingerprint.
    """
    if not workspace.plan.exists():
        raise MissingInput(f"there is no plan in {workspace.root}", do="run `autoseg plan DATASET` first")
    plan = load(Plan, workspace.plan)
    dataset = load(Dataset, workspace.dataset)
    fingerprint = load(Fingerprint, workspace.fingerprint)
    if not Path(dataset.root).exists():
        raise MissingInput(
            f"the dataset was planned at {dataset.root}, and there is nothing now",
            where=str(workspace.dataset),
            do="run `autoseg plan` with the folder where it is now",
        )
    if plan.fingerprint != fingerprint_hash(fingerprint):
        raise PlanFault(
            "plan.json was made from another fingerprint than fingerprint.json",
            where=str(workspace.root),
            why="one of them was changed or copied from elsewhere",
            do="run `autoseg plan` again",
        )
    return dataset, fingerprint, plan


def load_plan(path: Path) -> Plan:
    """The plan of a work folder.

    Raises:
        MissingInput: it is not planned yet; the message says the command to type.
    """
    try:
        return load(Plan, path)
    except MissingInput as error:
        raise MissingInput("there is no plan yet", where=str(path), do="run `autoseg plan DATASET` first") from error
