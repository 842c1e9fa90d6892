"""Hands inputs to processes, in batches, and notices those that die or hang."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from tests.fuzz.child import LIMIT_S, MOST_CHANGES, Batch, make_trial, serve
from tests.fuzz.target import FINDINGS, PASSED, Outcome, Target

BATCH = 250
"""Inputs that one process tries."""

START_S = 120.0
"""Seconds within which a process must have made its valid inputs."""

ENDING_S = 10.0
"""Seconds that a process may take to end by itself, which coverage needs to write what it has seen."""

LONGEST_WAIT_S = 90.0
"""Wall time after which an input counts as hanging though it takes no processor time: it waits for something."""

KEPT_EXAMPLES = 3
"""Findings of the same kind that are kept as files."""

TABLE = "tests.fuzz.targets"

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Report:
    """What became of all inputs.

    Attributes:
        seed: of the run.
        table: module with the table of the targets.
        counts: how often each kind of outcome came, by target.
        findings: by target.
        seconds: wall time.
    """

    seed: int
    table: str
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    findings: dict[str, list[Outcome]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, target: str, outcome: Outcome) -> None:
        """Counts one."""
        self.counts.setdefault(target, Counter())[outcome.kind] += 1
        if outcome.kind in FINDINGS:
            self.findings.setdefault(target, []).append(outcome)

    @property
    def inputs(self) -> int:
        """How many were tried."""
        return sum(counts.total() for counts in self.counts.values())

    def document(self) -> dict[str, Any]:
        """The report as JSON values."""
        kinds = (*PASSED, *FINDINGS)
        rows = {
            name: {"inputs": own.total(), **{kind: own[kind] for kind in kinds}}
            for name, own in sorted(self.counts.items())
        }
        total = {key: sum(row[key] for row in rows.values()) for key in ("inputs", *kinds)}
        return {"seed": self.seed, "seconds": round(self.seconds, 1), "total": total, "targets": rows}

    def lines(self) -> Iterator[str]:
        """The report as a table, and each different finding with how often it came."""
        kinds = (*PASSED, *FINDINGS)
        yield " ".join([f"{'target':24}", f"{'inputs':>8}", *(f"{kind:>9}" for kind in kinds)])
        for name, own in sorted(self.counts.items()):
            yield " ".join([f"{name:24}", f"{own.total():8}", *(f"{own[kind]:9}" for kind in kinds)])
        for name, found in sorted(self.findings.items()):
            alike: dict[tuple[str, str], list[int]] = {}
            for outcome in found:
                alike.setdefault((outcome.kind, outcome.detail), []).append(outcome.number)
            for (kind, detail), numbers in sorted(alike.items(), key=lambda item: -len(item[1])):
                yield f"{name}: {kind} x {len(numbers)} (input {numbers[0]}): {detail}"


def shares(targets: Mapping[str, Target], count: int) -> dict[str, int]:
    """How many inputs each target gets, by weight; together at least `count`."""
    total = sum(target.weight for target in targets.values())
    return {name: max(1, -int(-count * target.weight // total)) for name, target in targets.items()}


def run(targets: Mapping[str, Target], count: int, seed: int, jobs: int = 1, table: str = TABLE) -> Report:
    """Tries `count` inputs of all targets together, each in one of `jobs` processes at a time."""
    begun = time.monotonic()
    per_target = [
        [Batch(name, seed, range(start, min(start + BATCH, own)), table=table) for start in range(0, own, BATCH)]
        for name, own in shares(targets, count).items()
    ]
    batches = [batch for row in zip_longest(*per_target) for batch in row if batch is not None]
    report = Report(seed, table)
    with ThreadPoolExecutor(jobs) as pool:
        for batch, outcomes in zip(batches, pool.map(run_batch, batches), strict=True):
            for outcome in outcomes:
                report.add(batch.target, outcome)
    report.seconds = time.monotonic() - begun
    return report


def run_batch(batch: Batch) -> list[Outcome]:
    """What became of some inputs; a process that dies is replaced."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(batch.numbers):
        outcomes += _run_process(replace(batch, numbers=batch.numbers[len(outcomes) :]))
    return outcomes


