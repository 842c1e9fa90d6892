"""Weights out of nnU-Net v2 checkpoints: read by another process, handed back as safetensors, never unpickled here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.core.errors import IntegrityRefusal, MissingInput
from autoseg.core.records import from_json
from autoseg.networks.weights import Shapes, shape_fault
from autoseg.nnunet.checkpoint_child import ENDED_BY_GUARD

READ_TIMEOUT_S = 300.0
"""Seconds that reading one checkpoint may take. Assumption: gigabytes from a slow network drive stay below it."""

_START = (
    "import sys, json; task = json.loads(sys.argv[1]); sys.path[:] = task['path']; "
    "from autoseg.nnunet.checkpoint_child import serve; serve(task['tasks'])"
)

_LONGEST_REASON = 300

_FORBIDDEN_NAME = re.compile(r"nsupported (?:global: )?GLOBAL (\S+)")
"""How torch names what a pickle wants and does not get."""


@dataclass(frozen=True, slots=True)
class NnunetCheckpoint:
    """What predictions need of a checkpoint beside the weights.

    Attributes:
        trainer: class that trained it.
        configuration: trained, as nnU-Net names it.
        mirror_axes: spatial axes that predictions may be averaged over.
    """

    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]


def read_checkpoints(paths: Sequence[Path], files: Sequence[Path]) -> tuple[NnunetCheckpoint, ...]:
    """What the checkpoints hold; their weights are written as safetensors files.

    A process of its own opens them, without network and without rights to change anything else (`checkpoint_child`).

    Args:
        paths: nnU-Net v2 checkpoints (.pth).
        files: to write, one per checkpoint; their folder exists.

    Raises:
        MissingInput: a checkpoint is not there.
        IntegrityRefusal: one is damaged, is no checkpoint of nnU-Net v2, or holds anything but weights and settings.
    """
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise MissingInput(f"{missing.name} is missing", where=str(missing.parent), do="copy the whole model folder")
    done = _run([(str(path.resolve()), str(file)) for path, file in zip(paths, files, strict=True)], paths[0])
    # a line per checkpoint, printed when its weights are written; the next one is at fault if the process ended early
    lines = done.stdout.splitlines()[: len(paths)]
    found = tuple(from_json(NnunetCheckpoint, line, str(path)) for line, path in zip(lines, paths, strict=False))
    if done.returncode != 0 or len(found) < len(paths):
        raise _refused(paths[min(len(found), len(paths) - 1)], _reason(done.returncode, done.stderr))
    return found


def refuse_other_weights(file: Path, expected: Shapes, trainer: str, where: str) -> None:
    """Raises unless the weights have the names and shapes that the plans' network has, which only its own have.

    Args:
        file: safetensors file of the weights.
        expected: see `Plan.parameter_shapes`.
        trainer: class that trained them.
        where: the checkpoint, for the error message.

    Raises:
        IntegrityRefusal: naming what differs.
    """
    from safetensors import safe_open

    with safe_open(str(file), framework="numpy") as tensors:
        found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    fault = shape_fault(found, expected)
    if fault is not None:
        raise IntegrityRefusal(
            f"the weights do not belong to the network that the plans describe: {_printable(fault)}",
            where=where,
            why=f"its trainer {_printable(trainer)} changed the network, or files of two models were mixed",
            do="predict with the program that trained it",
        )


def _run(tasks: list[tuple[str, str]], first: Path) -> subprocess.CompletedProcess[bytes]:
    """What the process answers; raises IntegrityRefusal, about the first checkpoint, if it does not end in time."""
    task = {"path": [entry or str(Path.cwd()) for entry in sys.path], "tasks": tasks}
    command = [sys.executable, "-I", "-c", _START, json.dumps(task)]
    limit_s = READ_TIMEOUT_S * len(tasks)
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise _refused(first, f"it could not be read within {limit_s:g} s") from error


def _reason(code: int, stderr: bytes) -> str:
    """The last line that the process wrote, which names what is wrong."""
    if code < 0:
        return f"the process that read it was ended by signal {-code}"
    lines = [_printable(line) for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    if code == ENDED_BY_GUARD:
        return f"reading it attempted what reading weights never needs ({lines[-1] if lines else 'forbidden'})"
    asked = next((found for line in lines if (found := _FORBIDDEN_NAME.search(line))), None)
    if asked is not None:
        return f"it asks for {asked.group(1)}, which no weights need"
    return lines[-1] if lines else f"exit code {code}"


def _refused(path: Path, why: str) -> IntegrityRefusal:
    return IntegrityRefusal(
        f"{path.name} is not a checkpoint of nnU-Net v2 that is safe to read",
        where=str(path.parent),
        why=why,
        do="copy it again from where it was trained; never open one of unknown origin with torch.load",
    )


def _printable(text: str) -> str:
    """The text without control characters, which could steer a terminal."""
    return "".join(letter for letter in text if letter.isprintable())[:_LONGEST_REASON]
