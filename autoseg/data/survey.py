"""One pass over every case: check it and take its statistics while its voxels are in memory; then look across cases.

One pass, because reading and decompressing takes nearly all of the time. What was found out about each case is kept
with the stamps of its files, so that only changed cases are read again, and with a hash of their bytes, which decides
where stamps do not, finds equal images, and ties everything derived from a case to what it was made from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from autoseg.core.geometry import is_picture
from autoseg.core.progress import Progress, silent
from autoseg.core.records import content_hash
from autoseg.core.stamps import Stamps, are_unchanged, stamp
from autoseg.core.workers import map_supervised
from autoseg.data.check import HASH_DIGITS, check_case, content_of, count_noun
from autoseg.data.fingerprint import (
    CaseStatistics,
    Fingerprint,
    Foreground,
    IntensityQuantiles,
    case_statistics,
    combine,
    usual_orientation,
    wanted_orientation,
)
from autoseg.data.inputs import relative
from autoseg.data.labels import doubtful_values, plain_name
from autoseg.data.layouts.detect import LAYOUTS
from autoseg.data.model import Case, Dataset, LabelSet, Problem
from autoseg.data.problems import problem
from autoseg.images.formats.files import files_of
from autoseg.images.orientation import spelled

SURVEY_VERSION = 4

KEEP_SECONDS = 10.0
"""How often an unfinished survey is given to `keep`; a run that is killed loses no more work than this."""

_NAMED_CASES = 10
"""A sentence names so many cases."""

_FEW_BYTES = 1 << 20
"""Below this many bytes of files, starting processes takes longer than the work."""

_MEMORY_PER_BYTE = 12
"""Bytes of memory that examining a case takes for each byte of its files: 11 of a noisy CT in gzip, less of others
(measured), more only of images that compress better than most."""


@dataclass(frozen=True, slots=True)
class CaseSummary:
    """What was found out about one case; with its `CaseStatistics`, nothing of it needs to be read again.

    Attributes:
        identifier: of the case.
        files: its files as they were, spacing and voxels that lie beside them included.
        content: hash of their bytes; empty if the case could not be examined.
        problems: of this case alone.
        foreground: intensities of the foreground, one per channel; empty if refused or without foreground.
        value_names: what its label file itself says of the values in it, as {"1": "liver"}.
    """

    identifier: str
    files: Stamps
    content: str
    problems: tuple[Problem, ...]
    foreground: tuple[IntensityQuantiles, ...]
    value_names: dict[str, str] = field(default_factory=dict)


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

_Task = tuple[Case, str | None]
"""A case to examine, and the orientation that it is turned to before."""


def survey(
    dataset: Dataset,
    known: Survey | None,
    jobs: int,
    progress: Progress = silent,
    keep: Callable[[Survey], None] | None = None,
) -> Survey:
    """Checks every case of a dataset and takes its fingerprint.

    Each file is read once, in worker processes; a case whose worker dies or hangs is refused with the reason. Cases
    that are stored along other axes than most are read again, and examined as if they were stored like these. Cases
    whose files have not changed since `known` are not decoded again; their bytes are hashed where stamps do not settle
    it. The result does not depend on `jobs`.

    Args:
        dataset: as detected.
        known: an earlier survey of the same dataset, or None.
        jobs: worker processes.
        progress: called for every case examined.
        keep: called every `KEEP_SECONDS` with a survey of the cases examined so far, to be `known` after a stop.
    """
    bare, total = replace(dataset, cases=()), len(dataset.cases)  # sent with every task, so without the cases
    read_as = content_hash(replace(bare, announced_cases=None, layout_reason="", name="", root="", notes=()))
    examined = _known_cases(known, read_as, dataset)
    unread: list[_Task] = [(case, None) for case in dataset.cases if case.identifier not in examined]
    next_keep = time.monotonic() + KEEP_SECONDS

    def examine(tasks: Sequence[_Task]) -> None:
        nonlocal next_keep
        progress(total - len(tasks), total)
        sizes = [sum(stamp.size for stamp in stamps_of(dataset, case)) for case, _ in tasks]
        # one process is enough for little work; readers still run outside the main process, whatever they do
        processes = 1 if sum(sizes) < _FEW_BYTES else jobs
        needs = [_MEMORY_PER_BYTE * size for size in sizes]
        for done, outcome in enumerate(map_supervised(partial(_examine, bare), tasks, processes, needs=needs), 1):
            case = tasks[outcome.index][0]
            examined[case.identifier] = outcome.value or _lost(case, outcome.failure or "")
            progress(total - len(tasks) + done, total)
            if keep is not None and time.monotonic() >= next_keep:
                keep(_survey_of(dataset, read_as, examined))
                next_keep = time.monotonic() + KEEP_SECONDS

    examine(unread)
    if stored_otherwise := _to_turn(dataset, examined):
        examine(stored_otherwise)
    return _survey_of(dataset, read_as, examined)


def _to_turn(dataset: Dataset, examined: Mapping[str, Examined]) -> list[_Task]:
    """Cases that were examined along other axes than they are to be used along: those of most cases."""
    found = {name: statistics for name, (_, statistics) in examined.items() if statistics is not None}
    usual = usual_orientation([found[name] for name in sorted(found)])
    wanted = {name: wanted_orientation(case, *usual) for name, case in found.items()}
    return [
        (case, wanted[case.identifier])
        for case in dataset.cases
        if case.identifier in found and found[case.identifier].turned_to != wanted[case.identifier]
    ]


def check_across(dataset: Dataset, contents: Mapping[str, str]) -> tuple[Problem, ...]:
    """Problems that no single case shows: equal images, a wrong number of cases, files that belong to no case.

    Args:
        dataset: the dataset.
        contents: `CheckedCase.content` of each case, by identifier; empty for those that could not be examined.
    """
    unused = LAYOUTS[dataset.layout].unused_files(dataset)
    notes = (problem("E0222", None, None, note) for note in dataset.notes)
    names = (problem("E0223", name, None, f"its name {fault}") for name, fault in dataset.unusable.items())
    return (*_duplicates(contents), *_announced(dataset), *unused, *_mapped_values(dataset), *notes, *names)


def check_classes(labels: LabelSet, cases: Sequence[CaseStatistics]) -> Iterable[Problem]:
    """Problems of classes that no usable case shows, or one alone.

    Args:
        labels: of the dataset.
        cases: the usable ones.
    """
    for name in labels.foreground if cases else ():
        shown = [case.identifier for case in cases if _shows(case, labels.classes[name])]
        if not shown:
            in_files = labels.file_values or range(labels.largest_value + 1)
            found = ", ".join(str(in_files[value]) for value in labels.classes[name])
            yield problem("E0308", None, None, f"no case shows {name} (label value {found})")
        elif len(shown) == 1 < len(cases):
            yield problem("E0309", shown[0], None, f"{name} is in this case only")


def _doubtful(labels: LabelSet, cases: Sequence[CaseStatistics]) -> Iterable[Problem]:
    """Problems of values that were taken for classes, and may be none."""
    sentences = doubtful_values(labels, [case.class_voxels or {} for case in cases])
    return (problem("E0317", None, None, what) for what in sentences)


def _shows(case: CaseStatistics, values: Iterable[int]) -> bool:
    return not (case.class_voxels or {}).keys().isdisjoint(map(str, values))


def _survey_of(dataset: Dataset, read_as: str, examined: Mapping[str, Examined]) -> Survey:
    """The survey of the cases examined so far, in the dataset's order."""
    entries = [examined[case.identifier] for case in dataset.cases if case.identifier in examined]
    summaries = tuple(summary for summary, _ in entries)
    across = check_across(dataset, {summary.identifier: summary.content for summary in summaries})
    mixed = tuple(_other_dimensions([statistics for _, statistics in entries if statistics is not None]))
    fingerprint = combine(_usable(entries, {found.case for found in mixed}), len(dataset.channels))
    across = (*across, *mixed, *_orientations(fingerprint), *check_classes(dataset.labels, fingerprint.cases))
    across = (*across, *_named_otherwise(summaries), *_doubtful(dataset.labels, fingerprint.cases))
    across = (*across, *_copied_labels(summaries, fingerprint.cases))
    return Survey(
        version=SURVEY_VERSION,
        read_as=read_as,
        cases=summaries,
        problems=(*(found for summary in summaries for found in summary.problems), *across),
        fingerprint=fingerprint,
    )


