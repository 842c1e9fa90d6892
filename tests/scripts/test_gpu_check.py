"""The GPU check runs on a CPU too, smaller, with nothing but the few packages a GPU machine has."""

import json
import os
import subprocess
import sys

import torch

BLOCKED = ("SimpleITK", "nibabel", "batchgenerators", "yaml", "click", "rich", "matplotlib", "filelock")
RUNNER = f"""
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r} and name not in sys.modules:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_every_check_holds_on_a_cpu_without_readers_and_other_packages(repository, tmp_path):
    script, out = repository / "scripts" / "gpu_check.py", tmp_path / "found"
    command = [sys.executable, "-c", RUNNER, str(script), "--device", "cpu", "--small", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((out / "rows.json").read_text())["rows"]
    assert (out / "table.md").read_text().count("\n") == len(rows) + 3
    assert all(row["held"] is not False for row in rows)
    checked = {row["name"] for row in rows if row["held"]}
    assert {"learns, bf16", "augmentation as on the CPU", "prediction as on the CPU, bf16", "resumes, bf16"} <= checked
    assert "FAIL" not in done.stdout
    assert "; cpu, " in done.stdout.splitlines()[0]


def test_without_a_gpu_the_default_says_what_to_do(repository):
    if torch.cuda.is_available():
        return
    command = [sys.executable, str(repository / "scripts" / "gpu_check.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--device cpu --small" in done.stderr
