#!/usr/bin/env python3
"""Measures AutoSeg against nnU-Net: same data, same machine, same torch, taking turns.

    scripts/benchmark_peer.py --data ../shared/data --out results --write docs/benchmarks.md
    scripts/benchmark_peer.py --data ../shared/data --out results --only step plan --rounds 5
    scripts/benchmark_peer.py --data ../shared/data --out results --resume

Installs nothing: run it with a Python that has `nnunetv2`, torch and what AutoSeg needs. The data folder holds the
datasets hippocampus, openkbp_ct and dsb2018_nuclei in nnU-Net's raw layout, which are linked, never changed; other
images are drawn. Both sides take turns, in the order AB BA AB: steps and network within one process, everything else as
the commands that a user types, each a process of its own with its start included. The ratio of a round is nnU-Net's
figure by AutoSeg's; reported are median, smallest and largest, of CPU seconds and of wall time. On a machine with other
work wall times mean little: CPU seconds count there. Threads that wait sleep on both sides (OMP_WAIT_POLICY=passive);
`--active` adds nnU-Net as it runs without that.

    step         training steps, batch 2, without data loading: the network planned for the hippocampus, and 128^3
    forward      logits of one patch, all mirrorings
    train        steps of the training command, each side with its own data loading
    plan         fingerprint and plan of the hippocampus dataset, from its files
    preprocess   filling the store: hippocampus, openkbp_ct, one large CT
    predict      20 hippocampus cases; one large CT; with equal weights, and how many labels are equal
    konfai       the large CT without mirroring, and KonfAI with the same network as a third, where it is installed
    again        the start of `predict` when everything is done already
    pictures     100 small pictures
    memory       peak memory of a prediction of 60 classes, all processes together

Every round is written to the folder at once, and with --write the table after every line of it, so a run that was cut
off leaves what it had measured, and --resume goes on from there. A stage that fails is named, and the others go on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))

from scripts.benchmark.figures import CommandFailed  # noqa: E402 - the packages beside this script come first
from scripts.benchmark.machine import commit, machine_line  # noqa: E402
from scripts.benchmark.rounds import POSITIONS, Comparison, Results, table, write_between  # noqa: E402
from scripts.benchmark.sides import Sides  # noqa: E402
from scripts.benchmark.stages import SMALL, Sizes, Stages  # noqa: E402


def main() -> int:
    """The command; 1 if a stage failed."""
    asked = _options()
    with tempfile.TemporaryDirectory(prefix="benchmark-peer-") as temporary:
        scratch = (asked.scratch or Path(temporary)).resolve()
        sides = Sides(scratch, asked.data.resolve())
        stages = Stages(sides, SMALL if asked.small else Sizes(), with_active=asked.active)
        results = Results(asked.out, f"{machine_line('nnunetv2', 'konfai', 'torch')}; AutoSeg {commit()}")
        failed = _measure(results, stages.comparisons(asked.only), asked)
    print(f"\n{table(results.rows())}")
    for name, reason in failed.items():
        print(f"\nfailed: {name}: {reason}", file=sys.stderr)
    return int(bool(failed))


def _measure(results: Results, comparisons: Sequence[Comparison], asked: argparse.Namespace) -> dict[str, str]:
    """Measures everything; what failed, and why."""
    failed = {}
    for comparison in comparisons:
        try:
            results.measure(comparison, asked.rounds, resume=asked.resume)
        except CommandFailed as error:
            failed[comparison.name] = str(error)
        if asked.write:
            write_between(asked.write, table(results.rows()))
    return failed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the raw rounds, JSON")
    parser.add_argument("--only", nargs="*", default=[], choices=POSITIONS, help="these stages")
    parser.add_argument("--rounds", type=int, default=3, help="of every comparison (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the rounds that the folder holds")
    parser.add_argument("--small", action="store_true", help="small images and networks: minutes, and no statement")
    parser.add_argument("--active", action="store_true", help="nnU-Net's prediction with spinning threads as well")
    parser.add_argument("--scratch", type=Path, help="folder for everything made; default: a temporary one")
    parser.add_argument("--write", type=Path, help="Markdown file to write the table into, between its markers")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
