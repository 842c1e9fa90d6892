"""What a file does to its reader, its header or its size, costs that case alone."""

from __future__ import annotations

import resource
import signal
from dataclasses import replace

import numpy as np
import pytest

from autoseg.core.errors import AutoSegError, NotEnoughResources, UnreadableFile
from autoseg.core.geometry import Geometry
from autoseg.core.workers import Helper
from autoseg.data.model import Case
from autoseg.images import readers
from autoseg.images.volume import Volume, plane_geometry
from autoseg.images.writers import write_image
from autoseg.inference.reading import MemoryLimit, ReadingTask, read_in, size_in
from autoseg.planning.plan import Decision
from autoseg.preprocessing.prepare import preparation_of, prepare
from tests.runs.trained import tiny_plan

PLAN = tiny_plan()
PREPARATIONS = tuple(preparation_of(PLAN, own) for own in PLAN.configurations.values())
GEOMETRY = Geometry((7, 12, 15), (2.5, 0.8, 1.1))


@pytest.fixture(scope="module")
def helper():
    with Helper() as made:
        yield made


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "case.nii.gz"
    array = np.random.default_rng(0).normal(5, 1, (1, *GEOMETRY.shape)).astype(np.float32)
    write_image(path, Volume(array, GEOMETRY))
    return path


def task_of(path, most_bytes=1 << 33, **limits):
    return ReadingTask(Case("case", (str(path),)), PLAN, PREPARATIONS, MemoryLimit(most_bytes, **limits), path.parent)


def test_a_helper_prepares_what_this_process_would_and_leaves_no_file(helper, image):
    found = read_in(helper, task_of(image))
    volume = readers.read_image([image])
    for preparation in PREPARATIONS:
        own = prepare(volume, None, preparation)
        assert np.array_equal(found.prepared[preparation].image, own.image)
        assert found.prepared[preparation].placement == own.placement
    assert [path.name for path in image.parent.iterdir()] == ["case.nii.gz"]


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_disk_that_becomes_full_holds_no_half_of_a_prepared_image(image):
    with Helper() as own:
        assert own.call(limit_files, 4096) is None
        found = read_in(own, task_of(image))
    assert isinstance(found.prepared, NotEnoughResources)
    assert [path.name for path in image.parent.iterdir()] == ["case.nii.gz"]


def test_what_was_handed_over_can_be_written_to(helper, image):
    prepared = read_in(helper, task_of(image)).prepared[PREPARATIONS[0]].image
    prepared += 1
    assert np.isfinite(prepared).all()


def test_a_damaged_file_is_an_error_with_its_content(helper, image):
    image.write_bytes(image.read_bytes()[:-40])
    found = read_in(helper, task_of(image))
    assert isinstance(found.prepared, UnreadableFile)
    assert found.content


class CrashesItsReader:
    """Something that ends the process which receives it, as a decoder does that writes beyond its memory."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGSEGV,)


def test_a_crash_costs_one_case_and_the_next_is_read(helper, image):
    lost = read_in(helper, replace(task_of(image), scratch=CrashesItsReader()))
    assert isinstance(lost.prepared, UnreadableFile)
    assert "SIGSEGV" in str(lost.prepared)
    assert "case.nii.gz" in str(lost.prepared)
    assert not isinstance(read_in(helper, task_of(image)).prepared, AutoSegError)


def test_a_case_that_is_larger_than_memory_is_refused_with_the_numbers(helper, image):
    size = size_in(helper, task_of(image))
    assert size.shape == GEOMETRY.shape
    needed = 4 * (7 * 12 * 15 + 2 * sum(int(np.prod(size.prepared_shape(own))) for own in PREPARATIONS))
    fits = read_in(helper, task_of(image, needed + 7 * 12 * 15))
    assert not isinstance(fits.prepared, AutoSegError)
    refused = read_in(helper, task_of(image, needed))
    assert isinstance(refused.prepared, NotEnoughResources)
    assert "7 x 12 x 15" in str(refused.prepared)


def test_a_tiny_file_of_a_large_volume_costs_neither_the_process_nor_its_memory(helper, tmp_path):
    path = tmp_path / "case.nii.gz"
    write_image(path, Volume(np.zeros((1, 300, 700, 700), np.uint8), Geometry((300, 700, 700))))
    refused = read_in(helper, task_of(path, 1 << 20)).prepared
    assert isinstance(refused, NotEnoughResources)
    assert "memory" in str(refused)


def test_a_prepared_image_beyond_memory_is_refused_before_it_is_made(helper, tmp_path):
    path = tmp_path / "case.nii.gz"
    geometry = Geometry((4, 10, 10), (1000.0, 1000.0, 1000.0))
    write_image(path, Volume(np.ones((1, *geometry.shape), np.float32), geometry))
    refused = read_in(helper, task_of(path)).prepared
    assert isinstance(refused, NotEnoughResources)
    assert "correct the spacing" in str(refused)


def test_a_picture_is_no_volume_of_999_slices(helper, tmp_path):
    path = tmp_path / "case.png"
    write_image(path, Volume(np.ones((1, 1, 20, 30), np.float32), plane_geometry((20, 30))))
    refused = read_in(helper, task_of(path)).prepared
    assert isinstance(refused, UnreadableFile)
    assert "without thickness" in str(refused)
    assert "999" not in str(refused)
    flat = preparation_of(PLAN, PLAN.configurations["2d"])
    done = read_in(helper, replace(task_of(path), preparations=(flat,))).prepared
    assert done[flat].image.shape[1] == 1


def test_a_volume_is_refused_by_a_model_of_pictures(helper, image):
    of_pictures = replace(PLAN, file_ending=".png", decisions=(Decision("needs_3d", None, False, "single slices"),))
    refused = read_in(helper, replace(task_of(image), plan=of_pictures)).prepared
    assert isinstance(refused, UnreadableFile)
    assert "7 slices" in str(refused)
