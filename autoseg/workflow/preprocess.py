"""From a plan to its store of prepared cases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from autoseg.core.choices import choose
from autoseg.core.errors import Interrupted, MissingInput, PlanFault
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load
from autoseg.core.workspace import Workspace
from autoseg.datasets.model import Dataset
from autoseg.fingerprint.model import Fingerprint, fingerprint_hash
from autoseg.planning.plan import Plan
from autoseg.preprocessing.fill import StoreResult, fill_store

logger = logging.getLogger(__name__)


def preprocess_dataset(
    workspace: Workspace, configurations: Sequence[str] = (), *, jobs: int = 1, progress: Progress = silent
) -> dict[str, StoreResult]:
    """Fills the stores of a plan's configurations; what is there already is only verified.

    Args:
        workspace: with a plan.
        configurations: names; all of the plan if empty.
        jobs: worker processes.
        progress: told about every case, configuration by configuration.

    Returns:
        Result by configuration; configurations that share a store name the same folder.

    Raises:
        MissingInput: there is no plan, or the dataset is not where it was planned.
        PlanFault: the plan was made from another fingerprint.
        UsageError: the plan has no such configuration.
        NotEnoughResources: the disk is too small.
        Interrupted: by Ctrl-C.
    """
    dataset, fingerprint, plan = load_planned(workspace)
    names = tuple(configurations) or tuple(plan.configurations)
    chosen = {name: choose(name, plan.configurations, "configuration") for name in names}
    results = {}
    for name, configuration in chosen.items():
        try:
            result = fill_store(dataset, plan, configuration, fingerprint, workspace, jobs=jobs, progress=progress)
        except KeyboardInterrupt as error:
            raise Interrupted(
                "preprocessing was interrupted", do="run the same command again; cases already prepared are kept"
            ) from error
        results[name] = result
        logger.info(
            "%s: %d cases prepared, %d were there, %d failed",
            name,
            len(result.done),
            len(result.reused),
            len(result.failures),
        )
    return results


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
