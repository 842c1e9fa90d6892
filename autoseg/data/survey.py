"""One pass over every case: check it and take its statistics while its voxels are in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from autoseg.core.progress import Progress, silent
from autoseg.core.records import content_hash
from autoseg.core.workers import map_supervised
from autoseg.data.check import check_across, check_case
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.layouts.scan import relative
from autoseg.data.model import Case, Dataset, Problem
from autoseg.data.problems import PROBLEM_CODES
from autoseg.data.statistics import ExtractedCase, Sketch, case_statistics, combine
from autoseg.images.formats.files import files_of

SURVEY_VERSION = 2

KEEP_SECONDS = 10.0
"""How often an unfinished survey is handed out to be kept; a run that is killed loses no more work than this."""

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
class SurveyedCase:
    """What was found out about one case.

    Attributes:
        identifier: of the case.
        files: its files as they were, spacing and voxels that lie beside them included.
        content: hash of their bytes.
        problems: of this case alone.
        foreground: sketches of the foreground intensities, one per channel; empty if refused or without foreground.
    """

    identifier: str
    files: tuple[FileStamp, ...]
    content: str
    problems: tuple[Problem, ...]
    foreground: tuple[Sketch, ...]


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
    cases: tuple[SurveyedCase, ...]
    problems: tuple[Problem, ...]
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True)
class _Examined:
    case: SurveyedCase
    extracted: ExtractedCase | None


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
        progress: told about every case examined.
        keep: given a survey of the cases examined so far now and then; it serves as `known` after an interruption.
    """
    read_as = content_hash(replace(dataset, cases=(), announced_cases=None, layout_reason="", name=""))
    known_cases = _known_cases(known, read_as)
    examined: dict[str, _Examined] = {}
    to_read: list[tuple[Case, tuple[FileStamp, ...]]] = []
    for case in dataset.cases:
        stamps = _stamps(dataset, case)
        earlier = known_cases.get(case.identifier)
        if earlier is not None and earlier.case.files == stamps:
            examined[case.identifier] = earlier
        else:
            to_read.append((case, stamps))
    done = len(examined)
    progress(done, len(dataset.cases))
    next_keep = time.monotonic() + KEEP_SECONDS
    bare = replace(dataset, cases=())  # what a worker needs to know; all the cases would be sent for nothing
    for outcome in map_supervised(partial(_examine, bare), to_read, _processes(to_read, jobs)):
        case, stamps = to_read[outcome.index]
        found = outcome.value or _lost(case, stamps, outcome.failure or "")
        examined[case.identifier] = found
        done += 1
        progress(done, len(dataset.cases))
        if keep is not None and time.monotonic() >= next_keep:
            keep(_survey_of(dataset, read_as, _in_order(dataset, examined)))
            next_keep = time.monotonic() + KEEP_SECONDS
    return _survey_of(dataset, read_as, _in_order(dataset, examined))


def _in_order(dataset: Dataset, examined: dict[str, _Examined]) -> list[_Examined]:
    return [examined[case.identifier] for case in dataset.cases if case.identifier in examined]


def _survey_of(dataset: Dataset, read_as: str, examined: Sequence[_Examined]) -> Survey:
    across = check_across(dataset, {entry.case.identifier: entry.case.content for entry in examined})
    refused = {problem.case for problem in across if problem.severity == "refused"}
    usable = [entry.extracted for entry in examined if entry.case.identifier not in refused]
    return Survey(
        version=SURVEY_VERSION,
        read_as=read_as,
        cases=tuple(entry.case for entry in examined),
        problems=(*(problem for entry in examined for problem in entry.case.problems), *across),
        fingerprint=combine([entry for entry in usable if entry is not None], len(dataset.channels)),
    )


def _known_cases(known: Survey | None, read_as: str) -> dict[str, _Examined]:
    if known is None or known.version != SURVEY_VERSION or known.read_as != read_as:
        return {}
    statistics = {case.identifier: case for case in known.fingerprint.cases}
    return {
        case.identifier: _Examined(
            case,
            ExtractedCase(statistics[case.identifier], case.foreground) if case.identifier in statistics else None,
        )
        for case in known.cases
    }


def _stamps(dataset: Dataset, case: Case) -> tuple[FileStamp, ...]:
    root = Path(dataset.root)
    files = [*case.images, *([] if case.labels is None else [case.labels])]
    return tuple(_stamp(dataset.root, relative(path, root)) for file in files for path in files_of(root / file))


def _stamp(root: str, file: str) -> FileStamp:
    try:
        status = (Path(root) / file).stat()
    except OSError:
        return FileStamp(file, -1, 0)
    return FileStamp(file, status.st_size, status.st_mtime_ns)


def _processes(to_read: Sequence[tuple[Case, tuple[FileStamp, ...]]], jobs: int) -> int:
    """One process is enough for little work; readers still run outside the main process, whatever they do."""
    total = sum(stamp.size for _, stamps in to_read for stamp in stamps)
    return 1 if total < _FEW_BYTES else jobs


def _examine(dataset: Dataset, task: tuple[Case, tuple[FileStamp, ...]]) -> _Examined:
    case, stamps = task
    checked = check_case(dataset, case)
    surveyed = SurveyedCase(case.identifier, stamps, checked.content, checked.problems, ())
    if checked.volume is None or checked.labels is None:
        return _Examined(surveyed, None)
    extracted = case_statistics(case.identifier, checked.volume, checked.labels, checked.content)
    return _Examined(replace(surveyed, foreground=extracted.foreground), extracted)


def _lost(case: Case, stamps: tuple[FileStamp, ...], failure: str) -> _Examined:
    """A case that could not be examined at all; it is tried again by the next survey, as no file is known by -1 ns."""
    problem = Problem(
        code="E0402",
        severity="refused",
        case=case.identifier,
        file=case.images[0],
        what=f"examining the case failed: {failure}",
        do=PROBLEM_CODES["E0402"].remedy,
    )
    unknown = tuple(replace(stamp, mtime_ns=-1) for stamp in stamps)
    return _Examined(SurveyedCase(case.identifier, unknown, "", (problem,), ()), None)
