"""Reading trained weights out of a run's checkpoint folder: safetensors only, every file checked against its hash.

A checkpoint folder holds generations named by their number (`00000012`), two of them most of the time. A generation has
`weights.safetensors`, `averaged.safetensors` if the recipe averages weights, files that only training reads, and
`manifest.json` with the SHA-256 of all the others. Everything else in the folder is passed over.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from torch import Tensor

from autoseg.core.errors import IntegrityRefusal, MissingInput
from autoseg.core.files import sha256_of_file

WEIGHTS_FILE = "weights.safetensors"
AVERAGED_FILE = "averaged.safetensors"
MANIFEST_FILE = "manifest.json"

_log = logging.getLogger(__name__)


def newest_weights(checkpoint_folder: Path) -> dict[str, Tensor]:
    """The weights to predict with, by parameter name, on the CPU.

    Averaged weights (exponential moving average) are returned where the recipe keeps them, otherwise the plain ones.

    Args:
        checkpoint_folder: `runs/<configuration>/fold_<k>/checkpoint`.

    Raises:
        MissingInput: there is no checkpoint yet.
        IntegrityRefusal: none of them is intact.
    """
    generation = newest_intact(checkpoint_folder)
    averaged = generation / AVERAGED_FILE
    return read_tensors(averaged if averaged.exists() else generation / WEIGHTS_FILE)


def weights_hash(checkpoint_folder: Path) -> str:
    """16 hexadecimal digits that change whenever `newest_weights` of the folder returns something else.

    Raises:
        MissingInput: there is no checkpoint yet.
        IntegrityRefusal: none of them is intact.
    """
    generation = newest_intact(checkpoint_folder)
    hashes = json.loads((generation / MANIFEST_FILE).read_bytes())["sha256"]
    return str(hashes.get(AVERAGED_FILE, hashes[WEIGHTS_FILE]))[:16]


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
        manifest = json.loads((generation / MANIFEST_FILE).read_bytes())
        hashes = {str(name): str(digest) for name, digest in manifest["sha256"].items()}
        for name, digest in hashes.items():
            if Path(name).name != name or sha256_of_file(generation / name) != digest:
                return f"{generation.name}/{name} does not match its hash"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{generation.name} is incomplete ({type(error).__name__})"
    return None if WEIGHTS_FILE in hashes else f"{generation.name} has no weights"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name, on the CPU, in memory of their own.

    Raises:
        IntegrityRefusal: it is not a valid safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(path.read_bytes())
    except SafetensorError as error:
        raise IntegrityRefusal(f"{path.name} is not a valid weights file", where=str(path), why=str(error)) from error
    return tensors
