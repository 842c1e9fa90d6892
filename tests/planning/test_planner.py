"""Laws of the planner: properties that hold whatever the data."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autoseg.core.errors import PlanFault
from autoseg.core.records import from_json, to_json
from autoseg.data.model import Case
from autoseg.networks.kinds.unet import PlainUNet
from autoseg.planning import rules
from autoseg.planning.plan import Plan
from autoseg.planning.planner import PlanOptions, make_plan
from autoseg.planning.presets import load_preset
from tests.planning.builders import dataset_of, fingerprint_of, plan_of

spacings = st.lists(st.tuples(*[st.floats(0.05, 10)] * 3), min_size=1, max_size=5)
shapes = st.tuples(*[st.integers(1, 300)] * 3)
some_plans = settings(max_examples=60, deadline=None)


@st.composite
def fingerprints(draw):
    chosen = draw(spacings)
    return fingerprint_of(chosen, [draw(shapes) for _ in chosen])


@given(fingerprints(), st.sampled_from(["reference", "cpu", "resenc-m"]))
@some_plans
def test_every_dataset_gets_networks_that_fit_their_patches(fingerprint, preset):
    plan = plan_of(fingerprint, preset)
    assert "2d" in plan.configurations
    for own in plan.configurations.values():
        stride = np.prod(own.network.strides, axis=0)
        assert own.network.n_stages >= 2
        assert len(own.network.kernel_sizes) == len(own.network.features_per_stage) == own.network.n_stages
        assert len(own.network.decoder_convs_per_stage) == own.network.n_stages - 1
        assert all(edge % step == 0 and edge > 0 for edge, step in zip(own.patch_size, stride, strict=True))
        assert own.batch_size >= 2
        is_mirrored = preset != "cpu" or own.dimensions == 2
        assert own.mirror_axes == (tuple(range(own.dimensions)) if is_mirrored else ())


@given(fingerprints())
@some_plans
def test_a_plan_survives_the_file(fingerprint):
    plan = plan_of(fingerprint, "cpu")
    assert from_json(Plan, to_json(plan), "plan") == plan


@given(fingerprints())
@some_plans
def test_the_target_spacing_lies_within_the_data(fingerprint):
    own = np.array([case.spacing_mm for case in fingerprint.cases])
    voxels = np.array([case.shape_after_crop for case in fingerprint.cases])
    chosen = np.array(rules.target_spacing(own, voxels).value)
    assert (own.min() - 1e-9 <= chosen).all()
    assert (chosen <= own.max(axis=0) + 1.1e-5).all()


@given(fingerprints(), st.floats(1, 4), st.floats(1, 16))
@some_plans
def test_more_memory_never_gives_a_smaller_patch(fingerprint, factor, memory_gib):
    small, large = plan_of(fingerprint, memory_gib=memory_gib), plan_of(fingerprint, memory_gib=memory_gib * factor)
    assert math.prod(small.configurations["2d"].patch_size) <= math.prod(large.configurations["2d"].patch_size)


@given(st.permutations([0, 1, 2]), fingerprints())
@some_plans
def test_permuting_the_axes_of_the_files_permutes_only_the_axis_order(permutation, fingerprint):
    plan = plan_of(fingerprint)
    target = rules.target_spacing(
        np.array([case.spacing_mm for case in fingerprint.cases]),
        np.array([case.shape_after_crop for case in fingerprint.cases]),
    ).value
    assume(len(set(target)) == 3)
    kept = [axis for axis in permutation if axis != plan.axis_order[0]]
    assume(kept == list(plan.axis_order[1:]))  # the order of the two fine axes follows the files
    permuted = fingerprint_of(
        [[case.spacing_mm[axis] for axis in permutation] for case in fingerprint.cases],
        [[case.shape_after_crop[axis] for axis in permutation] for case in fingerprint.cases],
    )
    again = plan_of(permuted)
    assert [permutation[axis] for axis in again.axis_order] == list(plan.axis_order)
    for name, own in plan.configurations.items():
        assert again.configurations[name].patch_size == own.patch_size
        assert again.configurations[name].network == own.network


def test_single_slices_get_no_3d_configuration():
    plan = plan_of(fingerprint_of([(999, 1, 1)] * 3, [(1, 400, 500)] * 3))
    assert list(plan.configurations) == ["2d"]
    assert any(entry.name == "needs_3d" and entry.value is False for entry in plan.decisions)


def test_a_large_volume_gets_a_lowres_stage_and_a_cascade():
    plan = plan_of(fingerprint_of([(1.0, 0.8, 0.8)] * 4, [(500, 512, 512)] * 4))
    assert list(plan.configurations) == ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    assert plan.configurations["3d_cascade_fullres"].cascade_from == "3d_lowres"
    assert plan.configurations["3d_fullres"].batch_dice
    low, full = plan.configurations["3d_lowres"], plan.configurations["3d_fullres"]
    rounding = 0.99  # the share is measured before the median shape is rounded to whole voxels
    assert math.prod(low.patch_size) / math.prod(low.median_shape) >= rules.LOWRES_BELOW * rounding
    assert min(low.spacing_mm) > min(full.spacing_mm)


def test_hardly_smaller_lowres_is_dropped():
    plan = plan_of(fingerprint_of([(1.0, 1.0, 1.0)] * 4, [(215, 215, 215)] * 4))
    reason = next(entry for entry in plan.decisions if entry.name == "needs_lowres")
    assert "3d_lowres" not in plan.configurations
    assert "hardly fewer" in reason.because


def test_thick_slices_take_the_tenth_percentile():
    spacing = [(s, 0.7, 0.7) for s in (3.0, 5.0, 7.0, 8.0, 8.0)]
    fingerprint = fingerprint_of(spacing, [(20, 400, 400)] * 5)
    chosen = rules.target_spacing(np.array(spacing), np.array([(20, 400, 400)] * 5))
    assert chosen.value[0] == pytest.approx(3.8)
    assert "10th percentile" in chosen.because
    assert plan_of(fingerprint).axis_order == (0, 1, 2)


def test_pictures_have_no_thickness_to_explain():
    chosen = rules.target_spacing(np.array([(999.0, 1.0, 1.0)] * 5), np.array([(1, 256, 256)] * 5))
    assert chosen.value == (999.0, 1.0, 1.0)
    for because in (chosen.because, rules.axis_order(chosen.value).because):
        assert "999" not in because
        assert "one slice" in because


def test_the_tenth_percentile_never_undercuts_the_other_axes():
    spacing = np.array([(0.2, 0.8, 0.8), (0.2, 0.8, 0.8), (5.0, 0.8, 0.8)])
    spacing = np.vstack([spacing, [(5.0, 0.8, 0.8)] * 2])
    chosen = rules.target_spacing(spacing, np.array([(20, 400, 400)] * 5))
    assert chosen.value[0] == pytest.approx(0.8 + 1e-5, abs=1e-9)


def test_images_of_seven_voxels_get_a_padded_patch_of_two_stages():
    plan = plan_of(fingerprint_of([(1, 1, 1)] * 3, [(7, 7, 7)] * 3))
    own = plan.configurations["3d_fullres"]
    assert own.patch_size == (8, 8, 8)
    assert own.network.n_stages == 2
    assert any("padded with zeros" in entry.because for entry in plan.decisions)


def test_an_axis_that_had_to_grow_does_not_shrink_again():
    plan = plan_of(fingerprint_of([(2.0, 4.0, 1.0)], [(193, 33, 8)]), "cpu")
    own = plan.configurations["3d_fullres"]
    assert own.network.n_stages >= 2
    assert own.patch_size[2] == 12


def test_a_lone_fine_axis_needs_twelve_voxels():
    assert PlainUNet.enlarged_patch((9.0, 1.0, 9.0), (4.0, 6.0, 4.0)) == (4.0, 12.0, 4.0)
    assert PlainUNet.enlarged_patch((1.0, 1.0, 1.0), (30.0, 30.0, 30.0)) is None


def test_an_axis_without_which_nothing_is_halved_does_not_shrink():
    plan = plan_of(fingerprint_of([(2.0, 4.0, 1.0)], [(80, 112, 12)]), "cpu")
    own = plan.configurations["3d_fullres"]
    assert own.network.n_stages >= 2
    assert own.patch_size[2] == 12  # the finest axis: with 11 voxels it could not be halved, and the others never are
    assert own.patch_size[:2] != (112, 80)


def test_huge_2d_batches_are_warned_about_under_reference_and_capped_under_cpu():
    fingerprint = fingerprint_of([(1, 1, 1)] * 200, [(36, 50, 35)] * 200)
    reference, cpu = plan_of(fingerprint), plan_of(fingerprint, "cpu")
    assert reference.configurations["2d"].batch_size > rules.LARGEST_GUARDED_2D_BATCH
    assert any(entry.name == "warning" for entry in reference.decisions)
    assert cpu.configurations["2d"].batch_size == 8
    assert not any(entry.name == "warning" for entry in cpu.decisions)


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (math.inf, 1.0, 1.0), (math.nan, 1.0, 1.0), (-1.0, 1.0, 1.0)])
def test_impossible_spacings_are_refused_by_name(spacing):
    with pytest.raises(PlanFault, match="case_1"):
        plan_of(fingerprint_of([(1, 1, 1), spacing], [(20, 20, 20)] * 2))


@pytest.mark.parametrize(
    ("images", "labels", "whole", "words"),
    [
        (["images/a.png", "images/b.png"], "labels", False, False),
        (["images/a_0000.png", "images/b_0000.png"], "labels", True, False),
        (["images/a.png", "images/a_mask.png"], "labels", False, True),
        (["images/a.png", "images/a_mask.png"], "images", False, False),
    ],
)
def test_a_plan_knows_what_the_names_of_new_files_mean(images, labels, whole, words):
    cases = tuple(Case(Path(image).stem, (image,), f"{labels}/{Path(image).stem}_x.png") for image in images)
    dataset = replace(dataset_of(), cases=cases)
    expected = make_plan(dataset, fingerprint_of([(1.0, 1.0, 1.0)], [(32, 32, 32)]), PlanOptions()).expected_images
    assert (expected.channels, expected.has_whole_names, expected.has_label_words) == (1, whole, words)


def test_no_case_is_refused():
    with pytest.raises(PlanFault, match="no case"):
        plan_of(fingerprint_of([], []))


def test_z_scores_use_the_nonzero_mask_only_where_much_was_cropped():
    schemes = ("zscore", "ct", "none")
    assert rules.use_nonzero_mask(schemes, 0.74).value == (True, False, False)
    assert rules.use_nonzero_mask(schemes, 0.75).value == (False, False, False)


def test_channel_names_select_the_normalization_in_any_case():
    chosen = rules.normalization(["CT", "noNorm", "zscore", "rescale_to_0_1", "RGB_to_0_1", "T1", " ct "])
    assert chosen.value == ("ct", "none", "zscore", "rescale_0_1", "rgb_0_1", "zscore", "ct")


def test_pins_override_rules_and_say_so():
    pins = dict(
        spacing_mm=[2, 1, 1],
        axis_order=[1, 0, 2],
        normalization=["ct"],
        use_nonzero_mask=[False],
        **{"3d_fullres": {"patch_size": [32, 32, 32], "batch_size": 3, "batch_dice": True, "mirror_axes": [0, 1]}},
    )
    plan = plan_of(fingerprint_of([(1, 1, 1)] * 3, [(60, 60, 60)] * 3), pins=pins)
    own = plan.configurations["3d_fullres"]
    assert plan.axis_order == (1, 0, 2)
    assert own.spacing_mm == (1.0, 2.0, 1.0)
    assert (own.patch_size, own.batch_size, own.batch_dice, own.mirror_axes) == ((32, 32, 32), 3, True, (0, 1))
    assert own.normalization == ("ct",)
    by_user = {entry.name for entry in plan.decisions if entry.by == "user"}
    assert by_user >= {"spacing_mm", "axis_order", "normalization", "patch_size", "batch_size", "batch_dice"}
    assert all("set by the user" in entry.because for entry in plan.decisions if entry.by == "user")


def test_half_precision_takes_half_the_store():
    fingerprint = fingerprint_of([(1.0, 1.0, 1.0)] * 2, [(40, 40, 40)] * 2)
    own, halved = plan_of(fingerprint), plan_of(fingerprint, pins={"store_type": "float16"})
    sizes = [plan.store_gib(plan.configurations["3d_fullres"], fingerprint) for plan in (own, halved)]
    assert sizes[0] / sizes[1] == pytest.approx(5 / 3)


def test_a_pinned_patch_serves_the_configurations_of_its_dimensions():
    plan = plan_of(fingerprint_of([(1, 1, 1)] * 3, [(60, 60, 60)] * 3), pins={"patch_size": [32, 48]})
    assert plan.configurations["2d"].patch_size == (32, 48)
    assert len(plan.configurations["3d_fullres"].patch_size) == 3


def test_pinned_channels_change_the_network():
    fingerprint = fingerprint_of([(1, 1, 1)] * 3, [(32, 32, 32)] * 3)
    stages = plan_of(fingerprint).configurations["3d_fullres"].network.n_stages
    pins = dict(**{"3d_fullres": {"features_per_stage": list(range(4, 4 + stages))}})
    assert plan_of(fingerprint, pins=pins).configurations["3d_fullres"].network.features_per_stage[0] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"3d_fullres": {"patch_size": [33, 32, 32]}}, r"multiple"),
        ({"3d_fullres": {"patch_size": [4, 4, 4]}}, r"too small"),
        ({"3d_fullres": {"features_per_stage": [8]}}, r"entries"),
        ({"normalization": ["ct", "ct"]}, r"1 channels"),
    ],
)
def test_pins_that_do_not_fit_the_dataset_are_refused(content, message):
    with pytest.raises(PlanFault, match=message):
        plan_of(fingerprint_of([(1, 1, 1)] * 3, [(60, 60, 60)] * 3), pins=content)


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=3), st.data())
@some_plans
def test_padding_a_patch_to_its_topology_is_stable(spacing, data):
    patch = data.draw(st.lists(st.integers(1, 200), min_size=len(spacing), max_size=len(spacing)))
    network, padded = load_preset("reference").network_for_patch(spacing, patch)
    assert all(
        edge <= larger < edge + step for edge, larger, step in zip(patch, padded, network.total_stride, strict=True)
    )
    assert len(network.kernel_sizes) == len(network.strides)
