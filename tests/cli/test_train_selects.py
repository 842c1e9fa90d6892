from __future__ import annotations

from autoseg.core.records import load
from autoseg.selection.record import Selection
from tests.selection.cross_validated import write_cross_validated


def test_training_ends_with_a_choice_and_a_report(autoseg, tmp_path) -> None:
    workspace = write_cross_validated(tmp_path / "data")
    shown = autoseg("train", tmp_path / "data", "--device", "cpu", "--jobs", 1)
    assert shown.code == 0, shown.stderr
    assert "Candidates on 10 cases" in shown.stdout
    assert workspace.report.exists()
    again = autoseg("train", tmp_path / "data", "--device", "cpu", "--jobs", 1, "--json")
    assert again.document["selected"] == load(Selection, workspace.selection).name
