"""Trained weights: whether they fit a network, and the checkpoints of a run, every file checked by its hash.

A checkpoint folder holds generations named by their number (`00000012`), two of them most of the time. A generation has
`weights.safetensors`, `averaged.safetensors` if the recipe averages weights, files that only training reads, and
`manifest.json` with the SHA-256 of all the others. Everything else in the folder is passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.core.errors import AutoSegError, Busy, IntegrityRefusal, MissingInput
from autoseg.core.files import sha256_of_file
from autoseg.core.limits import FileName
from autoseg.core.records import load

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "weights.safetensors"
AVERAGED_FILE = "averaged.safetensors"
MANIFEST_FILE = "manifest.json"

_log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Manifest:
    """SHA-256 of every other file of a generation, by name."""

    sha256: dict[FileName, str]


def shape_fault(found: Shapes, expected: Shapes) -> str | None:
    """In what weights differ from those that a network has, as half a sentence; None if they fit."""
    absent, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    other = [name for name in expected if name in found and tuple(found[name]) != tuple(expected[name])]
    parts = []
    if absent:
        parts.append(f"{len(absent)} parameters are absent ({absent[0]})")
    if unknown:
        parts.append(f"{len(unknown)} are unknown ({unknown[0]})")
    if other:
        parts.append(f"{len(other)} have another shape ({other[0]}: {list(found[other[0]])})")
    return ", ".join(parts) or None


def newest_weights(checkpoint_folder: Path, expected: str | None = None) -> dict[str, Tensor]:
    """The weights to predict with, by parameter name, on the CPU.

    Averaged weights (exponential moving average) are returned where the recipe keeps them, otherwise the plain ones.

    Args:
        checkpoint_folder: `runs/<configuration>/fold_<k>/checkpoint`.
        expected: their `weights_hash`, by which they are named; None for whatever is the newest.

    Raises:
        MissingInput: there is no checkpoint yet.
        IntegrityRefusal: none of them is intact.
        Busy: the newest ones are others by now.
    """
    generation = newest_intact(checkpoint_folder)
    if expected not in (None, _hash_in(generation)):
        raise Busy(
            "the network was trained on meanwhile",
            where=str(checkpoint_folder),
            why="its new weights would be used under the name of the former ones",
            do="run the same command again",
        )
    averaged = generation / AVERAGED_FILE
    return read_tensors(averaged if averaged.exists() else generation / WEIGHTS_FILE)


def weights_hash(checkpoint_folder: Path) -> str:
    """16 hexadecimal digits that change whenever `newest_weights` of the folder returns something else.

    Raises:
        MissingInput: there is no checkpoint yet.
        IntegrityRefusal: none of them is intact.
    """
    return _hash_in(newest_intact(checkpoint_folder))


def _hash_in(generation: Path) -> str:
    hashes = load(Manifest, generation / MANIFEST_FILE).sha256
    return hashes.get(AVERAGED_FILE, hashes[WEIGHTS_FILE])[:16]


def newest_intact(checkpoint_folder: Path) -> Path:
    """The newest generation whose files all match their hashes; a damaged one is passed over with a warning.

    Raises:
        MissingInput: there is none at all.
        IntegrityRefusal: none is intact.
    """
    found = generations(checkpoint_folder)
    faults: list[str] = []
    for generation in reversed(found):
        fault = fault_of(generation)
        if fault is None:
            if faults:
                _log.warning("%s; the checkpoint before it is used", faults[-1])
            return generation
        faults.append(fault)
    if found:
        raise IntegrityRefusal(
            f"no checkpoint is intact: {'; '.join(faults)}",
            where=str(checkpoint_folder),
            why="files were changed, or the disk lost them",
            do="train with --fresh",
        )
    raise MissingInput("there is no checkpoint yet", where=str(checkpoint_folder), do="run autoseg train first")


def generations(checkpoint_folder: Path) -> list[Path]:
    """Folders of all complete generations, oldest first."""
    if not checkpoint_folder.is_dir():
        return []
    return sorted(entry for entry in checkpoint_folder.iterdir() if entry.name.isdigit() and entry.is_dir())


def fault_of(generation: Path) -> str | None:
    """What is wrong with a generation, as half a sentence, or None if every file matches its hash."""
    try:
        hashes = load(Manifest, generation / MANIFEST_FILE).sha256
        for name, digest in hashes.items():
            if sha256_of_file(generation / name) != digest:
                return f"{generation.name}/{name} does not match its hash"
    except (FileNotFoundError, AutoSegError) as error:  # whatever else the system refuses, the file may be whole
        return f"{generation.name} is incomplete ({type(error).__name__})"
    return None if WEIGHTS_FILE in hashes else f"{generation.name} has no weights"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name, on the CPU, in memory of their own.

    Raises:
        IntegrityRefusal: it is not a valid safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        tensors: dict[str, Tensor] = from_bytes(path.read_bytes())
    except SafetensorError as error:
        raise IntegrityRefusal(
            f"{path.name} is not a valid weights file", where=str(path), why="it was cut off, changed, or never one"
        ) from error
    return tensors
