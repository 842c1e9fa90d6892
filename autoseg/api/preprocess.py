"""From a plan to its store of prepared cases."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from autoseg.core.errors import Interrupted
from autoseg.core.progress import Progress, silent
from autoseg.core.registry import choose
from autoseg.core.workspace import Workspace
from autoseg.planning.planned import load_planned
from autoseg.preprocessing.fill import StoreResult, fill_store
from autoseg.preprocessing.store import store_recipe

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
            recipe = store_recipe(plan, configuration, fingerprint)
            result = fill_store(dataset, fingerprint, recipe, workspace.store, jobs=jobs, progress=progress)
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
