"""`autoseg evaluate` from folders to scores."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from autoseg.api.evaluate import evaluate, write_evaluation
from autoseg.core.errors import DataRefused
from autoseg.core.files import sha256_of_file
from autoseg.core.geometry import Geometry
from autoseg.core.records import save
from autoseg.core.workspace import Workspace
from autoseg.data.model import LabelSet, label_set_of
from autoseg.evaluation import metrics
from autoseg.evaluation.metrics import METRICS, Metric
from autoseg.images.writers import write_labels
from autoseg.inference.manifest import CaseOutcome, PredictionManifest
from autoseg.runs.run import FoldScores
from tests.runs.trained import add_selection, tiny_plan, trained_work_folder, write_weights

GRID = Geometry((6, 9, 9), (2.0, 1.0, 0.5), (5.0, -7.0, 1.5))


def ball(shift=0, value=1):
    array = np.zeros(GRID.shape, np.int16)
    array[1:5, 2:7, 2 + shift : 7 + shift] = value
    return array


@pytest.fixture
def folders(tmp_path):
    """Two cases: one perfect, one shifted by a voxel of 0.5 mm along x."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for case, shift in (("a", 0), ("b", 1)):
        write_labels(predictions / f"{case}.nii.gz", ball(shift), GRID)
        write_labels(references / f"{case}.nii.gz", ball(), GRID)
    return predictions, references


def test_scores_per_case_and_class_with_means(autoseg, folders):
    ran = autoseg("evaluate", *folders, "--json", "--jobs", 1)
    assert ran.code == 0, ran.stderr
    document = ran.document
    assert set(document) >= {"mean", "foreground_mean", "cases"}
    assert list(document["cases"]) == ["a", "b"]
    expected = {
        "dice": 1.0,
        "iou": 1.0,
        "nsd": 1.0,
        "hd95_mm": 0.0,
        "assd_mm": 0.0,
        "volume_ml": 0.1,
        "reference_volume_ml": 0.1,
    }
    assert expected.items() <= document["cases"]["a"]["1"].items()
    shifted = document["cases"]["b"]["1"]
    assert shifted["dice"] == pytest.approx(0.8)
    assert (shifted["hd95_mm"], shifted["nsd"]) == (0.5, 1.0)
    assert document["mean"]["1"]["dice"] == pytest.approx(0.9)
    assert document["foreground_mean"]["dice"] == pytest.approx(0.9)


def test_cases_that_were_matched_although_their_place_is_not_stated_are_named_once(autoseg, folders):
    for case in "ab":
        write_labels(folders[0] / f"{case}.nii.gz", ball(), replace(GRID, has_orientation=False))
    ran = autoseg("evaluate", *folders, "--jobs", 1)
    assert ran.code == 0
    note = "a, b: the prediction does not state where its voxels lie; the two were matched voxel by voxel"
    assert note in " ".join((ran.stdout + ran.stderr).split())
    assert json.loads((folders[0] / "evaluation.json").read_text())["notes"] == [note]


def test_the_table_prints_every_definition_and_files_hold_every_score(autoseg, folders):
    ran = autoseg("evaluate", *folders, "--tolerance", 0.4, "--jobs", 1)
    assert ran.code == 0
    for word in ("95th percentiles", "2 |P and R|", "within 0.4 mm", "face neighbor"):
        assert word in ran.stdout
    stored = json.loads((folders[0] / "evaluation.json").read_text())
    assert stored["tolerance_mm"] == 0.4
    assert stored["cases"]["b"]["1"]["nsd"] < 1
    with (folders[0] / "evaluation.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == ["a", "b"]
    assert set(rows[0]) == {"case", "class", *METRICS}
    assert float(rows[1]["dice"]) == pytest.approx(0.8)


def test_a_metric_added_to_the_registry_is_in_every_file(folders, monkeypatch):
    recall = Metric("recall", "|P and R| / |R|", lambda counts: counts.both / counts.reference)
    for registry in (metrics.METRICS, metrics.COUNT_METRICS):
        monkeypatch.setitem(registry, "recall", recall)
    write_evaluation(evaluate(*folders, jobs=0), folders[0])
    stored = json.loads((folders[0] / "evaluation.json").read_text())
    assert stored["definitions"]["recall"] == recall.definition
    assert (stored["mean"]["1"]["recall"], stored["foreground_mean"]["recall"]) == pytest.approx((0.9, 0.9))
    with (folders[0] / "evaluation.csv").open() as stream:
        assert [float(row["recall"]) for row in csv.DictReader(stream)] == pytest.approx([1.0, 0.8])


def test_failures_are_listed_and_give_no_score(autoseg, folders, tmp_path):
    predictions, references = folders
    write_labels(references / "missing.nii.gz", ball(), GRID)
    for case in ("broken", "elsewhere"):
        write_labels(references / f"{case}.nii.gz", ball(), GRID)
    (predictions / "broken.nii.gz").write_bytes(b"no image")
    write_labels(predictions / "elsewhere.nii.gz", ball(), Geometry(GRID.shape, (3.0, 1.0, 0.5)))
    write_labels(predictions / "extra.nii.gz", ball(), GRID)
    ran = autoseg("evaluate", predictions, references, "--json", "--jobs", 1, "-o", tmp_path / "scores")
    assert ran.code == 4
    document = ran.document
    assert list(document["cases"]) == ["a", "b"]
    assert list(document["failures"]) == ["broken", "elsewhere", "missing"]
    assert "reference" in document["failures"]["elsewhere"]
    assert document["failures"]["missing"] == "there is no prediction"
    assert (tmp_path / "scores" / "evaluation.csv").is_file()
    table = autoseg("evaluate", predictions, references, "--jobs", 1)
    assert (table.code, "there is no prediction" in table.stdout) == (4, True)


def test_a_class_that_only_predictions_show_is_scored_and_named(folders):
    predictions, references = folders
    write_labels(predictions / "strange.nii.gz", ball(value=7), GRID)
    write_labels(references / "strange.nii.gz", ball(), GRID)
    found = evaluate(predictions, references, jobs=0)
    assert (found.failures, list(found.mean)) == ({}, ["1", "7"])
    assert found.cases["strange"]["7"]["dice"] == found.cases["strange"]["1"]["dice"] == 0
    assert found.classes.endswith("no reference holds 7")


def test_values_that_do_not_fit_together_are_named_with_the_file_that_holds_them(folders, tmp_path):
    predictions, references = folders
    for file in references.iterdir():
        write_labels(file, ball(value=255), GRID)
    with pytest.raises(DataRefused, match="the predictions hold 0, 1; the references 0, 255"):
        evaluate(predictions, references, jobs=0)
    declared = tmp_path / "dataset.json"
    table = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 255}, "file_ending": ".nii.gz"}
    declared.write_text(json.dumps(table))
    failures = evaluate(predictions, references, dataset=declared, jobs=0).failures
    assert "the prediction holds 0, 1; the reference holds 0, 255" in failures["a"]


