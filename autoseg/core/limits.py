"""What names, numbers and texts from outside may be, checked in one place; and text made safe to print.

Names become parts of paths, of commands and of tables; numbers decide how long and with how much memory a command
runs. Both are checked where they come in: in the annotations of records, and where an option is declared.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Annotated, Any

from autoseg.core.errors import UsageError

LONGEST_NAME_BYTES = 230
"""Of a case or configuration: file systems allow 255 bytes, of which endings such as _0000.nii.gz take up to 25."""

LONGEST_TITLE_BYTES = 1000
"""Of a class, a channel or a dataset: more is no name (assumption)."""

_UNSAFE_KINDS = ("Cc", "Cs", "Zl", "Zp")
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FORMULA = re.compile(r"^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def printable(text: str, kept: str = "") -> str:
    r"""The text with everything that a terminal or a page would obey instead of show written as \x1b or \u202e.

    Args:
        text: of any origin.
        kept: control characters that stay, such as "\n".
    """
    return text if text.isascii() and text.isprintable() else "".join(_shown(letter, kept) for letter in text)


def _shown(letter: str, kept: str) -> str:
    if letter in kept or not _is_unsafe(letter):
        return letter
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def _is_unsafe(letter: str) -> bool:
    return unicodedata.category(letter) in _UNSAFE_KINDS or letter in _REORDERING


def csv_cell(value: object) -> object:
    """A cell of a table that a spreadsheet shows and does not run: text that would be a formula gets an apostrophe.

    Source: OWASP, "CSV injection".
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def title_fault(title: str) -> str | None:
    """What is wrong with the name of a class, channel or dataset; None if nothing is."""
    if not title.strip():
        return "is empty"
    if unsafe := sorted({letter for letter in title if _is_unsafe(letter)}):
        return f"holds characters that cannot be shown ({', '.join(printable(letter) for letter in unsafe)})"
    if (size := len(title.encode())) > LONGEST_TITLE_BYTES:
        return f"is longer than {LONGEST_TITLE_BYTES} bytes ({size})"
    return None


def name_fault(name: str) -> str | None:
    """What is wrong with a name that becomes a part of paths (a case, a configuration); None if nothing is.

    One that passes is a single file name on every system, hides nothing, and has room for an ending.
    """
    if (size := len(name.encode(errors="replace"))) > LONGEST_NAME_BYTES:
        return f"is longer than {LONGEST_NAME_BYTES} bytes ({size})"
    return file_name_fault(name)


def file_name_fault(name: str) -> str | None:
    """What is wrong with the whole name of a file in a record; None if nothing is."""
    if (fault := title_fault(name)) is not None:
        return fault
    if name.startswith("."):
        return "begins with a dot"
    if name != name.strip() or name.endswith("."):
        return "begins or ends with a blank, or ends with a dot"
    if PureWindowsPath(name).name != name:
        return "holds a slash, a backslash or a drive"
    return None


@dataclass(frozen=True, slots=True)
class Without:
    """In a record's annotation: refuses a text of which a function says that something is wrong with it."""

    fault: Callable[[str], str | None]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema  # not needed, and slow to import, for printing and for options

        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, text: str) -> str:
        if (fault := self.fault(text)) is not None:
            raise ValueError(f"it {fault}")
        return text


Name = Annotated[str, Without(name_fault)]
"""Of a case or configuration, in a record: a part of paths."""

FileName = Annotated[str, Without(file_name_fault)]
"""Of a file in a folder that the record lies in, ending included."""

Title = Annotated[str, Without(title_fault)]
"""Of a class, channel or dataset, in a record: shown, never a part of paths."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between which values a number makes sense; both ends included.

    Attributes:
        low: smallest value.
        high: largest value.
        unit: of both, for messages.
    """

    low: float
    high: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g} {self.unit}".rstrip()

    def fault(self, value: float) -> str | None:
        """What is wrong with a value, the bounds included; None if nothing is."""
        if math.isfinite(value) and self.low <= value <= self.high:
            return None
        return f"{value!r} is not in the range {self}"

    def check(self, name: str, value: float | None) -> None:
        """Lets a value pass that makes sense, and None.

        Raises:
            UsageError: it does not; `name` and the bounds are in the message.
        """
        if value is not None and (fault := self.fault(value)) is not None:
            raise UsageError(f"{name}: {fault}", where=name, do="choose a value between these bounds")


MEMORY_GIB = Bounds(0.1, 100_000, "GiB")
"""Of --memory, the target that patch and batch sizes are chosen by."""

RAM_GIB = Bounds(1e-6, 1_000_000, "GiB")
"""Of --max-ram: what does not fit is kept on disk, so that nearly nothing is allowed."""

DISK_GIB = Bounds(0, 1_000_000, "GiB")
OVERLAP = Bounds(0, 0.95)
"""Of neighboring tiles; at 0.95 there are 8,000 times as many tiles in 3D as without."""

TOLERANCE_MM = Bounds(0, 10_000, "mm")
SEED = Bounds(0, 2**32 - 1)
FOLD = Bounds(0, 999)
PICTURES = Bounds(0, 100_000)
EPOCHS = Bounds(1, 1_000_000)
STEPS = Bounds(1, 1_000_000)
JOBS = Bounds(1, 1024)
BUDGET_S = Bounds(0.001, 366 * 86_400, "s")
