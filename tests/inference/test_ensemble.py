"""Configurations that predict together."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from autoseg.core.errors import NotEnoughResources
from autoseg.core.geometry import Geometry
from autoseg.data.model import LabelSet
from autoseg.images.orientation import turn_to
from autoseg.images.volume import Volume
from autoseg.inference.ensemble import Ensemble, EnsembleMember
from autoseg.inference.postprocessing import PostprocessingStep, postprocess
from autoseg.inference.predictor import Predictor
from autoseg.inference.restore import predict_case, predict_case_probabilities
from autoseg.preprocessing.first_stage import one_hot, prepare_first_stage
from autoseg.preprocessing.prepare import Preparation
from tests.images.examples import CODES, OBLIQUE
from tests.inference.examples import configuration, random_unet

LABELS = LabelSet({"background": (0,), "liver": (1,), "tumor": (2,)})
REGIONS = LabelSet({"background": (0,), "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2))
GEOMETRY = Geometry((9, 14, 17), (2.0, 1.0, 1.2))


def volume(seed=0) -> Volume:
    """Air around a noisy body, so that the crop is smaller than the image."""
    array = np.zeros((1, *GEOMETRY.shape), np.float32)
    body = array[:, 1:8, 2:13, 3:16]
    body[...] = np.random.default_rng(seed).normal(size=body.shape) + 3
    return Volume(array, GEOMETRY)


def member(name="3d_fullres", seed=0, share=1.0, labels=LABELS, spacing=(2.0, 1.0, 1.0), previous=None):
    dimensions = len(spacing)
    own = replace(configuration((8,) * dimensions, spacing_mm=spacing), name=name, cascade_from=previous)
    channels = 1 + (len(labels.foreground_values) if previous else 0)
    network = random_unet(dimensions, channels, labels.head_count, seed)
    predictor = Predictor((network,), own, labels.head_count, mirror_axes=(0,))
    target = spacing if dimensions == 3 else (None, *spacing)
    return EnsembleMember(predictor, Preparation((1, 0, 2), target, ("zscore",), (False,), (None,)), share)


def alone(one, case, labels=LABELS):
    prepared = case[one.preparation]
    return predict_case_probabilities(one.predictor, prepared.image, prepared.placement, labels)


def test_one_member_predicts_as_its_predictor_does():
    one = member()
    ensemble = Ensemble((one,), LABELS)
    case = ensemble.prepare(volume())
    prepared = case[one.preparation]
    expected = predict_case(one.predictor, prepared.image, prepared.placement, LABELS)
    assert np.array_equal(ensemble.predict(case).labels, expected)
    kept = ensemble.predict(case, keep_probabilities=True)
    assert np.array_equal(kept.labels, expected)
    assert np.array_equal(kept.probabilities, alone(one, case)[1])


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_probabilities_are_averaged_by_their_shares(labels):
    members = (
        member(seed=0, share=0.5, labels=labels),
        member("3d_lowres", 1, 0.25, labels, (3.0, 2.0, 2.0)),
        member("2d", 2, 0.25, labels, (1.0, 1.0)),
    )
    ensemble = Ensemble(members, labels)
    case = ensemble.prepare(volume())
    together = ensemble.predict(case, keep_probabilities=True)
    apart = [alone(one, case, labels)[1].astype(np.float64) for one in members]
    mean = sum(one.share * own for one, own in zip(members, apart, strict=True))
    assert np.abs(together.probabilities - mean).max() < 2e-3
    if labels.has_regions:
        expected = np.where(mean[1] > 0.5, 2, np.where(mean[0] > 0.5, 1, 0))
        sure = (np.abs(mean - 0.5) > 2e-3).all(0)
    else:
        expected, ranked = mean.argmax(0), np.sort(mean, 0)
        sure = ranked[-1] - ranked[-2] > 4e-3
    assert sure.mean() > 0.9
    assert np.array_equal(together.labels[sure], expected[sure])
    assert len(np.unique(together.labels)) > 1
    assert np.array_equal(ensemble.predict(case).labels, together.labels)


def test_members_that_prepare_alike_share_the_arrays():
    members = (
        member(seed=0, share=0.5),
        member("again", 1, 0.25),
        member("3d_lowres", 2, 0.25, spacing=(3.0, 2.0, 2.0)),
    )
    assert len(Ensemble(members, LABELS).prepare(volume())) == 2


def test_a_cascade_gets_what_its_first_stage_predicts():
    first, second = member("3d_lowres", 1, spacing=(3.0, 2.0, 2.0)), member("cascade", 2, previous="3d_lowres")
    ensemble = Ensemble((second,), LABELS, {"3d_lowres": first})
    case = ensemble.prepare(volume())
    low, high = case[first.preparation], case[second.preparation]
    previous = predict_case(first.predictor, low.image, low.placement, LABELS)
    image = np.concatenate([high.image, one_hot(prepare_first_stage(previous, high.placement), LABELS)])
    expected = predict_case(second.predictor, image, high.placement, LABELS)
    assert np.array_equal(ensemble.predict(case).labels, expected)
    empty = np.concatenate([high.image, np.zeros_like(image[1:])])
    assert not np.array_equal(predict_case(second.predictor, empty, high.placement, LABELS), expected)


def test_an_image_stored_in_any_orientation_is_predicted_alike_on_its_own_grid():
    def oriented(one: EnsembleMember) -> EnsembleMember:
        return replace(one, preparation=replace(one.preparation, orientation="RAS"))

    first = oriented(member("3d_lowres", 1, 0.25, spacing=(3.0, 2.0, 2.0)))
    second = oriented(member("cascade", 2, 0.5, previous="3d_lowres"))
    slices = oriented(member("2d", 3, 0.25, spacing=(1.0, 1.0)))
    image = Volume(volume().array, replace(GEOMETRY, direction=OBLIQUE))
    for ensemble in (Ensemble((second, first, slices), LABELS, {"3d_lowres": first}), Ensemble((slices,), LABELS)):
        expected = ensemble.predict(ensemble.prepare(image), keep_probabilities=True)
        assert len(np.unique(expected.labels)) > 1
        for codes in CODES if len(ensemble.members) == 1 else CODES[::7]:
            turn = turn_to(image.geometry, codes)
            stored = turn.apply(image)
            found = ensemble.predict(ensemble.prepare(stored), keep_probabilities=True)
            assert found.geometry is stored.geometry
            assert np.array_equal(found.labels, turn.view(expected.labels))
            assert np.array_equal(found.probabilities, turn.view(expected.probabilities))


def test_a_first_stage_that_is_a_member_too_predicts_once(monkeypatch):
    first = member("3d_lowres", 1, 0.5, spacing=(3.0, 2.0, 2.0))
    second = member("cascade", 2, 0.5, previous="3d_lowres")
    shared = Ensemble((second, first), LABELS, {"3d_lowres": first})
    apart = Ensemble((second, first), LABELS, {"3d_lowres": replace(first)})
    assert (len(shared.every), len(apart.every)) == (2, 3)
    case = shared.prepare(volume())
    computed, compute = [], Predictor.rows

    def counted(self, image, progress):
        computed.append(self.configuration.name)
        return compute(self, image, progress)

    monkeypatch.setattr(Predictor, "rows", counted)
    together = shared.predict(case, keep_probabilities=True)
    assert sorted(computed) == ["3d_lowres", "cascade"]
    twice = apart.predict(case, keep_probabilities=True)
    assert len(computed) == 5
    assert np.array_equal(together.probabilities, twice.probabilities)
    assert np.array_equal(together.labels, twice.labels)


def test_pieces_are_removed_at_the_end():
    members = (member(seed=0, share=0.5), member("other", 1, 0.5))
    steps = (PostprocessingStep("minimum_volume", ("liver", "tumor"), 1e6),)
    plain, cleaned = Ensemble(members, LABELS), Ensemble(members, LABELS, {}, steps)
    case = plain.prepare(volume())
    before, after = plain.predict(case).labels, cleaned.predict(case).labels
    assert np.array_equal(after, postprocess(before, steps, LABELS, GEOMETRY.spacing_mm))
    assert before.any()
    assert not after.any()


@pytest.mark.parametrize("count", [1, 2])
def test_what_does_not_fit_is_kept_in_a_file(tmp_path, monkeypatch, count):
    in_files = []
    map_file = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *args, **how: in_files.append(how["dtype"]) or map_file(*args, **how))
    members = (member(seed=0, share=1 / count), member("other", 1, 0.5))[:count]
    ensemble = Ensemble(members, LABELS, scratch=tmp_path)
    case = ensemble.prepare(volume())
    wanted = ensemble.predict(case, keep_probabilities=True)
    for most in (0, 5000, 1 << 20):
        in_files.clear()
        limited = ensemble.predict(case, keep_probabilities=True, max_bytes=most)
        assert np.array_equal(limited.probabilities, wanted.probabilities)
        assert np.array_equal(limited.labels, wanted.labels)
        assert in_files.count(np.float16) == (most < wanted.probabilities.nbytes)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_an_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    members = (member(seed=0, share=0.5), member("other", 1, 0.5))
    ensemble = Ensemble(members, LABELS, scratch=tmp_path)
    with pytest.raises(NotEnoughResources, match="disk"):
        ensemble.predict(ensemble.prepare(volume()), max_bytes=0)


@pytest.mark.usefixtures("one_thread")
def test_less_memory_is_asked_of_every_predictor_until_there_is_no_way():
    first, second = member("3d_lowres", 1), member("cascade", 2, previous="3d_lowres")
    stages = {"3d_lowres": replace(first, predictor=replace(first.predictor, tile_batch=4))}
    ensemble = Ensemble((replace(second, predictor=replace(second.predictor, tile_batch=2)),), LABELS, stages)
    smaller = ensemble.with_less_memory()
    assert [one.predictor.tiles_at_once for one in smaller.every] == [1, 2]
    smallest = smaller.with_less_memory()
    assert [one.predictor.tiles_at_once for one in smallest.every] == [1, 1]
    on_disk = smallest.with_less_memory()
    assert [one.predictor.max_slab_bytes for one in on_disk.every] == [0, 0]
    assert on_disk.with_less_memory() is None


def test_networks_that_are_not_at_work_leave_a_device_first():
    def on_device(one):
        return replace(one, predictor=replace(one.predictor, networks=(), device="meta", tile_batch=2))

    alone = Ensemble((on_device(member()),), LABELS)
    assert [one.predictor.tiles_at_once for one in alone.with_less_memory().every] == [1]
    both = Ensemble((on_device(member(share=0.5)), on_device(member("other", share=0.5))), LABELS)
    parked = both.with_less_memory()
    assert [(one.predictor.parks_networks, one.predictor.tiles_at_once) for one in parked.every] == [(True, 2)] * 2
    assert both.with_less_memory(of_device=False).every[0].predictor.parks_networks is False
    smaller = parked.with_less_memory()
    assert [(one.predictor.parks_networks, one.predictor.tiles_at_once) for one in smaller.every] == [(True, 1)] * 2


def test_progress_counts_the_tiles_of_everything():
    first, second = member("3d_lowres", 1), member("cascade", 2, 1.0, previous="3d_lowres")
    ensemble = Ensemble((second,), LABELS, {"3d_lowres": first})
    case, told = ensemble.prepare(volume()), []
    ensemble.predict(case, progress=lambda done, total: told.append((done, total)))
    assert len({total for _, total in told}) == 1
    assert told[-1][0] == told[-1][1]
    assert all(earlier[0] < later[0] for earlier, later in pairwise(told))
