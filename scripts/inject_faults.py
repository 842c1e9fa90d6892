"""Injects faults into every verb and looks whether the same command then gives the same result, bit for bit.

    python scripts/inject_faults.py                                 every verb, 320 faults, about 4 minutes on 2 cores
    python scripts/inject_faults.py train predict --faults 400      more of them, of some verbs
    python scripts/inject_faults.py --json counts.json              the counts, for docs/reliability.md

A fault is a call of the operating system inside the folder of the trial that fails once (no space, no right, no file
handle, a file that is not there, a disk error), a limit on the size of files (no space in the middle of a file), or
SIGKILL at that call, of the command or of one of its workers. Calls are counted first, and faults spread over all of
them. After each the command is repeated without a fault.

A fault passes if
 * the command ended with a documented exit code (or was killed), and printed no traceback;
 * the user's files are unchanged, and nothing was written outside of the folders that it was given;
 * the same command then ends with 0, the results are those of an undisturbed run, and no unfinished file is left.

Torch and the readers are imported once; every command runs in a fork of this process, which has made no threads yet.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import hashlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[variable] = "1"  # before torch is imported: what forks must not have started threads

TRAIN = ("--configuration", "2d", "--fold", "0", "--recipe", "recipe.yaml", "--device", "cpu")
RECIPE = """
epochs: 2
steps_per_epoch: 2
validation_steps: 1
precision: fp32
memory_format: contiguous
"""
"""Nothing of it is measured: what is chosen by speed may differ from run to run."""

VERBS: dict[str, tuple[str, ...]] = {
    "plan": ("plan", "set", "--preset", "cpu", "--no-probe"),
    "preprocess": ("preprocess", "set", "--configuration", "2d"),
    "train": ("train", "set", *TRAIN),
    "select": ("select", "set", "--allow-missing"),
    "predict": ("predict", "set", "-i", "images", "-o", "out", "--no-mirroring", "--device", "cpu"),
    "evaluate": ("evaluate", "out", "references", "-o", "scores"),
    "report": ("report", "set", "--pictures", "1"),
    "export": ("model", "export", "set", "--out", "model.autoseg"),
}
"""What a user types, in this order; each is repeated after every fault."""

RESULTS = {
    "plan": ("set/autoseg/plan.json", "set/autoseg/fingerprint.json"),
    "preprocess": ("set/autoseg/store/*/*/*.npy",),
    "train": ("set/autoseg/runs/*/*/checkpoint/*/*.safetensors", "set/autoseg/runs/*/*/validation/*.nii.gz"),
    "select": ("set/autoseg/selection.json", "set/autoseg/selected/*.nii.gz"),
    "predict": ("out/*.nii.gz",),
    "evaluate": ("scores/evaluation.*",),
    "report": ("set/autoseg/report.html",),
    "export": ("model.autoseg",),
}
"""What is compared with an undisturbed run, byte by byte."""

USERS = ("recipe.yaml", "set/dataset.json", "set/imagesTr/*", "set/labelsTr/*", "images/*", "references/*", "outside/*")
SHARE = {"plan": 4, "preprocess": 4, "train": 3, "select": 4, "predict": 4, "evaluate": 5, "report": 4, "export": 2}
EXIT_CODES = (0, 2, 3, 4, 5, 6, 75, 130)
ERRORS = (errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.EMFILE, errno.EIO)
CALLS = ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "link", "scandir", "listdir")
WRITES = ("mkdir", "rename", "replace", "unlink", "rmdir", "link")
TIMEOUT_S = 90.0
_DATED = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d[^<]*|\d+(\.\d+)? (s|min|h)\b")


@dataclass(frozen=True)
class Fault:
    """What goes wrong: `kind` is "error", "kill" or "size", `at` the call or the bytes, `number` of the error."""

    kind: str
    at: int
    number: int = 0

    @property
    def title(self) -> str:
        """For the table of counts."""
        return errno.errorcode[self.number] if self.kind == "error" else {"kill": "SIGKILL", "size": "EFBIG"}[self.kind]


class Injection:
    """Counts the calls inside a folder, in this process and its workers, and lets one of them fail."""

    def __init__(self, root: Path, fault: Fault | None) -> None:
        self.root, self.fault, self.count, self.outside = str(root), fault, 0, []  # type: ignore[var-annotated]
        self.real_open = io.open

    def install(self) -> None:
        """Replaces the functions that Python's own file handling calls."""
        if self.fault is not None and self.fault.kind == "size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.fault.at, self.fault.at))
        for name in CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        io.open = builtins.open = self._counted("open", io.open)  # type: ignore[assignment]

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._meet(name, arguments, options)
            return real(*arguments, **options)

        return call

    def _meet(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        path = self._path(arguments[0] if arguments else "")
        if not path.startswith(self.root):
            mode = str(arguments[1] if len(arguments) > 1 else options.get("mode", "r"))
            is_write = name in WRITES or (name == "open" and any(letter in mode for letter in "wax+"))
            if is_write and not path.startswith(("/dev/", "/proc/", "pipe:", "socket:", "anon_inode:")):
                self.outside.append(f"{name} {path}")
            return
        self.count += 1
        if self.fault is None or self.count != self.fault.at:
            return
        if self.fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault.kind == "error":
            raise OSError(self.fault.number, os.strerror(self.fault.number), path)

    def _path(self, argument: Any) -> str:
        if isinstance(argument, int):
            try:
                return os.readlink(f"/proc/self/fd/{argument}")  # noqa: PTH115 - which pathlib does by what is replaced here
            except OSError:
                return ""
        is_path = isinstance(argument, str | bytes | os.PathLike)
        return os.path.abspath(os.fsdecode(argument)) if is_path else ""  # noqa: PTH100 - links are not followed


def run_forked(trial: Path, words: tuple[str, ...], fault: Fault | None) -> tuple[int, str, dict[str, Any]]:
    """Exit code (negative: a signal), what was printed on stderr, and what the command noted of itself."""
    (errors, errors_in), (notes, notes_in) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(errors)
        os.close(notes)
        _be_command(trial, words, fault, errors_in, notes_in)
    os.close(errors_in)
    os.close(notes_in)
    code = _wait(child)
    text, noted = (_drain(pipe).decode(errors="replace") for pipe in (errors, notes))
    return code, text, json.loads(noted) if noted else {}


def _be_command(trial: Path, words: tuple[str, ...], fault: Fault | None, errors: int, notes: int) -> None:
    """The life of the forked process: one command with a fault, and never back into the code of the parent."""
    from autoseg.cli.main import run

    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(errors, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.chdir(trial)
    places = {"HOME": "home", "TMPDIR": "tmp", "TORCHINDUCTOR_CACHE_DIR": "tmp/inductor"}
    os.environ |= {variable: str(trial / folder) for variable, folder in places.items()}
    tempfile.tempdir = str(trial / "tmp")  # not looked for, which a fault would send elsewhere
    fork = multiprocessing.get_context("fork")  # workers in milliseconds instead of seconds
    multiprocessing.get_context = lambda *_: fork  # type: ignore[assignment,misc]
    injection = Injection(trial, fault)
    injection.install()
    code = 99
    try:
        code = run([*words, "-q"])
    finally:
        sys.stderr.flush()
        os.write(notes, json.dumps({"calls": injection.count, "outside": injection.outside[:3]}).encode())
        for process in multiprocessing.active_children():
            process.kill()
        os._exit(code)


def _wait(child: int) -> int:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _kill_group(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    _kill_group(child)
    os.waitpid(child, 0)
    return -signal.SIGALRM


def _kill_group(child: int) -> None:
    """Ends workers that the command left behind; a killed one cannot do it itself."""
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def _drain(pipe: int) -> bytes:
    os.set_blocking(pipe, False)
    with os.fdopen(pipe, "rb") as stream:
        return stream.read() or b""


def digest(trial: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of every file; of a page without its date and the seconds that things took."""
    files = sorted(file for pattern in patterns for file in trial.glob(pattern) if file.is_file())
    return {str(file.relative_to(trial)): _sha256(file) for file in files}


def _sha256(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha256(_DATED.sub(b"", content) if file.suffix == ".html" else content).hexdigest()


def leftovers(trial: Path) -> list[str]:
    """Unfinished files and folders that nobody writes any more."""
    found = [*trial.rglob(".partial-*"), *trial.rglob(".replaced-*")]
    return [str(entry.relative_to(trial)) for entry in found]


def restore(stage: Path, trial: Path) -> None:
    """Puts the folder back into a state that was kept."""
    shutil.rmtree(trial, ignore_errors=True)
    shutil.copytree(stage, trial)


class Suite:
    """The states before every verb, the results of undisturbed runs, and the trials."""

    def __init__(self, root: Path, verbs: tuple[str, ...]) -> None:
        self.trial, self.stages = root / "trial", root / "stages"
        self.results: dict[str, dict[str, str]] = {}
        self.calls: dict[str, int] = {}
        _write_inputs(self.trial)
        self.users = digest(self.trial, USERS)
        for verb, words in VERBS.items():
            shutil.copytree(self.trial, self.stages / verb)
            code, text, noted = run_forked(self.trial, words, None)
            if code:
                raise SystemExit(f"{verb} without a fault: exit code {code}\n{text}")
            self.results[verb], self.calls[verb] = digest(self.trial, RESULTS[verb]), noted["calls"]
            assert self.results[verb], f"{verb}: no results"
            if verb == verbs[-1]:
                break

    def faults(self, verb: str, count: int) -> Iterator[Fault]:
        """Faults spread over all calls of a verb: half of them errors, a third kills, the rest limits of size."""
        kills, sizes = count // 3, count // 6
        calls = self.calls[verb]
        for index in range(count - kills - sizes):
            yield Fault("error", 1 + index * calls // (count - kills - sizes), ERRORS[index % len(ERRORS)])
        for index in range(kills):
            yield Fault("kill", 1 + index * calls // kills)
        for index in range(sizes):
            yield Fault("size", int(16 * 1.6**index))

    def try_one(self, verb: str, fault: Fault) -> str | None:
        """What is wrong after a fault; None if it passes."""
        restore(self.stages / verb, self.trial)
        code, text, noted = run_forked(self.trial, VERBS[verb], fault)
        reasons = [self._fault_of_end(code, text, fault), self._fault_outside(noted)]
        code, text, noted = run_forked(self.trial, VERBS[verb], None)
        reasons += [None if code == 0 else f"then exit code {code}: {text[-600:]}", self._fault_outside(noted)]
        now, before = digest(self.trial, RESULTS[verb]), self.results[verb]
        if other := sorted(name for name in now.keys() | before if now.get(name) != before.get(name)):
            reasons.append(f"then other results: {other[:3]}")
        if not any(reasons) and (left := leftovers(self.trial)):
            reasons.append(f"then leftovers {left[:3]}")
        return next((reason for reason in reasons if reason), None)

    def _fault_of_end(self, code: int, text: str, fault: Fault) -> str | None:
        if "Traceback" in text or (code not in EXIT_CODES and not (fault.kind == "kill" and code == -signal.SIGKILL)):
            return f"exit code {code}: {text[-900:]}"
        return None

    def _fault_outside(self, noted: dict[str, Any]) -> str | None:
        if noted.get("outside"):
            return f"written outside: {noted['outside']}"
        return None if digest(self.trial, USERS) == self.users else "the user's files have changed"


def _write_inputs(trial: Path) -> None:
    """A dataset of 6 phantoms, one of them to be segmented, references, and a file that nobody names."""
    from autoseg.data.synthetic import write_synthetic_dataset

    for name in ("home", "tmp", "outside"):
        (trial / name).mkdir(parents=True)
    (trial / "outside" / "thesis.txt").write_text("precious")
    (trial / "recipe.yaml").write_text(RECIPE)
    child = os.fork()
    if child == 0:
        write_synthetic_dataset(trial / "set", training_cases=4, test_cases=0, seed=5)
        os._exit(0)
    os.waitpid(child, 0)
    first = min((trial / "set" / "labelsTr").iterdir())
    for folder, files in (
        ("images", (trial / "set" / "imagesTr").glob(f"{first.name.split('.')[0]}_*")),
        ("references", [first]),
    ):
        (trial / folder).mkdir()
        for file in files:
            shutil.copy(file, trial / folder / file.name)


def import_everything() -> None:
    """What the verbs import, so that forks have it; none of it starts a thread."""
    import matplotlib.pyplot as plt
    import nibabel
    import SimpleITK
    import torch

    import autoseg.api.evaluate
    import autoseg.api.explain
    import autoseg.api.model
    import autoseg.api.predict
    import autoseg.api.preprocess
    import autoseg.api.report
    import autoseg.api.select
    import autoseg.api.train  # noqa: F401

    torch.set_num_threads(1)
    del plt, nibabel, SimpleITK


def inject(verbs: tuple[str, ...], total: int, show: Callable[[str], None]) -> dict[str, Any]:
    """Runs the suite; counts by verb and kind, and what failed."""
    import_everything()
    weights = sum(SHARE[verb] for verb in verbs)
    injected, passed, failures = Counter[str](), Counter[str](), []
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        suite = Suite(Path(root).resolve(), verbs)
        for verb in verbs:
            begin = time.monotonic()
            for fault in suite.faults(verb, -(-total * SHARE[verb] // weights)):
                reason = suite.try_one(verb, fault)
                injected[verb] += 1
                kinds[fault.title] += 1
                passed[verb] += reason is None
                if reason is not None:
                    failures.append(f"{verb} {fault.title} at {fault.at}: {reason}")
                    show(failures[-1])
            seconds = time.monotonic() - begin
            show(f"{verb}: {passed[verb]} of {injected[verb]} passed ({suite.calls[verb]} calls, {seconds:.0f} s)")
    return {"injected": dict(injected), "passed": dict(passed), "kinds": dict(kinds), "failures": failures}


def main() -> int:
    """Prints what failed and the counts; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verbs", nargs="*", help=f"of {', '.join(VERBS)}; default: all")
    parser.add_argument("--faults", type=int, default=320)
    parser.add_argument("--json", type=Path, help="file for the counts")
    chosen = parser.parse_args()
    verbs = tuple(verb for verb in VERBS if not chosen.verbs or verb in chosen.verbs)
    counts = inject(verbs, chosen.faults, lambda line: print(line, flush=True))
    print(f"{sum(counts['passed'].values())} of {sum(counts['injected'].values())} faults passed")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(counts, indent=1) + "\n")
    return 1 if counts["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
