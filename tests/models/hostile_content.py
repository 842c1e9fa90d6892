"""Bundles whose archive is sound and whose model.json or weights are not."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.hostile import HOSTILE, hashed, hostile, members_of, pack


def of_record(name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    def make(good: Path, bad: Path) -> None:
        members = members_of(good)
        record = json.loads(members["model.json"])
        before = copy.deepcopy(record)
        change(record)
        assert repr(record) != repr(before), "the change must change something"
        pack(bad, hashed({**members, "model.json": json.dumps(record).encode()}))

    HOSTILE[name] = make


def of_text(name: str, change: Callable[[bytes], bytes]) -> None:
    def make(good: Path, bad: Path) -> None:
        members = members_of(good)
        changed = change(members["model.json"])
        assert changed != members["model.json"]
        pack(bad, hashed({**members, "model.json": changed}))

    HOSTILE[name] = make


def of_weights(name: str, change: Callable[[dict[str, Any], bytes], tuple[Any, bytes]]) -> None:
    """A change of header and data of the weights of one fold."""

    def make(good: Path, bad: Path) -> None:
        members = members_of(good)
        first = next(key for key in members if key.startswith("weights/"))
        data = members[first]
        length = struct.unpack("<Q", data[:8])[0]
        header, rest = change(json.loads(data[8 : 8 + length]), data[8 + length :])
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        pack(bad, hashed({**members, first: struct.pack("<Q", len(raw)) + raw + rest}))

    HOSTILE[name] = make


# --- model.json ----------------------------------------------------------------------------------------------------
def _member(record: dict[str, Any]) -> dict[str, Any]:
    return record["members"][0]


def _plan(record: dict[str, Any]) -> dict[str, Any]:
    return _member(record)["plan"]


def _configuration(record: dict[str, Any]) -> dict[str, Any]:
    return next(iter(_plan(record)["configurations"].values()))


def _network(record: dict[str, Any]) -> dict[str, Any]:
    return _configuration(record)["network"]


of_text("record_is_no_json", lambda raw: raw[:-5])
of_text("record_is_deeply_nested", lambda _: b'{"version":' + b"[" * 100_000)
of_text("record_with_a_key_twice", lambda raw: raw.replace(b"{", b'{"version": 1,', 1))
of_text("record_with_undefined_number", lambda raw: raw.replace(b'"share": 1.0', b'"share": NaN'))
of_text("record_with_huge_number", lambda raw: raw.replace(b'"version": 1', b'"version": ' + b"9" * 6000))
of_record("version_of_the_future", lambda record: record.update(version=2))
of_record("unknown_key", lambda record: record.update(_target_="os.system"))
of_record("unknown_key_deep_inside", lambda record: _network(record).update(norm_op="evil.module"))
of_record("escape_sequences", lambda record: record.update(name="\x1b]0;owned\x07"))
of_record("hidden_direction", lambda record: record.update(because="\u202egnp.exe"))
of_record("endless_text", lambda record: record.update(because="x" * 30_000))
of_record("no_members", lambda record: record.update(members=[]))
of_record("member_given_twice", lambda record: record.update(members=2 * record["members"]))
of_record("share_of_a_half", lambda record: _member(record).update(share=0.5))
of_record("negative_fold", lambda record: _member(record).update(folds=[-1, 0]))
of_record("fold_twice", lambda record: _member(record).update(folds=[0, 0]))
of_record("unknown_precision", lambda record: _member(record).update(precision="int1"))
of_record("unknown_memory_format", lambda record: _member(record).update(memory_format="row"))
of_record("unknown_device", lambda record: _member(record).update(device="http"))
of_record("configuration_of_another_name", lambda record: _member(record).update(configuration="2d"))
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
    lambda record: record.update(postprocessing=[{"kind": "largest_component", "classes": ["x"], "minimum_mm3": None}]),
)
of_record(
    "postprocessing_of_a_negative_volume",
    lambda record: record.update(
        postprocessing=[{"kind": "minimum_volume", "classes": ["liver"], "minimum_mm3": -1.0}]
    ),
)


# --- weights -------------------------------------------------------------------------------------------------------
def _first(header: dict[str, Any]) -> dict[str, Any]:
    return header[min(header)]


def _changed(header: dict[str, Any], **values: object) -> dict[str, Any]:
    changed = copy.deepcopy(header)
    _first(changed).update(values)
    return changed


def _undefined(data: bytes) -> bytes:
    return np.float32(np.nan).tobytes() + data[4:]


def _infinite(data: bytes) -> bytes:
    return data[:-4] + np.float32(np.inf).tobytes()


of_weights("weights_undefined", lambda header, data: (header, _undefined(data)))
of_weights("weights_infinite", lambda header, data: (header, _infinite(data)))
of_weights("weights_of_another_shape", lambda header, data: (_changed(header, shape=[1]), data))
of_weights("weights_of_another_type", lambda header, data: (_changed(header, dtype="F64"), data))
of_weights("weights_with_metadata", lambda header, data: ({**header, "__metadata__": {"a": "b"}}, data))
of_weights("weights_of_one_tensor_more", lambda header, data: ({**header, "evil": _first(header)}, data))
of_weights("weights_without_a_tensor", lambda header, data: (dict(sorted(header.items())[1:]), data))
of_weights("weights_with_bytes_behind", lambda header, data: (header, data + b"1234"))
of_weights("weights_cut_off", lambda header, data: (header, data[:-4]))
of_weights("weights_with_negative_offsets", lambda header, data: (_changed(header, data_offsets=[-4, 4]), data))
of_weights("weights_with_odd_offsets", lambda header, data: (_changed(header, data_offsets=["0", "4"]), data))
of_weights("weights_with_three_offsets", lambda header, data: (_changed(header, data_offsets=[0, 4, 8]), data))
of_weights("weights_with_more_keys", lambda header, data: (_changed(header, device="cuda"), data))
of_weights("weights_without_names", lambda _, data: (b"[]", data))
of_weights("weights_with_a_broken_header", lambda _, data: (b"{", data))
of_weights("weights_deeply_nested", lambda _, data: (b"[" * 20_000, data))
of_weights(
    "weights_that_overlap",
    lambda header, data: ({name: {**entry, "data_offsets": _moved(entry)} for name, entry in header.items()}, data),
)


def _moved(entry: dict[str, Any]) -> list[int]:
    begin, end = entry["data_offsets"]
    return [0, end - begin]


@hostile
def weights_header_longer_than_the_file(good: Path, bad: Path) -> None:
    members = members_of(good)
    first = next(name for name in members if name.startswith("weights/"))
    pack(bad, hashed({**members, first: struct.pack("<Q", 1 << 60) + members[first][8:]}))


@hostile
def weights_of_a_few_bytes(good: Path, bad: Path) -> None:
    members = members_of(good)
    first = next(name for name in members if name.startswith("weights/"))
    pack(bad, hashed({**members, first: b"123"}))


@hostile
def weights_larger_than_the_network(good: Path, bad: Path) -> None:
    members = members_of(good)
    first = next(name for name in members if name.startswith("weights/"))
    pack(bad, hashed({**members, first: members[first] + b"\0" * (17 << 20)}))