def _usable(entries: Iterable[Examined], refused: Set[str | None]) -> Iterable[tuple[CaseStatistics, Foreground]]:
    for summary, statistics in entries:
        if statistics is not None and summary.identifier not in refused:
            yield statistics, summary.foreground


def _other_dimensions(cases: Sequence[CaseStatistics]) -> Iterable[Problem]:
    """Pictures among volumes, or volumes among pictures: whichever are fewer, as no plan is for both."""
    pictures = [case for case in cases if is_picture(case.shape, case.spacing_mm)]
    volumes = [case for case in cases if not is_picture(case.shape, case.spacing_mm)]
    if not pictures or not volumes:
        return
    others = f"{count_noun(len(volumes), 'volume')} and {count_noun(len(pictures), 'picture')}"
    is_volume = len(volumes) < len(pictures)
    what = "it is a volume" if is_volume else "it is a picture: a single slice without thickness"
    for case in volumes if is_volume else pictures:
        yield problem("E0224", case.identifier, None, f"{what}; the dataset has {others}")


def _known_cases(known: Survey | None, read_as: str, dataset: Dataset) -> dict[str, Examined]:
    """The cases whose files have not changed since an earlier survey, with their stamps of now."""
    if known is None or (known.version, known.read_as) != (SURVEY_VERSION, read_as):
        return {}
    statistics = {case.identifier: case for case in known.fingerprint.cases}
    summaries = {summary.identifier: summary for summary in known.cases if summary.content}
    found = {}
    for case in dataset.cases:
        summary = summaries.get(case.identifier)
        if summary is None or _is_unsettled(summary, statistics):
            continue
        if (stamps := unchanged_stamps(dataset, case, summary)) is not None:
            found[case.identifier] = (replace(summary, files=stamps), statistics.get(case.identifier))
    return found