def test_without_any_labeled_voxel_there_is_nothing_to_score(folders):
    for folder in folders:
        for file in folder.iterdir():
            write_labels(file, ball() * 0, GRID)
    with pytest.raises(DataRefused, match="nothing to score"):
        evaluate(*folders, jobs=0)


def test_references_that_cannot_be_read_are_named_with_the_reason(folders):
    for file in folders[1].iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataRefused, match="none of the label maps can be read") as caught:
        evaluate(*folders, jobs=0)
    assert "a.nii.gz" in str(caught.value.why)
    assert "1 more file" in str(caught.value.why)


def test_references_go_with_predictions_by_their_names(tmp_path):
    write_labels(tmp_path / "p" / "img0001.nii.gz", ball(), GRID)
    write_labels(tmp_path / "r" / "label0001.nii.gz", ball(), GRID)
    assert list(evaluate(tmp_path / "p", tmp_path / "r", jobs=0).cases) == ["img0001"]


def test_undefined_scores_are_null(autoseg, folders):
    predictions, references = folders
    for folder in folders:
        array = ball() if folder == references else ball() * 0
        write_labels(folder / "c.nii.gz", array, GRID)
        write_labels(folder / "d.nii.gz", ball() * 0, GRID)
    document = autoseg("evaluate", predictions, references, "--json", "--jobs", 1).document
    one_sided, empty = document["cases"]["c"]["1"], document["cases"]["d"]["1"]
    assert (one_sided["dice"], one_sided["hd95_mm"], one_sided["nsd"]) == (0.0, None, 0.0)
    assert (empty["dice"], empty["nsd"], empty["volume_ml"]) == (None, None, 0.0)
    assert document["mean"]["1"]["dice"] == pytest.approx((1 + 0.8 + 0) / 3)


NAMED = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "spleen": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


@pytest.mark.parametrize("how", ["manifest", "option", "file", "beside", "run", "work"])
def test_names_of_classes_are_found_where_they_are_declared(autoseg, folders, tmp_path, how):
    predictions, references = folders
    labels, words = LabelSet({"background": (0,), "spleen": (1,)}, file_values=(0, 1)), []
    if how == "manifest":
        save(PredictionManifest(1, "0", "m", "cpu", True, 0.5, labels), predictions / "manifest.json")
    elif how in ("option", "file"):
        (tmp_path / "declared").mkdir()
        (tmp_path / "declared" / "dataset.json").write_text(json.dumps(NAMED))
        words = ["--dataset", tmp_path / "declared" / ("dataset.json" if how == "file" else "")]
    elif how == "beside":
        (references.parent / "dataset.json").write_text(json.dumps(NAMED))
    elif how == "work":
        save(tiny_plan(labels=labels), tmp_path / "set" / "autoseg" / "plan.json")
        words = ["--dataset", tmp_path / "set"]
    else:
        predictions = predictions.rename(tmp_path / "validation")
        save(tiny_plan(labels=labels), tmp_path / "plan.json")
    ran = autoseg("evaluate", predictions, references, "--json", "--jobs", 1, *words)
    assert list(ran.document["mean"]) == ["spleen"]


