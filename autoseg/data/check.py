"""The integrity check: every file of a case is verified, hashed and decoded once, and every fault is named.

Nothing is repaired silently; what is refused is refused with file, values and remedy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, GeometryMismatch, LabelFault, UnreadableFile, error_for
from autoseg.core.files import sha256_of_file
from autoseg.core.geometry import Geometry
from autoseg.data.labels import misnamed_values, to_training_values
from autoseg.data.layouts.detect import LAYOUTS
from autoseg.data.model import Case, Dataset, Problem
from autoseg.data.problems import PROBLEM_CODES, problem
from autoseg.images.compare import SAME_FORM_VOXELS, compare_geometry, displacement, share_a_form
from autoseg.images.formats.files import files_of, find_format, is_image
from autoseg.images.image_errors import FOUR_D_REMEDY
from autoseg.images.normalize import overflow_of
from autoseg.images.orientation import AS_STORED, stored_and_turned, turn_onto
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume, plane_geometry

REFUSED_NON_FINITE_SHARE = 1e-3
"""From this share of a channel's voxels on, NaN and infinite ones make the case unusable."""

HASH_DIGITS = 32
"""Hexadecimal digits of `CheckedCase.content` that stand for the images; as many stand for the labels."""


@dataclass(frozen=True, slots=True, eq=False)
class CheckedCase:
    """A case after its check, with its voxels for what is done with it next.

    Attributes:
        problems: everything found, in the order of the files.
        content: 64 hexadecimal digits that change with any byte of its files; the first half stands for the images.
        volume: image, or None if the case is refused.
        labels: training values (z, y, x), or None if the case is refused.
        value_names: what its label file says of the values that occur in it.
    """

    problems: tuple[Problem, ...]
    content: str
    volume: Volume | None
    labels: NDArray[np.signedinteger] | None
    value_names: Mapping[int, str] = field(default_factory=dict)

    @property
    def is_refused(self) -> bool:
        """Whether the case cannot be used."""
        return any(problem.severity == "refused" for problem in self.problems)


def check_case(dataset: Dataset, case: Case) -> CheckedCase:
    """Examines all files of a case; the report is complete even where the first file is already bad.

    Each file is verified byte by byte (checksums, lengths, header), decoded once, and hashed. A few NaN or infinite
    voxels are replaced by the channel's smallest finite value, with a warning; this is the only change made to voxels.

    Args:
        dataset: where the case belongs; says channels and label values.
        case: one of its cases.
    """
    check = _Check(dataset, case)
    volume, labels = check.image(), check.labels()
    if volume is not None and labels is not None and case.labels is not None:
        labels, difference = match_labels(volume.geometry, labels, case.labels)
        if difference is not None:
            code, what = difference
            check.note(code, case.labels, what)
    training = None if labels is None else check.training_values(labels)
    content = check.content()
    checked = CheckedCase(tuple(check.problems), content, volume, training, check.value_names)
    if any(problem.code == UnreadableFile.code for problem in checked.problems):
        checked = replace(checked, content="")  # the disk may have failed and not the file: it is looked at again
    return replace(checked, volume=None, labels=None) if checked.is_refused else checked


def content_of(dataset: Dataset, case: Case) -> str:
    """The hash that ties everything derived from a case to the bytes of its files, as in `CheckedCase.content`."""
    return _hash_of(Path(dataset.root), case.images) + labels_hash(dataset, case)


def labels_hash(dataset: Dataset, case: Case) -> str:
    """The half of `content_of` that stands for the labels."""
    return _hash_of(Path(dataset.root), [] if case.labels is None else [case.labels])


