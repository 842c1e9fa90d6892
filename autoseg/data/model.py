"""What a dataset is, whatever layout it came in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from autoseg.core.limits import Name, Title, Without
from autoseg.images.formats.files import WRITTEN_ENDINGS

BACKGROUND = "background"

CLASS_COLORS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#0072B2", "#D55E00")
"""Of the classes in pictures and curves: Okabe and Ito's palette, told apart with every common color blindness; the
brightest first, as images are dark."""


LARGEST_FILE_VALUE = 2**31 - 1
"""Readers return label values as 32-bit integers."""

_LARGEST_VALUE, _MOST_CLASSES = 65535, 4096  # of training; no label set exceeds them (assumptions, generous)


def ending_fault(ending: str) -> str | None:
    """What is wrong with the ending of label files; None if nothing is."""
    known = ", ".join(WRITTEN_ENDINGS)
    return None if ending in WRITTEN_ENDINGS else f"is {ending!r} and must be one that can be written: {known}"


FileEnding = Annotated[str, Without(ending_fault)]
"""Of label files, in a record: one of those that are known, and so never a path."""


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The classes of a dataset and the values that stand for them.

    Inside AutoSeg label maps always hold the training values 0, 1, 2, ..., n (background is 0). Files may hold other
    values (0/255, 0/200/210): `file_values[training value]` is what the file holds and what predictions are written
    with.

    Attributes:
        classes: class name -> training values, in declared order, background included. Several values make a region.
        ignore: training value of voxels that are not annotated, or None.
        regions_class_order: for region datasets, the value painted for each region in turn.
        file_values: value in the files of each training value, the ignore value included.
        has_instances: whether the files hold one id per object; then every value above 0 is training value 1.
    """

    classes: dict[Title, tuple[int, ...]]
    ignore: int | None = None
    regions_class_order: tuple[int, ...] = ()
    file_values: tuple[int, ...] = ()
    has_instances: bool = False

    @property
    def foreground(self) -> tuple[str, ...]:
        """Names of all classes but the background, in declared order."""
        return tuple(name for name, values in self.classes.items() if values != (0,))

    @property
    def has_regions(self) -> bool:
        """Whether any class is a union of several values; then heads are sigmoid, otherwise softmax."""
        return any(len(values) > 1 for values in self.classes.values())

    @property
    def foreground_values(self) -> tuple[int, ...]:
        """Every training value but the background's and the ignore value, ascending.

        Source: nnU-Net v2 utilities/label_handling/label_handling.py, `foreground_labels`.
        """
        return tuple(sorted({value for values in self.classes.values() for value in values} - {0, self.ignore}))

    @property
    def head_count(self) -> int:
        """Output channels of a network: every class with softmax, every foreground region with sigmoid."""
        return len(self.foreground) if self.has_regions else len(self.classes)

    @property
    def declared_count(self) -> int:
        """Entries of the labels table as written (background, regions and ignore), as the memory estimate counts."""
        return len(self.classes) + (self.ignore is not None)

    @property
    def largest_value(self) -> int:
        """The largest training value, the ignore value included."""
        return max([0 if self.ignore is None else self.ignore, *(max(values) for values in self.classes.values())])


def label_set_faults(labels: LabelSet) -> list[str]:
    """What in a label set contradicts itself; what AutoSeg makes never does, a file that was edited may."""
    values = sorted(value for own in labels.classes.values() for value in own)
    checks = (
        (not labels.foreground or not all(labels.classes.values()), "no classes, or empty ones"),
        (len(labels.classes) > _MOST_CLASSES, "too many classes"),
        (not _within((*values, labels.ignore or 0), _LARGEST_VALUE), "impossible values of classes"),
        *(_region_checks if labels.has_regions else _softmax_checks)(labels, values),
        *_file_value_checks(labels.file_values, max([*values, labels.ignore or 0])),
    )
    return [fault for is_wrong, fault in checks if is_wrong]


_Checks = tuple[tuple[bool, str], ...]


