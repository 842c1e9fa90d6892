"""What of a planned dataset is not as it was: its files where they are now, compared with what was made from them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.core.errors import AutoSegError, MissingInput, RecordFault
from autoseg.core.records import load
from autoseg.core.stamps import are_unchanged
from autoseg.core.workspace import WORK_FOLDER_NAME, Workspace
from autoseg.data.check import HASH_DIGITS, content_of
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.layouts.detect import LAYOUTS
from autoseg.data.layouts.layout import Found
from autoseg.data.model import Case, Dataset
from autoseg.data.survey import CaseSummary, Survey, stamps_of
from autoseg.images.formats.files import is_image

_SHOWN = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Changes:
    """How a dataset differs from what was planned.

    Attributes:
        cases: planned case -> what of it is different, as "its labels changed".
        described: what of the dataset as a whole is different, as "its classes changed".
        new: cases that were not there, or refused, and that a new plan would examine.
    """

    cases: dict[str, str]
    described: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What is different about the planned cases, for people; empty if nothing is."""
        return "; ".join([*self.described, *listed_changes(self.cases)])


def listed_changes(cases: Mapping[str, str]) -> list[str]:
    """The changes of the first few cases, one entry each, and how many more there are."""
    shown = [f"{name}: {what}" for name, what in sorted(cases.items())[:_SHOWN]]
    return [*shown, *([f"and {len(cases) - _SHOWN} more cases"] if len(cases) > _SHOWN else [])]


def shortened(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def load_dataset(workspace: Workspace) -> Dataset:
    """The dataset of a work folder, with the folder where it is now as its root: it may have been copied or moved.

    That is the folder that was named; where the work folder itself was named, the one around it if it holds the files
    of the cases; else the one where it was planned.

    Raises:
        MissingInput: nothing was planned.
        RecordFault: dataset.json is damaged.
    """
    dataset = load(Dataset, workspace.dataset)
    around = workspace.root.resolve().parent
    root = Path(dataset.root)
    if workspace.dataset_folder is not None:
        root = workspace.dataset_folder.resolve()
    elif workspace.root.name == WORK_FOLDER_NAME and any(is_image(around / str(case.labels)) for case in dataset.cases):
        root = around
    return replace(dataset, root=str(root))


def find_changes(workspace: Workspace, dataset: Dataset, fingerprint: Fingerprint) -> Changes:
    """How a dataset differs now from what it was planned from; files are hashed where stamps do not settle it.

    Args:
        workspace: with the stamps of the survey; where they are missing or damaged, everything is hashed.
        dataset: as planned, with its root of now.
        fingerprint: knows the hash of the files of every case that is used.
    """
    try:
        found = LAYOUTS[dataset.layout].detect(Path(dataset.root) / dataset.source)
    except AutoSegError as error:
        return Changes({}, (error.what,))
    if found is None:
        return Changes({}, (f"there is no {dataset.layout} dataset any more",))
    surveyed = _Surveyed(dataset, {case.identifier: case for case in found.cases}, _summaries(workspace))
    used = {case.identifier: case.content for case in fingerprint.cases}
    changed = {name: what for name, content in used.items() if (what := surveyed.change(name, content))}
    return Changes(changed, tuple(_described(dataset, found)), tuple(surveyed.new(used)))


def changed_data(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """What changed about each case, by the hashes of their files; cases without one are passed over."""
    gone = {name: "it is not used any more" for name in before if name not in now}
    return gone | {name: what for name, own in before.items() if (what := describe_change(own, now.get(name, "")))}


def describe_change(before: str, now: str) -> str | None:
    """Whether the image or the labels of a case differ between two hashes of it; None if neither is known to."""
    if before == now or not before or not now:
        return None
    parts = {"image": slice(HASH_DIGITS), "labels": slice(HASH_DIGITS, None)}
    return f"its {' and '.join(name for name, part in parts.items() if before[part] != now[part])} changed"


@dataclass(frozen=True, slots=True)
class _Surveyed:
    """The dataset as planned, its cases as they are now, and what the survey found out about each."""

    planned: Dataset
    cases: Mapping[str, Case]
    summaries: Mapping[str, CaseSummary]

    def change(self, name: str, content: str) -> str | None:
        """What of a used case is different from what had this hash; None if nothing is."""
        now = self.cases.get(name)
        if now is None or now.labels is None:
            return "its image or its labels are not there any more"
        if now not in self.planned.cases:
            return "it consists of other files"
        summary = self.summaries.get(name)
        is_known = summary is not None and summary.content == content
        if summary is not None and is_known and are_unchanged(summary.files, stamps_of(self.planned, now)):
            return None
        return describe_change(content, content_of(self.planned, now))

    def new(self, used: Collection[str]) -> Iterator[str]:
        """Cases that are not used, and that were not there, or were refused with other files."""
        for name in sorted(set(self.cases) - set(used)):
            summary = self.summaries.get(name)
            if summary is None or summary.files != stamps_of(self.planned, self.cases[name]):
                yield name


def _summaries(workspace: Workspace) -> dict[str, CaseSummary]:
    try:
        return {summary.identifier: summary for summary in load(Survey, workspace.check).cases}
    except (MissingInput, RecordFault) as error:
        _log.warning("every file is hashed, because check.json does not say what they were: %s", error.what)
        return {}


def _described(dataset: Dataset, found: Found) -> Iterator[str]:
    """What of a dataset's description is different; what it does not declare was read off files, whose hashes count."""
    declared = found.declared
    if declared.classes and declared.labels != dataset.labels:
        yield "its classes changed"
    if declared.channels and tuple(declared.channels) != dataset.channels:
        yield "its channels changed"
    if (declared.file_ending and declared.file_ending != dataset.file_ending) or found.four_d != dataset.four_d:
        yield "the form of its files changed"