class _Check:
    """The check of one case: its files as they are read, and its problems as they are found."""

    def __init__(self, dataset: Dataset, case: Case) -> None:
        self.dataset, self.case, self.root = dataset, case, Path(dataset.root)
        self.problems: list[Problem] = []
        self.value_names: dict[int, str] = {}

    def note(self, code: str, file: str | None, what: str) -> None:
        """Notes a problem."""
        self.problems.append(problem(code, self.case.identifier, file, what))

    def refuse(self, file: str, error: AutoSegError, code: str | None = None) -> None:
        """Notes what a reader refused; its code says the kind, except that a fourth axis has a code of its own."""
        is_four_d = error.do == FOUR_D_REMEDY
        found = "E0215" if is_four_d else code or error.code
        what = " - ".join(part for part in (error.what, error.why) if part)
        do = PROBLEM_CODES[found].remedy if is_four_d or not error.do else error.do
        self.problems.append(Problem(found, "refused", self.case.identifier, file, what, do))

    def content(self) -> str:
        """The hash of the files; a problem where they can be decoded and not read once more, or are one file."""
        try:
            content = content_of(self.dataset, self.case)
            is_sound = all(found.severity != "refused" for found in self.problems)
            if is_sound and content[:HASH_DIGITS] == content[HASH_DIGITS:]:
                self.note("E0225", self.case.labels, "the label file is the image, byte for byte")
            return content
        except OSError as error:
            self.refuse(self.case.images[0], UnreadableFile(error_for(error).what, do=error_for(error).do))
            return ""

    def image(self) -> Volume | None:
        """The image with finite voxels; None where it cannot be read or has the wrong channels."""
        there = [image for image in self.case.images if self._is_there(image, "E0203")]
        try:
            volume = read_image([self.root / image for image in there], self.dataset.four_d) if there else None
        except AutoSegError as error:
            self._refuse_channels(there, error)
            return None
        if volume is None or len(there) < len(self.case.images):
            return None
        file, declared = self.case.images[0], self.dataset.channels
        for oddity in volume.notes:
            self.note("E0217", file, oddity)
        if len(volume.array) != len(declared):
            found = count_noun(len(volume.array), "channel")
            self.note("E0216", file, f"the image has {found}, the dataset {len(declared)} ({', '.join(declared)})")
            return None
        return self._computable(volume)

    def labels(self) -> Volume | None:
        """The label map as its file has it; None where it is missing or cannot be read."""
        file = self.case.labels
        if file is None:
            # Named only where the layout fixes the folder: elsewhere the same name might be that of the image.
            folder = LAYOUTS[self.dataset.layout].label_folder
            expected = folder / f"{self.case.identifier}{self.dataset.file_ending}"
            self.note("E0204", None, "there is no label file" + (f" ({expected.as_posix()})" if folder.parts else ""))
            return None
        if not self._is_there(file, "E0204"):
            return None
        try:
            labels = read_labels(self.root / file)
        except AutoSegError as error:
            self.refuse(file, error, "E0302" if isinstance(error, LabelFault) else None)
            return None
        for oddity in labels.notes:
            self.note("E0217", file, oddity)
        return None if self._contradicts_the_classes(file, labels) else labels

    def _contradicts_the_classes(self, file: str, labels: Volume) -> bool:
        """Whether the file says of its values what the dataset says of others, which is noted."""
        self.value_names = dict(labels.value_names)
        wrong = misnamed_values(labels.value_names, self.dataset.labels)
        if wrong:
            self.note("E0315", file, f"{'; '.join(wrong)} in the dataset")
        return bool(wrong)

    def training_values(self, labels: Volume) -> NDArray[np.signedinteger] | None:
        """The label map in training values (z, y, x); None where it holds values that are not declared."""
        ignore, file = self.dataset.labels.ignore, str(self.case.labels)
        try:
            training = to_training_values(labels.array, self.dataset.labels)
        except LabelFault as error:
            self.refuse(file, error)
            return None
        annotated = training if ignore is None else training[training != ignore]
        if not annotated.size:
            self.note("E0307", file, "no voxel of the label map is annotated")
        elif not annotated.any():
            self.note("E0303", file, "the label map is background everywhere")
        return training

    def _is_there(self, file: str, code: str) -> bool:
        if is_image(self.root / file) or (self.root / file).is_file():
            return True
        hint = " (variables such as $HOME are not replaced in paths)" if "$" in file else ""
        self.note(code, file, f"{Path(file).name} is missing{hint}")
        return False

    def _refuse_channels(self, images: list[str], error: AutoSegError) -> None:
        """Notes every file that cannot be read by itself; where each can, the error is about all of them together."""
        before = len(self.problems)
        for image in images if len(images) > 1 else ():
            try:
                read_image([self.root / image], self.dataset.four_d)
            except AutoSegError as fault:
                self.refuse(image, fault)
        if len(self.problems) == before:
            self.refuse(images[0], error, "E0211" if isinstance(error, GeometryMismatch) else None)

    def _with_finite_voxels(self, volume: Volume) -> Volume | None:
        """The volume, its few NaN and infinite voxels replaced; None if they are many."""
        array = volume.array
        for index in range(len(array)):
            file = self.case.images[min(index, len(self.case.images) - 1)]
            channel = f"channel {index} of {file}" if len(array) > 1 else "the image"
            # minimum and maximum carry every NaN and infinity, and need no second array of the image's size
            lowest, highest = float(array[index].min()), float(array[index].max())
            if np.isfinite(lowest) and np.isfinite(highest):
                if lowest == highest:
                    self.note("E0313", file, f"{channel} has the value {lowest:g} everywhere")
                continue
            is_finite = np.isfinite(array[index])
            wrong = is_finite.size - int(np.count_nonzero(is_finite))
            share = wrong / is_finite.size
            is_refused = wrong >= REFUSED_NON_FINITE_SHARE * is_finite.size
            what = f"{count_noun(wrong, 'voxel')} of {channel} ({share:.2%}) are NaN or infinite"
            self.note("E0312" if is_refused else "E0311", file, what)
            if is_refused:
                return None
            array = array.copy() if array is volume.array else array
            array[index][~is_finite] = array[index][is_finite].min()
        return volume if array is volume.array else replace(volume, array=array)

    def _computable(self, volume: Volume) -> Volume | None:
        """The volume with voxels that can be computed with; None if they cannot."""
        finite = self._with_finite_voxels(volume)
        return None if finite is None or self._overflows(finite) else finite

    def _overflows(self, volume: Volume) -> bool:
        """Whether voxels are too large to compute with, which is noted."""
        faults = [(index, fault) for index, channel in enumerate(volume.array) if (fault := overflow_of(channel))]
        for index, fault in faults:
            file = self.case.images[min(index, len(self.case.images) - 1)]
            self.note("E0314", file, f"channel {index} of {file}: {fault}" if len(volume.array) > 1 else fault)
        return bool(faults)


