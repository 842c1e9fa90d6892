"""`autoseg preprocess` for notebooks and the command line: from a plan to its store of prepared cases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from autoseg.core.errors import Interrupted, for_users
from autoseg.core.progress import Progress, silent
from autoseg.core.registry import choose
from autoseg.core.workspace import workspace_of
from autoseg.planning.plan import load_planned
from autoseg.preprocessing.fill import StoreResult, fill_store
from autoseg.preprocessing.store import store_recipe

_log = logging.getLogger(__name__)


@for_users()
def preprocess(
    dataset: str | Path,
    *,
    work: str | Path | None = None,
    configurations: Sequence[str] = (),
    jobs: int = 1,
    progress: Progress = silent,
) -> dict[str, StoreResult]:
    """Fills the stores of a plan's configurations; what is there already is only verified.

    Args:
        dataset: folder of the dataset, or its work folder.
        work: work folder; by default `autoseg` inside the dataset's.
        configurations: names; all of the plan if empty.
        jobs: worker processes.
        progress: called with every case, configuration by configuration.

    Returns:
        Result by configuration; configurations that share a store name the same folder.

    Raises:
        MissingInput: there is no plan, or the dataset is not where it was planned.
        PlanFault: the plan was made from another fingerprint.
        UsageError: the plan has no such configuration.
        NotEnoughResources: the disk is too small.
        Interrupted: by Ctrl-C.
    """
    workspace = workspace_of(Path(dataset), None if work is None else Path(work))
    found, fingerprint, plan = load_planned(workspace)
    names = tuple(configurations) or tuple(plan.configurations)
    chosen = {name: choose(name, plan.configurations, "configuration") for name in names}
    results = {}
    for name, configuration in chosen.items():
        try:
            recipe = store_recipe(plan, configuration, fingerprint)
            result = fill_store(found, fingerprint, recipe, workspace.store, jobs=jobs, progress=progress)
        except KeyboardInterrupt as error:
            raise Interrupted(
                "preprocessing was interrupted", do="run the same command again; cases already prepared are kept"
            ) from error
        results[name] = result
        _log.info(
            "%s: %d cases prepared, %d were there, %d failed",
            name,
            len(result.done),
            len(result.reused),
            len(result.failures),
        )
    return results
