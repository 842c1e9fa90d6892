"""Where nnU-Net's models are found, which of several predicts, and which zips are unpacked."""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path

import pytest

from autoseg.core.errors import IntegrityRefusal, NotEnoughResources, UsageError
from autoseg.nnunet import folders as nnunet_folders
from autoseg.nnunet.folders import choose_folders, looks_like_nnunet, trained_folders, unpack

FULL, LOW, FLAT = (f"nnUNetTrainer__nnUNetPlans__{name}" for name in ("3d_fullres", "3d_lowres", "2d"))


def made(folder: Path, *checkpoints: str) -> Path:
    """A model's folder; nothing in it can be read, which finding it must not need."""
    folder.mkdir(parents=True, exist_ok=True)
    for checkpoint in checkpoints:
        file = folder / checkpoint
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"weights")
    (folder / "plans.json").write_text("{}")
    (folder / "dataset.json").write_text("{}")
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name in (FULL, LOW):
        made(tmp_path / "Dataset001_A" / name, "fold_0/checkpoint_final.pth", "fold_3/checkpoint_final.pth")
    return tmp_path


def test_results_dataset_model_and_fold_lead_to_models(results: Path) -> None:
    for path in (results, results / "Dataset001_A"):
        assert [model.path.name for model in trained_folders(path)] == [FULL, LOW]
    model = results / "Dataset001_A" / FULL
    assert list(trained_folders(model)[0].folds) == [0, 3]
    assert list(trained_folders(model / "fold_3")[0].folds) == [3]
    assert all(looks_like_nnunet(path) for path in (results, model, model / "fold_0"))


def test_other_folders_are_no_models(results: Path, tmp_path: Path) -> None:
    (tmp_path / "Dataset001_A" / FULL / "plans.json").unlink()
    assert [model.path.name for model in trained_folders(results)] == [LOW]
    plain = tmp_path / "empty"
    made(plain)
    assert trained_folders(plain) == trained_folders(tmp_path / "nowhere") == ()
    assert not looks_like_nnunet(plain / "plans.json")
    assert not looks_like_nnunet(tmp_path / "nowhere")


def test_the_parts_of_a_name_say_how_it_was_trained(tmp_path: Path) -> None:
    model = trained_folders(made(tmp_path / FULL, "fold_0/checkpoint_final.pth"))[0]
    assert (model.trainer, model.plans_name, model.configuration) == ("nnUNetTrainer", "nnUNetPlans", "3d_fullres")
    renamed = trained_folders(made(tmp_path / "liver", "fold_0/checkpoint_final.pth"))[0]
    assert (renamed.trainer, renamed.plans_name, renamed.configuration) == ("liver", "", "")


def test_a_fold_that_did_not_end_is_left_out_and_named(tmp_path: Path) -> None:
    model = made(tmp_path / FULL, "fold_0/checkpoint_final.pth", "fold_1/checkpoint_best.pth")
    found = trained_folders(model)[0]
    assert (list(found.folds), found.because) == ([0], "fold 1 has no checkpoint_final.pth")


def test_a_training_on_all_cases_predicts_where_no_fold_does(tmp_path: Path) -> None:
    model = made(tmp_path / FULL, "fold_all/checkpoint_final.pth")
    assert trained_folders(model)[0].because == "trained on all cases"
    made(model, "fold_2/checkpoint_final.pth")
    assert list(trained_folders(model)[0].folds) == [2]


def test_the_best_checkpoint_stands_in_for_a_final_one(tmp_path: Path) -> None:
    found = trained_folders(made(tmp_path / FULL, "fold_0/checkpoint_best.pth"))[0]
    assert found.folds[0].name == "checkpoint_best.pth"
    assert "did not end" in found.because


def test_the_configuration_asked_for_is_chosen(results: Path) -> None:
    found = trained_folders(results)
    assert [model.path.name for model in choose_folders(found, "3d_lowres", results)[0]] == [LOW]
    with pytest.raises(UsageError, match="2d is not trained") as error:
        choose_folders(found, "2d", results)
    assert FULL in (error.value.do or "")


def test_3d_fullres_is_the_default_and_a_choice_between_others_is_left_to_the_user(results: Path) -> None:
    assert choose_folders(trained_folders(results), None, results)[0][0].path.name == FULL
    made(results / "Dataset001_A" / FLAT, "fold_0/checkpoint_final.pth")
    (results / "Dataset001_A" / FULL / "plans.json").unlink()
    with pytest.raises(UsageError, match=LOW):
        choose_folders(trained_folders(results), None, results)


def test_a_renamed_folder_is_what_its_checkpoint_says(tmp_path: Path) -> None:
    found = trained_folders(made(tmp_path / "liver", "fold_0/checkpoint_final.pth"))
    assert choose_folders(found, "3d_fullres", tmp_path)[0] == found


def test_several_trainers_of_one_configuration_are_told_apart(tmp_path: Path) -> None:
    other = made(tmp_path / "nnUNetTrainerDA5__nnUNetPlans__2d", "fold_0/checkpoint_final.pth")
    third = made(tmp_path / "nnUNetTrainerNoDA__nnUNetPlans__2d", "fold_0/checkpoint_final.pth")
    with pytest.raises(UsageError, match="several ways") as error:
        choose_folders(trained_folders(tmp_path), None, tmp_path)
    assert other.name in (error.value.do or "")
    assert third.name in (error.value.do or "")
    made(tmp_path / FLAT, "fold_0/checkpoint_final.pth")
    assert choose_folders(trained_folders(tmp_path), None, tmp_path)[0][0].path.name == FLAT


