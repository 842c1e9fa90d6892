"""The report of a dataset: written at every stage, valid, self-contained, and showing what is known by then."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from autoseg.core.errors import MissingInput
from autoseg.core.progress import silent
from autoseg.core.records import load, save
from autoseg.core.workers import map_supervised
from autoseg.core.workspace import Workspace
from autoseg.data.inputs import ExpectedImages, find_inputs
from autoseg.data.model import Dataset, Problem
from autoseg.data.survey import Survey
from autoseg.evaluation.metrics import COUNT_METRICS, Metric
from autoseg.images.orientation import orientation_of, turn_to
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels
from autoseg.inference.manifest import CaseOutcome, PredictionManifest
from autoseg.models.runs import typical_cases
from autoseg.planning.plan import Plan
from autoseg.report.cases import CaseFiles, examine, examine_cases, picture_bytes, without_folders
from autoseg.report.collect import write_prediction_report, write_report
from tests.report.reported import add_results, add_selection, case_names, planned
from tests.report.valid import assert_self_contained, parsed


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return planned(tmp_path_factory.mktemp("report") / "phantoms")


@pytest.fixture
def workspace(original, tmp_path):
    """The planned dataset in a folder of its own; images and labels stay where they are."""
    folder = tmp_path / "phantoms"
    (folder / "autoseg").mkdir(parents=True)
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).symlink_to(original.root.parent / name)
    for path in original.root.glob("*.json"):
        (folder / "autoseg" / path.name).write_bytes(path.read_bytes())
    return Workspace(folder / "autoseg")


def _page(workspace, **options):
    page = write_report(workspace, **options).read_text()
    assert_self_contained(page)
    return page


def _text(page):
    return re.sub(r"\s+", " ", "".join(parsed(page).find("body").itertext()))


def test_a_dataset_that_is_not_planned_has_no_report_yet(tmp_path):
    with pytest.raises(MissingInput) as raised:
        write_report(Workspace(tmp_path))
    assert "autoseg plan" in str(raised.value.do)


def test_a_planned_dataset_has_a_report_that_says_what_is_missing(workspace):
    page = _page(workspace)
    assert workspace.report.read_text() == page
    told = _text(page)
    for sentence in ("planned, not trained", "autoseg train DATASET", "Nothing was selected yet", "organ", "echo_1"):
        assert sentence in told
    decisions = load(Plan, workspace.plan).decisions
    assert all(re.sub(r"\s+", " ", decision.because) in told for decision in decisions)


def test_a_half_trained_dataset_shows_curves_cases_confusion_and_volumes(workspace):
    dice = add_results(workspace, "3d_fullres", 0) | add_results(workspace, "3d_fullres", 1, shift=2)
    told = _text(page := _page(workspace))
    assert "2 of 10 runs done" in told
    assert page.count("<article") == len(dice) == 3
    assert page.count('class="overlay"') == 3 * 3 * 2  # cases, planes, channels
    assert "limits that hold 95 %" in told
    assert "over 3 cases" in told


def test_when_all_is_trained_the_next_step_is_to_select(workspace):
    for name in ("2d", "3d_fullres"):
        for fold in range(5):
            add_results(workspace, name, fold)
    page = _page(workspace, pictures=0)
    assert "autoseg select DATASET" in parsed(page).find(".//header//code").text


def test_a_metric_added_to_the_registry_is_in_the_scores_of_the_classes(workspace, monkeypatch):
    recall = Metric("recall", "|P and R| / |R|", lambda counts: 0.125 + 0 * counts.both)
    monkeypatch.setitem(COUNT_METRICS, "recall", recall)
    add_results(workspace, "3d_fullres", 0)
    told = _text(_page(workspace))
    assert "mean recall" in told
    assert "0.125 to 0.125" in told


def test_cases_come_worst_first_with_the_fold_that_kept_them_back(workspace):
    near = add_results(workspace, "3d_fullres", 0, shift=1)
    far = add_results(workspace, "3d_fullres", 1, shift=6)
    page = _page(workspace)
    order = [heading.text for heading in parsed(page).iter("h3") if heading.text in {*near, *far}]
    assert set(order[: len(far)]) == set(far)
    assert set(order[len(far) :]) == set(near)
    assert "kept back by fold 1" in _text(page)


def test_a_selected_model_shows_candidates_cost_and_postprocessing(workspace):
    dice = add_results(workspace, "2d", 0) | add_results(workspace, "2d", 1)
    add_selection(workspace, dice)
    told = _text(_page(workspace))
    for words in (
        "2d + 2 x 3d_fullres",
        "0.811",
        "optimistic",
        "nnU-Net's rule",
        "fold 4 is missing",
        "remove components of lesion below 40 mm3",
        "autoseg predict DATASET",
        "0.0500 to 0.2000",
    ):
        assert words in told
    assert "have changed since" not in told


def test_a_choice_made_with_another_plan_is_pointed_out(workspace):
    selection = add_selection(workspace, add_results(workspace, "2d", 0))
    save(replace(selection, plan="0" * 16), workspace.selection)
    assert "have changed since this choice" in _text(_page(workspace))


def test_cases_can_be_compared_with_other_label_maps(workspace, tmp_path):
    dice = add_results(workspace, "2d", 0, shift=3)
    name = min(dice)
    volume = read_labels(workspace.run("2d", 0).validation / f"{name}.nii.gz")
    write_labels(tmp_path / "dense" / f"{name}.nii.gz", volume.array, volume.geometry)
    page = _page(workspace, references=tmp_path / "dense")
    scores = {own.find("h3").text: own.find("p").text for own in parsed(page).iter("article")}
    assert "mean Dice 1.000" in scores[name]
    assert all("mean Dice 1.000" not in told for other, told in scores.items() if other != name)
    assert next(iter(scores)) != name
    assert f"{tmp_path.name}/dense: mean Dice" in _text(page)
    assert str(tmp_path) not in page


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_label_maps_of_the_cases_is_not_compared_with(workspace, tmp_path, folder):
    add_results(workspace, "2d", 0)
    with pytest.raises(MissingInput) as raised:
        write_report(workspace, references=tmp_path / folder)
    assert "no label map named like a validated case" in raised.value.what


def test_scores_on_scribbles_are_said_to_be_optimistic(workspace):
    plan, found = load(Plan, workspace.plan), load(Survey, workspace.check)
    save(replace(plan, labels=replace(plan.labels, ignore=4, file_values=())), workspace.plan)
    sparse = tuple(replace(case, class_voxels={"0": 30, "1": 10, "4": 960}) for case in found.fingerprint.cases)
    save(replace(found, fingerprint=replace(found.fingerprint, cases=sparse)), workspace.check)
    add_results(workspace, "2d", 0)
    told = _text(_page(workspace))
    assert "4 % of the voxels are annotated" in told
    assert "--references FOLDER" in told


def test_a_run_of_an_earlier_plan_is_pointed_out(workspace):
    add_results(workspace, "2d", 0)
    plan = load(Plan, workspace.plan)
    flat = replace(plan.configurations["2d"], batch_size=99)
    save(replace(plan, configurations={**plan.configurations, "2d": flat}), workspace.plan)
    assert "started with another plan" in _text(_page(workspace))


def test_damaged_records_of_a_run_do_not_keep_the_rest_from_being_shown(workspace):
    add_results(workspace, "2d", 0)
    workspace.run("2d", 0).state.write_text("{")
    assert "its state.json or recipe.json is damaged" in _text(_page(workspace))


def test_refused_and_suspicious_cases_are_listed_with_what_helps(workspace):
    found = load(Survey, workspace.check)
    problems = [
        Problem("E0401", "refused", "case_9", "a.nii.gz", "the file ends early", "copy it again"),
        *(Problem("E0303", "warning", f"case_{i}", None, "background everywhere", "look at it") for i in range(250)),
    ]
    save(replace(found, problems=tuple(problems)), workspace.check)
    told = _text(_page(workspace))
    assert "1 refused" in told
    assert "copy it again" in told
    assert "250 suspicious" in told
    assert "and 50 more" in told


def test_names_that_contain_markup_stay_names(workspace):
    evil = "<script>alert(1)</script>\"'&"
    plan = load(Plan, workspace.plan)
    values = dict(zip(("background", evil, "lesion", "vessel"), plan.labels.classes.values(), strict=True))
    save(replace(plan, labels=replace(plan.labels, classes=values), channels=(evil, "two")), workspace.plan)
    save(replace(load(Dataset, workspace.dataset), name=evil), workspace.dataset)
    add_results(workspace, "2d", 0)
    assert evil.replace("\n", " ") in _text(_page(workspace))


def test_only_as_many_cases_as_asked_for_have_pictures(workspace):
    add_results(workspace, "2d", 0)
    page = _page(workspace, pictures=1)
    assert page.count("<article") == 1
    assert "The 1 worst cases have pictures" in _text(page)
    assert "<article" not in _page(workspace, pictures=0)


def test_a_report_in_another_file_leaves_the_work_folder_alone(workspace, tmp_path):
    assert write_report(workspace, out=tmp_path / "mine.html") == tmp_path / "mine.html"
    assert not workspace.report.exists()


def test_a_report_names_no_folder_of_the_machine(workspace):
    add_results(workspace, "2d", 0)
    next(workspace.run("2d", 0).validation.glob("*.nii.gz")).unlink()
    page = _page(workspace)
    assert str(workspace.root.parent) not in page
    assert "is missing" in _text(page)


def test_processes_give_the_same_report(workspace):
    add_results(workspace, "2d", 0)
    pages = [re.sub(r"Written [^<]*", "", _page(workspace, jobs=jobs)) for jobs in (0, 1)]
    assert pages[0] == pages[1]


def test_progress_is_told_about_every_case(workspace):
    dice = add_results(workspace, "2d", 0)
    told = []
    write_report(workspace, progress=lambda done, total: told.append((done, total)))
    assert told == [(index + 1, len(dice)) for index in range(len(dice))]


# ---- new cases


@pytest.fixture
def predicted(workspace, tmp_path):
    """A folder of predictions of all training images, as if they were new, and the images."""
    plan = load(Plan, workspace.plan)
    folder = tmp_path / "out"
    outcomes = {}
    for name in case_names(workspace):
        volume = read_labels(workspace.root.parent / "labelsTr" / f"{name}.nii.gz")
        write_labels(folder / f"{name}.nii.gz", volume.array, volume.geometry)
        outcomes[name] = CaseOutcome("done", f"{name}.nii.gz", 1.0, None, None)
    outcomes["broken"] = CaseOutcome("failed", None, 0.0, "cannot read (/home/somebody/secret/broken.nii.gz)", None)
    manifest = PredictionManifest(1, "0", "phantoms/2d", "cpu", False, 0.5, plan.labels, outcomes)
    cases = find_inputs([workspace.root.parent / "imagesTr"], ExpectedImages(2)).cases
    return folder, manifest, plan, cases


def _prediction_page(predicted, typical, **options):
    folder, manifest, plan, cases = predicted
    here = partial(examine_cases, plan=plan, supervised=partial(map_supervised, jobs=0), progress=silent)
    page = write_prediction_report(folder, manifest, cases, typical, here, **options).read_text()
    assert_self_contained(page)
    return page


def test_a_prediction_report_shows_pictures_volumes_and_failures(predicted):
    page = _prediction_page(predicted, {})
    told = _text(page)
    assert page.count("<article") == 6
    assert "cannot read (broken.nii.gz)" in told
    assert "secret" not in page
    assert "does not say what its data were like" in told
    assert "hide references" not in told


def test_training_cases_are_like_the_training_data_and_changed_ones_are_not(workspace, predicted):
    folder, _, plan, cases = predicted
    typical = typical_cases(workspace, plan)
    assert "look at these segmentations" not in _text(_prediction_page(predicted, typical))
    odd = cases[0].identifier
    volume = read_labels(folder / f"{odd}.nii.gz")
    write_labels(folder / f"{odd}.nii.gz", np.zeros_like(volume.array), volume.geometry)
    page = _prediction_page(predicted, typical)
    assert "volume of organ is 0; all 6 training cases have it" in _text(page)
    first = next(node for node in parsed(page).iter("article"))
    assert first.find("h3").text == odd


def test_what_was_settled_while_a_case_was_read_is_shown(predicted):
    folder, manifest, plan, cases = predicted
    assert "settled while the images were read" not in _text(_prediction_page(predicted, {}))
    name = cases[0].identifier
    noted = {**manifest.cases, name: replace(manifest.cases[name], notes=("stored R-A-S, turned to L-P-S",))}
    page = _text(_prediction_page((folder, replace(manifest, cases=noted), plan, cases), {}))
    assert f"{name}stored R-A-S, turned to L-P-S" in page


def test_a_case_stored_otherwise_is_drawn_and_compared_as_the_training_cases_are(workspace, predicted):
    folder, manifest, plan, cases = predicted
    typical = typical_cases(workspace, plan)
    before = _prediction_page(predicted, typical)
    volume = read_image([Path(file) for file in cases[0].images])
    turn = turn_to(volume.geometry, "SRA")
    stored = turn.apply(volume)
    files = [folder.parent / f"{channel}.nii.gz" for channel in range(len(stored.array))]
    for file, channel in zip(files, stored.array, strict=True):
        write_image(file, Volume(channel[None], stored.geometry))
    labels = folder / f"{cases[0].identifier}.nii.gz"
    write_labels(labels, turn.view(read_labels(labels).array), stored.geometry)
    turned = (replace(cases[0], images=tuple(map(str, files))), *cases[1:])
    oriented = replace(plan, orientation=orientation_of(volume.geometry))
    after = _prediction_page((folder, manifest, oriented, turned), typical)
    written = re.compile(r"Written [^<]*")
    assert written.sub("", after) == written.sub("", before)


def test_with_many_cases_the_unlike_ones_get_the_pictures(workspace, predicted):
    folder, _, plan, cases = predicted
    odd = cases[-1].identifier
    volume = read_labels(folder / f"{odd}.nii.gz")
    write_labels(folder / f"{odd}.nii.gz", np.zeros_like(volume.array), volume.geometry)
    page = _prediction_page(predicted, typical_cases(workspace, plan), pictures=1)
    assert [node.find("h3").text for node in parsed(page).iter("article")] == [odd]
    assert "1 of 6 cases have pictures" in _text(page)


def test_a_prediction_of_which_nothing_is_done_has_a_report_too(predicted):
    folder, manifest, plan, cases = predicted
    failed = {"broken": manifest.cases["broken"]}
    page = _prediction_page((folder, replace(manifest, cases=failed), plan, cases), {})
    assert "There are no pictures" in _text(page)


# ---- single cases


def _files(workspace, **changes):
    case = find_inputs([workspace.root.parent / "imagesTr"], ExpectedImages(2)).cases[0]
    labels = workspace.root.parent / "labelsTr" / f"{case.identifier}.nii.gz"
    return replace(CaseFiles(case, "", str(labels), 20_000), **changes)


def _examined(workspace, files):
    return examine(files, load(Plan, workspace.plan))


def test_a_prediction_that_is_gone_is_said_without_its_folder(workspace):
    seen = _examined(workspace, _files(workspace, prediction="/nowhere/x.nii.gz"))
    assert seen.remark == "x.nii.gz is missing"


def test_a_file_that_the_system_does_not_give_is_said_without_its_folder(workspace, tmp_path):
    (tmp_path / "locked").mkdir()
    files = _files(workspace, prediction=str(tmp_path / "locked" / ("x" * 300)))
    seen = _examined(workspace, files)
    assert seen.remark
    assert "locked" not in seen.remark


def test_images_that_are_gone_leave_the_case_without_a_picture(workspace):
    files = _files(workspace)
    seen = _examined(workspace, replace(files, case=replace(files.case, images=("gone_0000.nii.gz",))))
    assert seen.remark == "gone_0000.nii.gz is missing"
    assert seen.picture is None


def test_a_prediction_on_another_grid_is_not_compared(workspace, tmp_path):
    files = _files(workspace)
    volume = read_labels(workspace.root.parent / "labelsTr" / f"{files.case.identifier}.nii.gz")
    small = volume.array[:, :10, :10]
    write_labels(tmp_path / "small.nii.gz", small, replace(volume.geometry, shape=small.shape))
    compared = replace(files.case, labels=files.prediction)
    seen = _examined(workspace, replace(files, prediction=str(tmp_path / "small.nii.gz"), case=compared))
    assert seen.remark == "prediction and reference have different shapes"


def test_volumes_are_those_of_the_label_maps(workspace):
    files = _files(workspace)
    seen = _examined(workspace, replace(files, case=replace(files.case, labels=files.prediction)))
    volume = read_labels(workspace.root.parent / "labelsTr" / f"{files.case.identifier}.nii.gz")
    one_ml = np.prod(volume.geometry.spacing_mm) / 1000
    expected = (volume.array == 1).sum() * one_ml
    assert seen.volumes["organ"] == pytest.approx((expected, expected))
    assert seen.confusion.sum() == volume.array.size
    assert seen.unit == "ml"


def test_pictures_of_a_case_keep_to_their_share(workspace):
    assert len(_examined(workspace, _files(workspace, picture_bytes=30_000)).picture) < 100_000
    assert 50 * picture_bytes(50) <= 13_000_000
    assert examine_cases([], load(Plan, workspace.plan), partial(map_supervised, jobs=0), silent) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read (/home/me/x.nii.gz)", "cannot read (x.nii.gz)"),
        ("cannot read /home/me/data/x.nii.gz: truncated", "cannot read x.nii.gz: truncated"),
        (r"cannot read C:\Users\me\x.nii.gz", "cannot read x.nii.gz"),
        ("1 of 2 and/or more", "1 of 2 and/or more"),
    ],
)
def test_sentences_lose_their_folders(text, told):
    assert without_folders(text) == told
