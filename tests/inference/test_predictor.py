"""Logits of whole images: equal to nnU-Net's, whatever the batch, the rolling axis and the place of the slab."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import NonFiniteLogits, NotEnoughResources
from autoseg.inference.accumulate import allocate
from autoseg.inference.predictor import Predictor
from autoseg.inference.windows import Tiling
from autoseg.planning.lateral import LateralSwap
from tests.inference.examples import VoxelWise, configuration, gaussian_weights, random_unet, reference_network

HALF_PRECISION_LOSES_BELOW = 1e-5
"""Total weight of a voxel below which the reference's own half-precision weights lose their digits (corners)."""


def whole(predictor, image):
    tiling = predictor.tiling(image.shape[1:])
    logits = np.full((predictor.heads, *image.shape[1:]), np.nan, np.float32)
    rolled = np.moveaxis(logits, tiling.rolling_axis + 1, 0)
    for rows in predictor.rows(image):
        rolled[rows.start : rows.start + len(rows.values)] = rows.values.numpy()
    return logits


def naive(predictor, image, dtype=torch.float32):
    """Every tile on its own, added into a whole volume with the weights as they are, then divided."""
    weights = torch.from_numpy(gaussian_weights(predictor.patch_size)).to(dtype)
    weights[weights == 0] = weights[weights > 0].min()
    total = torch.zeros((predictor.heads, *image.shape[1:]), dtype=dtype)
    count = torch.zeros(image.shape[1:], dtype=dtype)
    tiles_of_one = Predictor(
        predictor.networks, predictor.configuration, predictor.heads, mirror_axes=predictor.mirror_axes
    )
    for window in predictor.tiling(image.shape[1:]).windows:
        cut = tuple(slice(o, o + p) for o, p in zip(window, predictor.patch_size, strict=True))
        tile = torch.from_numpy(whole(tiles_of_one, image[(slice(None), *cut)]))
        total[(slice(None), *cut)] += (tile * weights).to(dtype)
        count[cut] += weights
    return (total / count).float().numpy(), count.float().numpy()


@pytest.mark.parametrize("mirroring", [False, True])
def test_prediction_equals_the_reference(golden_vectors, mirroring):
    network, spec = reference_network(golden_vectors)
    axes = (0, 1, 2) if mirroring else ()
    predictor = Predictor((network,), configuration((8, 32, 24), spec), 3, mirror_axes=axes, tile_batch=3)
    with np.load(golden_vectors / "prediction.npz") as stored:
        image, expected = stored["input"], stored[f"logits_mirroring_{mirroring}"].astype(np.float32)
    in_half, _ = naive(predictor, image, torch.float16)
    assert np.abs(in_half - expected).max() < 5e-3  # the reference adds up in half precision: same arithmetic
    logits, weight = whole(predictor, image), naive(predictor, image)[1]
    assert np.abs(logits - naive(predictor, image)[0]).max() < 1e-5  # ours adds up in single precision
    trusted = weight > HALF_PRECISION_LOSES_BELOW
    assert trusted.mean() > 0.96
    assert np.abs(logits - expected)[:, trusted].max() < 1e-2


