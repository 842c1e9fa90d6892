"""Models of nnU-Net are found, refused or chosen, and predict what nnU-Net predicts."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from autoseg.core.errors import IntegrityRefusal, MissingInput, PlanFault, UsageError
from autoseg.data.labels import to_file_values
from autoseg.images.readers import read_image, read_labels
from autoseg.models.model import Model, make_ensemble
from autoseg.models.record import ModelFiles
from autoseg.nnunet.model import TRAINING_ONLY, find_nnunet_model, looks_like_nnunet
from tests.nnunet.trained_models import REGIONS, TINY, Prediction, predictions

EQUAL_VOXELS = 0.999
"""Share of voxels that must agree. nnU-Net adds tiles up in half precision, so a few ties fall differently."""

FLAT = REGIONS / "nnUNetTrainer__nnUNetResEncUNetMPlans__2d"
CASCADE = TINY / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"


@lru_cache
def found(model: Path, folds: tuple[int, ...]) -> ModelFiles:
    return find_nnunet_model(model, folds=folds)


@pytest.mark.parametrize("reference", list(predictions()), ids=str)
def test_predictions_equal_those_of_nnunet(reference: Prediction) -> None:
    files = found(reference.model, reference.folds)
    model = Model(files, make_ensemble(files, "cpu", mirroring=reference.mirroring))
    own = to_file_values(model.predict_volume(read_image(reference.images)), files.record.plan.labels)
    theirs = read_labels(reference.labels).array
    assert 0.01 < (theirs > 0).mean() < 0.99  # there are objects, so equality says something
    assert (own == theirs).mean() >= EQUAL_VOXELS


def test_a_cascade_finds_its_first_stage_beside_it() -> None:
    files = found(CASCADE, (0,))
    assert [stage.configuration.name for stage in files.record.stages] == ["3d_lowres"]
    assert files.record.members[0].plan.input_channels("3d_cascade_fullres") == 4
    assert files.record.members[0].configuration.mirror_axes == (0, 1, 2)
    assert "3d_cascade_fullres" in files.record.name


def test_a_cascade_without_its_first_stage_is_refused(tmp_path: Path) -> None:
    shutil.copytree(CASCADE, tmp_path / CASCADE.name)
    with pytest.raises(MissingInput, match="3d_lowres") as error:
        find_nnunet_model(tmp_path)
    assert "nnUNetTrainer__nnUNetPlans__3d_lowres" in (error.value.do or "")


def test_a_zip_predicts_as_its_folder_does(tmp_path: Path) -> None:
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for file in sorted(FLAT.rglob("*.*")):
            opened.write(file, file.relative_to(REGIONS.parent).as_posix())
    assert looks_like_nnunet(archive)
    files, own = find_nnunet_model(archive), found(FLAT, (0,))
    assert files.record.plan == own.record.plan
    ours, theirs = (one.read("2d", 0) for one in (files, own))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fold 4") as error:
        find_nnunet_model(FLAT, folds=(4,))
    assert error.value.do == "choose from 0"
    with pytest.raises(UsageError, match="3d_fullres is not trained"):
        find_nnunet_model(FLAT, "3d_fullres")
    with pytest.raises(MissingInput, match="no trained nnU-Net model"):
        find_nnunet_model(tmp_path)


def test_a_model_whose_files_do_not_belong_together_is_refused(tmp_path: Path) -> None:
    model = tmp_path / FLAT.name
    shutil.copytree(FLAT, model)
    plans = json.loads((model / "plans.json").read_text())
    own = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    own["features_per_stage"] = [2 * features for features in own["features_per_stage"]]
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(IntegrityRefusal, match="another shape"):
        find_nnunet_model(model)


def test_folds_of_two_configurations_are_not_averaged(tmp_path: Path) -> None:
    model = tmp_path / CASCADE.name.replace("3d_cascade_fullres", "3d_fullres")
    shutil.copytree(CASCADE.with_name(model.name), model)
    shutil.rmtree(model / "fold_1")
    shutil.copytree(
        CASCADE.with_name(CASCADE.name.replace("3d_cascade_fullres", "3d_lowres")) / "fold_0", model / "fold_1"
    )
    with pytest.raises(PlanFault, match="of 3d_fullres and of 3d_lowres"):
        find_nnunet_model(model)


def test_models_of_other_classes_are_not_averaged() -> None:
    record = found(FLAT, (0,)).record
    plan = record.plan
    own = replace(plan.configurations["2d"], name="another")
    other = replace(plan, channels=("R", "G", "IR"), configurations={"another": own})
    members = (replace(record.members[0], share=0.5), replace(record.members[0], plan=other, share=0.5))
    with pytest.raises(PlanFault, match="different channels"):
        replace(record, members=members)


def test_an_unknown_trainer_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    find_nnunet_model(FLAT)
    assert not caplog.records
    model = tmp_path / FLAT.name
    shutil.copytree(FLAT, model)
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    torch.save(content | {"trainer_name": "nnUNetTrainerMine\x1b[2J"}, checkpoint)
    find_nnunet_model(model)
    assert len(caplog.records) == 1
    assert "nnUNetTrainerMine[2J" in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainer",
        "nnUNetTrainer_250epochs_NoMirroring",
        "nnUNetTrainer_onlyMirror01_1500ep",
        "nnUNetTrainer_onlyMirror01_DASegOrd0",
        "nnUNetTrainer_DASegOrd0_NoMirroring",
        "nnUNetTrainerDA5Segord0",
        "nnUNetTrainerDA5ord0",
        "nnUNetTrainerDA5_10epochs",
        "nnUNetTrainerNoMirroring",
        "nnUNetTrainerDiceTopK10Loss",
        "nnUNetTrainerTopk10LossLS01",
        "nnUNetTrainerDiceCELoss_noSmooth",
        "nnUNetTrainerCELoss_5epochs",
        "nnUNetTrainerVanillaAdam1en3",
        "nnUNetTrainerAdanCosAnneal",
        "nnUNetTrainer_warmup",
        "nnUNetTrainer_1epoch",
        "nnUNetTrainer_noDummy2DDA",
        "nnUNetTrainer_probabilisticOversampling_033",
        "nnUNetTrainerBenchmark_5epochs_noDataLoading",
        "nnUNetTrainerNoDeepSupervision",
    ],
)
def test_nnunets_own_trainers_are_known_to_change_training_only(name: str) -> None:
    assert TRAINING_ONLY.fullmatch(name)


@pytest.mark.parametrize("name", ["nnUNetTrainerBN", "nnUNet_Primus_M_Trainer", "nnUNetTrainerMine", "Trainer", ""])
def test_other_trainers_are_not_known(name: str) -> None:
    assert not TRAINING_ONLY.fullmatch(name)
