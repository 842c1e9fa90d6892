"""The integrity check: every file of a case is verified, hashed and decoded once, and every fault is named.

Nothing is repaired without being told; what is refused is refused with file, values and remedy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, GeometryMismatch, LabelFault
from autoseg.core.files import sha256_of_file
from autoseg.data.grids import compare_grids
from autoseg.data.labels import to_training_values
from autoseg.data.layouts.nnunet import LABELS
from autoseg.data.layouts.unused import unused_files
from autoseg.data.model import Case, Dataset, Problem
from autoseg.data.problems import PROBLEM_CODES
from autoseg.images.formats.files import files_of, is_image
from autoseg.images.image_errors import FOUR_D_REMEDY
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume

REFUSED_NON_FINITE_SHARE = 1e-3
"""From this share of a channel's voxels on, NaN and infinite ones make the case unusable."""

_HASH_DIGITS = 32


@dataclass(frozen=True, slots=True, eq=False)
class CheckedCase:
    """A case after its check, with its voxels for whoever goes on with it.

    Attributes:
        case: the case.
        problems: everything found, in the order of the files.
        content: 64 hexadecimal digits that change with any byte of its files; the first half stands for the images.
        volume: image, or None if the case is refused.
        labels: training values (z, y, x), or None if the case is refused.
    """

    case: Case
    problems: tuple[Problem, ...]
    content: str
    volume: Volume | None
    labels: NDArray[np.signedinteger] | None

    @property
    def is_refused(self) -> bool:
        """Whether the case cannot be used."""
        return any(problem.severity == "refused" for problem in self.problems)


class _Findings:
    """Problems of one case as they are found."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.problems: list[Problem] = []

    def add(self, code: str, severity: str, file: str | None, what: str, do: str | None = None) -> None:
        """Notes a problem; the remedy is the code's own where there is no better one."""
        remedy = do or PROBLEM_CODES[code].remedy
        self.problems.append(Problem(code, severity, self.case.identifier, file, what, remedy))


def check_case(dataset: Dataset, case: Case) -> CheckedCase:
    """Examines all files of a case; the report is complete even where the first file is already bad.

    Each file is verified byte by byte (checksums, lengths, header), decoded once, and hashed. A few NaN or infinite
    voxels are replaced by the channel's smallest finite value, with a warning; this is the only change made to voxels.

    Args:
        dataset: where the case belongs; says channels and label values.
        case: one of its cases.
    """
    root, findings = Path(dataset.root), _Findings(case)
    volume = _read_volume(dataset, case, findings)
    labels = _read_labels(dataset, case, findings)
    if volume is not None and labels is not None and case.labels is not None:
        difference = compare_grids(volume.geometry, labels.geometry, case.labels)
        if difference is not None:
            code, severity, what = difference
            findings.add(code, severity, case.labels, what)
    training = None if labels is None else _training_values(dataset, case, labels, findings)
    checked = CheckedCase(case, tuple(findings.problems), _content(root, case), volume, training)
    return replace(checked, volume=None, labels=None) if checked.is_refused else checked


def check_across(dataset: Dataset, contents: Mapping[str, str]) -> tuple[Problem, ...]:
    """Problems that no single case shows: equal images, a wrong number of cases, files that belong to no case.

    Args:
        dataset: the dataset.
        contents: `CheckedCase.content` of each case, by identifier; empty for those that could not be examined.
    """
    return (*_duplicates(contents), *_announced(dataset), *unused_files(dataset), *_mapped_values(dataset))


def _is_there(root: Path, file: str, code: str, findings: _Findings) -> bool:
    if is_image(root / file) or (root / file).is_file():
        return True
    hint = " (variables such as $HOME are not replaced in paths)" if "$" in file else ""
    findings.add(code, "refused", file, f"{Path(file).name} is missing{hint}")
    return False


def _note_error(file: str | None, error: AutoSegError, findings: _Findings, code: str | None = None) -> None:
    """Notes what a reader refused; its code says the kind, apart from a fourth axis, which has a code of its own."""
    found = "E0215" if error.do == FOUR_D_REMEDY else code or error.code
    do = None if error.do == FOUR_D_REMEDY else error.do
    findings.add(found, "refused", file, " - ".join(part for part in (error.what, error.why) if part), do)


def _read_volume(dataset: Dataset, case: Case, findings: _Findings) -> Volume | None:
    """The image with finite voxels; None where it cannot be read or has the wrong channels."""
    root = Path(dataset.root)
    there = [image for image in case.images if _is_there(root, image, "E0203", findings)]
    file = case.images[0]
    try:
        volume = read_image([root / image for image in there], dataset.four_d) if there else None
    except AutoSegError as error:
        _note_unreadable(dataset, there, error, findings)
        return None
    if volume is None or len(there) < len(case.images):
        return None
    for note in volume.notes:
        findings.add("E0217", "note", file, note)
    if len(volume.array) != len(dataset.channels):
        declared = ", ".join(dataset.channels)
        findings.add(
            "E0216",
            "refused",
            file,
            f"the image has {_count(len(volume.array), 'channel')}, the dataset {len(dataset.channels)} ({declared})",
        )
        return None
    return _with_finite_voxels(volume, case, findings)