def test_another_configuration_is_the_default_where_it_is_the_only_one(tmp_path: Path) -> None:
    made(tmp_path / FLAT, "fold_0/checkpoint_final.pth")
    made(tmp_path / "nnUNetTrainerDA5__nnUNetPlans__2d", "fold_0/checkpoint_final.pth")
    assert choose_folders(trained_folders(tmp_path), None, tmp_path)[1] == "2d, the default of 2d"


def test_models_of_several_datasets_are_not_mixed(results: Path) -> None:
    made(results / "Dataset002_B" / FULL, "fold_0/checkpoint_final.pth")
    with pytest.raises(UsageError, match="2 datasets"):
        choose_folders(trained_folders(results), None, results)


def chosen_by_nnunet(*configurations: str) -> str:
    models = [
        {"trainer": "nnUNetTrainer", "plans_identifier": "nnUNetPlans", "configuration": c} for c in configurations
    ]
    return json.dumps({"best_model_or_ensemble": {"selected_model_or_models": models}})


def test_the_choice_of_nnunet_is_obeyed_where_its_models_are_there(results: Path) -> None:
    file = results / "Dataset001_A" / "inference_information.json"
    file.write_text(chosen_by_nnunet("3d_lowres", "3d_fullres"))
    folders, why = choose_folders(trained_folders(results), None, results)
    assert [model.path.name for model in folders] == [LOW, FULL]
    assert "find_best_configuration" in why
    for content in (chosen_by_nnunet("2d", "3d_fullres"), "{}", '{"best_model_or_ensemble": 3}'):
        file.write_text(content)
        assert len(choose_folders(trained_folders(results), None, results)[0]) == 1
    file.write_text(chosen_by_nnunet("3d_lowres"))
    assert choose_folders(trained_folders(results), "3d_fullres", results)[0][0].path.name == FULL


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


MODEL = {
    f"Dataset001_A/{FULL}/plans.json": b"{}",
    f"Dataset001_A/{FULL}/dataset.json": b"{}",
    f"Dataset001_A/{FULL}/fold_0/checkpoint_final.pth": b"weights",
}


def test_an_export_is_unpacked_without_what_nobody_needs(tmp_path: Path) -> None:
    more = {f"Dataset001_A/{FULL}/fold_0/progress.png": b"x", f"Dataset001_A/{FULL}/fold_0/postprocessing.pkl": b"x"}
    archive, target = zipped(tmp_path / "model.zip", MODEL | more), tmp_path / "out"
    target.mkdir()
    assert looks_like_nnunet(archive)
    unpack(archive, target)
    assert {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()} == set(MODEL)
    assert list(trained_folders(target)[0].folds) == [0]


def test_other_zips_and_files_are_no_models(tmp_path: Path) -> None:
    assert not looks_like_nnunet(zipped(tmp_path / "a.zip", {"plans.json": b"{}"}))
    (tmp_path / "b.zip").write_bytes(b"no zip")
    assert not looks_like_nnunet(tmp_path / "b.zip")


@pytest.mark.parametrize(
    "name",
    [
        "../plans.json",
        "/plans.json",
        "a/../../plans.json",
        "./plans.json",
        "a//../plans.json",
        "c:/plans.json",
        "a\\b/plans.json",
        "../fold_0/checkpoint_final.pth",
    ],
)
def test_names_that_lead_out_of_the_folder_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    archive, target = zipped(tmp_path / "model.zip", MODEL | {name: b"{}"}), tmp_path / "inner" / "out"
    target.mkdir(parents=True)
    with pytest.raises(IntegrityRefusal, match=r"model\.zip"):
        unpack(archive, target)
    assert list(target.iterdir()) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["inner", "model.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_links_twins_and_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    link = zipfile.ZipInfo("a/plans.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    hostile = {"link": [(link, b"/etc/passwd")], "twin": [("a/plans.json", b"{}"), ("A/Plans.json".lower(), b"{}")]}
    for kind, members in hostile.items():
        with zipfile.ZipFile(tmp_path / f"{kind}.zip", "w") as archive:
            for name, content in members:
                archive.writestr(name, content)
        with pytest.raises(IntegrityRefusal):
            unpack(tmp_path / f"{kind}.zip", target)
    monkeypatch.setattr(nnunet_folders, "LARGEST_RATIO", 100)
    bomb = zipped(tmp_path / "bomb.zip", {"fold_0/checkpoint_final.pth": bytes(10**6)})
    with pytest.raises(IntegrityRefusal) as refusal:
        unpack(bomb, target)
    assert "1000000 bytes" in (refusal.value.why or "")
    assert list(target.iterdir()) == []


def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "model.zip", MODEL, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"weights", b"wEights", 1))
    (tmp_path / "out").mkdir()
    with pytest.raises(IntegrityRefusal) as refusal:
        unpack(archive, tmp_path / "out")
    assert "CRC" in (refusal.value.why or "")


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
def test_a_file_that_is_no_zip_or_a_part_of_one_is_refused(tmp_path: Path, cut: int) -> None:
    archive = zipped(tmp_path / "model.zip", MODEL)
    archive.write_bytes(archive.read_bytes()[:cut])
    (tmp_path / "out").mkdir()
    assert not looks_like_nnunet(archive)
    with pytest.raises(IntegrityRefusal):
        unpack(archive, tmp_path / "out")


def test_an_export_that_does_not_fit_the_disk_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnunet_folders.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3}))
    (tmp_path / "out").mkdir()
    with pytest.raises(NotEnoughResources):
        unpack(zipped(tmp_path / "model.zip", MODEL), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
