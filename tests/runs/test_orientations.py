"""One anatomy stored in every orientation: prepared, trained on, validated and predicted alike, on each file's grid."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from autoseg.api.evaluate import evaluate
from autoseg.api.plan import Planned, plan_dataset
from autoseg.api.predict import predict
from autoseg.core.geometry import Geometry
from autoseg.core.records import save
from autoseg.core.workspace import Workspace
from autoseg.images.orientation import orientation_of, turn_to
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels
from autoseg.planning.planner import PlanOptions
from autoseg.preprocessing.fill import fill_store
from autoseg.preprocessing.store import open_case, store_recipe
from autoseg.runs.queue import RunTask, TrainOptions
from autoseg.runs.run import Run
from autoseg.runs.training import train_and_validate
from autoseg.training.recipe import Recipe
from autoseg.training.splits import Fold
from tests.images.examples import CODES, forget_orientation
from tests.inference.examples import unet_spec
from tests.runs.trained import never

GRID = Geometry((6, 12, 16), (3.0, 1.0, 1.3), (7.0, -5.0, 3.0))
KEPT_BACK = ("LPS", "RAS", "IRP", "PSL")


def anatomy() -> tuple[Volume, Volume]:
    """Two lungs and a tumor without any symmetry, and air around them; in L-P-S high x is the patient's left."""
    labels = np.zeros(GRID.shape, np.int16)
    labels[1:4, 2:6, 10:15], labels[1:4, 2:6, 2:6], labels[4, 7:10, 3:5] = 1, 2, 3
    image = np.random.default_rng(0).normal(1, 0.3, GRID.shape).astype(np.float32) + labels
    image[:, :1] = image[:, :, -1:] = 0
    return Volume(image[None], GRID), Volume(labels, GRID)


def write_set(folder: Path, orientations: Sequence[str], ending: str = ".nii.gz") -> Path:
    """A dataset of the same case in these orientations, called by them; of one the labels lie in another."""
    image, labels = anatomy()
    for number, codes in enumerate(orientations):
        turn = turn_to(GRID, codes)
        label_turn = turn_to(GRID, "SAR") if number == 1 else turn
        write_image(folder / "imagesTr" / f"{number:02d}_{codes}_0000{ending}", turn.apply(image))
        stored = label_turn.apply(labels)
        write_labels(folder / "labelsTr" / f"{number:02d}_{codes}{ending}", stored.array, stored.geometry)
    classes = {"background": 0, "lung_left": 1, "lung_right": 2, "tumor": 3}
    description = {"channel_names": {"0": "MRI"}, "labels": classes, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps({**description, "numTraining": len(orientations)}))
    return folder


def prepared(made: Planned, workspace: Workspace) -> Path:
    """The store of 3d_fullres, filled."""
    recipe = store_recipe(made.plan, made.plan.configurations["3d_fullres"], made.survey.fingerprint)
    result = fill_store(made.dataset, made.survey.fingerprint, recipe, workspace.store)
    assert not result.failures
    return result.folder


@dataclass(frozen=True)
class Trained:
    """A dataset of all orientations, and the model that was trained with it."""

    folder: Path
    made: Planned
    store: Path
    names: tuple[str, ...]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = write_set(tmp_path_factory.mktemp("all"), ["LPS", "LPS", *(codes for codes in CODES if codes != "LPS")])
    workspace = Workspace(folder / "autoseg")
    made = plan_dataset(folder, workspace, PlanOptions())
    configuration = replace(made.plan.configurations["3d_fullres"], patch_size=(4, 8, 8), network=unet_spec(3))
    made = replace(made, plan=replace(made.plan, configurations={"3d_fullres": configuration}))
    save(made.plan, workspace.plan)
    store = prepared(made, workspace)
    names = tuple(case.identifier for case in made.survey.fingerprint.cases)
    kept_back = tuple(name for name in names if name[3:] in KEPT_BACK)
    task = RunTask(
        run=Run("3d_fullres", 0, workspace.run("3d_fullres", 0)),
        plan=made.plan,
        dataset=made.dataset,
        cases=Fold(tuple(name for name in names if name not in kept_back), kept_back),
        recipe=Recipe(epochs=3, steps_per_epoch=5, validation_steps=1, precision="fp32", memory_format="contiguous"),
        options=TrainOptions(jobs=1),
        store=store,
        first_stage=None,
        begin=0.0,
        deadline=None,
    )
    train_and_validate(task, torch.device("cpu"), never)
    return Trained(folder, made, store, names)


def test_training_sees_one_anatomy(trained):
    assert trained.made.plan.orientation == "LPS"
    assert trained.made.plan.lateral_axis == 2
    assert len(trained.names) == 49
    first, *others = (open_case(trained.store / name) for name in trained.names)
    assert {int(value) for value in np.unique(first.labels)} == {0, 1, 2, 3}
    for other in others:
        assert np.array_equal(other.image, first.image)
        assert np.array_equal(other.labels, first.labels)
        assert other.placement.geometry.shape == turn_to(GRID, other.identifier[3:]).view(np.empty(GRID.shape)).shape