def _context() -> Any:
    """Processes are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([TABLE])
    paths = [str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in dict.fromkeys(paths) if path)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"))
    return context


def _run_process(batch: Batch) -> list[Outcome]:
    root = Path(tempfile.mkdtemp(prefix="autoseg_fuzz_"))
    context = _context()
    connection, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, batch, root), daemon=True)
    process.start()
    theirs.close()
    outcomes: list[Outcome] = []
    try:
        if not connection.poll(START_S):
            raise RuntimeError(f"{batch.target}: its valid inputs were not made within {START_S:g} s")
        try:
            connection.recv()
        except EOFError:
            raise RuntimeError(f"{batch.target}: its valid inputs cannot be made\n{_tail(root)}") from None
        for number in batch.numbers:
            outcome = _next(connection, process, number, root)
            outcomes.append(outcome)
            if outcome.kind in ("crash", "hang", "memory"):
                break
    finally:
        connection.close()
        process.join(0 if outcomes and outcomes[-1].kind == "hang" else ENDING_S)
        process.kill()
        process.join()
        shutil.rmtree(root, ignore_errors=True)
    return outcomes


def _next(connection: Connection, process: Any, number: int, root: Path) -> Outcome:
    try:
        if not _waited(connection, process.pid):
            process.kill()
            process.join()
            return Outcome(number, "hang", f"no answer within {LIMIT_S:g} s of processor time", _tail(root))
        outcome: Outcome = connection.recv()
    except EOFError:
        process.join(10)
        return Outcome(number, "crash", f"the process ended with code {process.exitcode}", _tail(root))
    return outcome


def _waited(connection: Connection, pid: int) -> bool:
    """Whether an answer came in time; processor time counts, because the machine may be busy with other things."""
    if connection.poll(LIMIT_S):
        return True
    try:
        own = psutil.Process(pid)
        before, begun = sum(own.cpu_times()[:2]), time.monotonic()
        while time.monotonic() - begun < LONGEST_WAIT_S and sum(own.cpu_times()[:2]) - before < LIMIT_S:
            if connection.poll(0.5):
                return True
    except psutil.NoSuchProcess:
        return connection.poll(0)
    return False


def _tail(root: Path) -> str:
    log = root / "stderr"
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""


def keep_findings(report: Report, targets: Mapping[str, Target], folder: Path) -> list[Path]:
    """Writes some inputs of each different finding, with what is needed to make them again; returns their folders."""
    kept: list[Path] = []
    seen: Counter[tuple[str, str, str]] = Counter()
    for name, found in report.findings.items():
        seeds = targets[name].seeds()
        for outcome in found:
            key = (name, outcome.kind, outcome.detail)
            seen[key] += 1
            if seen[key] > KEPT_EXAMPLES:
                continue
            only = _fewest_changes(name, outcome, report)
            trial = make_trial(targets[name], seeds, report.seed, outcome.number, only)
            place = folder / f"{name.replace(' ', '_').replace('/', '-')}-{outcome.number}"
            for file, content in trial.files.items():
                (place / "input" / file).parent.mkdir(parents=True, exist_ok=True)
                (place / "input" / file).write_bytes(content)
            about = {
                "again": f"python -m tests.fuzz --target '{name}' --seed {report.seed} --only {outcome.number}",
                "kind": outcome.kind,
                "detail": outcome.detail,
                "changes": [f"{file}: {mutator.name}" for file, mutator in trial.changes],
            }
            (place / "finding.json").write_text(json.dumps(about, indent=1) + "\n")
            (place / "trace.txt").write_text(outcome.trace)
            kept.append(place)
    return kept


def _fewest_changes(target: str, outcome: Outcome, report: Report) -> tuple[int, ...] | None:
    """One change that suffices for the same finding, if there is one."""
    numbers = range(outcome.number, outcome.number + 1)
    for index in range(MOST_CHANGES):
        (alone,) = run_batch(Batch(target, report.seed, numbers, (index,), report.table))
        if (alone.kind, alone.detail) == (outcome.kind, outcome.detail):
            return (index,)
    return None
