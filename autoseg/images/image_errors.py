"""Errors about files name the file and its folder, never the whole path, which may tell a patient's name."""

from __future__ import annotations

from pathlib import Path

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


def first_line(error: BaseException) -> str:
    """What a library says was wrong, shortened: its last line that says something, without source positions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
