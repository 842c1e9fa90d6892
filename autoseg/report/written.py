"""Files that AutoSeg writes among the user's: known by their hashes, so that only what nobody changed is replaced.

The record lies beside the files, `.autoseg.json`. Label maps of a prediction have their own, the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field, replace
from pathlib import Path

from autoseg.core.errors import MissingInput, RecordFault, UsageError
from autoseg.core.files import is_taken, remove_leftovers, sha256_of_file
from autoseg.core.records import load, record, save

RECORD_NAME = ".autoseg.json"

_BEING_WRITTEN = ""


@record
class WrittenFiles:
    """`.autoseg.json`: what AutoSeg wrote into a folder.

    Attributes:
        version: of this record.
        files: SHA-256 of each file by its name; empty while it is written.
    """

    version: int = 1
    files: dict[str, str] = field(default_factory=dict)


@contextmanager
def writing(*paths: Path, overwrite: bool, takes_unknown: bool = False) -> Iterator[None]:
    """A block that writes files into one folder; afterwards they are known.

    Args:
        paths: of the files.
        overwrite: whether files that AutoSeg did not write, or that changed since, may be replaced.
        takes_unknown: whether files that no record knows are AutoSeg's, as in its work folder.

    Raises:
        UsageError: one of the files is the user's.
    """
    folder = paths[0].parent
    remove_leftovers(folder)
    known = _known(folder)
    foreign = _foreign(paths, known, takes_unknown)
    if not overwrite:
        _refuse_foreign(foreign, folder)
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    being_written = {path.name: _BEING_WRITTEN for path in paths}
    save(replace(known, files=known.files | being_written), folder / RECORD_NAME)
    try:
        yield
    except BaseException:
        if _foreign(paths, known, takes_unknown) == foreign:  # none was replaced yet
            _restore(known, folder / RECORD_NAME, made)
        raise
    save(replace(known, files=known.files | {path.name: sha256_of_file(path) for path in paths}), folder / RECORD_NAME)


def check_own(*paths: Path) -> None:
    """Refuses files that `writing` will refuse, before the work whose results they are to hold.

    Raises:
        UsageError: one of the files is the user's.
    """
    folder = paths[0].parent
    _refuse_foreign(_foreign(paths, _known(folder), takes_unknown=False), folder)


def _foreign(paths: Sequence[Path], known: WrittenFiles, takes_unknown: bool) -> list[Path]:
    """The files that are the user's, by what is known."""
    return [path for path in paths if not _is_own(path, known.files, takes_unknown)]


def _refuse_foreign(foreign: Sequence[Path], folder: Path) -> None:
    if foreign:
        names = " and ".join(path.name for path in foreign)
        what = f"{names} was not written by AutoSeg, or was changed since; it is not replaced"
        raise UsageError(what, where=str(folder), do="choose another -o, move it away, or replace it with --overwrite")


def _restore(known: WrittenFiles, path: Path, made: Sequence[Path]) -> None:
    """Puts the record back; where there was none, it and the folders made for it vanish."""
    if known.files:
        save(known, path)
        return
    path.unlink(missing_ok=True)
    with suppress(OSError):  # something was written into them after all
        for folder in made:
            folder.rmdir()


def _known(folder: Path) -> WrittenFiles:
    """What the record says; without one, or with a damaged one, nothing is known."""
    try:
        return load(WrittenFiles, folder / RECORD_NAME)
    except (MissingInput, RecordFault):
        return WrittenFiles()


def _is_own(path: Path, known: Mapping[str, str], takes_unknown: bool) -> bool:
    if not is_taken(path):
        return True
    if path.name not in known:
        return takes_unknown
    return path.is_file() and known[path.name] in (_BEING_WRITTEN, sha256_of_file(path))
