"""Work folders that look as if something had been trained, made in milliseconds."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch

from autoseg.core.records import save
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.data.fingerprint import IntensityStatistics
from autoseg.data.model import LabelSet
from autoseg.networks.weights import weights_hash
from autoseg.planning.plan import PLAN_VERSION, Plan
from autoseg.runs.run import RECORD_VERSION, RunRecord, RunStatus
from autoseg.selection.record import (
    SELECTION_VERSION,
    CandidateScore,
    NestedScore,
    PostprocessingTrial,
    SelectedMember,
    Selection,
    plan_hash,
)
from autoseg.training.recipe import Recipe
from tests.inference.examples import configuration

LABELS = LabelSet({"background": (0,), "liver": (1,), "tumor": (2,)}, file_values=(0, 100, 200))


def tiny_plan(channels=1, labels=LABELS, file_ending=".nii.gz") -> Plan:
    shared = {"normalization": ("zscore",) * channels, "use_nonzero_mask": (False,) * channels}
    full = replace(configuration((8, 8, 8)), spacing_mm=(2.0, 1.0, 1.0), **shared)
    flat = replace(configuration((8, 8)), **shared)
    low = replace(full, name="3d_lowres", spacing_mm=(3.0, 2.0, 2.0))
    return Plan(
        version=PLAN_VERSION,
        dataset="tiny",
        preset="reference",
        memory_gib=8.0,
        axis_order=(0, 1, 2),
        channels=tuple(f"channel_{index}" for index in range(channels)),
        labels=labels,
        file_ending=file_ending,
        four_d=False,
        intensities=(IntensityStatistics(0.0, 0.0, 1.0, -1.0, 1.0, -1.0, 1.0),) * channels,
        configurations={"2d": flat, "3d_fullres": full, "3d_lowres": low},
        decisions=(),
        fingerprint="0" * 16,
    )


def cascade_plan(**choices) -> Plan:
    """A tiny plan with a cascade from 3d_lowres to 3d_cascade_fullres."""
    plan = tiny_plan(**choices)
    second = replace(plan.configurations["3d_fullres"], name="3d_cascade_fullres", cascade_from="3d_lowres")
    return replace(plan, configurations={**plan.configurations, second.name: second})


def add_selection(work: Path, plan: Plan, members: dict[str, int], folds=(0, 1), steps=()) -> Selection:
    """selection.json that chooses these configurations with these weights; all their runs must be there."""
    names = dict.fromkeys([*members, *(str(plan.configurations[name].cascade_from) for name in members)])
    chosen = {name: tuple(folds) for name in names if name != "None"}
    runs = {
        f"{name}/fold_{fold}": weights_hash(Workspace(work).run(name, fold).checkpoint)
        for name, own in chosen.items()
        for fold in own
    }
    selected = tuple(SelectedMember(name, weight) for name, weight in members.items())
    selection = Selection(
        version=SELECTION_VERSION,
        plan=plan_hash(plan, chosen),
        objective="default",
        name=" + ".join(members),
        because="the best",
        members=selected,
        folds=chosen,
        candidates=(CandidateScore("x", "greedy", selected, 0.8, (0.7, 0.9), {"liver": 0.8}, 0.0, None, 1.5, 0.5),),
        nnunet_choice="x",
        nested=NestedScore(0.79, (0.7, 0.85), 0.8, ("x", "x")),
        postprocessing=tuple(PostprocessingTrial(step, 0.7, 0.8, 0.1, True, "it helps") for step in steps),
        case_dice={"a": {"liver": 0.8}},
        runs=runs,
    )
    save(selection, Workspace(work).selection)
    return selection


def never() -> None:
    """Nobody asks to stop."""


def run_record(name: str, fold: int, epochs: int = 1, val: tuple[str, ...] = ()) -> RunRecord:
    recipe = Recipe(epochs=epochs)
    return RunRecord(
        version=RECORD_VERSION,
        configuration=name,
        fold=fold,
        seed=0,
        asked=recipe,
        recipe=recipe,
        budget_seconds=None,
        device="cpu",
        precision="fp32",
        memory_format="contiguous",
        threads=1,
        train=(),
        val=val,
        decisions=(),
    )


def add_run(work: Path, plan: Plan, name: str, fold: int, dice: float | None = None, seed: int = 0) -> RunFolder:
    run = Workspace(work).run(name, fold)
    save(plan, run.plan)
    record = run_record(name, fold)
    save(record, run.recipe)
    save(RunStatus("done", 1, 1, 1.0, 0.1, None, dice), run.state)
    write_weights(run, plan, name, seed)
    return run


def write_weights(run: RunFolder, plan: Plan, name: str, seed: int) -> None:
    from safetensors.torch import save as as_bytes

    torch.manual_seed(seed)
    network = plan.build_network(name)
    content = as_bytes(network.state_dict())
    generation = run.checkpoint / "00000001"
    generation.mkdir(parents=True, exist_ok=True)
    (generation / "weights.safetensors").write_bytes(content)
    save({"sha256": {"weights.safetensors": sha256(content).hexdigest()}}, generation / "manifest.json")


def trained_work_folder(folder: Path, plan: Plan | None = None, name: str = "3d_fullres", folds=(0, 1)) -> Path:
    work = folder / "dataset" / "autoseg"
    plan = plan or tiny_plan()
    for fold in folds:
        add_run(work, plan, name, fold, seed=fold)
    return work
