"""`autoseg demo` with part of a machine: all cores, one core, and one core that a busy program has half of.

    python scripts/limited_demo.py --out DIR                     # all three, one after the other
    python scripts/limited_demo.py --out DIR --only quarter
    python scripts/limited_demo.py --out DIR --stretch 4         # beside other programs: four times the demo's budget

Prints mean Dice of the held-out phantoms, wall time, and what the demo had of the machine: its CPU seconds and the load
average say whether other programs took part of what it was meant to have. With all of its part it would have 540, 270
and 135 CPU seconds for training; a demo that has no more than that in a stretched budget shows the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Limit:
    """Part of a machine with two cores.

    Attributes:
        cores: that the demo may use.
        has_rival: whether a busy loop has half of its only core.
        least_dice: that the demo should reach.
        most_seconds: of wall time.
    """

    cores: tuple[int, ...]
    has_rival: bool
    least_dice: float
    most_seconds: float


LIMITS = {
    "full": Limit((0, 1), has_rival=False, least_dice=0.95, most_seconds=300.0),
    "half": Limit((0,), has_rival=False, least_dice=0.93, most_seconds=480.0),
    "quarter": Limit((0,), has_rival=True, least_dice=0.90, most_seconds=480.0),
}


BUDGET_SECONDS = 270.0
"""Default of `autoseg demo`."""


@contextmanager
def busy_loop(core: int) -> Iterator[None]:
    """Keeps a core busy with another process."""
    rival = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"])
    try:
        yield
    finally:
        rival.kill()
        rival.wait()


def run_demo(limit: Limit, out: Path, stretch: float) -> str:
    """A line about a demo with part of the machine.

    Args:
        limit: that part.
        out: folder for the demo.
        stretch: budget / the demo's own.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "autoseg", "demo", "--out", str(out), "--json", "--quiet"]
    command += ["--budget", f"{BUDGET_SECONDS * stretch:.0f}s"]
    demo = subprocess.run(
        command, capture_output=True, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, limit.cores)
    )
    wall, after = (time.monotonic() - begin) / stretch, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = json.loads(demo.stdout)
    dice = told["foreground_mean"]["dice"]
    verdict = "reached" if dice >= limit.least_dice and wall <= limit.most_seconds else "missed"
    load = os.getloadavg()[0]
    return (
        f"mean Dice {dice:.3f} (at least {limit.least_dice}), "
        f"{wall:.0f} s x {stretch:g} (at most {limit.most_seconds:.0f}): {verdict}; "
        f"{cpu:.0f} CPU seconds, load average {load:.1f}, selected {told['selected']}"
    )


def main() -> None:
    """Runs the demos one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the demos; there must be none yet")
    parser.add_argument("--only", choices=LIMITS, action="append", help="only these, repeatable")
    parser.add_argument("--stretch", type=float, default=1.0, help="budget / the demo's own, on a machine in use")
    arguments = parser.parse_args()
    for name in arguments.only or LIMITS:
        limit = LIMITS[name]
        if limit.has_rival:
            with busy_loop(limit.cores[0]):
                line = run_demo(limit, arguments.out / name, arguments.stretch)
        else:
            line = run_demo(limit, arguments.out / name, arguments.stretch)
        print(f"{name}: {line}", flush=True)


if __name__ == "__main__":
    main()
