from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import TrainingStopped
from autoseg.preprocessing.locations import ANNOTATED
from autoseg.training.sampling import Sampling, corner_range, cut, draw_center, draw_corner, first_forced
from tests.training.tiny_training import CASES, TinyCase, make_case, sampling


def draw_patch(case: TinyCase, drawn: Sampling, is_forced: bool, generator: np.random.Generator) -> Any:
    """Image and labels of one patch."""
    batch = drawn.empty_batch(("x",), case)
    batch.put(0, case, draw_corner(case, drawn, is_forced, generator))
    return batch.image[0], batch.labels[0]


SIZES = st.tuples(*[st.integers(1, 12)] * 3)


@pytest.mark.parametrize(("batch", "first"), [(2, 1), (3, 2), (9, 6), (12, 8)])
def test_the_last_third_of_a_batch_is_forced(batch: int, first: int) -> None:
    assert first_forced(batch, 0.33) == first


@given(shape=SIZES, final=SIZES, margin=SIZES)
def test_random_corners_reach_half_the_margin_beyond_the_case(
    shape: tuple[int, ...], final: tuple[int, ...], margin: tuple[int, ...]
) -> None:
    size = tuple(f + m - 1 for f, m in zip(final, margin, strict=True))
    low, high = corner_range(shape, size, final)
    for n, s, f, least, most in zip(shape, size, final, low, high, strict=True):
        pad = max(s - f, s - n)
        assert least == -((pad + 1) // 2)
        assert most == n + pad // 2 + pad % 2 - s
        assert most >= least


@given(shape=SIZES, size=SIZES, corner=st.tuples(*[st.integers(-15, 15)] * 3))
def test_a_cut_equals_a_window_of_the_padded_array(
    shape: tuple[int, ...], size: tuple[int, ...], corner: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(shape)).reshape(1, *shape)
    padded = np.pad(array, ((0, 0), *[(30, 30)] * 3), constant_values=-1)
    window = tuple(slice(c + 30, c + 30 + s) for c, s in zip(corner, size, strict=True))
    patch = np.empty((1, *size), np.int64)
    cut(array, corner, -1, patch)
    assert (patch == padded[(slice(None), *window)]).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), small=st.booleans())
def test_forced_patches_hold_their_foreground_in_the_middle(seed: int, small: bool) -> None:
    shape = (5, 6, 20) if small else (20, 21, 22)
    labels = np.zeros(shape, np.int8)
    labels[4, 3, 17] = 2
    case = TinyCase("x", labels[None].astype(np.float32), labels, {1: np.empty((0, 3), int), 2: np.argwhere(labels)})
    image, patch = draw_patch(
        case, sampling(initial_patch=(6, 7, 8), patch=(5, 6, 8)), True, np.random.default_rng(seed)
    )
    assert image.shape == (1, 6, 7, 8)
    assert (patch == 2).sum() == 1
    assert np.argwhere(patch == 2)[0][2] == 4  # centered, as the lower bound does not reach here


def test_beyond_the_case_the_image_is_zero_and_the_labels_are_outside() -> None:
    case = TinyCase("x", np.ones((1, 2, 2, 2), np.float32), np.ones((2, 2, 2), np.int8), {})
    image, labels = draw_patch(case, sampling(), True, np.random.default_rng(0))  # no foreground: a random patch
    assert image.sum() == 8
    assert (labels == -1).sum() == 8**3 - 8


def test_a_2d_patch_is_a_slice_of_the_case() -> None:
    flat = sampling(initial_patch=(6, 7), patch=(5, 5), batch_size=4)
    batch = flat(3)
    assert batch.image.shape == (4, 1, 6, 7)
    assert batch.labels.shape == (4, 6, 7)
    one = make_case(9)
    one.locations = {1: np.array([[7, 5, 5]])}
    _, labels = draw_patch(one, flat, True, np.random.default_rng(0))
    assert (labels == one.labels[7, 2:8, 2:9]).all()


def test_classes_are_drawn_evenly_however_many_voxels_they_have() -> None:
    locations = {1: np.zeros((1000, 3), int), 2: np.ones((1, 3), int), 3: np.empty((0, 3), int)}
    generator = np.random.default_rng(0)
    drawn = [draw_center(locations, True, generator) for _ in range(400)]
    assert 150 < sum(voxel == (1, 1, 1) for voxel in drawn) < 250
    assert draw_center({}, True, generator) is None


