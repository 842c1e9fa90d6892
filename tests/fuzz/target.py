"""What is fuzzed: a target makes valid inputs, which are changed and given to a function under test.

A new kind of input (prompts, for example) is one more `Target` in `tests.fuzz.targets.TARGETS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
"""An input: content of each file by its path, relative to the folder that holds them."""


def nothing_wrong(_trial: Trial, _result: Any) -> str | None:
    """The oracle of functions whose answer cannot be judged by itself."""
    return None


def as_is(files: Files) -> Files:
    """The repair of inputs that hold no checksum."""
    return files


@dataclass(frozen=True)
class Mutator:
    """A way to change the bytes of a file.

    Attributes:
        name: shown in findings.
        change: the changed bytes; the same bytes where there is nothing to change.
        is_damage: whether it only damages: a file whose checksums cover every byte must then be refused, or give what
            it gave before.
        is_cut: whether it cuts bytes off the end, which every image reader must notice or be indifferent to.
    """

    name: str
    change: Callable[[random.Random, bytes], bytes]
    is_damage: bool = False
    is_cut: bool = False


@dataclass(frozen=True)
class Target:
    """A function under test with its inputs.

    Attributes:
        name: of the table.
        seeds: makes the valid inputs; called once in each process.
        call: reads the input in a folder; may return anything, may raise AutoSegError, and nothing else.
        oracle: what is wrong with an answer, or None. It raises `Unjudged` where it cannot tell.
        changed: patterns of the files that are changed.
        repair: makes checksums right again after a change, so that it reaches what they protect.
        refusals: further exceptions that are refusals here.
        weight: share of all inputs, relative to other targets.
    """

    name: str
    seeds: Callable[[], Sequence[Files]]
    call: Callable[[Path], Any]
    oracle: Callable[[Trial, Any], str | None] = nothing_wrong
    changed: tuple[str, ...] = ("*",)
    repair: Callable[[Files], Files] = as_is
    refusals: tuple[type[BaseException], ...] = ()
    weight: float = 1.0

    def changeable(self, files: Files) -> list[str]:
        """Names of the files that are changed, sorted."""
        return sorted(name for name in files if any(fnmatch(name, pattern) for pattern in self.changed))


class Unjudged(Exception):
    """No independent reader understands the input, so there is nothing to compare the answer with."""


@dataclass
class Trial:
    """One input of a target, a function of (seed, target, number).

    Attributes:
        target: what is tried.
        number: the first ones are the valid inputs themselves.
        original: the valid input that it was made of.
        files: the input.
        folder: where it is written to, when it is.
        changes: the mutators, with the file that each of them changed.
    """

    target: Target
    number: int
    original: Files
    files: Files
    folder: Path = field(default_factory=Path)
    changes: list[tuple[str, Mutator]] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether this is a valid input."""
        return self.files == self.original

    @property
    def is_only_damaged(self) -> bool:
        """Whether nothing was done that could make another valid file."""
        return bool(self.changes) and all(mutator.is_damage for _, mutator in self.changes)

    @property
    def is_only_cut(self) -> bool:
        """Whether it was only cut short."""
        return bool(self.changes) and all(mutator.is_cut for _, mutator in self.changes)


Kinds = tuple[str, ...]

PASSED: Kinds = ("equal", "accepted", "refused")
"""Answers that are as they should be: judged equal, accepted but judged by nobody, refused."""

FINDINGS: Kinds = ("misread", "traceback", "crash", "hang", "memory", "outside", "advice")
"""What must not happen: wrong values, an exception that is no AutoSegError, a dead or hanging process, too much memory,
a file written or deleted elsewhere, and a whole file that is said to be damaged."""


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        number: of the input.
        kind: one of `PASSED` or `FINDINGS`.
        detail: what happened, in one line; the same for inputs that fail alike.
        trace: of the exception, if any.
    """

    number: int
    kind: str
    detail: str = ""
    trace: str = ""
