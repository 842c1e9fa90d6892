#!/usr/bin/env python3
"""Checks and times AutoSeg on a GPU: one command, at most six minutes, what matters most first.

    scripts/gpu_check.py --out FOLDER          on the first CUDA GPU
    scripts/gpu_check.py --device cpu --small  on a CPU, in seconds; what the tests run

FOLDER gets `rows.json` and `table.md`, written again after every row, so that a run that is cut off leaves what it
found, and `kernels.txt`, the profile of a step. Needs torch, numpy, scipy, scikit-image, pydantic and safetensors, and
no data: it draws synthetic phantoms. The exit code is 0 if every check held, else 1. Times are medians; the first calls
do not count. A step's time is that of steps queued one after the other, as training does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402 - the package beside this script comes first on the path

from scripts.benchmark.machine import machine_line  # noqa: E402
from scripts.gpu import checks, times  # noqa: E402
from scripts.gpu.bench import Bench, Row  # noqa: E402

LIMIT_SECONDS = 5.5 * 60.0

PARTS: Sequence[Callable[[Bench], Iterator[Row]]] = (
    *(checks.check_loss_kernels, checks.check_that_nothing_waits, times.time_steps),
    *(checks.check_first_loss, checks.check_learning, checks.check_resume),
    *(times.time_data_path, times.profile_step, checks.check_augmentation, checks.check_prediction),
    *(times.time_augmentation, times.time_prediction, times.time_other_precisions),
)


def run_all(bench: Bench, deadline: float) -> Iterator[Row]:
    """Every part in turn; one that fails is a check that did not hold, one without time left is named."""
    for part in PARTS:
        name = part.__name__.replace("_", " ")
        if time.monotonic() > deadline:
            yield Row(name, False, "no time left")
            continue
        try:
            yield from part(bench)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:  # torch's own errors among them
            yield Row(name, False, f"{type(error).__name__}: {str(error).splitlines()[0]}")
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def table(rows: Sequence[Row], title: str) -> str:
    """The rows as text."""
    width = max(len(row.name) for row in rows)
    marks = {True: "ok  ", False: "FAIL", None: "    "}
    return "\n".join([title, *(f"{marks[row.held]}  {row.name:<{width}}  {row.found}" for row in rows)])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="small networks, few steps")
    parser.add_argument("--out", type=Path, help="folder for rows.json, table.md and kernels.txt")
    asked = parser.parse_args()
    begin = time.monotonic()
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print("error: torch sees no CUDA GPU here; --device cpu --small checks the CPU", file=sys.stderr)
        return 2
    device = torch.device(asked.device)
    machine = f"{machine_line('torch', 'numpy', 'scipy')}; {time.strftime('%Y-%m-%d')}; {asked.device}"
    rows: list[Row] = []
    for row in run_all(Bench(device, asked.small, asked.out), begin + LIMIT_SECONDS):
        rows.append(row)
        print(f"{row.name}: {row.found}", file=sys.stderr, flush=True)
        seconds = time.monotonic() - begin
        title = f"{machine}, {seconds:.0f} s"
        if asked.out:
            document = {"machine": machine, "seconds": seconds, "rows": list(map(asdict, rows))}
            asked.out.mkdir(parents=True, exist_ok=True)
            (asked.out / "rows.json").write_text(json.dumps(document, indent=1) + "\n")
            (asked.out / "table.md").write_text(f"```\n{table(rows, title)}\n```\n")
    print(table(rows, title))
    return 1 if any(row.held is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
