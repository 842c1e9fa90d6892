"""The images to segment: found in files and folders, named as the training cases were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from autoseg.core.errors import MissingInput
from autoseg.core.limits import name_fault, printable, title_fault
from autoseg.data.model import Case
from autoseg.data.naming import image_files, name_of, side_by_side, split_channel, subfolder
from autoseg.images.foreign import foreign_files, foreign_kind
from autoseg.images.formats.files import SUPPORTED_ENDINGS, find_format, is_image

Failures = tuple[tuple[str, str], ...]
"""(case identifier, reason) of each case that cannot be used; the others go on."""

INPUT_FOLDERS = ("imagesTs", "images", "imagesTr", "image", "imgs", "img")
"""Looked for in a folder without images of its own, such as a dataset's, in this order."""

_SHOWN_FOLDERS = 5


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was found to segment.

    Attributes:
        cases: sorted by name.
        failures: cases that cannot be segmented.
        notes: sentences about what lies there and is not segmented, and how names were understood.
    """

    cases: tuple[Case, ...]
    failures: Failures
    notes: tuple[str, ...] = ()


def relative(path: Path, root: Path) -> str:
    """The path as a record holds it: from the root with forward slashes, or unchanged where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def may_have_colors(file: Path) -> bool:
    """Whether a file's format can hold several channels by itself (RGB)."""
    found = find_format(file)
    return found is not None and found.has_colors


@dataclass(frozen=True, slots=True)
class ExpectedImages:
    """What a model knows about the images that it was trained on.

    Attributes:
        channels: of an image.
        four_d: whether a fourth axis of a file holds them.
        has_whole_names: whether a file's whole name is its case's, also where it ends in four digits.
        has_label_words: whether images may be called as label files are (`a_mask` beside `a`).
    """

    channels: int
    four_d: bool = False
    has_whole_names: bool = False
    has_label_words: bool = False

    def one_file_may_do(self, example: Path) -> bool:
        """Whether a single file such as this one may hold every channel."""
        return self.channels == 1 or self.four_d or may_have_colors(example)


def nothing_written(_folder: Path) -> Set[str]:
    """No file of a folder is an earlier prediction."""
    return frozenset()


def find_inputs(
    paths: Sequence[Path], expected: ExpectedImages, written_in: Callable[[Path], Set[str]] = nothing_written
) -> Inputs:
    """Cases to segment, and the ones that cannot be, each with the reason.

    A case is a set of files `<case>_0000.ext`, `<case>_0001.ext`, ... or one file that holds all channels (one
    channel; RGB in natural images; the fourth axis where the model was trained so). Paths are kept as they were given.
    Label files beside their images are no images, as in training.

    Args:
        paths: image files, or folders of them (not searched deeper). In a folder that holds none, such as a dataset's,
            the first of `INPUT_FOLDERS` is taken.
        expected: what the model was trained on.
        written_in: names of the label maps that AutoSeg wrote into a folder; they are left out.

    Raises:
        MissingInput: a path does not exist, or there is no image at all.
    """
    notes: list[str] = []
    folders = _folders(paths, notes)
    files = _without_labels(_not_written(_files(paths, folders), written_in, notes), expected, notes)
    notes += [f"{found}; what helps: {found.kind.remedy}" for found in foreign_files(folders)]
    failures = {printable(file.name): printable(_not_supported(file)) for file in files if not is_image(file)}
    cases = []
    for name, same in sorted(_grouped(files, expected).items()):
        reason = _fault_of_names(name, same) or _fault(name, same, expected)
        if reason is None:
            cases.append(Case(name, tuple(str(same[index][0]) for index in sorted(same, key=_position))))
        else:
            failures[printable(name)] = printable(reason)
    if not cases and not failures:
        raise _nothing(paths, folders, notes)
    return Inputs(tuple(cases), tuple(sorted(failures.items())), tuple(notes))


def _fault_of_names(name: str, files: Mapping[int | None, Sequence[Path]]) -> str | None:
    """What is wrong with the name of a case or of its files, which become names and records of the output."""
    faults = [name_fault(name), *(title_fault(file.name) for same in files.values() for file in same)]
    return next((f"its name {fault}; rename the file" for fault in faults if fault is not None), None)


def _position(index: int | None) -> int:
    return index or 0


def _grouped(files: Sequence[Path], expected: ExpectedImages) -> Mapping[str, Mapping[int | None, list[Path]]]:
    """Case -> channel index, or None without one -> files."""
    groups: dict[str, dict[int | None, list[Path]]] = {}
    for file in filter(is_image, files):
        name, index = (name_of(file), None) if expected.has_whole_names else split_channel(name_of(file))
        groups.setdefault(name, {}).setdefault(index, []).append(file)
    return _numbered_cases_apart(groups, expected)


def _folders(paths: Sequence[Path], notes: list[str]) -> list[Path]:
    """Where the images of every folder that was given lie."""
    return [_images_of(path, notes) for path in paths if path.is_dir() and not is_image(path)]


