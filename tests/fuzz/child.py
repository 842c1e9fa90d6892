"""The process that tries inputs: with limits on memory, and eyes on what it writes."""

from __future__ import annotations

import faulthandler
import importlib
import os
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from autoseg.core.errors import AutoSegError, ProgramFault, error_for
from autoseg.images.image_errors import REPLACE
from tests.fuzz.changes import mutators_for
from tests.fuzz.target import Files, Mutator, Outcome, Target, Trial, Unjudged, as_is

LIMIT_S = 5.0
"""Processor time that one input may take."""

EXTRA_MEMORY_BYTES = 1 << 30
"""Memory beyond what libraries and valid inputs take; an input has a few kilobytes."""

MOST_RESIDENT_BYTES = 400 << 20
"""Growth of the memory in use that counts as a finding; what is only reserved does not count."""

MOST_CHANGES = 3

REPAIRED = Mutator("checksums made right", lambda _draw, data: data)

_WRITES = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.utime", "shutil.rmtree"), 1),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink", "shutil.move"), 2),
}
"""Audit events that change files, and how many of their arguments are paths. Source: Python, "Audit events table"."""

_NEVER = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
)


class Watch:
    """Notes everything that is written or deleted outside the allowed folders, and programs that are started."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.seen: list[str] = []
        self.is_on = False
        self.resident_bytes = 0
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "open":
            self._note_paths(event, arguments[:1] if _is_writing(*arguments[1:3]) else ())
        elif event in _WRITES:
            self._note_paths(event, () if _is_relative_to_folder(arguments) else arguments[: _WRITES[event]])
        elif event.startswith(_NEVER):
            self.seen.append(f"{event} {arguments[:2]}")

    def _note_paths(self, event: str, paths: Collection[Any]) -> None:
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                place = os.path.realpath(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100
                if not place.startswith(self.allowed) and place != os.devnull:
                    self.seen.append(f"{event} {place}")


def _is_relative_to_folder(arguments: tuple[Any, ...]) -> bool:
    """Whether a name is relative to an open folder, as within `shutil.rmtree`, which is noted by itself."""
    return isinstance(arguments[-1], int) and arguments[-1] not in (-1, 0) and len(arguments) > 1


def _is_writing(mode: Any, flags: Any) -> bool:
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    return (isinstance(mode, str) and any(letter in mode for letter in "wax+")) or (
        isinstance(flags, int) and bool(flags & writing)
    )


def make_trial(
    target: Target, seeds: Sequence[Files], seed: int, number: int, only: Collection[int] | None = None
) -> Trial:
    """The input of a number; with `only`, just these of its changes."""
    if number < len(seeds):
        return Trial(target, number, seeds[number], seeds[number])
    draw = random.Random(f"{seed}/{target.name}/{number}")
    original = draw.choice(seeds)
    trial = Trial(target, number, original, dict(original))
    for index in range(draw.choice((1, 1, 1, 2, MOST_CHANGES))):
        own = random.Random(f"{seed}/{target.name}/{number}/{index}")
        name = own.choice(target.changeable(trial.files))
        mutator = own.choice(mutators_for(name))
        if only is None or index in only:
            trial.files[name] = mutator.change(own, trial.files[name])
            trial.changes.append((name, mutator))
    if target.repair is not as_is and draw.random() < 0.7:
        trial.files = target.repair(trial.files)
        trial.changes.append(("", REPAIRED))
    return trial


def attempt(trial: Trial, root: Path, watch: Watch) -> Outcome:
    """What becomes of an input."""
    trial.folder = root / "input"
    shutil.rmtree(trial.folder, ignore_errors=True)
    for name, content in trial.files.items():
        path = trial.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    begun = time.process_time()
    kind, detail, trace = _called(trial, watch)
    seconds = time.process_time() - begun
    if watch.seen:
        kind, detail = "outside", watch.seen[0]
        watch.seen.clear()
    elif seconds > LIMIT_S:
        kind, detail = "hang", f"took more than {LIMIT_S:g} s; {kind}"
    elif _resident_bytes() - watch.resident_bytes > MOST_RESIDENT_BYTES:
        kind, detail = "memory", f"took more than {MOST_RESIDENT_BYTES >> 20} MiB; {kind} {detail[:80]}"
    return Outcome(trial.number, kind, detail[:300], trace)


def _called(trial: Trial, watch: Watch) -> tuple[str, str, str]:
    try:
        watch.is_on = True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)  # of numpy: an overflow that nobody looks at
                result = trial.target.call(trial.folder)
        finally:
            watch.is_on = False
        fault = trial.target.oracle(trial, result)
    except Unjudged:
        return "accepted", "", ""
    except BaseException as error:
        return _refusal(trial, error)
    return ("equal", "", "") if fault is None else ("misread", fault, "")


def _refusal(trial: Trial, error: BaseException) -> tuple[str, str, str]:
    if isinstance(error, trial.target.refusals):
        return "refused", type(error).__name__, ""
    if isinstance(error, MemoryError):
        return "memory", _where(error), traceback.format_exc()
    meant = error_for(error)
    if isinstance(meant, ProgramFault) or not isinstance(error, AutoSegError | OSError):
        return "traceback", f"{type(error).__name__} {_where(error)}", traceback.format_exc()
    if trial.is_whole and meant.do == REPLACE:
        return "advice", str(meant), ""
    return "refused", f"{meant.code} {type(meant).__name__}", ""


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "autoseg" in frame.filename] or list(frames)
    name = own[-1].filename.rpartition("autoseg/")[2]
    return f"in {name} {own[-1].name}: {str(error)[:120]}"


def _status_bytes(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) << 10


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def limit_memory(watch: Watch) -> None:
    """Lets the process have so much more memory than now."""
    watch.resident_bytes = _resident_bytes()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform.startswith("linux"):
        limit = _status_bytes("VmData") + EXTRA_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def prepare(root: Path) -> Watch:
    """Makes this process one that tries inputs below `root`, with nothing of it said on the terminal."""
    sys.dont_write_bytecode = True
    for name in ("input", "tmp", "elsewhere"):
        (root / name).mkdir(parents=True, exist_ok=True)
    os.chdir(root / "elsewhere")
    watch = Watch()
    watch.allowed = (f"{os.path.realpath(root / 'input')}", f"{os.path.realpath(root / 'tmp')}")
    return watch


@dataclass(frozen=True)
class Batch:
    """Inputs of a target by their numbers; with `only`, just these of their changes are made.

    The target is an entry of `TARGETS` in the module `table`.
    """

    target: str
    seed: int
    numbers: range
    only: tuple[int, ...] | None = None
    table: str = "tests.fuzz.targets"


def serve(connection: Connection, batch: Batch, root: Path) -> None:
    """Tries inputs, and sends what became of each."""
    os.environ["TMPDIR"] = str(root / "tmp")
    with (root / "stderr").open("w") as log:
        os.dup2(log.fileno(), 2)
        os.dup2(log.fileno(), 1)
    faulthandler.enable()
    sys.settrace(None)  # under coverage each input would take several times as long
    watch = prepare(root)
    target = importlib.import_module(batch.table).TARGETS[batch.target]
    seeds = target.seeds()
    for files in seeds[:3]:  # libraries are imported now, not on the account of an input
        attempt(Trial(target, 0, files, files), root, watch)
    limit_memory(watch)
    connection.send("ready")
    for number in batch.numbers:
        connection.send(attempt(make_trial(target, seeds, batch.seed, number, batch.only), root, watch))
