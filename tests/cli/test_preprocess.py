from __future__ import annotations

import json

from click.testing import CliRunner

from autoseg.cli.main import cli
from autoseg.preprocessing import fill as module
from tests.preprocessing.tiny_dataset import planned_tiny_dataset


def test_preprocess_fills_the_store_and_says_so_in_one_document(tmp_path):
    planned_tiny_dataset(tmp_path, cases=2)
    result = CliRunner().invoke(cli, ["preprocess", str(tmp_path), "--jobs", "1", "--json"], standalone_mode=False)
    assert result.exception is None
    assert result.return_value == 0
    document = json.loads(result.stdout)
    assert set(document["configurations"]) == {"2d", "3d_fullres"}
    for result in document["configurations"].values():
        assert result["done"] + result["reused"] == ["case_0", "case_1"]


def test_failed_cases_give_exit_code_4_and_a_reason(tmp_path, monkeypatch):
    planned_tiny_dataset(tmp_path, cases=2)

    def fill_store(*given, **options):
        (tmp_path / "labelsTr" / "case_1.nii.gz").unlink()  # while the command is at work; before, it is refused
        return module.fill_store(*given, **options)

    monkeypatch.setattr("autoseg.api.preprocess.fill_store", fill_store)
    arguments = ["preprocess", str(tmp_path), "--configuration", "3d_fullres", "--jobs", "1"]
    result = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert result.return_value == 4
    assert "case_1" in result.stdout
