"""Rotation range, dummy 2D and initial patch size, against reference values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.augmentation.spec import DUMMY_2D_RATIO, augmentation_spec, initial_patch_size
from autoseg.networks.kinds.unet import PlainUNet
from autoseg.planning.plan import Configuration


def configuration(patch_size: tuple[int, ...], use_nonzero_mask: tuple[bool, ...] = (False,)) -> Configuration:
    n = len(patch_size)
    return Configuration(
        name="any",
        dimensions=n,
        spacing_mm=(1.0,) * n,
        patch_size=patch_size,
        batch_size=2,
        median_shape=tuple(map(float, patch_size)),
        normalization=("zscore",) * len(use_nonzero_mask),
        use_nonzero_mask=use_nonzero_mask,
        network=PlainUNet(n, (4,), ((3,) * n,), ((1,) * n,), (2,), ()),
        batch_dice=False,
        cascade_from=None,
        estimated_feature_map_elements=1,
        mirror_axes=tuple(range(n)),
    )


def test_specs_equal_the_reference(golden_vectors: Path) -> None:
    entries = json.loads((golden_vectors / "initial_patch_sizes.json").read_text())
    assert len(entries) > 5
    for entry in entries:
        spec = augmentation_spec(configuration(tuple(entry["patch_size"])))
        assert spec.initial_patch_size == tuple(entry["initial_patch_size"]), entry
        assert spec.is_dummy_2d == entry["dummy_2d"], entry
        assert math.degrees(spec.largest_turn) == pytest.approx(entry["rotation_degrees"]), entry


def test_masked_and_mirrored_axes_are_the_configuration_s() -> None:
    spec = augmentation_spec(configuration((8, 8, 8), (True, False, True)))
    assert spec.masked_channels == (0, 2)
    assert spec.mirror_axes == (0, 1, 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=3).map(tuple))
def test_the_initial_patch_holds_the_patch(patch_size: tuple[int, ...]) -> None:
    spec = augmentation_spec(configuration(patch_size))
    assert all(initial >= size for initial, size in zip(spec.initial_patch_size, patch_size, strict=True))
    if spec.is_dummy_2d:
        assert max(patch_size) > DUMMY_2D_RATIO * patch_size[0]
        assert spec.initial_patch_size[0] == patch_size[0]


def test_a_larger_turn_needs_no_smaller_patch() -> None:
    sizes = [initial_patch_size((40, 40), math.radians(angle)) for angle in range(0, 45, 5)]
    assert sizes == sorted(sizes)
