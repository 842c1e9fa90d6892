from __future__ import annotations

import shutil

import pytest

from tests.selection.cross_validated import CASES, write_cross_validated


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    write_cross_validated(folder)
    return folder


def test_the_table_shows_candidates_the_choice_and_postprocessing(autoseg, dataset) -> None:
    shown = autoseg("select", dataset, "--jobs", 1)
    assert shown.code == 0, shown.stderr
    for words in (
        "2d + 3d_fullres",
        "Candidates on 10 cases",
        "expected on new cases",
        "largest component",
        "uses it",
    ):
        assert words in shown.stdout
    assert (dataset / "autoseg" / "selection.json").exists()


def test_json_is_one_document_with_the_whole_record(autoseg, dataset) -> None:
    document = autoseg("select", dataset, "--jobs", 1, "--json", "--objective", "cost").document
    assert (document["name"], document["objective"]) == ("2d", "cost")
    assert set(document["case_dice"]) == set(CASES)
    assert autoseg("select", dataset, "--jobs", 1, "--json", "--configuration", "2d").document["name"] == "2d"


def test_what_nnunet_would_choose_is_told_if_it_is_another(autoseg, dataset) -> None:
    shown = autoseg("select", dataset, "--jobs", 1, "--objective", "cost")
    assert "nnU-Net would choose" in shown.stdout


def boxed(ran) -> str:
    """The one error box."""
    assert ran.stderr.count("error E") == 1
    assert "Traceback" not in ran.stderr
    return ran.stderr[ran.stderr.index("error E") :]


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_without_a_plan_there_is_one_box(autoseg, tmp_path, folder) -> None:
    ran = autoseg("select", tmp_path / folder)
    assert ran.code == 2
    assert boxed(ran)


def test_selection_before_training_and_a_half_trained_matrix_are_one_box_each(autoseg, dataset, tmp_path) -> None:
    work = tmp_path / "work"
    shutil.copytree(dataset / "autoseg", work)
    shutil.rmtree(work / "runs" / "2d" / "fold_2")
    half = autoseg("select", dataset, "--work", work)
    assert half.code == 2
    assert "missing: 2d fold 2" in boxed(half)
    assert "--allow-missing" in half.stderr
    assert autoseg("select", dataset, "--work", work, "--allow-missing", "--jobs", 1).code == 0
    shutil.rmtree(work / "runs")
    before = autoseg("select", dataset, "--work", work)
    assert before.code == 2
    assert "autoseg train" in boxed(before)


@pytest.mark.parametrize("words", [("--configuration", "3d_ful"), ("--objective", "speed")])
def test_unknown_names_are_one_box(autoseg, dataset, words) -> None:
    ran = autoseg("select", dataset, *words)
    assert ran.code == 2
    assert "choose one of" in boxed(ran)
