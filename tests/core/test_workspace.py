"""Names in a work folder, and the commands that messages tell to type."""

from __future__ import annotations

import shlex

from autoseg.core.workspace import Workspace, workspace_of


def test_a_command_names_the_dataset_so_that_it_can_be_typed(tmp_path):
    folder = tmp_path / "my scans"
    folder.mkdir()
    usual, elsewhere = workspace_of(folder, None), workspace_of(folder, tmp_path / "work")
    assert shlex.split(usual.command("plan")) == ["autoseg", "plan", str(folder)]
    assert shlex.split(elsewhere.command("train")) == [
        *("autoseg", "train", str(folder)),
        *("--work", str(tmp_path / "work")),
    ]
    assert Workspace(tmp_path).command("plan") == f"autoseg plan DATASET --work {tmp_path}"