def test_a_dataset_of_one_orientation_is_prepared_the_same(trained, tmp_path):
    folder = write_set(tmp_path, ["LPS", "LPS", "LPS"])
    store = prepared(plan_dataset(folder, Workspace(tmp_path / "work"), PlanOptions()), Workspace(tmp_path / "work"))
    alike, mixed = open_case(store / "00_LPS"), open_case(trained.store / trained.names[-1])
    assert np.array_equal(alike.image, mixed.image)
    assert np.array_equal(alike.labels, mixed.labels)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_formats_are_turned_alike(ending, tmp_path):
    folder = write_set(tmp_path, ["LPS", "LPS", "RAS", "SPL", "AIR", "ILP"], ending)
    workspace = Workspace(tmp_path / "autoseg")
    made = plan_dataset(folder, workspace, PlanOptions())
    first, *others = (open_case(path) for path in sorted(prepared(made, workspace).glob("*_*")) if path.is_dir())
    assert len(others) == 5
    assert made.plan.orientation == "LPS"
    for other in others:
        assert np.array_equal(other.image, first.image)
        assert np.array_equal(other.labels, first.labels)


def test_validation_scores_each_case_where_it_lies(trained):
    run = Run("3d_fullres", 0, Workspace(trained.folder / "autoseg").run("3d_fullres", 0))
    scores = list(run.scores.cases.values())
    assert len(scores) == len(KEPT_BACK) + 1
    assert all(own == scores[0] for own in scores)
    assert scores[0]["lung_left"]["dice"] > 0
    maps = [read_labels(run.folder.validation / f"{name}.nii.gz") for name in run.scores.cases]
    turned = [turn_to(found.geometry, "LPS").apply(found).array for found in maps]
    assert all(np.array_equal(own, turned[0]) for own in turned)
    assert {orientation_of(found.geometry) for found in maps} == set(KEPT_BACK)


def test_new_images_are_predicted_alike_on_their_own_grids(trained, tmp_path):
    new, references, out = (tmp_path / name for name in ("new", "references", "out"))
    image, labels = anatomy()
    for number, codes in enumerate(CODES):
        ending = (".nii.gz", ".nrrd", ".mha")[number % 3]
        write_image(new / f"{codes}{ending}", turn_to(GRID, codes).apply(image))
        write_labels(references / f"{codes}.nii.gz", labels.array, labels.geometry)
    manifest = predict(trained.folder, new, out, mirroring=False, report=False, device="cpu")
    assert not manifest.failures
    assert {name: case.notes for name, case in manifest.cases.items()} == {
        codes: () if codes == "LPS" else (f"stored {'-'.join(codes)}, turned to L-P-S",) for codes in CODES
    }
    maps = {name: read_labels(out / str(case.output)) for name, case in manifest.cases.items()}
    expected = maps["LPS"].array
    assert len(np.unique(expected)) > 2
    for codes in CODES:
        source = read_image([next(new.glob(f"{codes}.*"))]).geometry
        assert orientation_of(maps[codes].geometry) == codes
        assert np.allclose(maps[codes].geometry.corners, source.corners, atol=1e-4)
        assert np.array_equal(turn_to(maps[codes].geometry, "LPS").apply(maps[codes]).array, expected)
        seen = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(out / str(manifest.cases[codes].output))), "LPS")
        assert np.array_equal(SimpleITK.GetArrayFromImage(seen), expected)
    scores = evaluate(out, references, dataset=trained.folder).cases.values()
    assert len(scores) == 48
    assert len({tuple(own["dice"] for own in case.values()) for case in scores}) == 1


def test_an_image_that_does_not_say_how_it_lies_is_predicted_as_stored_with_a_warning(trained, tmp_path, caplog):
    new, out = tmp_path / "new", tmp_path / "out"
    image, _ = anatomy()
    write_image(new / "known.nii.gz", image)
    write_image(new / "unknown.nii.gz", turn_to(GRID, "RPS").apply(image))
    forget_orientation(new / "unknown.nii.gz")
    write_image(new / "same.nii.gz", image)
    forget_orientation(new / "same.nii.gz")
    with caplog.at_level(logging.INFO):
        manifest = predict(trained.folder, new, out, mirroring=False, report=False, device="cpu")
    assert manifest.cases["known"].notes == ()
    for name in ("same", "unknown"):
        assert "no orientation stated" in manifest.cases[name].notes[0]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(message.partition(":")[0] for message in warned) == ["same", "unknown"]
    known, same, unknown = (read_labels(out / f"{name}.nii.gz").array for name in ("known", "same", "unknown"))
    assert np.array_equal(same, known)
    assert not np.array_equal(unknown, known[:, :, ::-1])
