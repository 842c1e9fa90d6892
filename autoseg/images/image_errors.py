"""Errors about files name the file and its folder, never the whole path, which may tell a patient's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import LabelFault, UnreadableFile

REPLACE = "copy the file again from its source and compare the sizes, or remove the case"

FOUR_D_REMEDY = (
    "if the fourth axis holds channels, say so in the dataset (Decathlon layout); if it is time, split it into one "
    "file per time point"
)


def place(path: Path) -> str:
    """The file and the folder it lies in."""
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


def unreadable(path: Path, what: str, *, why: str | None = None, do: str = REPLACE) -> UnreadableFile:
    """The error for an image file that cannot be read; `what` goes on after its name ("is cut short: ...")."""
    return UnreadableFile(f"{path.name} {what}", where=place(path), why=why, do=do)


def label_fault(path: Path, what: str, *, why: str | None = None, do: str) -> LabelFault:
    """The error for a label map with impossible values or channels."""
    return LabelFault(f"{path.name} {what}", where=place(path), why=why, do=do)


def check_transparency(values: NDArray[Any], alpha: NDArray[Any], path: Path) -> None:
    """Checks that a label picture means its gray values, and not what its alpha channel leaves of them.

    Args:
        values: gray, any shape.
        alpha: opacity of the same pixels, 0 for none.
        path: for the error.

    Raises:
        LabelFault: pixels with a value are transparent, or all have one value and only alpha differs.
    """
    hidden = int(np.count_nonzero(values[alpha == 0]))
    is_alpha_alone = values.min() == values.max() and alpha.min() != alpha.max()
    if hidden or is_alpha_alone:
        raise label_fault(
            path,
            f"holds {hidden} transparent pixels with a value above 0"
            if hidden
            else f"holds the value {values.flat[0]} everywhere, while its alpha channel differs from pixel to pixel",
            why="programs show what is transparent as background, whatever its numbers are",
            do="save it without an alpha channel: 0 background, 1, 2, ...",
        )


def first_line(error: BaseException) -> str:
    """What a library says was wrong, shortened: its last line that says something, without source positions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
