"""Bundles whose file is sound and whose record is not."""

from __future__ import annotations

from typing import Any

from tests.models.hostile import of_record, of_text


def _model(record: dict[str, Any]) -> dict[str, Any]:
    return record["model"]


def _member(record: dict[str, Any]) -> dict[str, Any]:
    return _model(record)["members"][0]


def _plan(record: dict[str, Any]) -> dict[str, Any]:
    return _member(record)["plan"]


def _configuration(record: dict[str, Any]) -> dict[str, Any]:
    return next(iter(_plan(record)["configurations"].values()))


def _renamed(record: dict[str, Any], name: str) -> None:
    """The configuration under another name everywhere in the record."""
    own = _configuration(record)
    own["name"] = name
    _plan(record)["configurations"] = {name: own}
    record["sha256"] = {f"{name}/{key.split('/')[1]}": value for key, value in record["sha256"].items()}


def _network(record: dict[str, Any]) -> dict[str, Any]:
    return _configuration(record)["network"]


of_text("record_is_no_json", lambda raw: raw[:-5])
of_text("record_is_deeply_nested", lambda _: '{"version":' + "[" * 100_000)
of_text("record_with_a_key_twice", lambda raw: raw.replace("{", '{"version": 2,', 1))
of_text("record_with_undefined_number", lambda raw: raw.replace('"memory_gib": 8.0', '"memory_gib": NaN'))
of_text("record_with_infinite_number", lambda raw: raw.replace('"memory_gib": 8.0', '"memory_gib": 1e999'))
of_text("record_with_huge_number", lambda raw: raw.replace('"version": 2', '"version": ' + "9" * 6000))
of_record("version_of_the_future", lambda record: record.update(version=3))
of_record("hash_of_nobody", lambda record: record["sha256"].update({"2d/0": "0" * 64}))
of_record("hash_missing", lambda record: record["sha256"].popitem())
of_record("hash_of_other_weights", lambda record: record["sha256"].update({"3d_fullres/0": "0" * 64}))
of_record("hash_that_is_none", lambda record: record["sha256"].update({"3d_fullres/0": "../../evil"}))
of_record("unknown_key", lambda record: record.update(_target_="os.system"))
of_record("unknown_key_of_the_model", lambda record: _model(record).update(hook="os.system"))
of_record("unknown_key_deep_inside", lambda record: _network(record).update(norm_op="evil.module"))
of_record("escape_sequences", lambda record: _model(record).update(name="\x1b]0;owned\x07"))
of_record("hidden_direction", lambda record: _model(record).update(because="\u202egnp.exe"))
of_record("endless_text", lambda record: _model(record).update(because="x" * 30_000))
of_record("no_members", lambda record: _model(record).update(members=[]))
of_record("member_given_twice", lambda record: _model(record).update(members=2 * _model(record)["members"]))
of_record("share_of_a_half", lambda record: _member(record).update(share=0.5))
of_record("negative_fold", lambda record: _member(record).update(folds=[-1, 0]))
of_record("fold_twice", lambda record: _member(record).update(folds=[0, 0]))
of_record("unknown_precision", lambda record: _member(record).update(precision="int1"))
of_record("unknown_memory_format", lambda record: _member(record).update(memory_format="row"))
of_record("unknown_device", lambda record: _member(record).update(device="http"))
of_record("configuration_of_another_name", lambda record: _configuration(record).update(name="2d"))
of_record("configuration_with_a_path", lambda record: _renamed(record, "../../evil"))
of_record("plan_of_the_future", lambda record: _plan(record).update(version=99))
of_record("ending_that_climbs_out", lambda record: _plan(record).update(file_ending="/../../evil.nii.gz"))
of_record("axes_twice", lambda record: _plan(record).update(axis_order=[0, 0, 1]))
of_record("channels_without_statistics", lambda record: _plan(record).update(channels=["a", "b"]))
of_record("no_classes", lambda record: _plan(record)["labels"].update(classes={}))
of_record("class_without_values", lambda record: _plan(record)["labels"]["classes"].update(liver=[]))
of_record("class_of_a_huge_value", lambda record: _plan(record)["labels"]["classes"].update(liver=[1 << 40]))
of_record("class_of_a_negative_value", lambda record: _plan(record)["labels"]["classes"].update(liver=[-1]))
of_record("file_values_missing", lambda record: _plan(record)["labels"].update(file_values=[0, 1]))
of_record("file_values_twice", lambda record: _plan(record)["labels"].update(file_values=[0, 1, 1]))
of_record("regions_without_order", lambda record: _plan(record)["labels"]["classes"].update(liver=[1, 2]))
of_record("lateral_axis_that_is_none", lambda record: _plan(record).update(lateral_axis=7))
of_record(
    "lateral_classes_that_are_none", lambda record: _plan(record).update(lateral_axis=2, lateral_pairs=[["a", "b"]])
)
of_record("five_dimensions", lambda record: _configuration(record).update(dimensions=5))
of_record("huge_patch", lambda record: _configuration(record).update(patch_size=[8000, 8000, 8000]))
of_record("patch_of_nothing", lambda record: _configuration(record).update(patch_size=[0, 8, 8]))
of_record("patch_that_does_not_fit", lambda record: _configuration(record).update(patch_size=[7, 8, 8]))
of_record("patch_of_one_axis", lambda record: _configuration(record).update(patch_size=[8]))
of_record("spacing_of_nothing", lambda record: _configuration(record).update(spacing_mm=[0.0, 1.0, 1.0]))
of_record("unknown_normalization", lambda record: _configuration(record).update(normalization=["os.system"]))
of_record("normalization_of_nothing", lambda record: _configuration(record).update(normalization=[]))
of_record("masks_of_nothing", lambda record: _configuration(record).update(use_nonzero_mask=[]))
of_record("mirroring_of_a_fourth_axis", lambda record: _configuration(record).update(mirror_axes=[0, 3]))
of_record("cascade_from_nowhere", lambda record: _configuration(record).update(cascade_from="3d_lowres"))
of_record("network_of_code", lambda record: _network(record).update(kind="os:system"))
of_record("network_of_a_million_features", lambda record: _network(record).update(features_per_stage=[10**6, 10**6]))
of_record("network_of_8192_features", lambda record: _network(record).update(features_per_stage=[8192, 8192]))
of_record("network_of_no_stage", lambda record: _network(record).update(strides=[]))
of_record("network_with_even_kernels", lambda record: _network(record).update(kernel_sizes=[[2, 2, 2], [2, 2, 2]]))
of_record("network_with_flat_kernels", lambda record: _network(record).update(kernel_sizes=[[3, 3], [3, 3]]))
of_record("network_with_zero_strides", lambda record: _network(record).update(strides=[[1, 1, 1], [0, 0, 0]]))
of_record("network_that_begins_with_a_stride", lambda record: _network(record).update(strides=[[2, 2, 2], [1, 1, 1]]))
of_record("network_of_a_million_blocks", lambda record: _network(record).update(blocks_per_stage=[10**6, 1]))
of_record("network_with_a_long_decoder", lambda record: _network(record).update(decoder_convs_per_stage=[1, 1]))
of_record("network_with_a_huge_decoder", lambda record: _network(record).update(decoder_convs_per_stage=[10**6]))
of_record("network_of_other_width", lambda record: _network(record).update(features_per_stage=[4, 9]))
of_record(
    "postprocessing_of_unknown_classes",
    lambda record: _model(record).update(
        postprocessing=[{"kind": "largest_component", "classes": ["x"], "minimum_mm3": None}]
    ),
)
of_record(
    "postprocessing_of_a_negative_volume",
    lambda record: _model(record).update(
        postprocessing=[{"kind": "minimum_volume", "classes": ["liver"], "minimum_mm3": -1.0}]
    ),
)
