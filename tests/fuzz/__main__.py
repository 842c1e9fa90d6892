"""`python -m tests.fuzz`: many inputs of every kind, what became of them, and the ones that must not happen.

python -m tests.fuzz --count 100000 --jobs 2 --report fuzz.json
python -m tests.fuzz --target NIfTI --seed 7 --only 1234      one input again, with its traceback
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.fuzz.child import Batch
from tests.fuzz.runner import keep_findings, run, run_batch
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Prints a table; 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="inputs of all targets together")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other inputs")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="these alone; may be repeated")
    parser.add_argument("--only", type=int, help="the input of this number alone, of the target named")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="folder for what must not happen")
    parser.add_argument("--report", type=Path, help="JSON file of counts")
    asked = parser.parse_args()
    targets = {name: TARGETS[name] for name in asked.target or TARGETS}
    if asked.only is not None:
        (outcome,) = run_batch(Batch(next(iter(targets)), asked.seed, range(asked.only, asked.only + 1)))
        sys.stdout.write(f"{outcome.kind}: {outcome.detail}\n{outcome.trace}\n")
        return 0
    report = run(targets, asked.count, asked.seed, asked.jobs)
    sys.stdout.write("\n".join(report.lines()) + f"\n{report.inputs} inputs in {report.seconds:.0f} s\n")
    if asked.report is not None:
        asked.report.write_text(json.dumps(report.document(), indent=1) + "\n")
    for place in keep_findings(report, targets, asked.findings):
        sys.stdout.write(f"kept: {place}\n")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
