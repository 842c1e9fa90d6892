from __future__ import annotations

import json
from dataclasses import replace

import pytest

from autoseg.core.errors import RecordFault
from autoseg.core.records import load, save, to_data
from autoseg.inference.postprocessing import PostprocessingStep
from autoseg.selection.record import (
    SELECTION_VERSION,
    CandidateScore,
    NestedScore,
    PostprocessingTrial,
    SelectedMember,
    Selection,
    plan_hash,
)
from tests.runs.trained import tiny_plan

MEMBERS = (SelectedMember("2d", 1), SelectedMember("3d_fullres", 2))
STEP = PostprocessingStep("minimum_volume", ("liver",), 12.5)


def example() -> Selection:
    candidate = CandidateScore(
        "2d + 2 x 3d_fullres", "greedy", MEMBERS, 0.8, (0.7, 0.9), {"liver": 0.8, "tumor": None}, 0.0, None, 3.0, 1.5
    )
    return Selection(
        version=SELECTION_VERSION,
        plan="0" * 16,
        objective="default",
        name=candidate.name,
        because="the best",
        members=MEMBERS,
        folds={"2d": (0, 1), "3d_fullres": (0, 1)},
        candidates=(candidate,),
        nnunet_choice="2d",
        nested=NestedScore(0.79, (0.7, 0.88), 0.8, ("2d", "2d")),
        postprocessing=(
            PostprocessingTrial(STEP, 0.8, 0.81, 0.005, True, "it helps"),
            PostprocessingTrial(replace(STEP, classes=("tumor",)), 0.8, 0.79, 0.0, False, "it hurts"),
        ),
        case_dice={"a": {"liver": 0.8, "tumor": None}},
        runs={"2d/fold_0": "f" * 16},
    )


def test_a_selection_survives_its_file(tmp_path) -> None:
    save(example(), tmp_path / "selection.json")
    assert load(Selection, tmp_path / "selection.json") == example()


def test_a_configuration_without_folds_is_no_selection(tmp_path) -> None:
    folds = {"2d": [0, 1], "3d_fullres": []}
    (tmp_path / "selection.json").write_text(json.dumps(to_data(example()) | {"folds": folds}))
    with pytest.raises(RecordFault, match=r"folds\.3d_fullres"):
        load(Selection, tmp_path / "selection.json")


def test_only_accepted_steps_are_applied() -> None:
    assert example().steps == (STEP,)


def test_the_plan_hash_heeds_what_matters_to_the_runs_only() -> None:
    plan = tiny_plan()
    other = replace(plan, configurations={"2d": plan.configurations["2d"]}, memory_gib=1.0, preset="cpu")
    assert plan_hash(plan, ["2d"]) == plan_hash(other, ["2d"])
    assert plan_hash(plan, ["2d"]) != plan_hash(plan, ["2d", "3d_fullres"])
    changed = replace(plan, configurations={"2d": replace(plan.configurations["2d"], batch_size=99)})
    assert plan_hash(plan, ["2d"]) != plan_hash(changed, ["2d"])


def test_the_hash_of_a_plan_is_that_of_versions_without_a_type_of_the_store() -> None:
    plan = tiny_plan()
    assert plan_hash(plan, ["2d", "3d_fullres"]) == "6ddb98ca64f24437"  # as version 0.1 of November 2026 computed it
    assert plan_hash(replace(plan, store_type="float16"), ["2d", "3d_fullres"]) != "6ddb98ca64f24437"


def test_a_selection_knows_the_plan_it_is_of() -> None:
    plan = tiny_plan()
    selection = replace(example(), plan=plan_hash(plan, ["2d"]))
    assert selection.is_of(plan)
    assert selection.is_of(replace(plan, memory_gib=1.0))
    changed = replace(plan, configurations={"2d": replace(plan.configurations["2d"], batch_size=99)})
    assert not selection.is_of(changed)
