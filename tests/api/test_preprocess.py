from __future__ import annotations

import pytest

from autoseg.api import preprocess as module
from autoseg.api.preprocess import preprocess
from autoseg.core.errors import Interrupted, MissingInput, PlanFault, UsageError
from autoseg.core.records import save
from tests.preprocessing.tiny_dataset import planned_tiny_dataset


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


def test_a_dataset_that_moved_away_is_named(planned, tmp_path):
    planned.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingInput, match="autoseg plan"):
        preprocess(tmp_path / "elsewhere")


def test_ctrl_c_says_that_the_same_command_resumes(planned, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fill_store", interrupt)
    with pytest.raises(Interrupted):
        preprocess(planned.folder)
