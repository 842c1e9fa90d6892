"""Looking a name up in one of the literal dicts of kinds, with a helpful answer when it is unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from autoseg.core.errors import UsageError

T = TypeVar("T")


def choose(name: str, kinds: Mapping[str, T], what: str) -> T:
    """The entry of `kinds` called `name`.

    Args:
        name: the name asked for.
        kinds: the literal dict of all kinds.
        what: what the names stand for, as a noun ("normalization").

    Raises:
        UsageError: naming the nearest match and all names.
    """
    if name in kinds:
        return kinds[name]
    near = get_close_matches(name, kinds, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"unknown {what} {name!r}", do=f"{hint}choose one of: {', '.join(sorted(kinds))}")


def one_of(kinds: Mapping[str, object], what: str) -> Callable[[str], str]:
    """A pydantic validator for fields that hold a name: `Annotated[str, AfterValidator(one_of(LOSSES, "loss"))]`."""

    def checked(name: str) -> str:
        try:
            choose(name, kinds, what)
        except UsageError as error:
            raise ValueError(f"{error.what}; {error.do}") from error
        return name

    return checked