def _note_unreadable(dataset: Dataset, images: list[str], error: AutoSegError, findings: _Findings) -> None:
    """Notes every file that cannot be read by itself; where each can, the error is about all of them together."""
    before = len(findings.problems)
    for image in images if len(images) > 1 else ():
        try:
            read_image([Path(dataset.root) / image], dataset.four_d)
        except AutoSegError as fault:
            _note_error(image, fault, findings)
    if len(findings.problems) == before:
        _note_error(images[0], error, findings, "E0211" if isinstance(error, GeometryMismatch) else None)


def _with_finite_voxels(volume: Volume, case: Case, findings: _Findings) -> Volume | None:
    """The volume, its few NaN and infinite voxels replaced; None if they are many."""
    array = volume.array
    for index in range(len(array)):
        file = case.images[min(index, len(case.images) - 1)]
        channel = f"channel {index} of {file}" if len(array) > 1 else "the image"
        lowest, highest = float(array[index].min()), float(array[index].max())
        if np.isfinite(lowest) and np.isfinite(highest):
            if lowest == highest:
                findings.add("E0313", "warning", file, f"{channel} has the value {lowest:g} everywhere")
            continue
        is_finite = np.isfinite(array[index])
        wrong = is_finite.size - int(np.count_nonzero(is_finite))
        what = f"{_count(wrong, 'voxel')} of {channel} ({wrong / is_finite.size:.2%}) are NaN or infinite"
        if wrong >= REFUSED_NON_FINITE_SHARE * is_finite.size:
            findings.add("E0312", "refused", file, what)
            return None
        findings.add("E0311", "warning", file, what)
        array = array.copy() if array is volume.array else array
        array[index][~is_finite] = array[index][is_finite].min()
    return volume if array is volume.array else replace(volume, array=array)


def _read_labels(dataset: Dataset, case: Case, findings: _Findings) -> Volume | None:
    if case.labels is None:
        findings.add("E0204", "refused", None, f"there is no label file ({_expected_labels(dataset, case)})")
        return None
    if not _is_there(Path(dataset.root), case.labels, "E0204", findings):
        return None
    try:
        labels = read_labels(Path(dataset.root) / case.labels)
    except AutoSegError as error:
        _note_error(case.labels, error, findings, "E0302" if isinstance(error, LabelFault) else None)
        return None
    for note in labels.notes:
        findings.add("E0217", "note", case.labels, note)
    return labels


def _expected_labels(dataset: Dataset, case: Case) -> str:
    """Where the label file of a case would lie, by the example of the others."""
    usual = Path(LABELS) if dataset.layout == "nnunet" else Path()
    example = next((Path(other.labels).parent for other in dataset.cases if other.labels is not None), usual)
    return f"{(example / case.identifier).as_posix()}{dataset.file_ending}"


def _training_values(
    dataset: Dataset, case: Case, labels: Volume, findings: _Findings
) -> NDArray[np.signedinteger] | None:
    try:
        training = to_training_values(labels.array, dataset.labels)
    except LabelFault as error:
        _note_error(case.labels, error, findings)
        return None
    annotated = training if dataset.labels.ignore is None else training[training != dataset.labels.ignore]
    if not annotated.size:
        findings.add("E0307", "warning", case.labels, "no voxel of the label map is annotated")
    elif not annotated.any():
        findings.add("E0303", "warning", case.labels, "the label map is background everywhere")
    return training


def _content(root: Path, case: Case) -> str:
    """Hash of the images followed by the hash of the labels."""
    labels = [] if case.labels is None else [case.labels]
    return _hash_of(root, case.images) + _hash_of(root, labels)


def _hash_of(root: Path, files: Iterable[str]) -> str:
    """Hash of the bytes of all files that are read for these images, in order."""
    digest = hashlib.sha256()
    for file in files:
        for path in files_of(root / file):
            try:
                digest.update(sha256_of_file(path).encode())
            except OSError:  # missing or unreadable, which is already among the problems; no duplicate of another
                digest.update(f"missing: {file}".encode())
    return digest.hexdigest()[:_HASH_DIGITS]


def _duplicates(contents: Mapping[str, str]) -> Iterable[Problem]:
    owners: dict[str, list[str]] = {}
    for identifier, content in sorted(contents.items()):
        if not content:  # it could not be examined at all
            continue
        owners.setdefault(content[:_HASH_DIGITS], []).append(identifier)
    for same in (names for names in owners.values() if len(names) > 1):
        kinds = len({contents[identifier] for identifier in same})
        labels = "the same labels" if kinds == 1 else "different labels"
        what = f"{', '.join(same)} have the same image, byte for byte, with {labels}"
        yield Problem("E0208", "warning", same[0], None, what, PROBLEM_CODES["E0208"].remedy)


def _announced(dataset: Dataset) -> Iterable[Problem]:
    found, announced = len(dataset.cases), dataset.announced_cases
    if announced is not None and announced != found:
        what = f"the dataset announces {_count(announced, 'training case')}, {found} are there"
        yield Problem("E0205", "warning", None, "dataset.json", what, PROBLEM_CODES["E0205"].remedy)


def _mapped_values(dataset: Dataset) -> Iterable[Problem]:
    values = dataset.labels.file_values
    if dataset.labels.has_instances:
        what = "label files number objects; every value above 0 is read as the class `object`"
        yield Problem("E0306", "note", None, None, what, PROBLEM_CODES["E0306"].remedy)
    elif values != tuple(range(len(values))):
        training = ", ".join(map(str, range(len(values))))
        what = f"label values {', '.join(map(str, values))} are read as {training}, and restored on output"
        yield Problem("E0305", "note", None, None, what, PROBLEM_CODES["E0305"].remedy)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
