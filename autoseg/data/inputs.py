"""Image files by their names: which case and channel each belongs to, and the images to segment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from autoseg.core.errors import MissingInput
from autoseg.data.model import Case
from autoseg.images.formats.files import SUPPORTED_ENDINGS, find_format, is_image, stem

Failures = tuple[tuple[str, str], ...]
"""(case identifier, reason) of each case that cannot be used; the others go on."""

_CHANNEL_INDEX = re.compile(r"^(?P<case>.+)_(?P<index>\d{4})$")


def image_files(folder: Path) -> tuple[Path, ...]:
    """Images in a folder, files or folders themselves, sorted by name; hidden ones are left out."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return tuple(entry for entry in entries if is_image(entry))


def split_channel(name: str) -> tuple[str, int | None]:
    """The case and the channel index of a file stem `<case>_0000`; the index is None where the name has none."""
    match = _CHANNEL_INDEX.match(name)
    return (match["case"], int(match["index"])) if match else (name, None)


def by_channel(files: Iterable[Path]) -> dict[str, dict[int, Path]]:
    """Case -> channel index -> file, for the files that carry an index."""
    found: dict[str, dict[int, Path]] = {}
    for file in files:
        case, index = split_channel(stem(file))
        if index is not None:
            found.setdefault(case, {})[index] = file
    return found


def relative(path: Path, root: Path) -> str:
    """The path as a record holds it: from the root with forward slashes, or unchanged where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def may_have_colors(file: Path) -> bool:
    """Whether a file's format can hold several channels by itself (RGB)."""
    found = find_format(file)
    return found is not None and found.has_colors


def find_inputs(paths: Sequence[Path], channels: int, four_d: bool) -> tuple[tuple[Case, ...], Failures]:
    """Cases to segment, sorted by name, and the ones that cannot be, each with the reason.

    A case is a set of files `<case>_0000.ext`, `<case>_0001.ext`, ... or one file that holds all channels (one
    channel; RGB in natural images; the fourth axis where the model was trained so). Paths are kept as they were given.

    Args:
        paths: image files, or folders of them (not searched deeper).
        channels: channels that the model expects.
        four_d: whether a fourth axis of the files holds them.

    Raises:
        MissingInput: a path does not exist, or there is no image at all.
    """
    failures: dict[str, str] = {}
    groups: dict[str, dict[int | None, list[Path]]] = {}
    for file in _files(paths):
        if not is_image(file):
            failures[file.name] = f"{file.name} is of a kind that is not supported ({', '.join(SUPPORTED_ENDINGS)})"
            continue
        name, index = split_channel(stem(file))
        groups.setdefault(name, {}).setdefault(index, []).append(file)
    cases: dict[str, Case] = {}
    for name, files in _numbered_cases_apart(groups, channels).items():
        reason = _fault(name, files, channels, four_d)
        if reason is None:
            cases[name] = Case(name, tuple(str(files[index][0]) for index in sorted(files, key=lambda i: i or 0)))
        else:
            failures[name] = reason
    if not cases and not failures:
        raise MissingInput(
            "there is no image to segment", where=", ".join(map(str, paths)), do=f"give {', '.join(SUPPORTED_ENDINGS)}"
        )
    return tuple(cases[name] for name in sorted(cases)), tuple(sorted(failures.items()))


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files themselves and those in the folders, each once."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise MissingInput(f"there is no {path.name}", where=str(path.parent), do="check the path")
        found.update(dict.fromkeys(image_files(path) if path.is_dir() and not is_image(path) else (path,)))
    return list(found)


def _numbered_cases_apart(
    groups: Mapping[str, Mapping[int | None, list[Path]]], channels: int
) -> dict[str, Mapping[int | None, list[Path]]]:
    """With one channel, numbers without a 0000 are no channels but belong to the names (frame_0001, frame_0002)."""
    cases: dict[str, Mapping[int | None, list[Path]]] = {}
    for name, files in groups.items():
        if channels > 1 or 0 in files or None in files:
            cases[name] = files
        else:
            cases.update({f"{name}_{index:04d}": {None: same} for index, same in files.items() if index is not None})
    return cases


def _fault(name: str, files: Mapping[int | None, list[Path]], channels: int, four_d: bool) -> str | None:
    """Why the files of a case, by channel index, cannot be used; None if they can."""
    twice = next((same for same in files.values() if len(same) > 1), None)
    if twice:
        return f"two files are meant for the same image: {' and '.join(map(str, twice))}"
    if None in files and len(files) > 1:
        return f"{name} is there both as one file and with channel indices: keep one of them"
    may_hold_all = channels == 1 or four_d or may_have_colors(next(iter(files.values()))[0])
    if may_hold_all and files.keys() <= {0, None}:
        return None  # one file; whether it does hold all channels shows when it is read
    return _wrong_channels(name, files.keys() - {None}, channels)


def _wrong_channels(name: str, indices: Set[int | None], channels: int) -> str | None:
    beyond = sorted(index for index in indices if index is not None and index >= channels)
    if beyond:
        return f"channel {beyond[0]:04d} is there, but the model has {channels} (0000 to {channels - 1:04d})"
    missing = [f"{name}_{index:04d}" for index in range(channels) if index not in indices]
    return f"the model needs {channels} channels, one file each; missing: {', '.join(missing)}" if missing else None
