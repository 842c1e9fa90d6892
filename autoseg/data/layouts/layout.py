"""What a layout is, and what several have in common: folders, pairs of files, files that belong to no case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.core.limits import printable
from autoseg.data.inputs import relative
from autoseg.data.layouts.description import DESCRIPTION, Description, describe, read_description
from autoseg.data.model import Case, Dataset, Problem
from autoseg.data.naming import by_name, image_files, name_of, partners, split_channel
from autoseg.data.problems import problem
from autoseg.images.foreign import foreign_files
from autoseg.images.formats.files import stem

Remark = tuple[str, str, str | None]
"""Code of a problem with a file, what is wrong with it (going on after its name), and a remedy of its own if any."""

_UNUSED: Remark = ("E0206", "belongs to no case", None)


def no_files(_dataset: Dataset) -> Iterable[Problem]:
    """Unused files of a layout that lists its cases: none, because what it leaves out is left out on purpose."""
    return ()


@dataclass(frozen=True, slots=True)
class Found:
    """What a layout finds in a folder; classes and channels that are not declared are then read off the files.

    Attributes:
        cases: sorted by identifier; at least one.
        seen: what made it this layout, as a sentence.
        declared: what the dataset says about itself.
        declares: where its classes are declared, as a sentence; empty where `seen` says enough.
        four_d: whether a fourth axis of the image files holds the channels.
        name: of the dataset; empty for that of the folder.
        notes: sentences about what was understood otherwise than it is written, beside those of `declared`.
        unusable: cases that are left out because of their names -> what is wrong with these.
    """

    cases: tuple[Case, ...]
    seen: str
    declared: Description
    declares: str = ""
    four_d: bool = False
    name: str = ""
    notes: tuple[str, ...] = ()
    unusable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to arrange a dataset.

    Attributes:
        detect: what is found in a folder, None where the folder is something else; raises where it is faulty.
        example: one example, as shown to users.
        unused_files: a problem for each image or label file that no case refers to.
        label_folder: where label files lie, if this layout fixes it; relative to the dataset's root.
        takes_file: whether a file can be given instead of a folder.
        made_for_objects: whether label files usually hold one id per object.
    """

    detect: Callable[[Path], Found | None]
    example: str
    unused_files: Callable[[Dataset], Iterable[Problem]] = no_files
    label_folder: Path = Path()
    takes_file: bool = False
    made_for_objects: bool = False


def with_channels(cases: Mapping[str, Mapping[int, Path]], indices: Sequence[int]) -> dict[str, tuple[Path, ...]]:
    """Files of every case for all channel indices; a missing one is named as its neighbors, for the check to name it.

    Args:
        cases: case -> channel index -> file, at least one for each case.
        indices: of the channels that every case should have.
    """
    complete = {}
    for case, entry in cases.items():
        example = next(iter(entry.values()))
        ending = example.name.removeprefix(stem(example))
        complete[case] = tuple(entry.get(index, example.with_name(f"{case}_{index:04d}{ending}")) for index in indices)
    return complete


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


def found_in_folders(root: Path, cases: tuple[Case, ...], seen: str) -> Found:
    """Cases found by their names, with `channel_names` and `labels` of a dataset.json, if there is one.

    Raises:
        RecordFault: dataset.json is faulty.
    """
    entries = ("channel_names", "labels", "regions_class_order")
    declared = describe(read_description(root) or {}, str(root / DESCRIPTION), (), entries)
    return Found(cases, seen, declared, f"classes as declared in {DESCRIPTION}")


def _labels(case: Case) -> tuple[str, ...]:
    return () if case.labels is None else (case.labels,)


def _others(dataset: Dataset, folder: Path, used: Set[Path]) -> list[Path]:
    """The images of a folder that no case uses, those of unusable cases left out."""
    cases = dataset.unusable
    others = [(file, printable(name_of(file))) for file in image_files(folder) if file not in used]
    return [
        file
        for file, name in others
        if split_channel(name)[0] not in cases and name not in cases and not partners(cases, [name])
    ]


def _twin_of(file_name: str) -> Remark:
    return "E0206", f"has the name of {file_name}, which is read instead", "keep the right one of the two"


def unused_files(
    dataset: Dataset, folders: Iterable[Path] = (), remark: Callable[[Path], Remark] = lambda _file: _UNUSED
) -> Iterator[Problem]:
    """A problem for each image or label file that no case refers to, in the folders where files of cases lie.

    Files of kinds that are not read are named kind by kind.

    Args:
        dataset: whose cases were found by looking into folders.
        folders: more folders to look into.
        remark: what is wrong with a file.
    """
    root = Path(dataset.root)
    used = {root / file for case in dataset.cases for file in (*case.images, *_labels(case))}
    searched = sorted({path.parent for path in used}.union(folders))
    for folder in searched:
        twins = by_name(file for file in used if file.parent == folder)
        for file in _others(dataset, folder, used):
            twin = twins.get(name_of(file))
            code, what, do = _twin_of(twin.name) if twin else remark(file)
            yield problem(code, None, file.relative_to(root).as_posix(), f"{file.name} {what}", do)
    for found in foreign_files(searched):
        yield problem("E0206", None, relative(found.files[0], root), str(found), found.kind.remedy)
