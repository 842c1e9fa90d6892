"""Looking through folders: image files, channel indices, and pairs of images and labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath

from autoseg.core.errors import AutoSegError
from autoseg.data.model import Case
from autoseg.images.formats.files import file_ending, is_image, stem

_CHANNEL_INDEX = re.compile(r"^(?P<case>.+)_(?P<index>\d{4})$")
_PEEKED_CASES = 5


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


def subfolder(root: Path, names: Iterable[str]) -> Path | None:
    """The first folder below `root` with one of the names, upper and lower case alike."""
    folders = {entry.name.lower(): entry for entry in sorted(root.iterdir(), reverse=True) if entry.is_dir()}
    return next((folders[name.lower()] for name in names if name.lower() in folders), None)


def relative(path: Path, root: Path) -> str:
    """The path as a record holds it: from the root with forward slashes, or unchanged where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def is_identifier(name: str) -> bool:
    """Whether a case name is usable as a file name on every system: no separators, no blanks at the ends."""
    return bool(name) and name.strip() == name and name not in {".", ".."} and PureWindowsPath(name).name == name


def name_faults(names: Iterable[str]) -> list[str]:
    """One sentence for each case name that no file could have."""
    return [
        f"{name!r} is no usable case name (no slashes, no blanks at the ends)"
        for name in names
        if not is_identifier(name)
    ]


def most_common_ending(paths: Iterable[str | None]) -> str | None:
    """The ending that most of the files have; None without files."""
    endings = Counter(file_ending(Path(path)) for path in paths if path is not None)
    return endings.most_common(1)[0][0] if endings else None


def count_channels(root: Path, cases: Iterable[Case], *, four_d: bool = False) -> int:
    """Channels that the files of most of the first cases hold; 1 where none of them can be read."""
    from autoseg.images.readers import read_image

    counts: Counter[int] = Counter()
    for case in list(cases)[:_PEEKED_CASES]:
        try:
            counts[len(read_image([root / image for image in case.images], four_d).array)] += 1
        except (AutoSegError, OSError):
            continue
    return counts.most_common(1)[0][0] if counts else 1


def channel_names(count: int, files_per_case: int) -> tuple[str, ...]:
    """Names for channels that nobody named; they select z-scoring, except that RGB stays recognizable."""
    if count == 1:
        return ("image",)
    if count == 3 and files_per_case == 1:
        return ("R", "G", "B")
    return tuple(f"channel_{index}" for index in range(count))


def pair(images: Mapping[str, tuple[Path, ...]], labels: Mapping[str, Path], root: Path) -> tuple[Case, ...]:
    """Cases in the order of their names; images without labels are kept, for the check to name them."""
    return tuple(
        Case(
            identifier=name,
            images=tuple(relative(file, root) for file in images[name]),
            labels=relative(labels[name], root) if name in labels else None,
        )
        for name in sorted(images)
    )