def _is_unsettled(summary: CaseSummary, statistics: Mapping[str, CaseStatistics]) -> bool:
    """Whether a case is without statistics for what other cases were, which may be others now."""
    return not _is_refused(summary) and summary.identifier not in statistics


def _is_refused(summary: CaseSummary) -> bool:
    return any(found.severity == "refused" for found in summary.problems)


def stamps_of(dataset: Dataset, case: Case) -> Stamps:
    """The stamps of all files of a case, spacing and voxels that lie beside them included."""
    root = Path(dataset.root)
    own = [root / file for file in (*case.images, case.labels) if file is not None]
    paths = [path for file in own for path in files_of(file)]
    ordered = sorted(paths, key=lambda path: path not in own)  # side-cars last, as check.json has them
    return tuple(stamp(root, relative(path, root)) for path in ordered)


def unchanged_stamps(dataset: Dataset, case: Case, summary: CaseSummary) -> Stamps | None:
    """The stamps of a case's files if they are what they were in an earlier survey, by their bytes where need be."""
    now = stamps_of(dataset, case)
    is_same = are_unchanged(summary.files, now) or content_of(dataset, case) == summary.content
    return now if is_same else None


def _examine(dataset: Dataset, task: _Task) -> Examined:
    """Checks a case and takes its statistics, in a worker process."""
    case, codes = task
    stamps = stamps_of(dataset, case)
    checked = check_case(dataset, case)
    if stamps != stamps_of(dataset, case):
        return _lost(case, "its files changed while they were read; run the same command again")
    names = {str(value): name for value, name in checked.value_names.items()}
    summary = CaseSummary(case.identifier, stamps, checked.content, checked.problems, (), names)
    if checked.volume is None or checked.labels is None:
        return summary, None
    statistics, foreground = case_statistics(case.identifier, checked.volume, checked.labels, checked.content, codes)
    return replace(summary, foreground=foreground), statistics


def _lost(case: Case, failure: str) -> Examined:
    """A case that could not be examined at all; without a hash, the next survey tries it again."""
    found = problem("E0402", case.identifier, case.images[0], f"examining the case failed: {failure}")
    return CaseSummary(case.identifier, (), "", (found,), ()), None


