"""One pass over every case: check it and take its statistics while its voxels are in memory; then look across cases.

One pass, because reading and decompressing takes nearly all of the time. What was found out about each case is kept
with the size and time of its files, so that only changed cases are read again, and with a hash of their bytes, which
finds equal images and ties everything derived from a case to what it was made from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from autoseg.core.progress import Progress, silent
from autoseg.core.records import content_hash
from autoseg.core.workers import map_supervised
from autoseg.data.check import HASH_DIGITS, check_case, count_noun
from autoseg.data.fingerprint import CaseStatistics, Fingerprint, IntensityQuantiles, case_statistics, combine
from autoseg.data.inputs import relative
from autoseg.data.layouts.detect import LAYOUTS
from autoseg.data.model import Case, Dataset, Problem
from autoseg.data.problems import problem
from autoseg.images.formats.files import files_of

SURVEY_VERSION = 2

KEEP_SECONDS = 10.0
"""How often an unfinished survey is given to `keep`; a run that is killed loses no more work than this."""

_FEW_BYTES = 1 << 20
"""Below this many bytes of files, starting processes takes longer than the work."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file as it was when it was read; equal stamps mean that it need not be read again.

    Attributes:
        path: relative to the dataset's root, or absolute where the dataset has it so.
        size: bytes; -1 if the file was missing.
        mtime_ns: time of its last change.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class CaseSummary:
    """What was found out about one case; with its `CaseStatistics`, nothing of it needs to be read again.

    Attributes:
        identifier: of the case.
        files: its files as they were, spacing and voxels that lie beside them included.
        content: hash of their bytes; empty if the case could not be examined.
        problems: of this case alone.
        foreground: intensities of the foreground, one per channel; empty if refused or without foreground.
    """

    identifier: str
    files: tuple[FileStamp, ...]
    content: str
    problems: tuple[Problem, ...]
    foreground: tuple[IntensityQuantiles, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found out about a dataset; kept as check.json.

    Attributes:
        version: of this record.
        read_as: hash of all that decides how files are read: layout, channels, labels.
        cases: every case, the refused ones too.
        problems: everything found, case by case, then what only shows across cases.
        fingerprint: statistics of the usable cases.
    """

    version: int
    read_as: str
    cases: tuple[CaseSummary, ...]
    problems: tuple[Problem, ...]
    fingerprint: Fingerprint


Examined = tuple[CaseSummary, CaseStatistics | None]
"""A case with its entry of the fingerprint; None if it is refused."""

Stamps = tuple[FileStamp, ...]

_Task = tuple[Case, Stamps]


def survey(
    dataset: Dataset,
    known: Survey | None,
    jobs: int,
    progress: Progress = silent,
    keep: Callable[[Survey], None] | None = None,
) -> Survey:
    """Checks every case of a dataset and takes its fingerprint.

    Each file is read once, in worker processes; a case whose worker dies or hangs is refused with the reason. Cases
    whose files have not changed since `known` are not read at all. The result does not depend on `jobs`.

    Args:
        dataset: as detected.
        known: an earlier survey of the same dataset, or None.
        jobs: worker processes.
        progress: called for every case examined.
        keep: called every `KEEP_SECONDS` with a survey of the cases examined so far, to be `known` after a stop.
    """
    read_as = content_hash(replace(dataset, cases=(), announced_cases=None, layout_reason="", name=""))
    stamps = {case.identifier: _stamps(dataset, case) for case in dataset.cases}
    examined = _known_cases(known, read_as, stamps)
    to_read = [(case, stamps[case.identifier]) for case in dataset.cases if case.identifier not in examined]
    progress(len(examined), len(dataset.cases))
    next_keep = time.monotonic() + KEEP_SECONDS
    bare = replace(dataset, cases=())  # sent with every task, so without the cases
    for outcome in map_supervised(partial(_examine, bare), to_read, _processes(to_read, jobs)):
        case = to_read[outcome.index][0]
        examined[case.identifier] = outcome.value or _lost(case, stamps[case.identifier], outcome.failure or "")
        progress(len(examined), len(dataset.cases))
        if keep is not None and time.monotonic() >= next_keep:
            keep(_survey_of(dataset, read_as, examined))
            next_keep = time.monotonic() + KEEP_SECONDS
    return _survey_of(dataset, read_as, examined)


def check_across(dataset: Dataset, contents: Mapping[str, str]) -> tuple[Problem, ...]:
    """Problems that no single case shows: equal images, a wrong number of cases, files that belong to no case.

    Args:
        dataset: the dataset.
        contents: `CheckedCase.content` of each case, by identifier; empty for those that could not be examined.
    """
    unused = LAYOUTS[dataset.layout].unused_files(dataset)
    return (*_duplicates(contents), *_announced(dataset), *unused, *_mapped_values(dataset))


def _survey_of(dataset: Dataset, read_as: str, examined: Mapping[str, Examined]) -> Survey:
    """The survey of the cases examined so far, in the dataset's order."""
    entries = [examined[case.identifier] for case in dataset.cases if case.identifier in examined]
    summaries = tuple(summary for summary, _ in entries)
    across = check_across(dataset, {summary.identifier: summary.content for summary in summaries})
    usable = [(statistics, summary.foreground) for summary, statistics in entries if statistics is not None]
    return Survey(
        version=SURVEY_VERSION,
        read_as=read_as,
        cases=summaries,
        problems=(*(found for summary in summaries for found in summary.problems), *across),
        fingerprint=combine(usable, len(dataset.channels)),
    )


def _known_cases(known: Survey | None, read_as: str, stamps: Mapping[str, Stamps]) -> dict[str, Examined]:
    """The cases whose files have not changed since an earlier survey."""
    if known is None or (known.version, known.read_as) != (SURVEY_VERSION, read_as):
        return {}
    statistics = {case.identifier: case for case in known.fingerprint.cases}
    unchanged = (case for case in known.cases if case.files == stamps.get(case.identifier))
    return {case.identifier: (case, statistics.get(case.identifier)) for case in unchanged}


def _stamps(dataset: Dataset, case: Case) -> Stamps:
    root = Path(dataset.root)
    own = [root / file for file in (*case.images, case.labels) if file is not None]
    paths = [path for file in own for path in files_of(file)]
    ordered = sorted(paths, key=lambda path: path not in own)  # side-cars last, as check.json has them
    return tuple(_stamp(root, relative(path, root)) for path in ordered)


def _stamp(root: Path, file: str) -> FileStamp:
    try:
        status = (root / file).stat()
    except OSError:
        return FileStamp(file, -1, 0)
    return FileStamp(file, status.st_size, status.st_mtime_ns)


def _processes(to_read: Sequence[_Task], jobs: int) -> int:
    """One process is enough for little work; readers still run outside the main process, whatever they do."""
    total = sum(stamp.size for _, stamps in to_read for stamp in stamps)
    return 1 if total < _FEW_BYTES else jobs


def _examine(dataset: Dataset, task: _Task) -> Examined:
    """Checks a case and takes its statistics, in a worker process."""
    case, stamps = task
    checked = check_case(dataset, case)
    summary = CaseSummary(case.identifier, stamps, checked.content, checked.problems, ())
    if checked.volume is None or checked.labels is None:
        return summary, None
    statistics, foreground = case_statistics(case.identifier, checked.volume, checked.labels, checked.content)
    return replace(summary, foreground=foreground), statistics


def _lost(case: Case, stamps: Stamps, failure: str) -> Examined:
    """A case that could not be examined at all.

    No file has a time of -1 ns, so its stamps never match and the next survey tries it again.
    """
    found = problem("E0402", case.identifier, case.images[0], f"examining the case failed: {failure}")
    unknown = tuple(replace(stamp, mtime_ns=-1) for stamp in stamps)
    return CaseSummary(case.identifier, unknown, "", (found,), ()), None


def _duplicates(contents: Mapping[str, str]) -> Iterable[Problem]:
    owners: dict[str, list[str]] = {}
    for identifier, content in sorted(contents.items()):
        if content:
            owners.setdefault(content[:HASH_DIGITS], []).append(identifier)
    for same in (names for names in owners.values() if len(names) > 1):
        has_one = len({contents[identifier] for identifier in same}) == 1
        labels = "the same labels" if has_one else "different labels"
        yield problem("E0208", same[0], None, f"{', '.join(same)} have the same image, byte for byte, with {labels}")


def _announced(dataset: Dataset) -> Iterable[Problem]:
    found, announced = len(dataset.cases), dataset.announced_cases
    if announced is not None and announced != found:
        what = f"the dataset announces {count_noun(announced, 'training case')}, {found} are there"
        yield problem("E0205", None, "dataset.json", what)


def _mapped_values(dataset: Dataset) -> Iterable[Problem]:
    values = dataset.labels.file_values
    if dataset.labels.has_instances:
        what = "label files number objects; every value above 0 is read as the class `object`"
        yield problem("E0306", None, None, what)
    elif values != tuple(range(len(values))):
        training = ", ".join(map(str, range(len(values))))
        what = f"label values {', '.join(map(str, values))} are read as {training}, and restored on output"
        yield problem("E0305", None, None, what)
