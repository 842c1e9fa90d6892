"""Images of cases, read and prepared in a process of its own: what a file does to its reader costs that case alone.

Decoders of damaged files crash, hang, or take all memory. The process that computes never decodes a file itself: a
helper reads, prepares, and hands the arrays over in files, which vanish once they are mapped into memory.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from autoseg.core.errors import AutoSegError, NotEnoughResources, ProgramFault, UnreadableFile, error_for
from autoseg.core.files import temporary_beside
from autoseg.core.geometry import Geometry, Shape, Spacing, is_picture
from autoseg.core.machine import BYTES_PER_GIB
from autoseg.core.workers import Failure, Helper
from autoseg.data.check import REFUSED_NON_FINITE_SHARE
from autoseg.data.model import Case
from autoseg.images.crop import nonzero_box
from autoseg.images.formats.files import find_format
from autoseg.images.readers import read_image
from autoseg.images.resample import resampled_shape
from autoseg.images.volume import Volume
from autoseg.inference.manifest import hash_of_images
from autoseg.planning.plan import Plan
from autoseg.preprocessing.prepare import Placement, Preparation, Prepared, PreparedCase, prepare

_BYTES_PER_FLOAT = 4

_COPIES = 2
"""Of a prepared image at the same time: normalized, and resampled."""

_PROGRAM_BYTES = 1 << 29
"""Room of the reading process for its libraries; measured 0.2 GiB with scipy."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaseSize:
    """What decides how much memory a case takes.

    Attributes:
        shape: voxels of the file (z, y, x).
        channels: of the image.
        cropped_shape: voxels after the crop to nonzero, in the plan's order.
        spacing_mm: of the file, in the plan's order.
    """

    shape: Shape
    channels: int
    cropped_shape: Shape
    spacing_mm: Spacing

    def prepared_shape(self, preparation: Preparation) -> Shape:
        """Voxels after resampling, in the plan's order."""
        return tuple(resampled_shape(self.cropped_shape, self.spacing_mm, preparation.target_mm(self.spacing_mm)))


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Memory that a case may take, and what predicting it takes beside its images whatever is kept in files.

    Attributes:
        most_bytes: that it may take in all.
        network_bytes: of the feature maps of a tile.
        voxel_bytes: of the label map, for each voxel of the file.
    """

    most_bytes: int
    network_bytes: int = 0
    voxel_bytes: int = 1

    def check(self, size: CaseSize, preparations: Sequence[Preparation]) -> None:
        """Refuses a case that does not fit even where everything that can be is kept in files.

        Raises:
            NotEnoughResources: with what it needs and what there is.
        """
        shapes = [size.prepared_shape(preparation) for preparation in preparations]
        needed = image_bytes(size, shapes) + self.network_bytes + self.voxel_bytes * math.prod(size.shape)
        if needed <= self.most_bytes:
            return
        largest = max(shapes, key=math.prod)
        raise NotEnoughResources(
            f"predicting it takes at least {needed / BYTES_PER_GIB:.2f} GiB of memory, "
            f"and {self.most_bytes / BYTES_PER_GIB:.2f} GiB may be used",
            why=f"its {_edges(size.shape)} voxels (z, y, x) become {_edges(largest)} at the spacing of the model",
            do="correct the spacing in its header if it is wrong; otherwise raise --max-ram, use a machine with more "
            "memory, or cut the image into parts",
        )


@dataclass(frozen=True, slots=True)
class ReadingTask:
    """A case to read, and what it is read for.

    Attributes:
        case: with image files.
        plan: of the model.
        preparations: of its configurations.
        limit: of the memory.
        scratch: folder of the files that arrays are handed over in.
    """

    case: Case
    plan: Plan
    preparations: tuple[Preparation, ...]
    limit: MemoryLimit
    scratch: Path


@dataclass(frozen=True, slots=True)
class ReadCase:
    """What became of a case that was to be read.

    Attributes:
        content: hash of the bytes of its image files; None if they could not be read.
        prepared: the image as each preparation gives it, or why there is none.
        notes: what the readers settled, one sentence each.
    """

    content: str | None
    prepared: PreparedCase | AutoSegError
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _HandedOver:
    """Prepared arrays in files, and their placements, on the way between two processes."""

    files: dict[Preparation, tuple[Path, Placement]]
    notes: tuple[str, ...]


def image_bytes(size: CaseSize, shapes: list[Shape]) -> int:
    """Memory of an image as read and as prepared in so many shapes."""
    voxels = math.prod(size.shape) + _COPIES * sum(map(math.prod, shapes))
    return _BYTES_PER_FLOAT * size.channels * voxels


def read_in(helper: Helper, task: ReadingTask) -> ReadCase:
    """The case, read and prepared by a helper."""
    answer = helper.call(_prepare, task)
    if isinstance(answer, Failure):
        return ReadCase(None, _lost(task.case, answer))
    content, handed = answer
    if isinstance(handed, AutoSegError):
        return ReadCase(content, handed)
    prepared = {key: Prepared(_taken(file), None, placement) for key, (file, placement) in handed.files.items()}
    return ReadCase(content, prepared, handed.notes)


def size_in(helper: Helper, task: ReadingTask) -> CaseSize:
    """The size of a case, for a forecast.

    Raises:
        AutoSegError: it cannot be read.
    """
    answer = helper.call(_measure, task)
    if isinstance(answer, Failure):
        raise _lost(task.case, answer)
    if isinstance(answer, AutoSegError):
        raise answer
    return answer


def read_case(case: Case, four_d: bool) -> Volume:
    """The image of a case with finite voxels only.

    Raises:
        UnreadableFile: a file is damaged, or too many voxels are NaN or infinite.
        GeometryMismatch: its channels are not on the same grid.
    """
    return _finite(read_image([Path(image) for image in case.images], four_d), case.identifier)


def check_dimensions(geometry: Geometry, plan: Plan, preparations: Sequence[Preparation]) -> None:
    """Refuses a picture where volumes are segmented, and a volume where pictures are.

    A picture is a slice without thickness: its slice spacing is a placeholder, which must not be resampled. Networks of
    2D look at the slices of volumes, and so at pictures, if they are cut across the slices of a file.

    Raises:
        UnreadableFile: the image is of the other kind.
    """
    if is_picture(geometry.shape, geometry.spacing_mm):
        if not all(one.spacing_mm[0] is None and one.turn(geometry).order[0] == 0 for one in preparations):
            raise UnreadableFile(
                "it is a picture, a single slice without thickness, and the model segments volumes",
                do="store it as a volume of one slice with its true spacing (NIfTI, NRRD), or predict with a 2D "
                "configuration (--configuration 2d)",
            )
    elif geometry.shape[0] > 1 and _is_of_pictures(plan):
        raise UnreadableFile(
            f"it is a volume of {geometry.shape[0]} slices, and the model was trained on pictures",
            do="store each slice as a picture of its own, as the training images are",
        )


def _is_of_pictures(plan: Plan) -> bool:
    """Whether a model was trained on single slices of a format without geometry."""
    training = find_format(Path(f"x{plan.file_ending}"))
    is_flat = any(decision.name == "needs_3d" and decision.value is False for decision in plan.decisions)
    return is_flat and training is not None and not training.has_grid


def _prepare(task: ReadingTask) -> tuple[str | None, _HandedOver | AutoSegError]:
    """Reads and prepares a case in the helper's process; the arrays are handed over as files."""
    _limit_memory(task.limit.most_bytes)
    content = _result(lambda: hash_of_images(task.case))
    handed = _result(lambda: _handed_over(task))
    return content if isinstance(content, str) else None, handed


