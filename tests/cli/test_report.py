"""`autoseg report` as a user types it."""

from autoseg.core.workspace import Workspace
from tests.report.reported import planned


def test_a_report_is_written_and_told_about(autoseg, tmp_path):
    workspace = planned(tmp_path / "phantoms")
    ran = autoseg("report", tmp_path / "phantoms", "--jobs", 1)
    assert ran.code == 0
    assert str(workspace.report) in ran.stdout
    assert workspace.report.read_text().startswith("<!DOCTYPE html>")
    told = autoseg("report", tmp_path / "phantoms", "-o", tmp_path / "x.html", "--json", "--pictures", 0)
    assert told.document == {"report": str(tmp_path / "x.html"), "bytes": (tmp_path / "x.html").stat().st_size}


def test_a_dataset_without_plan_is_one_clear_box(autoseg, tmp_path):
    (tmp_path / "empty").mkdir()
    ran = autoseg("report", tmp_path / "empty")
    assert ran.code == 2
    assert f"autoseg plan {tmp_path / 'empty'}" in ran.stderr
    assert not Workspace(tmp_path / "empty" / "autoseg").report.exists()
