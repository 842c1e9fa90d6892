from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoseg.core.errors import MissingInput
from autoseg.core.records import load, save
from autoseg.core.workspace import Workspace
from autoseg.data.model import LabelSet
from autoseg.images.readers import read_labels
from autoseg.inference.out_of_fold import CERTAIN, probabilities_at, probabilities_file
from autoseg.inference.predictor import Predictor
from autoseg.planning.lateral import LateralSwap
from autoseg.preprocessing.fill import fill_store
from autoseg.preprocessing.store import open_case, store_recipe
from autoseg.runs.queue import RunTask, TrainOptions
from autoseg.runs.run import FoldScores, Run
from autoseg.runs.validation import (
    CaseSize,
    Forecast,
    Pace,
    ValidationPlan,
    case_size,
    make_predictor,
    measure_pace,
    plan_validation,
    probability_allowance,
    validate_fold,
)
from autoseg.training.recipe import Recipe
from autoseg.training.splits import Fold
from tests.inference.examples import configuration, random_unet, unet_spec
from tests.planning.builders import fingerprint_of, plan_of
from tests.preprocessing.tiny_dataset import planned_tiny_dataset

PACE = Pace(tile_seconds=1.0, voxel_seconds=0.0)
SIZES = {f"case_{i}": CaseSize(tiles=1 + i, voxels=1000) for i in range(10)}
AXES = (0, 1, 2)


def test_everything_is_validated_where_time_allows() -> None:
    planned = plan_validation(SIZES, AXES, PACE, 1000.0)
    assert (len(planned.cases), planned.mirror_axes, planned.notes) == (10, AXES, ())
    assert planned.seconds == sum(8 * size.tiles for size in SIZES.values()) + 1.0


def test_mirroring_goes_first_then_cases() -> None:
    fewer = plan_validation(SIZES, AXES, PACE, 150.0)
    assert (len(fewer.cases), fewer.mirror_axes) == (10, (0,))
    assert "1 of 3 axes" in fewer.notes[0]
    some = plan_validation(SIZES, AXES, PACE, 30.0)
    assert some.mirror_axes == ()
    assert 3 <= len(some.cases) < 10
    assert sorted(some.cases + some.left_out) == sorted(SIZES)
    assert "of 10 cases" in some.notes[0]


@given(seconds=st.floats(0, 1000))
def test_what_is_planned_fits_but_for_a_single_case(seconds: float) -> None:
    planned = plan_validation(SIZES, AXES, PACE, seconds)
    assert planned.seconds <= seconds or len(planned.cases) == 1
    assert set(planned.expected_seconds) == set(planned.cases)


@given(first=st.floats(0, 300), second=st.floats(0, 300), tile_seconds=st.floats(0.1, 3))
def test_whoever_has_less_time_validates_cases_that_the_others_validate_too(first, second, tile_seconds) -> None:
    one = plan_validation(SIZES, AXES, PACE, first)
    other = plan_validation(SIZES, (), Pace(tile_seconds, 0.0), second)
    few, many = sorted((one.cases, other.cases), key=len)
    assert many[: len(few)] == few


def test_the_cases_of_little_time_are_spread_over_the_list() -> None:
    some = plan_validation(SIZES, AXES, PACE, 20.0)
    numbers = sorted(int(name.removeprefix("case_")) for name in some.cases)
    assert len(numbers) >= 3
    assert numbers[-1] - numbers[0] >= 5


