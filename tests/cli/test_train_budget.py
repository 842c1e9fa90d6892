"""What `--budget` takes for a time span."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from autoseg.cli.main import cli
from autoseg.cli.train import Duration


@pytest.mark.parametrize("text", ["soon", "20", "0m", "5x"])
def test_a_wrong_budget_is_a_usage_error(tmp_path, text):
    result = CliRunner().invoke(cli, ["train", str(tmp_path), "--budget", text])
    assert result.exit_code == 2


@pytest.mark.parametrize(("text", "seconds"), [("20m", 1200.0), ("1h30m", 5400.0), ("1.5h", 5400.0), (90.0, 90.0)])
def test_time_spans_are_read(text, seconds):
    assert Duration().convert(text, None, None) == seconds