def _region_checks(labels: LabelSet, values: list[int]) -> _Checks:
    order = labels.regions_class_order
    return (
        (len(order) != len(labels.foreground), "regions without an order"),
        (not set(order) <= set(values), "an order of unknown regions"),
    )


def _softmax_checks(_labels: LabelSet, values: list[int]) -> _Checks:
    return ((values != list(range(len(values))), "values of classes that are not 0, 1, 2, ..."),)


def _file_value_checks(in_files: tuple[int, ...], largest: int) -> _Checks:
    return (
        (bool(in_files) and len(in_files) != largest + 1, "too few or many values in files"),
        (len(set(in_files)) != len(in_files), "a value in files is given twice"),
        (not _within(in_files, LARGEST_FILE_VALUE), "impossible values in files"),
    )


def _within(values: Iterable[int], largest: int) -> bool:
    return all(0 <= value <= largest for value in values)


def label_set_of(
    classes: Mapping[str, tuple[int, ...]], ignore: int | None = None, regions_class_order: tuple[int, ...] = ()
) -> LabelSet:
    """The label set of classes given by the values in the files; training values are their ranks, ignore comes last.

    Args:
        classes: class name -> values in the files, background (0) included.
        ignore: value in the files of voxels that are not annotated.
        regions_class_order: values in the files.
    """
    values = sorted({value for entry in classes.values() for value in entry})
    training = {value: rank for rank, value in enumerate(values)}
    return LabelSet(
        classes={name: tuple(training[value] for value in entry) for name, entry in classes.items()},
        ignore=None if ignore is None else len(values),
        regions_class_order=tuple(training[value] for value in regions_class_order),
        file_values=(*values, *(() if ignore is None else (ignore,))),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """One subject or image.

    Attributes:
        identifier: unique within the dataset, free of path separators.
        images: image files in channel order; one file when it holds all channels (RGB, 4D).
        labels: label file, or None for a case without one.
    """

    identifier: Name
    images: tuple[str, ...]
    labels: str | None = None


def _twins(cases: tuple[Case, ...]) -> str | None:
    """What is wrong with the cases of a dataset as a whole; None if nothing is."""
    twins = [name for name, count in Counter(case.identifier for case in cases).items() if count > 1]
    return f"has several cases of the name {twins[0]}" if twins else None


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as detected on disk; nothing of it was copied or renamed.

    Attributes:
        name: shown to users.
        root: folder that relative paths of the cases start from.
        layout: which layout was recognized (a key of `data.layouts.detect.LAYOUTS`).
        layout_reason: one sentence: what was seen that made it this layout.
        channels: channel names in order; the name selects the normalization.
        labels: classes and values.
        cases: labeled training cases, sorted by identifier.
        file_ending: ending of the label files, dot included (".nii.gz"); predictions are written with it.
        four_d: whether a fourth axis of the image files holds the channels (Decathlon).
        announced_cases: number of training cases that the dataset's own description announces, if any.
        notes: what of its description was understood otherwise than it is written, or is not read.
        source: file in the root that was named instead of the folder (a manifest), or "".
        unusable: cases that are left out because of their names -> what is wrong with these.
    """

    name: Title
    root: str
    layout: str
    layout_reason: str
    channels: tuple[Title, ...]
    labels: LabelSet
    cases: Annotated[tuple[Case, ...], Without(_twins)]
    file_ending: FileEnding
    four_d: bool = False
    announced_cases: int | None = None
    notes: tuple[str, ...] = ()
    source: str = ""
    unusable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing found wrong or noteworthy in the data.

    Attributes:
        code: stable code of the kind of problem (E0401), explained by `autoseg explain`.
        severity: "refused" (the case is not used), "warning" (used, look at it) or "note" (handled, for the record).
        case: case identifier, or None if the whole dataset is concerned.
        file: path relative to the dataset's root, or None.
        what: one sentence with the values found.
        do: what to do about it.
    """

    code: str
    severity: str
    case: str | None
    file: str | None
    what: str
    do: str