def _measure(task: ReadingTask) -> CaseSize | AutoSegError:
    _limit_memory(task.limit.most_bytes)
    return _result(lambda: _measured(task))


def _measured(task: ReadingTask) -> CaseSize:
    volume = read_case(task.case, task.plan.four_d)
    check_dimensions(volume.geometry, task.plan, task.preparations)
    return _size_of(volume, task.preparations[0])


def _handed_over(task: ReadingTask) -> _HandedOver:
    volume = read_case(task.case, task.plan.four_d)
    check_dimensions(volume.geometry, task.plan, task.preparations)
    task.limit.check(_size_of(volume, task.preparations[0]), task.preparations)
    files = {}
    for preparation in task.preparations:
        prepared = prepare(volume, None, preparation)
        file = temporary_beside(task.scratch / "image.npy")
        files[preparation] = file, prepared.placement
        try:
            np.save(file, prepared.image)
        except OSError:  # the disk is full, also for the cases to come
            for own, _ in files.values():
                own.unlink(missing_ok=True)
            raise
    return _HandedOver(files, volume.notes)


def _result(work: Callable[[], T]) -> T | AutoSegError:
    """What some work returns, or what went wrong, as an error for users; faults of the program are raised."""
    try:
        return work()
    except Exception as error:
        meant = error_for(error)
        if isinstance(meant, ProgramFault):
            raise
        meant.__cause__ = None  # of any class, which may not survive the way between processes
        return meant


def _taken(file: Path) -> np.memmap[tuple[int, ...], np.dtype[np.float32]]:
    """The array in a file, mapped into memory and changed there alone; the file vanishes with it."""
    array: np.memmap[tuple[int, ...], np.dtype[np.float32]] = np.load(file, mmap_mode="c")
    with contextlib.suppress(PermissionError):  # Windows keeps what is mapped; the next command removes it
        file.unlink()
    return array


def _size_of(volume: Volume, preparation: Preparation) -> CaseSize:
    order = preparation.turn(volume.geometry).order  # of all preparations of a model alike
    box = nonzero_box(volume.array)
    return CaseSize(
        shape=volume.geometry.shape,
        channels=len(volume.array),
        cropped_shape=tuple(box[axis][1] - box[axis][0] for axis in order),
        spacing_mm=tuple(volume.geometry.spacing_mm[axis] for axis in order),
    )


def _lost(case: Case, failure: Failure) -> AutoSegError:
    """The error of a case whose reading ended the process, or hit a fault of the program."""
    _log.debug("%s", failure.trace)
    return UnreadableFile(
        f"reading it failed: {failure.sentence}",
        where=", ".join(Path(image).name for image in case.images),
        do="look at the file with another program, and export it again; the other cases are not affected",
    )


def _limit_memory(most_bytes: int) -> None:
    """Lets this process have no more memory than a case may take, so that the system need not end it, or others."""
    if sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = most_bytes + _PROGRAM_BYTES
    allowed = allowed if hard == resource.RLIM_INFINITY else min(allowed, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))


def _edges(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _finite(volume: Volume, name: str) -> Volume:
    """The volume with its few NaN and infinite voxels replaced by the smallest finite value of their channel."""
    array, notes = volume.array, volume.notes
    for index, channel in enumerate(array):
        wrong = ~np.isfinite(channel)
        count = int(np.count_nonzero(wrong))
        if not count:
            continue
        if count >= REFUSED_NON_FINITE_SHARE * channel.size:
            raise UnreadableFile(
                f"{count} voxels of channel {index} ({count / channel.size:.2%}) are NaN or infinite",
                where=name,
                do="repair the image: these voxels have no intensity",
            )
        notes = (*notes, f"{count} NaN or infinite voxels of channel {index} are replaced by its smallest value")
        array = array.copy() if array is volume.array else array
        array[index][wrong] = channel[~wrong].min()
    return replace(volume, array=array, notes=notes)