def _hash_of(root: Path, files: Iterable[str]) -> str:
    """Hash of the bytes of all files that are read for these images, in order."""
    digest = hashlib.sha256()
    for file in files:
        for path in files_of(root / file):
            # What is missing, or is a folder, pipe or device without end, is already among the problems.
            digest.update(sha256_of_file(path).encode() if path.is_file() else f"missing: {file}".encode())
    return digest.hexdigest()[:HASH_DIGITS]


def count_noun(number: int, noun: str) -> str:
    """The number with the noun in singular or plural."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def match_labels(image: Geometry, labels: Volume, label_file: str) -> tuple[Volume, tuple[str, str] | None]:
    """The labels voxel by voxel as their image is stored, and code and sentence of what differed; None if nothing did.

    Labels stored along other axes are turned; those that lie elsewhere come back as they are, with a code that refuses
    them. Labels that state no place (PNG, plain TIFF, NIfTI without qform and sform) need the image's shape only, as do
    those that lie on the image's other form of NIfTI.

    Args:
        image: grid of the image.
        labels: as read.
        label_file: their name.
    """
    turn = turn_onto(image, labels.geometry)
    if turn in (None, AS_STORED) or _matched(image, labels.geometry, label_file) is not None:
        return labels, _difference_of(image, labels.geometry, label_file)
    what = f"the labels are {stored_and_turned(labels.geometry, image)}, as their image"
    return replace(turn.apply(labels), geometry=image), ("E0214", what)


def _difference_of(image: Geometry, labels: Geometry, label_file: str) -> tuple[str, str] | None:
    if (matched := _matched(image, labels, label_file)) is not None:
        return "E0218", matched
    relation = compare_geometry(image, labels)
    if relation == "identical":
        return None
    if relation == "rounding":
        return "E0213", "image and labels differ by less than a thousandth of a voxel; the image's geometry is used"
    return "E0212", f"the labels lie on another grid than the image: {_differences(image, labels)}"


def _matched(image: Geometry, labels: Geometry, label_file: str) -> str | None:
    """Why labels belong to the image voxel by voxel although their grid is another one; None if there is no reason."""
    if image.shape != labels.shape:
        return None
    has_place = labels.has_orientation and _has_grid(label_file)
    is_same = compare_geometry(image, labels) in ("identical", "rounding")
    if has_place == image.has_orientation and is_same:
        return None
    if not has_place or not image.has_orientation:
        return _matched_without_place(image, labels, has_place)
    if not share_a_form(image, labels):
        return None
    if (apart := displacement(image, labels)) < SAME_FORM_VOXELS:
        return f"image and labels lie {apart:.2g} voxels apart; matched voxel by voxel"
    return "image and labels share a grid by another form (qform, sform) than the one in use; matched voxel by voxel"


def _matched_without_place(image: Geometry, labels: Geometry, labels_have_place: bool) -> str | None:
    is_placeholder = labels.spacing_mm in ((1.0, 1.0, 1.0), plane_geometry(labels.shape[1:]).spacing_mm)
    if is_placeholder and not labels_have_place:
        return f"the label file carries no geometry; the image's spacing {_shown(image.spacing_mm)} is used"
    if not np.allclose(image.spacing_mm, labels.spacing_mm, rtol=1e-3):
        return None
    without = "the image" if labels_have_place else "the label file"
    return f"{without} does not state where its voxels lie; image and labels were matched voxel by voxel"


def _has_grid(file: str) -> bool:
    found = find_format(Path(file))
    return found is None or found.has_grid


def _differences(image: Geometry, labels: Geometry) -> str:
    parts = []
    if image.shape != labels.shape:
        parts.append(f"image {_shown(image.shape)} voxels (z, y, x), labels {_shown(labels.shape)}")
    if not np.allclose(image.spacing_mm, labels.spacing_mm, rtol=1e-3):
        parts.append(f"spacing {_shown(image.spacing_mm)} and {_shown(labels.spacing_mm)}")
    if not np.allclose(image.direction, labels.direction, atol=1e-3):
        parts.append("directions differ")
    shift = np.subtract(labels.origin_mm, image.origin_mm)
    if np.abs(shift).max() > 1e-3 * min(image.spacing_mm):
        parts.append(f"first voxel shifted by {_shown(tuple(shift.tolist()))} mm (x, y, z)")
    return "; ".join(parts) or "the corners lie apart"


def _shown(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)
