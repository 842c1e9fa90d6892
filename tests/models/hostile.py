"""Bundles that somebody with bad intentions, or a bad disk, may hand over; each is made from a good one."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Header = dict[str, Any]
Make = Callable[[Path, Path], None]  # from a good bundle, to the file to make

HOSTILE: dict[str, Make] = {}


def parts_of(path: Path) -> tuple[Header, bytes]:
    """Header and data of a safetensors file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def assemble(path: Path, header: Header | bytes, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def record_text(header: Header) -> str:
    return next(iter(header["__metadata__"].values()))


def with_text(header: Header, text: str) -> Header:
    """The header with another record and its right hash."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {**header, "__metadata__": {f"autoseg sha256:{digest}": text}}


def rehashed(header: Header, data: bytes) -> Header:
    """The header with the right hashes of whatever the tensors are now."""
    record = json.loads(record_text(header))
    for title in record["sha256"]:
        digest = hashlib.sha256()
        for name in sorted(name for name in header if name.startswith(f"{title}/")):
            begin, end = header[name]["data_offsets"]
            digest.update(f"{name.removeprefix(f'{title}/')} {list(header[name]['shape'])}\n".encode())
            digest.update(data[begin:end])
        record["sha256"][title] = digest.hexdigest()
    return with_text(header, json.dumps(record, indent=1) + "\n")


def hostile(make: Make) -> Make:
    HOSTILE[make.__name__] = make
    return make


def of_bytes(name: str, change: Callable[[bytes], bytes]) -> None:
    HOSTILE[name] = lambda good, bad: bad.write_bytes(change(good.read_bytes())) and None


def of_header(name: str, change: Callable[[Header], Header | bytes]) -> None:
    def make(good: Path, bad: Path) -> None:
        header, data = parts_of(good)
        assemble(bad, change(header), data)

    HOSTILE[name] = make


def of_weights(name: str, change: Callable[[Header, bytes], tuple[Header, bytes]]) -> None:
    """A change of tensors, with right hashes of what became of them where there is anything to hash."""

    def make(good: Path, bad: Path) -> None:
        header, data = change(*parts_of(good))
        assemble(bad, rehashed(header, data), data)

    HOSTILE[name] = make


def with_tensor(name: str, tensor: str) -> None:
    """One tensor more than the record speaks of."""

    def make(good: Path, bad: Path) -> None:
        header, data = parts_of(good)
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
        assemble(bad, {**header, tensor: entry}, data + bytes(4))

    HOSTILE[name] = make


def of_text(name: str, change: Callable[[str], str]) -> None:
    def make(good: Path, bad: Path) -> None:
        header, data = parts_of(good)
        changed = change(record_text(header))
        assert changed != record_text(header), "the change must change something"
        assemble(bad, with_text(header, changed), data)

    HOSTILE[name] = make


def of_record(name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    def changed(text: str) -> str:
        record = json.loads(text)
        before = copy.deepcopy(record)
        change(record)
        assert repr(record) != repr(before), "the change must change something"
        return json.dumps(record)

    of_text(name, changed)


# --- the file as a whole -------------------------------------------------------------------------------------------
of_bytes("empty", lambda _: b"")
of_bytes("a_few_bytes", lambda _: b"123")
of_bytes("text", lambda _: b"not a model at all, but long enough to look for one")
of_bytes("cut_off_at_the_end", lambda data: data[:-1])
of_bytes("cut_off_in_the_middle", lambda data: data[: len(data) // 2])
of_bytes("cut_off_in_the_header", lambda data: data[:100])
of_bytes("bytes_before", lambda data: b"#!/bin/sh\n" + data)
of_bytes("bytes_behind", lambda data: data + b"\0" * 100)
of_bytes("pickle", lambda _: b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.")
of_bytes("header_longer_than_the_file", lambda data: struct.pack("<Q", len(data)) + data[8:])
of_bytes("header_longer_than_any_file", lambda data: struct.pack("<Q", 1 << 60) + data[8:])
of_bytes("header_of_nothing", lambda data: struct.pack("<Q", 0) + data[8:])
of_bytes("header_that_ends_early", lambda data: struct.pack("<Q", 200) + data[8:])
of_bytes("header_of_40_mebibytes", lambda _: struct.pack("<Q", 40 << 20) + b'{"' + b" " * (40 << 20))
of_header("header_of_no_names", lambda _: b"[]")
of_header("header_that_is_broken", lambda _: b"{")
of_header("header_of_no_text", lambda _: b"\xff\xfe\xfd")
of_header("header_deeply_nested", lambda _: b'{"a":' + b"[" * 20_000)


@hostile
def a_flipped_bit_in_weights(good: Path, bad: Path) -> None:
    data = bytearray(good.read_bytes())
    data[-2000] ^= 1
    bad.write_bytes(bytes(data))


@hostile
def a_bundle_of_before(good: Path, bad: Path) -> None:
    with zipfile.ZipFile(bad, "w") as file:
        file.writestr("model.json", record_text(parts_of(good)[0]))


@hostile
def bomb(good: Path, bad: Path) -> None:
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model.json", b" " * (64 << 20))


# --- metadata ------------------------------------------------------------------------------------------------------
def _metadata(header: Header, **more: object) -> Header:
    return {**header, "__metadata__": {**header["__metadata__"], **more}}


of_header("no_metadata", lambda header: {key: entry for key, entry in header.items() if key != "__metadata__"})
of_header("metadata_of_nothing", lambda header: {**header, "__metadata__": {}})
of_header("metadata_of_another_kind", lambda header: {**header, "__metadata__": [1]})
of_header("more_metadata", lambda header: _metadata(header, hook="os.system"))
of_header("metadata_of_numbers", lambda header: _metadata(header, hook=1))
of_header("record_without_hash", lambda header: {**header, "__metadata__": {"autoseg": record_text(header)}})
of_header(
    "record_of_another_hash",
    lambda header: {
        **header,
        "__metadata__": {key: text.replace("tiny", "tine") for key, text in header["__metadata__"].items()},
    },
)


# --- names of tensors ----------------------------------------------------------------------------------------------
with_tensor("climbs_out", "../evil")
with_tensor("climbs_out_of_a_fold", "3d_fullres/0/../../../evil")
with_tensor("absolute", "/tmp/evil")
with_tensor("drive_letter", "C:evil")
with_tensor("newline_in_name", "3d_fullres/0/a\n")
with_tensor("zero_byte_in_name", "3d_fullres/0/a\0")
with_tensor("escape_in_name", "3d_fullres/0/\x1b]0;owned\x07")
with_tensor("hidden_direction_in_name", "3d_fullres/0/\u202egnp.exe")
with_tensor("weights_of_nobody", "2d/7/encoder.weight")
with_tensor("weights_of_another_fold", "3d_fullres/7/encoder.weight")
with_tensor("wide_digits", "3d_fullres/\u0663/encoder.weight")
with_tensor("name_of_nothing", "")
with_tensor("name_of_a_megabyte", "3d_fullres/0/" + "x" * (1 << 20))


# --- weights -------------------------------------------------------------------------------------------------------
def _first(header: Header) -> str:
    return min(name for name in header if name != "__metadata__")


def _changed(header: Header, **values: object) -> Header:
    return {**header, _first(header): {**header[_first(header)], **values}}


def _without_first(header: Header, data: bytes) -> tuple[Header, bytes]:
    """The file without the last tensor in it, and nothing left of its values."""
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    return {name: entry for name, entry in header.items() if name != last}, data[: header[last]["data_offsets"][0]]


def _moved(header: Header) -> Header:
    """All tensors lie at the beginning, one over the other."""
    moved = copy.deepcopy(header)
    for name, entry in moved.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = [0, end - begin]
    return moved


def _undefined(data: bytes) -> bytes:
    return np.float32(np.nan).tobytes() + data[4:]


def _infinite(data: bytes) -> bytes:
    return data[:-4] + np.float32(np.inf).tobytes()


def _integers(header: Header) -> Header:
    return {name: entry if name == "__metadata__" else {**entry, "dtype": "I32"} for name, entry in header.items()}


of_weights("weights_undefined", lambda header, data: (header, _undefined(data)))
of_weights("weights_infinite", lambda header, data: (header, _infinite(data)))
of_weights("weights_of_integers", lambda header, data: (_integers(header), data))
of_weights("weights_without_a_tensor", _without_first)
of_weights("weights_that_overlap", lambda header, data: (_moved(header), data))
of_header("weights_of_another_shape", lambda header: _changed(header, shape=[1]))
of_header("weights_of_more_axes", lambda header: _changed(header, shape=[1, *header[_first(header)]["shape"]]))
of_header("weights_of_a_huge_shape", lambda header: _changed(header, shape=[1 << 62, 1 << 62]))
of_header("weights_of_another_type", lambda header: _changed(header, dtype="F64"))
of_header("weights_of_an_unknown_type", lambda header: _changed(header, dtype="object"))
of_header("weights_with_negative_offsets", lambda header: _changed(header, data_offsets=[-4, 4]))
of_header("weights_with_odd_offsets", lambda header: _changed(header, data_offsets=["0", "4"]))
of_header("weights_with_three_offsets", lambda header: _changed(header, data_offsets=[0, 4, 8]))
of_header("weights_with_offsets_behind_the_end", lambda header: _changed(header, data_offsets=[0, 1 << 62]))
of_header("weights_without_offsets", lambda header: {**header, _first(header): {"dtype": "F32", "shape": [1]}})
of_header("weights_given_twice", lambda header: {**header, "evil": header[_first(header)]})