def test_a_validation_map_that_was_changed_since_is_scored_with_a_note(folders, tmp_path):
    predictions, references = folders
    predictions = predictions.rename(tmp_path / "validation")
    save(tiny_plan(), tmp_path / "plan.json")
    maps = {file.name: sha256_of_file(file) for file in predictions.iterdir()}
    save(FoldScores({}, {}, {}, (), (), maps=maps), predictions / "scores.json")
    assert evaluate(predictions, references).notes == ()
    write_labels(predictions / "b.nii.gz", ball(2), GRID)
    assert evaluate(predictions, references).notes == ("b.nii.gz was changed since it was scored",)


def test_references_may_be_a_dataset(autoseg, folders, tmp_path):
    predictions, references = folders
    root = tmp_path / "Dataset001_Spleen"
    (root / "imagesTr").mkdir(parents=True)
    references.rename(root / "labelsTr")
    for case in "ab":
        write_labels(root / "imagesTr" / f"{case}_0000.nii.gz", ball(), GRID)
    (root / "dataset.json").write_text(json.dumps(NAMED))
    document = autoseg("evaluate", predictions, root, "--json", "--jobs", 1).document
    assert list(document["cases"]) == ["a", "b"]
    assert list(document["mean"]) == ["spleen"]


def test_masks_beside_images_are_the_references(autoseg, tmp_path):
    grid = Geometry((1, 20, 20), (999.0, 1.0, 1.0))
    mask = np.zeros((1, 20, 20), np.int16)
    mask[0, 4:9, 4:9] = 1
    write_labels(tmp_path / "out" / "x.tif", mask, grid)
    write_labels(tmp_path / "set" / "x_masks.tif", mask, grid)
    write_labels(tmp_path / "set" / "x.tif", 100 + mask, grid)
    document = autoseg("evaluate", tmp_path / "out", tmp_path / "set", "--json", "--jobs", 1).document
    assert document["cases"]["x"]["1"]["dice"] == 1.0
    assert document["cases"]["x"]["1"]["volume_ml"] is None


def test_a_format_without_geometry_takes_that_of_the_other_file(autoseg, tmp_path):
    write_labels(tmp_path / "out" / "x.tif", ball(1), Geometry(GRID.shape))
    write_labels(tmp_path / "set" / "x.nii.gz", ball(), GRID)
    for first, second in (("out", "set"), ("set", "out")):
        document = autoseg("evaluate", tmp_path / first, tmp_path / second, "--json", "--jobs", 1).document
        assert document["cases"]["x"]["1"]["hd95_mm"] == 0.5


def test_nothing_to_compare_is_refused(autoseg, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    assert autoseg("evaluate", folders[0], tmp_path / "nowhere").code == 2
    assert autoseg("evaluate", folders[0], tmp_path / "empty").code == 3
    write_labels(tmp_path / "other" / "z.nii.gz", ball(), GRID)
    refused = autoseg("evaluate", folders[0], tmp_path / "other")
    assert (refused.code, "no prediction has the name" in refused.stderr) == (3, True)


def test_selected_label_maps_of_networks_that_were_trained_again_are_scored_with_a_note(folders, tmp_path):
    work, plan = trained_work_folder(tmp_path), tiny_plan()
    add_selection(work, plan, {"3d_fullres": 1})
    predictions, references = folders[0].rename(work / "selected"), folders[1]
    assert evaluate(predictions, references).notes == ()
    write_weights(Workspace(work).run("3d_fullres", 1), plan, "3d_fullres", seed=9)
    (note,) = evaluate(predictions, references).notes
    assert note.startswith("3d_fullres/fold_1 was trained again")


def test_scores_that_somebody_edited_are_not_replaced(autoseg, folders, tmp_path, monkeypatch):
    words = ["evaluate", *folders, "-o", tmp_path / "scores", "-q"]
    assert autoseg(*words).code == autoseg(*words).code == 0
    table = tmp_path / "scores" / "evaluation.csv"
    table.write_text(table.read_text() + "remark,,\n")
    monkeypatch.setattr("autoseg.api.evaluate.score_files", None)  # refused before anything is scored
    refused = autoseg(*words)
    assert (refused.code, "evaluation.csv" in refused.stderr) == (2, True)
    monkeypatch.undo()
    assert "remark" in table.read_text()
    assert autoseg(*words, "--overwrite").code == 0
    assert "remark" not in table.read_text()


def test_a_case_that_failed_has_no_score_although_a_map_lies_there(autoseg, folders):
    predictions, _references = folders
    labels = label_set_of({"background": (0,), "a": (1,)})
    outcomes = {"a": CaseOutcome("failed", None, 0.0, "damaged", None)}
    save(PredictionManifest(2, "0", "m", "cpu", True, 0.5, labels, outcomes), predictions / "manifest.json")
    ran = autoseg("evaluate", *folders, "--json")
    assert ran.code == 4
    assert "a" not in ran.document["cases"]
    assert ran.document["failures"]["a"] == "damaged"
