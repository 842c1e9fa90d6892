"""nnU-Net's plans and fingerprints as ours: what is taken over, and what is refused because we compute it otherwise."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import AutoSegError, PlanFault, RecordFault
from autoseg.core.records import from_json, to_json
from autoseg.nnunet.plans import read_nnunet_fingerprint, read_nnunet_plans
from autoseg.planning.plan import Plan
from tests.nnunet.written_plans import DATASET, LEGACY, architecture, configuration, plans

FULL = ("3d_fullres",)


def read_configuration(**changes: Any) -> Plan:
    return read_nnunet_plans(plans(**{"3d_fullres": configuration(**changes)}), DATASET, FULL)


def arguments(**changes: Any) -> dict[str, Any]:
    entry = architecture()
    entry["arch_kwargs"] |= changes
    return {"architecture": entry}


def test_every_field_that_predictions_depend_on_is_taken_over() -> None:
    plan = read_nnunet_plans(plans(), DATASET, FULL)
    own = plan.configurations["3d_fullres"]
    assert (plan.dataset, plan.axis_order, plan.preset) == ("Dataset950_Tiny", (1, 0, 2), "reference")
    assert (plan.channels, plan.labels.foreground) == (("CT",), ("organ", "lesion"))
    assert (plan.intensities[0].mean, plan.intensities[0].percentile_99_5) == (1.0, 8.0)
    assert (own.spacing_mm, own.patch_size, own.normalization) == ((1.5, 1.5, 1.5), (8, 8, 8), ("ct",))
    assert (own.network.kind, own.network.features_per_stage) == ("plain_unet", (4, 6, 8))
    assert from_json(Plan, to_json(plan), "a plan") == plan


def test_residual_encoders_are_known_in_two_dimensions() -> None:
    flat = configuration(2, architecture=architecture(2, "ResidualEncoderUNet"))
    data = plans(**{"2d": flat}) | {"plans_name": "nnUNetResEncUNetLPlans"}
    plan = read_nnunet_plans(data, DATASET, ("2d",))
    network = plan.configurations["2d"].network
    assert plan.preset == "resenc-l"
    assert (network.kind, network.dimensions) == ("residual_unet", 2)
    assert (network.blocks_per_stage, network.decoder_convs_per_stage) == ((1, 3, 4), (1, 1))


def test_the_notation_of_before_2024_describes_the_same_network() -> None:
    old = {key: value for key, value in configuration().items() if key != "architecture"} | LEGACY
    network = read_nnunet_plans(plans(**{"3d_fullres": old}), DATASET, FULL).configurations["3d_fullres"].network
    modern = read_configuration(architecture=architecture(features=(4, 6, 6))).configurations["3d_fullres"].network
    assert network == modern


def test_one_number_may_stand_for_all_stages_and_axes() -> None:
    short = {"kernel_sizes": 3, "n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2, "strides": [1, 2, 2]}
    assert read_configuration(**arguments(**short)).configurations == read_configuration().configurations


def test_statistics_under_their_old_name_are_found() -> None:
    data = plans()
    data["foreground_intensity_properties_by_modality"] = data.pop("foreground_intensity_properties_per_channel")
    assert read_nnunet_plans(data, DATASET, FULL).intensities[0].mean == 1.0


def test_statistics_that_nobody_needs_may_be_absent_or_undefined() -> None:
    data = plans(**{"3d_fullres": configuration(normalization_schemes=["ZScoreNormalization"])})
    data["foreground_intensity_properties_per_channel"]["0"]["mean"] = float("nan")
    assert read_nnunet_plans(data, DATASET, FULL).intensities[0].mean == 0.0
    data["foreground_intensity_properties_per_channel"] = None
    assert read_nnunet_plans(data, DATASET, FULL).intensities[0].std == 1.0


def test_inherited_fields_are_resolved_over_several_generations() -> None:
    data = plans(
        base=configuration(batch_size=7),
        middle={"inherits_from": "base", "spacing": [2.0, 2.0, 2.0]},
        leaf={"inherits_from": "middle", "patch_size": [16, 16, 16]},
    )
    leaf = read_nnunet_plans(data, DATASET, ("leaf",)).configurations["leaf"]
    assert (leaf.batch_size, leaf.spacing_mm[0], leaf.patch_size[0]) == (7, 2.0, 16)


@pytest.mark.parametrize(("parent", "says"), [("nothing", "not there"), ("3d_fullres", "itself")])
def test_inheritance_that_leads_nowhere_is_refused(parent: str, says: str) -> None:
    with pytest.raises(RecordFault, match=says):
        read_configuration(inherits_from=parent)


def test_a_cascade_brings_its_first_stage_and_its_input_channels() -> None:
    data = plans(
        **{
            "3d_lowres": configuration(next_stage="3d_cascade_fullres", spacing=[3.0, 3.0, 3.0]),
            "3d_fullres": configuration(),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        }
    )
    plan = read_nnunet_plans(data, DATASET, ("3d_cascade_fullres",))
    assert plan.configurations["3d_cascade_fullres"].cascade_from == "3d_lowres"
    assert list(plan.configurations) == ["3d_cascade_fullres", "3d_lowres"]
    assert plan.input_channels("3d_cascade_fullres") == 3


def test_regions_keep_their_order() -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    plan = read_nnunet_plans(plans(), DATASET | {"labels": labels, "regions_class_order": [1, 2]}, FULL)
    assert (plan.labels.head_count, plan.labels.regions_class_order) == (2, (1, 2))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalization_schemes": ["MyNormalization"]}, "MyNormalization"),
        ({"preprocessor_name": "CopyPreprocessor"}, "CopyPreprocessor"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "resample_torch_fornnunet"),
        ({"resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 0}}, "order"),
        ({"resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "force_separate_z": True}}, "force_separate_z"),
        ({"patch_size": [8, 8, 9]}, "not a multiple of the network's stride"),
        ({"patch_size": [8, 8]}, "Conv3d, not Conv2d"),
        ({"spacing": [1.0, 1.0]}, "not of 3 dimensions"),
        ({"patch_size": [8, 8, 1 << 14]}, "8192"),
        ({"use_mask_for_norm": []}, "use_nonzero_mask of 0"),
        ({"spacing": [0.0, 1.0, 1.0]}, r"spacing_mm\.0"),
        ({"normalization_schemes": ["CTNormalization"] * 2}, "normalization of 2"),
        ({"architecture": architecture(kind="Primus")}, "Primus"),
        ({"architecture": {"network_class_name": "os.system"}}, "os.system"),
        (arguments(nonlin="torch.nn.ReLU"), "ReLU"),
        (arguments(nonlin_kwargs={"negative_slope": 0.2}), "negative_slope"),
        (arguments(norm_op="torch.nn.modules.batchnorm.BatchNorm3d"), "BatchNorm3d"),
        (arguments(norm_op_kwargs={"eps": 1e-3, "affine": True}), "eps"),
        (arguments(conv_op="torch.nn.modules.conv.Conv2d"), "Conv2d"),
        (arguments(conv_bias=False), "no bias"),
        (arguments(nonlin_first=True), "nonlin_first"),
        (arguments(n_stages=17), "17 stages"),
        (arguments(strides=[[1, 1, 1], [2, 2, 2]]), "stages differ"),
        (arguments(kernel_sizes=[[3, 3]] * 3), "axes"),
        (arguments(kernel_sizes=[[2, 3, 3]] * 3), "even"),
        (arguments(strides=[[2, 2, 2]] * 3), "full resolution"),
        (arguments(features_per_stage=[4, 6, 0]), "greater than or equal to 1"),
        (arguments(features_per_stage=[4, 6, 99999]), "8192"),
    ],
)
def test_what_would_be_computed_differently_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanFault, match=says) as fault:
        read_configuration(**changes)
    assert fault.value.do


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_reader_writer": "NibabelIOWithReorient"}, "NibabelIOWithReorient"),
        ({"label_manager": "MyLabels"}, "MyLabels"),
        ({"foreground_intensity_properties_per_channel": {}}, "intensities"),
    ],
)
def test_files_that_mean_something_else_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanFault, match=says):
        read_nnunet_plans(plans() | changes, DATASET, FULL)


def test_an_order_of_axes_names_each_once() -> None:
    with pytest.raises(RecordFault, match="transpose_forward"):
        read_nnunet_plans(plans() | {"transpose_forward": [0, 0, 1]}, DATASET, FULL)


def test_dropout_matters_in_training_only() -> None:
    changed = arguments(dropout_op="torch.nn.Dropout3d", dropout_op_kwargs={"p": 0.5})
    assert read_configuration(**changed).configurations == read_configuration().configurations


@pytest.mark.parametrize("edges", [[], [float("nan")] * 3, [20.0]])
def test_a_median_shape_is_not_needed(edges: list[float]) -> None:
    assert read_configuration(median_image_size_in_voxels=edges).configurations["3d_fullres"].median_shape == (8.0,) * 3


def places(value: Any, path: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


PLACES = [place for place in places(plans()) if place]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**12),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just([[]]),
    st.just({"inherits_from": ["x"]}),
    st.lists(st.integers(0, 3), max_size=4),
)


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_a_changed_file_is_read_or_refused_and_never_crashes(place: tuple, value: Any) -> None:
    data = plans()
    parent: Any = data
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    try:
        plan = read_nnunet_plans(data, DATASET, FULL)
    except AutoSegError:
        return
    assert from_json(Plan, to_json(plan), "a plan") == plan


STATISTICS = {
    "mean": 1.0,
    "median": 2.0,
    "std": 3.0,
    "min": -1.0,
    "max": 9.0,
    "percentile_00_5": -0.5,
    "percentile_99_5": 8.0,
}
FINGERPRINT = {
    "spacings": [[999, 1, 1], [3.0, 0.5, 0.5]],
    "shapes_after_crop": [[1, 20, 30], [10, 20, 30]],
    "foreground_intensity_properties_per_channel": {"1": {**STATISTICS, "mean": 7.0}, "0": STATISTICS},
    "median_relative_size_after_cropping": 0.5,
}


def test_every_field_of_a_fingerprint_arrives_under_our_name():
    fingerprint = read_nnunet_fingerprint(FINGERPRINT)
    assert [case.spacing_mm for case in fingerprint.cases] == [(999.0, 1.0, 1.0), (3.0, 0.5, 0.5)]
    assert [case.shape_after_crop for case in fingerprint.cases] == [(1, 20, 30), (10, 20, 30)]
    assert fingerprint.relative_size == pytest.approx(0.5)
    assert [channel.mean for channel in fingerprint.intensities] == [1.0, 7.0]
    assert fingerprint.intensities[0].percentile_99_5 == pytest.approx(8.0)
    assert [case.identifier for case in fingerprint.cases] == sorted(case.identifier for case in fingerprint.cases)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("spacings",), [[1.0, 1.0, 1.0]], "1 spacings but 2 shapes"),
        (("spacings", 1), [0.0, 1.0, 1.0], "spacings.1"),
        (("spacings", 0), [float("inf"), 1.0, 1.0], "spacings.0"),
        (("shapes_after_crop", 0), [0, 4, 4], "shapes_after_crop.0"),
        (("shapes_after_crop", 0), [4, 4], "shapes_after_crop.0"),
        (("median_relative_size_after_cropping",), 0.0, "median_relative_size_after_cropping"),
        (("foreground_intensity_properties_per_channel",), {"1": STATISTICS}, "channels are ['1']"),
        (("foreground_intensity_properties_per_channel",), {}, "channels are []"),
        (("foreground_intensity_properties_per_channel", "1"), {**STATISTICS, "std": float("nan")}, "channel.1"),
        (("foreground_intensity_properties_per_channel", "1"), {"mean": 1.0}, "median"),
    ],
)
def test_a_fingerprint_that_cannot_be_true_is_refused_by_field(path, value, named):
    data = copy.deepcopy(FINGERPRINT)
    entry = data
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    with pytest.raises(RecordFault) as fault:
        read_nnunet_fingerprint(data)
    assert named in str(fault.value)


def test_published_fingerprints_are_read(shared: Path):
    files = sorted((shared / "golden" / "published").glob("*.json"))
    assert files
    for file in files:
        data = json.loads(file.read_text())["fingerprint"]
        assert len(read_nnunet_fingerprint(data, file.name).cases) == len(data["spacings"])
