"""Faults at every call into the system, for every verb: a box, nobody's files touched, and the same result after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

VERBS = (("plan", "preprocess", "train"), ("select", "predict", "evaluate", "report", "export"))
FAULTS_PER_PART = 160


@pytest.mark.timeout(900)
@pytest.mark.parametrize("verbs", VERBS, ids="-".join)
def test_after_every_fault_the_same_command_gives_the_same_result(repository: Path, tmp_path: Path, verbs) -> None:
    """The counts go to the folder named by AUTOSEG_FAULT_COUNTS, from which docs/reliability.md quotes them."""
    counts = Path(os.environ.get("AUTOSEG_FAULT_COUNTS", tmp_path)) / f"faults-{verbs[0]}.json"
    script = repository / "scripts" / "inject_faults.py"
    command = [sys.executable, script, *verbs, "--faults", str(FAULTS_PER_PART), "--json", counts]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=880, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    found = json.loads(counts.read_text())
    assert found["injected"] == found["passed"]
    assert sum(found["injected"].values()) >= FAULTS_PER_PART
    assert set(found["injected"]) == set(verbs)
