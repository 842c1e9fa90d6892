"""Label values: from files to training values and back, and classes found where none are declared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, DataRefused, LabelFault
from autoseg.core.workers import map_supervised
from autoseg.data.model import BACKGROUND, LabelSet, label_set_of

INSTANCE_VALUES = 32
"""More distinct values than this in undeclared label files are taken for ids of objects (assumption)."""

NUMBERED_OBJECTS = 8
"""In a layout for objects, values 1 to n without gaps hold ids if n differs and reaches this (assumption)."""

DOMINANT_SHARE = 0.5
"""Ids of objects spread over the voxels; a value with more than this share of them is a class (assumption)."""

STRAY_SHARE = 1e-3
"""A value with less than this share of the labeled voxels, in one file only, is pointed out (assumption)."""

RARE_SHARE = 0.02
"""A class that nothing declares, with less than this share of the labeled voxels, may be gray edges (assumption)."""

_LARGEST_TABLE = 1 << 20
_COUNTED_AT_ONCE = 1 << 22
_READ_AT_ONCE = 4
_FEW_FILES = 16
"""Below this, starting several processes takes longer than reading the files."""

_SHOWN_VALUES = 10
_SHOWN_FAULTS = 5

Labels = NDArray[np.signedinteger]


def to_training_values(array: NDArray[np.integer], label_set: LabelSet) -> Labels:
    """The label map with the values that networks are trained on, 0 to n, as int8 or the next type that holds them.

    Args:
        array: label map as its file holds it, any shape.
        label_set: which file value stands for which training value.

    Raises:
        LabelFault: with a histogram of the values that the label set does not know.
    """
    if label_set.has_instances:
        _refuse_unknown(array, label_set, array < 0)
        return (array > 0).astype(np.int8)
    file_values = np.array(_file_values(label_set), dtype=np.int64)
    kind = _signed_kind(len(file_values) - 1)
    if array.size == 0:
        return array.astype(kind)
    smallest, largest = int(array.min()), int(array.max())
    if smallest < 0 or largest > file_values.max():
        _refuse_unknown(array, label_set, ~np.isin(array, file_values))
    if np.array_equal(file_values, np.arange(len(file_values))):
        return array.astype(kind)
    training = _look_up(array, file_values, kind)
    _refuse_unknown(array, label_set, training < 0)
    return training


def to_file_values(array: NDArray[np.integer], label_set: LabelSet) -> NDArray[np.integer]:
    """The label map with the values of the dataset's files, in the smallest type that holds all of them.

    Args:
        array: label map of training values, any shape.
        label_set: which file value stands for which training value.

    Raises:
        LabelFault: a value is no training value.
    """
    file_values = np.array(_file_values(label_set), dtype=np.int64)
    outside = (array < 0) | (array >= len(file_values))
    if outside.any():
        found = _shown_counts(value_counts(array[outside]))
        raise LabelFault(
            f"{found} are no training values; they are 0 to {len(file_values) - 1}",
            do="report this: a label map left AutoSeg's own range",
        )
    largest = int(file_values.max())
    fitting = next(kind for kind in (np.uint8, np.uint16, np.int32, np.int64) if largest <= np.iinfo(kind).max)
    written: NDArray[np.integer] = file_values.astype(fitting)[array]
    return written


def misnamed_values(names: Mapping[int, str], label_set: LabelSet) -> list[str]:
    """What a label file says of its values where the dataset says so of others, in words.

    Args:
        names: as `Volume.value_names` has them.
        label_set: of the dataset; its classes have the same names if they differ in capitals, blanks and dashes only.
    """
    if label_set.has_instances:
        return []
    in_files = _file_values(label_set)
    declared = {plain_name(name): [in_files[value] for value in own] for name, own in label_set.classes.items()}
    wrong = [
        (value, name, declared[plain_name(name)])
        for value, name in sorted(names.items())
        if value not in declared.get(plain_name(name), [value])
    ]
    return [f"{value} is {name} in the file, {name} is {', '.join(map(str, own))}" for value, name, own in wrong]


def plain_name(name: str) -> str:
    """A name without what spellings of one name differ in: capitals, blanks, underscores and dashes."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def value_counts(array: NDArray[np.integer]) -> dict[int, int]:
    """Voxels of each value that occurs, in ascending order of the values."""
    if array.size == 0:
        return {}
    smallest, largest = int(array.min()), int(array.max())
    if largest - smallest >= _LARGEST_TABLE:
        values, counts = np.unique(array, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    totals = np.zeros(largest - smallest + 1, dtype=np.int64)
    flat = array.reshape(-1)
    for start in range(0, flat.size, _COUNTED_AT_ONCE):  # counting needs eight bytes per voxel
        block = flat[start : start + _COUNTED_AT_ONCE].astype(np.int64) - smallest
        totals += np.bincount(block, minlength=len(totals))
    return {int(index) + smallest: int(totals[index]) for index in np.flatnonzero(totals)}


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What label files hold.

    Attributes:
        voxels: of each value, for each file that can be read.
        faults: why the others cannot be.
    """

    voxels: tuple[dict[int, int], ...]
    faults: dict[Path, str]

    @property
    def values(self) -> set[int]:
        """Every value that occurs."""
        return set().union(*self.voxels)

    @property
    def grouped_faults(self) -> str:
        """Each reason once, with the first file and how many there are."""
        groups: dict[str, list[str]] = {}
        for path, reason in self.faults.items():
            groups.setdefault(reason.replace(path.name, ""), []).append(reason)
        more = {
            reasons[0]: f" (and {len(reasons) - 1} more files)" if len(reasons) > 1 else ""
            for reasons in groups.values()
        }
        return "; ".join(first + rest for first, rest in list(more.items())[:_SHOWN_FAULTS])


def count_label_files(paths: Iterable[Path], jobs: int = _READ_AT_ONCE) -> LabelCounts:
    """Voxels of each value in each label file that can be read, and why the others cannot be.

    Args:
        paths: of the files.
        jobs: processes that read; one that a file ends costs that file alone. 0 to read here, unprotected.
    """
    paths = list(paths)
    counted: dict[Path, dict[int, int] | str] = {}
    for outcome in map_supervised(_count_file, paths, min(jobs, 1) if len(paths) < _FEW_FILES else jobs):
        path = paths[outcome.index]
        lost = f"{path.name} cannot be read: {outcome.failure}"
        counted[path] = lost if outcome.value is None else outcome.value
    counted = {path: counted[path] for path in paths}
    return LabelCounts(
        tuple(found for found in counted.values() if not isinstance(found, str)),
        {path: found for path, found in counted.items() if isinstance(found, str)},
    )


def find_classes(counts: Sequence[Mapping[int, int]], *, made_for_objects: bool = False) -> tuple[LabelSet, str]:
    """The label set of files whose classes are not declared, and a sentence that says how it was found.

    Every value is a class of its own, named by its value; the background is 0. Many distinct values are ids of
    objects and become the one class `object`, unless one value dominates: then the rare ones are faults (gray edges
    of a drawn mask), which the check of the cases names.

    Args:
        counts: voxels of each value, for each file.
        made_for_objects: whether the layout is made for one id per object, so that few ids count as such too.

    Raises:
        DataRefused: no file holds a labeled voxel.
    """
    foreground = [_above_0(entry) for entry in counts]
    total = sum(foreground, Counter())
    if not total:
        raise DataRefused(
            f"none of the {len(counts)} readable label files holds a value above 0, so there is nothing to learn",
            do="check that the label files are the right ones",
        )
    is_dominated = max(total.values()) > DOMINANT_SHARE * total.total()
    if len(total) > INSTANCE_VALUES and not is_dominated:
        return _objects(f"the label files hold {len(total)} distinct values, which are taken for ids of objects")
    if made_for_objects and _are_numbered(foreground):
        return _objects("the label files number their objects 1 to n, with n from file to file different")
    if len(total) > INSTANCE_VALUES:
        return _dominant_classes(total)
    values = ", ".join(map(str, sorted(total)))
    found = f"the label files hold the values {values} beside the background 0{_stray(foreground, total)}"
    return _named_by_value(sorted(total)), found


def doubtful_values(labels: LabelSet, voxels: Sequence[Mapping[str, int]]) -> Iterator[str]:
    """What speaks against classes that are named by values because nothing declares them: a sentence for each reason.

    Args:
        labels: of the dataset.
        voxels: of each training value, as {"1": 1725}, case by case.
    """
    in_files = _file_values(labels)
    if all(name == f"class_{in_files[labels.classes[name][0]]}" for name in labels.foreground):
        counts = [_above_0({in_files[int(value)]: count for value, count in case.items()}) for case in voxels]
        cases, total = Counter(value for case in counts for value in case), sum(counts, Counter[int]())
        yield from _rare(cases, total, len(voxels))
        yield from _alone(cases, len(voxels))


def _rare(cases: Counter[int], total: Counter[int], count: int) -> Iterator[str]:
    rare = [value for value in sorted(total) if total[value] < RARE_SHARE * total.total()]
    if rare:
        shown = _some([f"{value} ({total[value]} voxels in {cases[value]} of {count} cases)" for value in rare])
        yield f"few voxels have these values: {shown}"


def _alone(cases: Counter[int], count: int) -> Iterator[str]:
    if len(cases) > 1 and cases.total() <= count:
        shown = _some([f"{value} in {cases[value]} cases" for value in sorted(cases)])
        yield f"each case holds one value alone, which may mean the same in all of them: {shown}"


def _some(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - _SHOWN_VALUES} more" if len(parts) > _SHOWN_VALUES else ""
    return f"{', '.join(parts[:_SHOWN_VALUES])}{more}"


def _above_0(entry: Mapping[int, int]) -> Counter[int]:
    return Counter({value: voxels for value, voxels in entry.items() if value > 0})


def _named_by_value(values: Iterable[int]) -> LabelSet:
    return label_set_of({BACKGROUND: (0,), **{f"class_{value}": (value,) for value in values}})


def _objects(found: str) -> tuple[LabelSet, str]:
    labels = replace(label_set_of({BACKGROUND: (0,), "object": (1,)}), has_instances=True)
    return labels, f"{found}: every value above 0 becomes the one class `object`"


def _are_numbered(foreground: Sequence[Mapping[int, int]]) -> bool:
    """Whether every file numbers its objects 1 to n, with differing n of at least `NUMBERED_OBJECTS` once."""
    highest = [max(entry, default=0) for entry in foreground]
    is_gapless = all(len(entry) == high for entry, high in zip(foreground, highest, strict=True))
    return is_gapless and len(set(highest)) > 1 and max(highest) >= NUMBERED_OBJECTS


def _dominant_classes(total: Counter[int]) -> tuple[LabelSet, str]:
    """The values that hold at least a fiftieth of the labeled voxels; the rest is left for the check to refuse."""
    kept = sorted(value for value, voxels in total.items() if voxels * 50 >= total.total())
    return _named_by_value(kept), (
        f"of the {len(total)} distinct values in the label files only {', '.join(map(str, kept))} are frequent; "
        "the others look like gray edges"
    )


def _stray(foreground: Sequence[Mapping[int, int]], total: Counter[int]) -> str:
    """A remark on values that are in one file only, and rare."""
    files = Counter(value for entry in foreground for value in entry)
    rare = [value for value in sorted(total) if total[value] < STRAY_SHARE * total.total() and files[value] == 1]
    found = ", ".join(f"{value} ({total[value]} voxels)" for value in rare)
    return f"; in one file only, perhaps by mistake: {found}" if rare and len(foreground) > 1 else ""


def _count_file(path: Path) -> dict[int, int] | str:
    """Voxels of each value, or why the file cannot be read."""
    from autoseg.images.readers import read_labels

    try:
        return value_counts(read_labels(path).array)
    except AutoSegError as error:
        return error.what
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror or error}"


def _file_values(label_set: LabelSet) -> tuple[int, ...]:
    return label_set.file_values or tuple(range(label_set.largest_value + 1))


def _signed_kind(largest: int) -> type[np.signedinteger]:
    return next(kind for kind in (np.int8, np.int16, np.int32) if largest <= np.iinfo(kind).max)


def _look_up(array: NDArray[np.integer], file_values: NDArray[np.int64], kind: type[np.signedinteger]) -> Labels:
    """Training values, and -1 for values that are not among `file_values`."""
    if file_values.max() < _LARGEST_TABLE:
        table = np.full(int(file_values.max()) + 1, -1, dtype=kind)
        table[file_values] = np.arange(len(file_values))
        found: Labels = table[array]
        return found
    order = np.argsort(file_values)
    nearest = order[np.searchsorted(file_values, array, sorter=order)]
    return np.where(file_values[nearest] == array, nearest, -1).astype(kind)


def _refuse_unknown(array: NDArray[np.integer], label_set: LabelSet, unknown: NDArray[np.bool_]) -> None:
    if not unknown.any():
        return
    declared = "any value >= 0" if label_set.has_instances else ", ".join(map(str, sorted(_file_values(label_set))))
    raise LabelFault(
        f"the label map holds values that the dataset does not declare: {_shown_counts(value_counts(array[unknown]))}; "
        f"declared: {declared}",
        do="correct the label map, or declare these values as classes or as `ignore`",
    )


def _shown_counts(counts: Mapping[int, int]) -> str:
    shown = [
        f"{value} ({voxels} voxel{'s' if voxels > 1 else ''})" for value, voxels in list(counts.items())[:_SHOWN_VALUES]
    ]
    more = [f"and {len(counts) - _SHOWN_VALUES} more values"] if len(counts) > _SHOWN_VALUES else []
    return ", ".join(shown + more)
