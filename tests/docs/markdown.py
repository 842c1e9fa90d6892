"""Code blocks of the documentation, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_NOT_EXECUTED = re.compile(r"<!-- not executed: .+ -->")
_FENCE = re.compile(r"^```(\w*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block; `is_executed` unless a comment right above says why not."""

    page: str
    line: int
    language: str
    text: str
    is_executed: bool

    @property
    def commands(self) -> list[list[str]]:
        """Words of each `autoseg ...` command, prompts and the remarks beside them left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        typed = [line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for line in lines]
        if self.language == "console":
            typed = [own for own, line in zip(typed, lines, strict=True) if line.startswith("$ ")]
        typed = [re.split(r"\s{3,}", own)[0] for own in typed]
        return [shlex.split(own)[1:] for own in typed if own.startswith("autoseg ")]


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found: list[Block] = []
    before, inside = "", None
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if inside is None and fence:
            inside = (number, fence.group(1), _NOT_EXECUTED.fullmatch(before.strip()) is None, [])
        elif inside is not None and line == "```":
            begin, language, is_executed, lines = inside
            found.append(Block(path.name, begin, language, "\n".join(lines), is_executed))
            inside = None
        elif inside is not None:
            inside[3].append(line)
        before = line
    return found