@given(
    st.tuples(*[st.integers(3, 20)] * 3),
    st.tuples(*[st.sampled_from([2, 4, 6, 8])] * 3),
    st.sampled_from([0.0, 0.5, 0.75]),
    st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_tiles_that_agree_give_back_what_they_agree_on(shape, patch_size, overlap, tile_batch):
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    predictor = Predictor(
        (VoxelWise(3),), configuration(patch_size), 3, mirror_axes=(0, 2), overlap=overlap, tile_batch=tile_batch
    )
    assert np.allclose(whole(predictor, image), np.concatenate([0 * image, image, 2 * image]), rtol=1e-5, atol=1e-5)


@given(st.tuples(*[st.integers(1, 11)] * 3), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_a_2d_network_sees_every_slice(shape, tile_batch):
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    predictor = Predictor((VoxelWise(2),), configuration((4, 6)), 2, mirror_axes=(0, 1), tile_batch=tile_batch)
    assert predictor.patch_size == (1, 4, 6)
    assert np.allclose(whole(predictor, image)[1:], image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(30, 9, 8), (9, 30, 8), (9, 8, 30), (5, 6, 7)])
@pytest.mark.parametrize("tile_batch", [1, 4])
def test_rolling_along_any_axis_equals_adding_up_whole_volumes(shape, tile_batch):
    network = random_unet(3)
    image = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    predictor = Predictor((network,), configuration((8, 8, 8)), 3, mirror_axes=(1,), tile_batch=tile_batch)
    if min(shape) < 8:
        image = np.pad(image, ((0, 0), (1, 2), (1, 1), (0, 1)))
    assert np.abs(whole(predictor, image) - naive(predictor, image)[0]).max() < 1e-5


def test_the_slab_covers_only_the_rows_in_work():
    tiling = Tiling((200, 40, 40), (16, 32, 32))
    assert tiling.rolling_axis == 0
    assert tiling.slab_shape(heads=3, batch_size=1) == (16, 3, 40, 40)
    assert tiling.slab_bytes(heads=3, batch_size=1) == 16 * 3 * 40 * 40 * 4
    assert Tiling((20, 64, 300), (20, 64, 48)).rolling_axis == 2


def test_rows_come_in_order_and_each_once():
    predictor = Predictor((VoxelWise(2),), configuration((4, 4, 4)), 2)
    image = np.zeros((1, 19, 5, 3), np.float32)
    seen = [row for rows in predictor.rows(image) for row in range(rows.start, rows.start + len(rows.values))]
    assert seen == list(range(19))


def test_folds_are_averaged_as_logits():
    networks = [random_unet(3, seed=seed) for seed in (1, 2)]
    image = np.random.default_rng(1).normal(size=(1, 8, 8, 8)).astype(np.float32)
    alone = [whole(Predictor((network,), configuration((8, 8, 8)), 3), image) for network in networks]
    together = whole(Predictor(tuple(networks), configuration((8, 8, 8)), 3), image)
    assert np.allclose(together, (alone[0] + alone[1]) / 2, atol=1e-6)


def test_mirroring_makes_the_prediction_of_a_mirrored_image_the_mirrored_prediction():
    predictor = Predictor((random_unet(3),), configuration((8, 8, 8)), 3, mirror_axes=(0, 1, 2))
    image = np.random.default_rng(2).normal(size=(1, 8, 8, 8)).astype(np.float32)
    for axis in (1, 2, 3):
        mirrored = whole(predictor, np.ascontiguousarray(np.flip(image, axis)))
        assert np.allclose(np.flip(mirrored, axis), whole(predictor, image), atol=1e-5)


def test_half_precision_logits_of_the_whole_image_are_the_rows_together():
    predictor = Predictor((random_unet(3),), configuration((8, 8, 8)), 3)
    image = np.random.default_rng(2).normal(size=(1, 9, 20, 10)).astype(np.float32)
    assert np.array_equal(predictor.logits(image), whole(predictor, image).astype(np.float16))


def test_a_slab_beyond_the_limit_goes_to_a_file_that_vanishes(tmp_path):
    image = np.random.default_rng(2).normal(size=(1, 20, 9, 10)).astype(np.float32)
    in_memory = Predictor((random_unet(3),), configuration((8, 8, 8)), 3)
    on_disk = Predictor((random_unet(3),), configuration((8, 8, 8)), 3, max_slab_bytes=100, scratch=tmp_path)
    assert np.array_equal(whole(in_memory, image), whole(on_disk, image))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(NotEnoughResources, match="GiB"):
        allocate((1 << 45,), torch.device("cpu"), 0, tmp_path)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_lower_precision_and_channels_last_change_little(dimensions):
    patch = (8,) * dimensions
    image = np.random.default_rng(2).normal(size=(1, 4, 12, 10)).astype(np.float32)
    exact = whole(Predictor((random_unet(dimensions),), configuration(patch), 3), image)
    settings_ = {"dtype": torch.bfloat16, "channels_last": True, "tile_batch": 2}
    fast = whole(Predictor((random_unet(dimensions),), configuration(patch), 3, **settings_), image)
    assert np.abs(fast - exact).max() < 0.1 * np.abs(exact).max()
    assert not np.array_equal(fast, exact)


def test_infinite_logits_are_refused():
    predictor = Predictor((VoxelWise(2),), configuration((4, 4, 4)), 2)
    image = np.zeros((1, 4, 4, 4), np.float32)
    image[0, 1, 1, 1] = np.inf
    with pytest.raises(NonFiniteLogits):
        whole(predictor, image)


def test_progress_counts_tiles():
    calls = []
    predictor = Predictor((VoxelWise(2),), configuration((4, 4, 4)), 2, tile_batch=2)
    for _ in predictor.rows(np.zeros((1, 10, 4, 4), np.float32), lambda done, total: calls.append((done, total))):
        pass
    assert calls == [(2, 4), (4, 4)]


@pytest.mark.usefixtures("two_threads")
def test_less_memory_means_fewer_tiles_then_main_memory_then_the_cpu_then_a_file():
    predictor = Predictor((), configuration((4, 4, 4)), 2, device="meta", tile_batch=4)
    steps = []
    while predictor is not None:
        place = str(predictor.device), predictor.slab_device, predictor.max_slab_bytes
        steps.append((predictor.tiles_at_once, predictor.passes_at_once, *place))
        predictor = predictor.with_less_memory()
    on_device = [(count, 1, "meta", None, None) for count in (4, 2, 1)]
    on_cpu = [(1, 2, "cpu", "cpu", None), (1, 1, "cpu", "cpu", None), (1, 1, "cpu", "cpu", 0)]
    assert steps == [*on_device, (1, 1, "meta", "cpu", None), *on_cpu]


@pytest.mark.usefixtures("two_threads")
def test_fewer_tiles_on_a_cpu_are_not_more_passes():
    predictor = Predictor((), configuration((4, 4, 4)), 2, tile_batch=4)
    smaller = predictor.with_less_memory()
    assert (predictor.passes_at_once, smaller.tiles_at_once, smaller.passes_at_once) == (2, 2, 2)


@pytest.mark.parametrize("mirror_axes", [(), (0, 1, 2)])
@pytest.mark.parametrize("tile_batch", [1, 3])
def test_passes_side_by_side_change_nothing_and_have_threads_of_their_own(mirror_axes, tile_batch):
    networks = tuple(random_unet(3, seed=seed) for seed in range(2))
    image = np.random.default_rng(2).normal(size=(1, 13, 12, 10)).astype(np.float32)
    plain = Predictor(
        networks, configuration((8, 8, 8)), 3, mirror_axes=mirror_axes, tile_batch=tile_batch, most_passes=1
    )
    parted, names = replace(plain, most_passes=3), set()
    networks[0].register_forward_pre_hook(lambda *_: names.add(threading.current_thread().name))
    wanted = whole(plain, image)
    assert names == {"MainThread"}
    names.clear()
    assert np.array_equal(whole(parted, image), wanted)
    assert names <= {"pass_0", "pass_1", "pass_2"}
    assert len(names) > 1


@pytest.mark.usefixtures("two_threads")
def test_large_patches_are_computed_one_after_another():
    passes = [Predictor((), configuration((edge,) * 3), 3).passes_at_once for edge in (32, 256)]
    assert passes == [2, 1]


def test_parked_networks_are_on_the_device_while_they_work_and_predict_the_same(monkeypatch):
    network, moves = random_unet(3), []
    image = np.random.default_rng(2).normal(size=(1, 9, 12, 10)).astype(np.float32)
    predictor = Predictor((network,), configuration((8, 8, 8)), 3, device="cpu:0")
    wanted = whole(predictor, image)
    network.register_forward_pre_hook(lambda *_: moves.append("forward"))
    move = network.to
    monkeypatch.setattr(network, "to", lambda place, **how: moves.append(str(place)) or move(place, **how))
    parked = replace(predictor, parks_networks=True)
    assert np.array_equal(whole(parked, image), wanted)
    assert list(dict.fromkeys(moves)) == ["cpu", "cpu:0", "forward"]
    assert moves[-1] == "cpu"
    rows = parked.rows(image)
    next(rows)
    rows.close()  # as where a later step fails
    assert moves[-1] == "cpu"


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("tile_batch", [1, 3, 8, 20])
def test_mirrored_copies_computed_together_change_nothing(dimensions, tile_batch):
    networks = (random_unet(dimensions, seed=1), random_unet(dimensions, seed=2))
    image = np.random.default_rng(2).normal(size=(1, 9, 12, 10)).astype(np.float32)
    axes = tuple(range(dimensions))
    predictor = Predictor(networks, configuration((8,) * dimensions), 3, mirror_axes=axes, tile_batch=tile_batch)
    assert np.allclose(whole(predictor, image), naive(predictor, image)[0], atol=1e-5)


def test_uniform_tiles_are_computed_once_and_change_nothing():
    network, tiles = random_unet(3, channels=2), []
    network.register_forward_pre_hook(lambda _module, inputs: tiles.append(len(inputs[0])))
    image = np.random.default_rng(2).normal(size=(2, 40, 8, 8)).astype(np.float32)
    image[:, 12:] = np.float32([-1.5, 0.25])[:, None, None, None]
    image[1, 30:] = 0.5  # of one channel
    predictor = Predictor((network,), configuration((8, 8, 8)), 3, tile_batch=1, most_passes=1)
    logits = whole(predictor, image)
    # tiles begin at 0, 4, ..., 32: at 12, 16 and 20 both channels have the values of the first of them, at 32 others
    assert sum(tiles) == 9 - 2
    assert np.allclose(logits, naive(predictor, image)[0], atol=1e-6)


def test_a_tile_is_uniform_if_its_values_are_one_in_the_precision_of_the_network():
    network, tiles = random_unet(3), []
    network.register_forward_pre_hook(lambda _module, inputs: tiles.append(len(inputs[0])))
    image = np.full((1, 16, 8, 8), 1 + 1e-6, np.float32)
    image[0, 4, 5, 6] = 1
    for dtype, expected in ((torch.float32, 3), (torch.bfloat16, 1)):
        tiles.clear()
        whole(Predictor((network,), configuration((8, 8, 8)), 3, dtype=dtype, tile_batch=1, most_passes=1), image)
        assert sum(tiles) == expected


def test_small_tiles_are_computed_together_and_large_ones_alone():
    patches, types = ((16, 16), (128, 128), (40, 56, 40), (96, 96, 96)), (torch.float32, torch.bfloat16)
    made = [[Predictor((), configuration(patch), 2, dtype=dtype) for patch in patches] for dtype in types]
    assert [[one.tiles_at_once for one in row] for row in made] == [[16, 4, 2, 1], [16, 4, 1, 1]]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_mirroring_from_left_to_right_exchanges_heads_and_channels_of_lateral_classes(dimensions):
    network = random_unet(dimensions, channels=3, heads=4)
    patch = (8,) * dimensions
    swap = LateralSwap(dimensions - 1, (0, 2, 1, 3), (0, 2, 1, 3), (0, 2, 1))
    plain = Predictor((network,), configuration(patch), 4, mirror_axes=tuple(range(dimensions)))
    predictor = replace(plain, swap=swap)
    image = np.random.default_rng(0).normal(size=(3, 8, 8, 8)).astype(np.float32)
    if dimensions == 2:
        image = image[:, :3]
    logits, mirrored = whole(predictor, image), whole(predictor, image[list(swap.channels)][..., ::-1].copy())
    assert np.abs(mirrored[list(swap.heads)][..., ::-1] - logits).max() < 1e-5
    assert np.abs(whole(plain, image) - logits).max() > 1e-2  # it does matter
    only_first = replace(predictor, mirror_axes=tuple(range(dimensions - 1)))
    assert (whole(only_first, image) == whole(replace(only_first, swap=None), image)).all()


def test_a_network_is_asked_for_its_memory_with_as_many_axes_as_it_has(monkeypatch):
    asked = []
    flat = configuration((16, 16))
    monkeypatch.setattr(type(flat.network), "prediction_elements", lambda _self, patch: asked.append(patch) or 1)
    assert Predictor((), flat, 2).network_bytes > 0
    assert set(asked) == {(16, 16)}
