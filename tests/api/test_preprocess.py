from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from autoseg.api import preprocess as module
from autoseg.api.plan import plan
from autoseg.api.preprocess import preprocess
from autoseg.core.errors import Interrupted, MissingInput, PlanFault, UsageError
from autoseg.core.records import save
from tests.data.arrangements import nnunet
from tests.preprocessing.tiny_dataset import SHAPE, planned_tiny_dataset, write_volume


@pytest.fixture
def planned(tmp_path):
    return planned_tiny_dataset(tmp_path / "data", cases=2, slices_mm=(3.0,))


def test_all_configurations_of_the_plan_are_prepared(planned):
    results = preprocess(planned.folder)
    assert set(results) == {"2d", "3d_fullres"}
    assert results["2d"].done == results["3d_fullres"].reused == ("case_0", "case_1")


def test_an_unknown_configuration_is_refused(planned):
    with pytest.raises(UsageError, match="3d_fullres"):
        preprocess(planned.folder, configurations=["3d_fullre"])


def test_without_a_plan_the_user_is_told_to_plan(tmp_path):
    with pytest.raises(MissingInput, match="autoseg plan"):
        preprocess(tmp_path)


def test_a_fingerprint_that_the_plan_was_not_made_from_is_refused(planned):
    other = planned.fingerprint.cases[:1]
    save(type(planned.fingerprint)(1, other, planned.fingerprint.intensities, 1.0), planned.workspace.fingerprint)
    with pytest.raises(PlanFault, match="another fingerprint"):
        preprocess(planned.folder)


@pytest.mark.parametrize("named", ["", "autoseg"], ids=["dataset", "work folder"])
def test_a_copied_dataset_uses_its_own_files_and_a_moved_one_goes_on(planned, tmp_path, named):
    shutil.copytree(planned.folder, tmp_path / "copy")
    write_volume(tmp_path / "copy" / "labelsTr" / "case_1.nii.gz", np.ones(SHAPE, np.uint8))
    with pytest.raises(PlanFault, match="case_1: its labels changed"):
        preprocess(tmp_path / "copy" / named)
    planned.folder.rename(tmp_path / "elsewhere")
    assert preprocess(tmp_path / "elsewhere" / named)["2d"].done == ("case_0", "case_1")


def test_a_work_folder_without_its_dataset_is_named(planned, tmp_path):
    (planned.folder / "autoseg").rename(tmp_path / "work")
    planned.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingInput, match="autoseg plan"):
        preprocess(tmp_path / "work")
    assert preprocess(tmp_path / "elsewhere", work=tmp_path / "work")


def test_ctrl_c_says_that_the_same_command_resumes(planned, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fill_store", interrupt)
    with pytest.raises(Interrupted):
        preprocess(planned.folder)


@pytest.mark.parametrize("change", ["other", "gone"])
def test_spacing_beside_an_image_belongs_to_what_was_planned(tmp_path, change):
    root = nnunet(tmp_path / "tiny", ending=".tif")
    plan(root, preset="cpu")
    (path,) = (root / "imagesTr").glob("case_a*.json")
    path.write_text(json.dumps({"spacing": [7.0, 1.0, 1.5]})) if change == "other" else path.unlink()
    with pytest.raises(PlanFault, match="case_a: its image changed"):
        preprocess(root)