def _images_of(folder: Path, notes: list[str]) -> Path:
    """The folder itself, or the one inside that holds the images."""
    inside = None if image_files(folder) else subfolder(folder, INPUT_FOLDERS)
    if inside is None:
        return folder
    notes.append(f"{folder.name}/ holds no images itself: those in its {inside.name}/ are segmented")
    return inside


def _files(paths: Sequence[Path], folders: Sequence[Path]) -> list[Path]:
    """The files themselves and those in the folders, each once."""
    found: dict[Path, None] = {}
    inside = iter(folders)
    for path in paths:
        if not path.exists():
            raise MissingInput(f"there is no {path.name}", where=str(path.parent), do="check the path")
        found.update(dict.fromkeys(image_files(next(inside)) if path.is_dir() and not is_image(path) else (path,)))
    return list(found)


def _not_written(files: Sequence[Path], written_in: Callable[[Path], Set[str]], notes: list[str]) -> list[Path]:
    """The files without AutoSeg's label maps."""
    own = {folder: written_in(folder) for folder in {file.parent for file in files}}
    others = [file for file in files if file.name not in own[file.parent]]
    if written := sorted(set(files) - set(others)):
        notes.append(f"{_some(written)} not segmented: predicted here before (manifest.json)")
    return others


def _without_labels(files: Sequence[Path], expected: ExpectedImages, notes: list[str]) -> list[Path]:
    """The files without label files that lie beside their images."""
    labels = [] if expected.has_label_words else _beside_images(files)
    if labels:
        notes.append(f"{_some(labels)} not segmented: label files of images")
    return [file for file in files if file not in set(labels)]


def _beside_images(files: Sequence[Path]) -> list[Path]:
    """The label files that lie in one folder with their images."""
    folders: dict[Path, list[Path]] = {}
    for file in filter(is_image, files):
        folders.setdefault(file.parent, []).append(file)
    found = []
    for inside in folders.values():
        names = {name_of(file) for file in inside}
        images, _ = side_by_side(names | {split_channel(name)[0] for name in names})
        found += [file for file in inside if name_of(file) not in images]
    return found


def _some(files: Sequence[Path]) -> str:
    return f"{files[0].name} is" if len(files) == 1 else f"{len(files)} files such as {files[0].name} are"


def _not_supported(file: Path) -> str:
    kind = foreign_kind(file)
    helps = f"{kind.what}; what helps: {kind.remedy}" if kind else f"give {', '.join(SUPPORTED_ENDINGS)}"
    return f"{file.name} is of a kind that is not supported: {helps}"


def _nothing(paths: Sequence[Path], folders: Sequence[Path], notes: Sequence[str]) -> MissingInput:
    inside = [entry.name + "/" for folder in folders for entry in sorted(folder.iterdir()) if entry.is_dir()]
    more = [f"folders inside are not searched: {', '.join(inside[:_SHOWN_FOLDERS])}"] if inside else []
    return MissingInput(
        "there is no image to segment",
        where=", ".join(map(str, paths)),
        why="; ".join([*notes, *more]) or None,
        do=f"give files or a folder of {', '.join(SUPPORTED_ENDINGS)}; "
        f"a dataset's folder may hold them in {', '.join(f'{name}/' for name in INPUT_FOLDERS)}",
    )


def _numbered_cases_apart(
    groups: Mapping[str, Mapping[int | None, list[Path]]], expected: ExpectedImages
) -> dict[str, Mapping[int | None, list[Path]]]:
    """Where a file may hold all channels, numbers without a 0000 belong to the names (frame_0001, frame_0002)."""
    cases: dict[str, Mapping[int | None, list[Path]]] = {}
    for name, files in groups.items():
        may_hold_all = all(expected.one_file_may_do(same[0]) for same in files.values())
        has_all_channels = files.keys() == set(range(expected.channels))
        if not may_hold_all or has_all_channels or 0 in files or None in files:
            cases[name] = files
        else:
            cases.update({f"{name}_{index:04d}": {None: same} for index, same in files.items() if index is not None})
    return cases


def _fault(name: str, files: Mapping[int | None, list[Path]], expected: ExpectedImages) -> str | None:
    """Why the files of a case, by channel index, cannot be used; None if they can."""
    twice = next((same for same in files.values() if len(same) > 1), None)
    if twice:
        return f"two files are meant for the same image: {' and '.join(map(str, twice))}"
    if None in files and len(files) > 1:
        return f"{name} is there both as one file and with channel indices: keep one of them"
    if expected.one_file_may_do(next(iter(files.values()))[0]) and files.keys() <= {0, None}:
        return None  # one file; whether it does hold all channels shows when it is read
    return _wrong_channels(name, files.keys() - {None}, expected.channels)


def _wrong_channels(name: str, indices: Set[int | None], channels: int) -> str | None:
    beyond = sorted(index for index in indices if index is not None and index >= channels)
    if beyond:
        return f"channel {beyond[0]:04d} is there, but the model has {channels} (0000 to {channels - 1:04d})"
    missing = [f"{name}_{index:04d}" for index in range(channels) if index not in indices]
    return f"the model needs {channels} channels, one file each; missing: {', '.join(missing)}" if missing else None