def test_the_reserve_grows_with_the_seconds_of_a_step() -> None:
    forecast = Forecast(SIZES, AXES, PACE, step_seconds=1.0, most_seconds=1000.0)
    assert forecast.reserve(0.5) < forecast.reserve(1.0) < forecast.reserve(2.0)
    assert forecast.reserve(100.0) <= 1100.0 + 1100.0  # one case at least, however slow


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A tiny planned dataset, its store of 3d_fullres and an untrained predictor."""
    torch.set_num_threads(1)
    made = planned_tiny_dataset(tmp_path_factory.mktemp("fold") / "data", cases=3)
    own = made.plan.configurations["3d_fullres"]
    small = replace(own, patch_size=(8, 8, 8), network=unet_spec(3), mirror_axes=())
    recipe = store_recipe(made.plan, own, made.fingerprint)
    folder = fill_store(made.dataset, made.fingerprint, recipe, made.workspace.store).folder
    predictor = Predictor((random_unet(3, heads=3),), small, 3)
    return made, folder, predictor


def validated(stored, run, may_start=lambda _name: True, **options):
    made, store, predictor = stored
    names = tuple(case.identifier for case in made.dataset.cases)
    planned = ValidationPlan(names, (), (), {})
    task = RunTask(
        run=run,
        plan=made.plan,
        dataset=made.dataset,
        cases=Fold((), names),
        recipe=Recipe(),
        options=TrainOptions(**options),
        store=store,
        first_stage=None,
        begin=0.0,
        deadline=None,
    )
    return validate_fold(predictor, task, lambda name: open_case(store / name), planned, may_start)


@pytest.fixture
def run(tmp_path) -> Run:
    """A run that was not validated yet."""
    return Run("3d_fullres", 0, Workspace(tmp_path).run("3d_fullres", 0))


def test_probabilities_decide_like_the_label_maps_beside_them(stored, run, tmp_path) -> None:
    folder = run.folder.validation
    scores = validated(stored, run)
    assert load(FoldScores, folder / "scores.json") == scores
    assert set(scores.seconds) == set(scores.cases) == {"case_0", "case_1", "case_2"}
    for name in scores.cases:
        labels = read_labels(folder / f"{name}.nii.gz").array
        kept = probabilities_at(probabilities_file(folder, name), stored[0].plan.labels, np.arange(labels.size))
        foreground = kept.reshape(-1, *labels.shape) / CERTAIN
        probabilities = np.concatenate([1 - foreground.sum(0, keepdims=True), foreground])
        lead = np.diff(np.sort(probabilities, 0)[-2:], axis=0)[0]
        assert (probabilities.argmax(0) == labels)[lead > 0.02].all()
        assert (lead > 0.02).mean() > 0.5


def test_without_disk_for_them_label_maps_alone_are_kept(stored, run, tmp_path) -> None:
    folder = run.folder.validation
    with_them = validated(stored, run)
    assert len(list(folder.glob("*.probabilities.npz"))) == 3
    without = Run("3d_fullres", 0, Workspace(tmp_path / "elsewhere").run("3d_fullres", 0))
    other = without.folder.validation
    assert validated(stored, without, probabilities_gib=0.0).cases == with_them.cases
    assert not list(other.glob("*.probabilities.npz"))
    assert len(list(other.glob("*.nii.gz"))) == 3


def test_the_allowance_counts_what_all_runs_have_kept(tmp_path) -> None:
    workspace = Workspace(tmp_path)
    whole = probability_allowance(workspace, 1e-4)
    kept = workspace.run("2d", 1).validation / "a.probabilities.npz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(bytes(1000))
    assert probability_allowance(workspace, 1e-4) == whole - 1000
    assert probability_allowance(workspace, 0.0) == 0


def test_an_interrupted_validation_keeps_what_it_finished(stored, run, tmp_path) -> None:
    folder = run.folder.validation
    first = validated(stored, run, may_start=lambda name: name == "case_1")
    assert (set(first.cases), first.left_out) == ({"case_1"}, ("case_0", "case_2"))
    (folder / ".partial-0123456789ab-case_0.nii.gz").touch()
    asked = []
    second = validated(stored, run, may_start=lambda name: asked.append(name) is None)
    assert asked == ["case_0", "case_2"]
    assert second.seconds["case_1"] == first.seconds["case_1"]
    assert second.left_out == ()
    assert not list(folder.glob(".partial-*"))


@pytest.mark.parametrize("name", ["case_1.nii.gz", "case_1.probabilities.npz"])
def test_a_case_of_which_a_file_was_changed_is_validated_anew(stored, run, name) -> None:
    done = validated(stored, run)
    (run.folder.validation / name).write_bytes((run.folder.validation / name.replace("1", "2")).read_bytes())
    asked = []
    again = validated(stored, run, may_start=lambda name: asked.append(name) is None)
    assert asked == ["case_1"]
    assert (again.cases, again.maps, again.probabilities) == (done.cases, done.maps, done.probabilities)


def test_probabilities_that_were_deleted_are_not_missed(stored, run) -> None:
    validated(stored, run)
    probabilities_file(run.folder.validation, "case_1").unlink()
    asked = []
    validated(stored, run, may_start=lambda name: asked.append(name) is None)
    assert asked == []


def test_scores_of_another_mirroring_or_a_damaged_record_are_made_anew(stored, run, tmp_path) -> None:
    folder = run.folder.validation
    done = validated(stored, run)
    for content in (replace(done, mirror_axes=(0,)), None):
        if content is None:
            (folder / "scores.json").write_text("{")
        else:
            save(content, folder / "scores.json")
        asked = []
        again = validated(stored, run, may_start=lambda name, asked=asked: asked.append(name) is None)
        assert len(asked) == 3
        assert again.cases == done.cases


def test_a_case_without_a_label_file_is_refused(stored, run, tmp_path) -> None:
    made, store, predictor = stored
    cases = tuple(replace(case, labels=None) for case in made.dataset.cases)
    without = (replace(made, dataset=replace(made.dataset, cases=cases)), store, predictor)
    with pytest.raises(MissingInput, match="case_0 has no label file"):
        validated(without, run)


def test_the_pace_and_the_size_of_a_case_are_measured(stored) -> None:
    _, store, predictor = stored
    size = case_size(open_case(store / "case_0"), predictor)
    assert (size.tiles >= 1, size.voxels) == (True, 6 * 12 * 10)
    pace = measure_pace(predictor, 1)
    assert pace.case_seconds(size, 2) > pace.case_seconds(size, 1) > 0


@pytest.mark.usefixtures("two_threads")
def test_the_pace_is_that_of_passes_side_by_side(monkeypatch) -> None:
    class Slow(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            time.sleep(0.2)
            return image.repeat(1, 2, 1, 1, 1)

    predictor = Predictor((Slow(),), configuration((8, 8, 8)), 2, mirror_axes=(0, 1, 2), tile_batch=1)
    assert predictor.passes_at_once == 2
    assert 0.1 <= measure_pace(predictor, 1).tile_seconds < 0.19
    assert measure_pace(replace(predictor, mirror_axes=()), 1).tile_seconds >= 0.2


def test_a_predictor_takes_over_precision_and_memory_format_of_training() -> None:
    network = random_unet(3).to(memory_format=torch.channels_last_3d)
    plan = plan_of(fingerprint_of([(1, 1, 1)], [(8, 8, 8)]))
    predictor = make_predictor(network, plan, configuration((8, 8, 8)), torch.device("cpu"), "bf16")
    assert (predictor.dtype, predictor.channels_last) == (torch.bfloat16, True)
    assert (predictor.heads, predictor.swap) == (2, None)


def test_a_predictor_exchanges_the_plan_s_lateral_classes() -> None:
    labels = LabelSet({"background": (0,), "left": (1,), "right": (2,)})
    plain = plan_of(fingerprint_of([(1, 1, 1)], [(8, 8, 8)]))
    plan = replace(plain, labels=labels, lateral_axis=2, lateral_pairs=(("left", "right"),))
    predictor = make_predictor(random_unet(3), plan, configuration((8, 8, 8)), torch.device("cpu"), "fp32")
    assert predictor.swap == LateralSwap(2, (0, 2, 1), (0, 2, 1), (0,))
