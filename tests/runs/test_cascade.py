"""A cascade from its first stage to the validation of the second, and what must not get into it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from autoseg.augmentation.kinds import AUGMENTATIONS
from autoseg.core.errors import IntegrityRefusal, Interrupted, MissingInput, PlanFault, UsageError
from autoseg.core.records import load, save
from autoseg.data.labels import to_training_values
from autoseg.images.readers import read_labels
from autoseg.inference.restore import predict_case
from autoseg.networks.weights import newest_weights, weights_hash
from autoseg.preprocessing.fill import hold_store
from autoseg.preprocessing.first_stage import RECIPE as EXTRA_RECIPE
from autoseg.preprocessing.first_stage import (
    FirstStageRecipe,
    network_input,
    open_with_first_stage,
    prepare_first_stage,
)
from autoseg.runs.cascade import check_first_stage
from autoseg.runs.queue import TrainOptions
from autoseg.runs.run import FoldScores, Run, RunRecord, RunStatus
from autoseg.runs.setup import set_up
from autoseg.runs.training import batch_source
from autoseg.runs.validation import make_predictor
from autoseg.training.splits import Fold
from tests.runs.cascade import CPU, FIRST, FOLDS, SECOND, Cascade, planned_cascade
from tests.runs.trained import never

CASES = [f"case_{number}" for number in range(4)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory) -> Cascade:
    """Both folds of the first stage trained."""
    cascade = planned_cascade(tmp_path_factory.mktemp("cascade") / "data")
    for fold in (0, 1):
        assert cascade.train(FIRST, fold).state == "done"
    return cascade


@pytest.fixture
def cascade(first_stage, tmp_path) -> Cascade:
    """The same in a work folder of its own."""
    workspace = type(first_stage.workspace)(tmp_path / "work")
    shutil.copytree(first_stage.workspace.root, workspace.root)
    return Cascade(replace(first_stage.planned, workspace=workspace))


def edit(path, kind, **changes):
    save(replace(load(kind, path), **changes), path)


def test_every_case_gets_what_a_network_predicted_that_never_saw_it(cascade):
    told = []
    extra = cascade.fill(progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (8, 8)
    recipe = load(FirstStageRecipe, extra / EXTRA_RECIPE)
    assert sorted(recipe.sources) == CASES
    for name, source in recipe.sources.items():
        run = cascade.workspace.run(FIRST, source.fold)
        record = load(RunRecord, run.recipe)
        assert name in record.val
        assert name not in record.train
        assert source.weights == weights_hash(run.checkpoint)
        assert source.file == f"runs/{FIRST}/fold_{source.fold}/validation/{name}.nii.gz"
        stored = open_with_first_stage(cascade.store(SECOND), extra, name)
        file = read_labels(cascade.workspace.root / source.file).array
        expected = prepare_first_stage(to_training_values(file, cascade.planned.plan.labels), stored.placement)
        np.testing.assert_array_equal(stored.first_stage, expected)
        assert stored.first_stage.shape == stored.image.shape[1:]


def test_a_filled_extra_is_left_as_it_is_and_a_damaged_case_is_prepared_again(cascade):
    extra = cascade.fill()
    before = {path: path.stat().st_mtime_ns for path in extra.glob("*/*")}
    damaged = extra / "case_1" / "previous.npy"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + b"\x05")
    del before[damaged], before[damaged.with_name("source.json")]
    assert cascade.fill() == extra
    assert damaged.read_bytes() == content
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_filling_may_be_stopped_and_goes_on(cascade):
    def stop(done: int, _total: int) -> None:
        if done == 6:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        cascade.fill(progress=stop)
    (extra,) = cascade.workspace.store.glob("*-previous-*/")
    assert sorted(path.name for path in extra.iterdir() if path.is_dir()) == ["case_0", "case_1"]
    done = (extra / "case_0" / "previous.npy").stat().st_mtime_ns
    (extra / ".partial-0123456789ab-case_3").mkdir()
    assert cascade.fill() == extra
    assert sorted(path.name for path in extra.iterdir() if path.is_dir()) == CASES
    assert (extra / "case_0" / "previous.npy").stat().st_mtime_ns == done


def test_waiting_for_the_store_can_be_stopped(cascade, monkeypatch):
    store = cascade.store(SECOND)
    monkeypatch.setattr(Cascade, "store", lambda *_: store)
    monkeypatch.setattr("autoseg.preprocessing.fill.LONGEST_WAIT_S", 3.0)

    def stop(done: int, _total: int) -> None:
        if done == len(CASES):
            raise Interrupted("stopped")

    with hold_store(store), pytest.raises(Interrupted):
        cascade.fill(progress=stop)


@pytest.mark.parametrize("linked", ["runs", f"runs/{FIRST}", f"runs/{FIRST}/fold_0"])
def test_runs_that_lie_on_another_disk_are_those_of_the_work_folder(cascade, tmp_path, linked):
    extra = cascade.fill()
    elsewhere = tmp_path / "disk"
    (cascade.workspace.root / linked).rename(elsewhere)
    (cascade.workspace.root / linked).symlink_to(elsewhere)
    assert cascade.fill() == extra
    assert cascade.workspace.run(FIRST, 0).workspace == cascade.workspace
    check_first_stage(Run(FIRST, 0, cascade.workspace.run(FIRST, 0)))


def test_a_cascade_trains_validates_and_is_found_done(cascade):
    extra = cascade.fill()
    status = cascade.train(SECOND, 0, extra)
    assert (status.state, status.validated_cases, status.epochs) == ("done", 2, 2)
    weights = newest_weights(cascade.workspace.run(SECOND, 0).checkpoint)
    inputs = {tensor.shape[1] for name, tensor in weights.items() if tensor.ndim == 5}
    assert cascade.planned.plan.input_channels(SECOND) == 3
    assert 3 in inputs
    assert load(RunRecord, cascade.workspace.run(SECOND, 0).recipe).previous == extra.name
    assert load(RunRecord, cascade.workspace.run(FIRST, 0).recipe).previous is None
    again = cascade.train(SECOND, 0, extra)
    assert (again.epochs, again.validation) == (status.epochs, status.validation)


def test_the_network_sees_the_first_stage_in_training_and_in_validation(cascade):
    extra = cascade.fill()
    run = set_up(cascade.task(SECOND, 0, extra), CPU, never)
    image, labels = batch_source(run, run.task.configuration).training(0).tensors()
    assert image.shape == (2, 3, *cascade.configuration(SECOND).patch_size)
    assert labels.shape == (2, *cascade.configuration(SECOND).patch_size)
    assert set(image[:, 1:].unique().tolist()) <= {0.0, 1.0}
    again, _ = batch_source(run, run.task.configuration).training(0).tensors()
    assert torch.equal(image, again)
    stored, labels = run.open_case("case_2"), cascade.planned.plan.labels
    predictor = make_predictor(run.state.network, cascade.planned.plan, cascade.configuration(SECOND), CPU, "fp32")
    full = network_input(stored, labels)
    other = network_input(replace(stored, first_stage=np.full_like(stored.first_stage, 2)), labels)
    assert np.abs(predictor.logits(full) - predictor.logits(other)).max() > 1e-3


def test_validation_is_the_prediction_with_the_first_stage(cascade):
    extra = cascade.fill()
    cascade.train(SECOND, 0, extra)
    run = set_up(cascade.task(SECOND, 0, extra), CPU, never)
    run.state.network.load_state_dict(newest_weights(cascade.workspace.run(SECOND, 0).checkpoint))
    labels = cascade.planned.plan.labels
    predictor = make_predictor(run.state.network, cascade.planned.plan, cascade.configuration(SECOND), CPU, "fp32")
    for name in FOLDS[0].val:
        stored = run.open_case(name)
        predicted = predict_case(predictor, network_input(stored, labels), stored.placement, labels)
        written = read_labels(cascade.workspace.run(SECOND, 0).validation / f"{name}.nii.gz").array
        np.testing.assert_array_equal(to_training_values(written, labels), predicted)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_a_cascade_trains_with_every_augmentation(cascade, kind):
    task = cascade.task(SECOND, 1, cascade.fill())
    status = cascade.train(SECOND, 1, task.first_stage, recipe=replace(task.recipe, augmentation=kind, epochs=1))
    assert (status.state, status.validated_cases) == ("done", 2)


def test_without_all_folds_of_the_first_stage_there_is_no_cascade(cascade):
    shutil.rmtree(cascade.workspace.run(FIRST, 1).root)
    with pytest.raises(MissingInput, match=r"not trained yet: 1") as caught:
        cascade.fill()
    assert "--configuration 3d_lowres" in str(caught.value)
    edit(cascade.workspace.run(FIRST, 0).state, RunStatus, state="validating")
    with pytest.raises(MissingInput, match=r"not trained yet: 0, 1"):
        cascade.fill()


def test_a_first_stage_that_saw_a_case_does_not_predict_it(cascade):
    edit(cascade.workspace.run(FIRST, 0).recipe, RunRecord, train=("case_0", "case_1", "case_2"))
    with pytest.raises(IntegrityRefusal, match="was trained on case_2") as caught:
        cascade.fill()
    assert "--fresh" in str(caught.value)
    edit(cascade.workspace.run(FIRST, 0).recipe, RunRecord, val=("case_3",))
    with pytest.raises(UsageError, match="keeps case_2 back"):
        cascade.fill()


def test_cases_that_no_fold_keeps_back_are_refused(cascade):
    edit(cascade.workspace.run(FIRST, 1).recipe, RunRecord, val=())
    with pytest.raises(UsageError, match="keeps case_0 back, nor 1 more cases"):
        cascade.fill()


def test_what_the_validation_had_no_time_for_is_predicted_now(cascade):
    validation = cascade.workspace.run(FIRST, 1).validation
    scores = load(FoldScores, validation / "scores.json")
    kept = {name: own for name, own in scores.cases.items() if name != "case_0"}
    save(replace(scores, cases=kept, left_out=("case_0",)), validation / "scores.json")
    before = read_labels(validation / "case_0.nii.gz").array
    prepared = cascade.store(FIRST) / "case_0"
    prepared.rename(prepared.with_name("elsewhere"))
    with pytest.raises(MissingInput, match="case_0 is not prepared for 3d_lowres") as caught:
        cascade.fill()
    assert "autoseg preprocess" in str(caught.value)
    prepared.with_name("elsewhere").rename(prepared)
    extra = cascade.fill()
    source = load(FirstStageRecipe, extra / EXTRA_RECIPE).sources["case_0"]
    assert source.file.startswith(f"runs/{FIRST}/fold_1/out_of_fold/{source.weights}/")
    np.testing.assert_array_equal(read_labels(cascade.workspace.root / source.file).array, before)
    written = (cascade.workspace.root / source.file).stat().st_mtime_ns
    assert cascade.fill() == extra
    assert (cascade.workspace.root / source.file).stat().st_mtime_ns == written


def test_a_first_stage_trained_again_is_another_extra_and_stops_runs_of_the_old_one(cascade):
    extra = cascade.fill()
    cascade.train(SECOND, 0, extra)
    check_first_stage(Run(SECOND, 0, cascade.workspace.run(SECOND, 0)))
    check_first_stage(Run(FIRST, 0, cascade.workspace.run(FIRST, 0)))
    shutil.rmtree(cascade.workspace.run(FIRST, 0).root)
    cascade.train(FIRST, 0, options=TrainOptions(jobs=1, seed=1))
    other = cascade.fill()
    assert other != extra
    assert extra.is_dir()
    with pytest.raises(UsageError, match="3d_lowres was trained again since"):
        set_up(cascade.task(SECOND, 0, other), CPU, never)
    with pytest.raises(PlanFault, match="predictions of another 3d_lowres, whose fold 0 was trained again") as caught:
        check_first_stage(Run(SECOND, 0, cascade.workspace.run(SECOND, 0)))
    assert "--fresh --configuration 3d_cascade_fullres" in str(caught.value)
    shutil.rmtree(extra)  # nobody can tell any more
    check_first_stage(Run(SECOND, 0, cascade.workspace.run(SECOND, 0)))


def test_a_first_stage_of_another_plan_is_refused(cascade):
    plan = cascade.planned.plan
    low = replace(plan.configurations[FIRST], batch_size=3)
    changed = Cascade(replace(cascade.planned, plan=replace(plan, configurations={**plan.configurations, FIRST: low})))
    with pytest.raises(PlanFault, match="batch_size"):
        changed.fill()


def test_a_damaged_extra_is_refused_when_it_is_opened(cascade):
    extra, store = cascade.fill(), cascade.store(SECOND)
    array = extra / "case_0" / "previous.npy"
    other = np.load(array)[:-1]
    for content in (b"no array", array.read_bytes() + b"\0"):
        array.write_bytes(content)
        with pytest.raises(IntegrityRefusal, match="case_0 is damaged"):
            open_with_first_stage(store, extra, "case_0")
    np.save(array, other)
    with pytest.raises(IntegrityRefusal, match="case_0 is damaged"):
        open_with_first_stage(store, extra, "case_0")
    shutil.rmtree(extra / "case_0")
    with pytest.raises(MissingInput):
        open_with_first_stage(store, extra, "case_0")
    assert open_with_first_stage(store, None, "case_0").first_stage is None


def test_cases_that_the_store_lacks_are_passed_over(cascade):
    folds = (*FOLDS, Fold(("case_9",), ("case_8",)))
    cascade.store(SECOND)
    with pytest.raises(MissingInput, match="not trained yet: 2"):
        cascade.fill(folds)
    more = tuple(replace(fold, val=(*fold.val, "case_9")) for fold in FOLDS)
    assert sorted(load(FirstStageRecipe, cascade.fill(more) / EXTRA_RECIPE).sources) == CASES
