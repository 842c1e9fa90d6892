"""Every ensemble computed where label maps differ equals the one computed from all probabilities of all voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import GeometryMismatch, MissingInput
from autoseg.evaluation.confusion import overlaps
from autoseg.images.orientation import turn_to
from autoseg.images.readers import read_labels
from autoseg.images.writers import write_labels
from autoseg.inference.out_of_fold import CERTAIN, kept_heads, probabilities_at
from autoseg.selection.candidates import all_ensembles
from autoseg.selection.ensemble_dice import ensemble_dice, ensemble_labels, read_maps
from tests.selection.examples import IGNORE, REGIONS, SHAPE, THREE, decided, write_case

EVERYWHERE = np.arange(np.prod(SHAPE))


def by_the_book(files, labels, weights):
    """The label map of an ensemble from all its probabilities."""
    total = np.zeros((kept_heads(labels), *SHAPE), np.int64)
    for prediction, kept, weight in zip(files.predictions, files.probabilities, weights, strict=True):
        if kept is not None:
            own = probabilities_at(kept, labels, EVERYWHERE).reshape(-1, *SHAPE).astype(np.int64)
        else:
            values = read_labels(prediction).array
            named = [labels.classes[name] for name in labels.foreground]
            own = np.stack([np.isin(values, classes) for classes in named]) * CERTAIN
        total += weight * own
    return decided(total, labels, CERTAIN * sum(weights))


@given(
    st.sampled_from([THREE, REGIONS, IGNORE]), st.integers(0, 999), st.sampled_from([(1, 1, 1), (1, 0, 1), (0, 0, 0)])
)
@settings(max_examples=25, deadline=None)
def test_ensembles_equal_those_of_whole_probabilities(tmp_path_factory, labels, seed, kept) -> None:
    rng = np.random.default_rng(seed)
    files = write_case(tmp_path_factory.mktemp("case"), "a", rng, labels, 3, kept)
    maps = read_maps(files, labels)
    ensembles = all_ensembles(3)
    dice = ensemble_dice(maps, labels, ensembles)
    for weights, found in zip(ensembles, dice, strict=True):
        own = ensemble_labels(maps, labels, weights)
        expected = own if sum(weights) == 1 else by_the_book(files, labels, weights)
        assert (own == expected).all()
        scores = overlaps(own, maps.reference, labels)
        assert np.allclose(found, [scores[name].dice for name in labels.foreground], equal_nan=True)


def test_singles_are_their_own_label_maps(tmp_path) -> None:
    files = write_case(tmp_path, "a", np.random.default_rng(0), THREE, 2)
    maps = read_maps(files, THREE)
    for index, weights in enumerate([(1, 0), (0, 1)]):
        assert (ensemble_labels(maps, THREE, weights) == read_labels(files.predictions[index]).array).all()


def test_a_reference_stored_along_other_axes_is_compared_where_it_lies(tmp_path) -> None:
    files = write_case(tmp_path, "a", np.random.default_rng(0), THREE, 2)
    before = read_maps(files, THREE)
    stored = turn_to(before.geometry, "SRA").apply(read_labels(files.reference))
    write_labels(files.reference, stored.array, stored.geometry)
    after = read_maps(files, THREE)
    assert np.array_equal(after.reference, before.reference)
    assert after.geometry == before.geometry


def test_a_class_that_is_nowhere_has_no_score(tmp_path) -> None:
    files = write_case(tmp_path, "a", np.random.default_rng(0), THREE, 2)
    maps = read_maps(files, THREE)
    for array in (maps.reference, *maps.predictions):
        array[array == 2] = 0
    dice = ensemble_dice(maps, THREE, [(1, 0), (0, 1)])
    assert np.isnan(dice[:, 1]).all()
    assert np.isfinite(dice[:, 0]).all()


def test_a_label_map_that_is_gone_or_on_another_grid_is_named(tmp_path) -> None:
    files = write_case(tmp_path, "a", np.random.default_rng(0), THREE, 2)
    other = write_case(tmp_path / "other", "a", np.random.default_rng(0), THREE, 1)
    from autoseg.core.geometry import Geometry
    from autoseg.images.writers import write_labels

    write_labels(files.predictions[1], np.zeros((2, 2, 2), np.uint8), Geometry((2, 2, 2)))
    with pytest.raises(GeometryMismatch, match="a: the prediction is"):
        read_maps(files, THREE)
    other.predictions[0].unlink()
    with pytest.raises(MissingInput, match="label map of a is gone"):
        read_maps(other, THREE)
