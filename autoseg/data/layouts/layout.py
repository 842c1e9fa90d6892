"""What a layout is, and what several have in common: folders, case names, pairs of files, files that nobody uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from autoseg.data.inputs import image_files, relative
from autoseg.data.model import Case, Dataset, Problem
from autoseg.data.problems import problem
from autoseg.images.formats.files import file_ending

Remark = tuple[str, str, str | None]
"""Code of a problem with a file, what is wrong with it (going on after its name), and a remedy of its own if any."""

_LOSSY = (".jpg", ".jpeg")
_UNUSED: Remark = ("E0206", "belongs to no case", None)
_LOSSY_REMARK: Remark = (
    *("E0206", "is not used: JPEG changes the values it stores"),
    "convert the original (not the JPEG) to PNG or TIFF",
)


def no_files(_dataset: Dataset) -> Iterable[Problem]:
    """Unused files of a layout that lists its cases: none, because what it leaves out is left out on purpose."""
    return ()


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to arrange a dataset.

    Attributes:
        detect: returns the dataset in a folder, None where the folder is something else; raises where it is faulty.
        example: one example, as shown to users.
        unused_files: a problem for each image or label file that no case refers to.
        label_folder: where label files lie, if this layout fixes it; relative to the dataset's root.
        takes_file: whether a file can be given instead of a folder.
    """

    detect: Callable[[Path], Dataset | None]
    example: str
    unused_files: Callable[[Dataset], Iterable[Problem]] = no_files
    label_folder: Path = Path()
    takes_file: bool = False


def subfolder(root: Path, names: Iterable[str]) -> Path | None:
    """The first folder below `root` with one of the names, upper and lower case alike."""
    folders = {entry.name.lower(): entry for entry in sorted(root.iterdir(), reverse=True) if entry.is_dir()}
    return next((folders[name.lower()] for name in names if name.lower() in folders), None)


def is_identifier(name: str) -> bool:
    """Whether a case name is usable as a file name on every system: no separators, no blanks at the ends."""
    return bool(name) and name.strip() == name and name not in {".", ".."} and PureWindowsPath(name).name == name


def most_common_ending(cases: Iterable[Case]) -> str | None:
    """The ending that most of the label files have; None without any."""
    endings = Counter(file_ending(Path(case.labels)) for case in cases if case.labels is not None)
    return endings.most_common(1)[0][0] if endings else None


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


def unused_files(
    dataset: Dataset, folders: Iterable[Path] = (), remark: Callable[[Path], Remark] = lambda _file: _UNUSED
) -> Iterator[Problem]:
    """A problem for each image or label file that no case refers to, in the folders where files of cases lie.

    Args:
        dataset: whose cases were found by looking into folders.
        folders: more folders to look into.
        remark: what is wrong with a file.
    """
    root = Path(dataset.root)
    listed = (file for case in dataset.cases for file in (*case.images, case.labels) if file is not None)
    used = {root / file for file in listed}
    for folder in sorted({*(path.parent for path in used), *folders}):
        lossy = {file for file in folder.iterdir() if file.suffix.lower() in _LOSSY} if folder.is_dir() else set()
        for file in sorted({*image_files(folder), *lossy} - used):
            code, what, do = _LOSSY_REMARK if file in lossy else remark(file)
            yield problem(code, None, file.relative_to(root).as_posix(), f"{file.name} {what}", do)