def _duplicates(contents: Mapping[str, str]) -> Iterable[Problem]:
    owners: dict[str, list[str]] = {}
    for identifier, content in sorted(contents.items()):
        if content:
            owners.setdefault(content[:HASH_DIGITS], []).append(identifier)
    for same in (names for names in owners.values() if len(names) > 1):
        has_one = len({contents[identifier] for identifier in same}) == 1
        labels = "the same labels" if has_one else "different labels"
        yield problem("E0208", same[0], None, f"{', '.join(same)} have the same image, byte for byte, with {labels}")


def _copied_labels(summaries: Iterable[CaseSummary], cases: Iterable[CaseStatistics]) -> Iterable[Problem]:
    """Usable cases whose label maps are equal byte for byte, and show something, while their images differ."""
    showing = {case.identifier for case in cases if (case.class_voxels or {}).keys() - {"0"}}
    owners: dict[str, list[CaseSummary]] = {}
    for own in summaries:
        if own.identifier in showing:
            owners.setdefault(own.content[HASH_DIGITS:], []).append(own)
    for same in owners.values():
        if len({own.content for own in same}) > 1:
            shown = _listed([own.identifier for own in same])
            yield problem("E0226", same[0].identifier, None, f"{shown} have the same label map, byte for byte")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_CASES} more" if len(names) > _NAMED_CASES else ""
    return f"{', '.join(names[:_NAMED_CASES])}{more}"


def _announced(dataset: Dataset) -> Iterable[Problem]:
    found, announced = len(dataset.cases), dataset.announced_cases
    if announced is not None and announced != found:
        what = f"the dataset announces {count_noun(announced, 'training case')}, {found} are there"
        yield problem("E0205", None, "dataset.json", what)


def _named_otherwise(cases: Iterable[CaseSummary]) -> Iterable[Problem]:
    """Values of which label files of usable cases themselves say different things."""
    owners: dict[int, dict[str, list[CaseSummary]]] = {}
    for case in cases:
        for value, name in () if _is_refused(case) else case.value_names.items():
            owners.setdefault(int(value), {}).setdefault(plain_name(name), []).append(case)
    for number, same in sorted(owners.items()):
        shown = [_owned(own, str(number)) for own in list(same.values())[:_NAMED_CASES]]
        if len(shown) > 1:
            yield problem("E0316", None, None, f"label value {number} is {', '.join(shown)}")


def _owned(cases: Sequence[CaseSummary], value: str) -> str:
    """The name that cases have for a value, and who they are: "liver in case_a and 2 more"."""
    more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
    return f"{cases[0].value_names[value][:40]} in {cases[0].identifier}{more}"


def _orientations(fingerprint: Fingerprint) -> Iterable[Problem]:
    """What became of cases that are stored otherwise than most, or that do not say how they are stored."""
    unknown = [case.identifier for case in fingerprint.cases if _is_unknown(case)]
    if fingerprint.orientation is not None:
        what = f"no orientation stated, whereas others are stored {spelled(fingerprint.orientation)}; used as stored"
        yield from (problem("E0220", name, None, what) for name in unknown)
    elif unknown:
        what = f"no orientation stated: {_listed(unknown)}; images are used as stored"
        yield problem("E0219", None, None, what)
    for case in (case for case in fingerprint.cases if case.turned_to is not None):
        what = f"stored {spelled(case.orientation)}, turned to {spelled(case.turned_to)}, as most cases are stored"
        yield problem("E0221", case.identifier, None, what)


def _is_unknown(case: CaseStatistics) -> bool:
    """Whether nothing says how a case lies in the body; of pictures nobody asks."""
    return case.orientation is None and not is_picture(case.shape, case.spacing_mm)


def _mapped_values(dataset: Dataset) -> Iterable[Problem]:
    values = dataset.labels.file_values
    if dataset.labels.has_instances:
        what = "label files number objects; every value above 0 is read as the class `object`"
        yield problem("E0306", None, None, what)
    elif values != tuple(range(len(values))):
        training = ", ".join(map(str, range(len(values))))
        what = f"label values {', '.join(map(str, values))} are read as {training}, and restored on output"
        yield problem("E0305", None, None, what)