def test_with_an_ignore_label_patches_that_are_not_forced_are_centered_on_annotated_voxels() -> None:
    locations = {ANNOTATED: np.zeros((9, 3), int), 2: np.ones((1, 3), int)}
    generator = np.random.default_rng(0)
    assert {draw_center(locations, False, generator) for _ in range(20)} == {(0, 0, 0)}
    assert {draw_center(locations, True, generator) for _ in range(20)} == {(1, 1, 1)}
    del locations[2]
    assert draw_center(locations, True, generator) == (0, 0, 0)
    assert draw_center({ANNOTATED: np.empty((0, 3), int)}, False, generator) is None
    assert draw_center({1: np.ones((1, 3), int)}, False, generator) is None


def test_a_batch_depends_on_its_number_and_seed_alone() -> None:
    one = sampling()
    assert (one(5).image == one(5).image).all()
    assert one(5).cases == one(5).cases
    assert not (one(5).image == one(6).image).all()
    assert not (one(5).image == sampling(stream=1)(5).image).all()


def test_an_unreadable_case_is_named() -> None:
    def broken(name: str) -> TinyCase:
        if name == "case_2":
            raise OSError("disk gone")
        return CASES[name]

    with pytest.raises(TrainingStopped, match=r"case case_2 .*disk gone"):
        replace(sampling(batch_size=50), open_case=broken)(0)


def test_the_first_stage_is_cut_where_its_case_is() -> None:
    case = make_case(0)
    both = {"a": replace(case, first_stage=case.labels)}
    for patch in ((8, 8, 8), (6, 6)):
        batch = sampling(cases=both, patch=patch, initial_patch=patch)(3)
        assert batch.first_stage is not None
        np.testing.assert_array_equal(batch.first_stage, batch.labels)
        plain = sampling(cases={"a": case}, patch=patch, initial_patch=patch)(3)
        assert plain.first_stage is None
        np.testing.assert_array_equal(plain.image, batch.image)


def corner_of(patch: np.ndarray) -> tuple[int, ...]:
    """Where a patch (3, *size) of coordinates, counted from 1 and 0 beyond the case, was cut."""
    inside = np.argwhere(patch[0] > 0)[0]
    return tuple((patch[(slice(None), *inside)].astype(int) - 1 - inside).tolist())


@pytest.mark.oracle
@pytest.mark.parametrize("is_forced", [False, True])
@pytest.mark.parametrize("has_foreground", [False, True])
@pytest.mark.parametrize("has_ignore", [False, True])
def test_patches_lie_where_nnunet_draws_them(is_forced: bool, has_foreground: bool, has_ignore: bool) -> None:
    loader = pytest.importorskip("nnunetv2.training.dataloading.data_loader").nnUNetDataLoader
    shape, size = (4, 5, 6), (3, 4, 3)
    groups = {1: [[1, 1, 1], [3, 4, 5]] if has_foreground else [], 2: [[0, 0, 0]] if has_foreground else []}
    locations = {key: np.array(found).reshape(-1, 3) for key, found in groups.items()}
    if has_ignore:
        locations[ANNOTATED] = np.array([[2, 2, 2], [2, 3, 4]])
    theirs = SimpleNamespace(
        patch_size=size, need_to_pad=np.zeros(3, int), has_ignore=has_ignore, annotated_classes_key=(-1, 0, 1, 2)
    )
    voxels = {key if key > 0 else (-1, 0, 1, 2): np.insert(found, 0, 0, axis=1) for key, found in locations.items()}
    # coordinates as intensities show where a patch was cut; beyond the case they are 0
    image = np.stack(np.meshgrid(*[np.arange(1, n + 1) for n in shape], indexing="ij")).astype(np.float32)
    case = TinyCase("x", image, np.zeros(shape, np.int8), locations)
    ours = sampling(initial_patch=size, patch=size)
    generator = np.random.default_rng(0)
    drawn = [draw_patch(case, ours, is_forced, generator)[0] for _ in range(400)]
    corners = {corner_of(patch) for patch in drawn}
    expected = {tuple(map(int, loader.get_bbox(theirs, np.array(shape), is_forced, voxels)[0])) for _ in range(400)}
    assert corners == expected
