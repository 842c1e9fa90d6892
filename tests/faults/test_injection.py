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

OPEN_FAULT = "then other results"
"""Seen once in 44 trainings that were killed and repeated: other weights. Its cause is not known yet."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("verbs", VERBS, ids="-".join)
def test_after_every_fault_the_same_command_gives_the_same_result(repository: Path, tmp_path: Path, verbs) -> None:
    """The counts go to the folder named by AUTOSEG_FAULT_COUNTS, from which docs/reliability.md quotes them."""
    counts = Path(os.environ.get("AUTOSEG_FAULT_COUNTS", tmp_path)) / f"faults-{verbs[0]}.json"
    script = repository / "scripts" / "inject_faults.py"
    command = [sys.executable, script, *verbs, "--faults", str(FAULTS_PER_PART), "--json", counts]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=880, check=False)
    assert ran.returncode in (0, 1), ran.stdout[-4000:] + ran.stderr[-2000:]
    found = json.loads(counts.read_text())
    open_faults = [fault for fault in found["failures"] if fault.startswith("train SIGKILL") and OPEN_FAULT in fault]
    assert len(open_faults) <= 1
    assert found["failures"] == open_faults, ran.stdout[-4000:]
    assert sum(found["injected"].values()) >= FAULTS_PER_PART
    assert set(found["injected"]) == set(verbs)
