"""Bundles that somebody with bad intentions, or a bad disk, may hand over; each is made from a good one."""

from __future__ import annotations

import hashlib
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

Members = dict[str, bytes]
Make = Callable[[Path, Path], None]  # from a good bundle, to the file to make

HOSTILE: dict[str, Make] = {}


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def hashed(members: Members) -> Members:
    """The members with a list of hashes that is right."""
    others = {name: data for name, data in members.items() if name != "hashes.json"}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in others.items()}
    return {**others, "hashes.json": json.dumps(hashes).encode()}


def pack(path: Path, members: Members, change: Callable[[zipfile.ZipInfo], None] | None = None) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            if change is not None:
                change(info)
            file.writestr(info, data)


def hostile(make: Make) -> Make:
    HOSTILE[make.__name__] = make
    return make


def of_bytes(name: str, change: Callable[[bytes], bytes]) -> None:
    HOSTILE[name] = lambda good, bad: bad.write_bytes(change(good.read_bytes())) and None


def with_member(name: str, member: str, data: bytes = b"x") -> None:
    HOSTILE[name] = lambda good, bad: pack(bad, hashed({**members_of(good), member: data}))


def of_info(name: str, change: Callable[[zipfile.ZipInfo], None]) -> None:
    HOSTILE[name] = lambda good, bad: pack(bad, members_of(good), change)


def directory_begin(data: bytes) -> int:
    return int(struct.unpack("<L", data[-6:-2])[0])


# --- the file as a whole -------------------------------------------------------------------------------------------
of_bytes("empty", lambda _: b"")
of_bytes("text", lambda _: b"not an archive at all, but long enough to look for one")
of_bytes("cut_off_at_the_end", lambda data: data[:-1])
of_bytes("cut_off_in_the_middle", lambda data: data[: len(data) // 2])
of_bytes("bytes_before", lambda data: b"#!/bin/sh\n" + data)
of_bytes("bytes_behind", lambda data: data + b"\0" * 100)
of_bytes("comment_behind", lambda data: data[:-2] + struct.pack("<H", 4) + b"more")
of_bytes("bytes_between", lambda data: data[: directory_begin(data)] + b"hidden" + data[directory_begin(data) :])
of_bytes("many_members_claimed", lambda data: data[:-14] + struct.pack("<2H", 60000, 60000) + data[-10:])
of_bytes("huge_directory_claimed", lambda data: data[:-10] + struct.pack("<L", 1 << 30) + data[-6:])
of_bytes("two_disks", lambda data: data[:-18] + struct.pack("<H", 1) + data[-16:])
of_bytes("zip64_locator_to_nowhere", lambda data: data[:-22] + b"PK\6\7" + b"\1" * 16 + data[-22:])


@hostile
def a_flipped_bit_in_weights(good: Path, bad: Path) -> None:
    data = bytearray(good.read_bytes())
    data[directory_begin(bytes(data)) - 2000] ^= 1
    bad.write_bytes(bytes(data))


# --- names of members ----------------------------------------------------------------------------------------------
with_member("climbs_out", "../evil.safetensors")
with_member("climbs_out_of_weights", "weights/../../evil-fold_0.safetensors")
with_member("absolute", "/tmp/evil")
with_member("drive_letter", "C:evil")
with_member("backslash", "weights\\..\\evil")
with_member("newline_in_name", "model.json\n")
with_member("folder", "weights/", b"")
with_member("code", "hook.py", b"print('hello')")
with_member("pickle", "weights.pkl", b"\x80\x04.")
with_member("archive_in_archive", "more.zip", b"PK\3\4")
with_member("weights_of_nobody", "weights/2d-fold_7.safetensors")
with_member("upper_case_twin", "MODEL.JSON", b"{}")
with_member("dot_slash", "./model.json", b"{}")
with_member("wide_digits", "weights/2d-fold_٣.safetensors")


@hostile
def zero_byte_in_name(good: Path, bad: Path) -> None:
    pack(bad, hashed({**members_of(good), "report.html": b"x"}))
    bad.write_bytes(bad.read_bytes().replace(b"report.html", b"report\0.htm"))


@hostile
def member_twice(good: Path, bad: Path) -> None:
    members = members_of(good)
    with zipfile.ZipFile(bad, "w") as file:
        for name, data in [*members.items(), ("model.json", b"{}")]:
            file.writestr(zipfile.ZipInfo(name), data)


@hostile
def overlapping_members(good: Path, bad: Path) -> None:
    """The second member of the directory lies where the first does."""
    data = bytearray(good.read_bytes())
    begin = directory_begin(bytes(data))
    second = data.index(b"PK\1\2", begin + 4)
    data[second + 42 : second + 46] = struct.pack("<L", 0)
    bad.write_bytes(bytes(data))


@hostile
def too_many_members(good: Path, bad: Path) -> None:
    more = {f"weights/x-fold_{index}.safetensors": b"" for index in range(600)}
    pack(bad, hashed({**members_of(good), **more}))


@hostile
def other_size_in_own_header(good: Path, bad: Path) -> None:
    data = bytearray(good.read_bytes())
    data[22:26] = struct.pack("<L", 1 << 31)
    bad.write_bytes(bytes(data))


@hostile
def other_name_in_own_header(good: Path, bad: Path) -> None:
    data = good.read_bytes()
    bad.write_bytes(data.replace(b"model.json", b"hodel.json", 1))


# --- kinds of members ----------------------------------------------------------------------------------------------
def _set(**values: object) -> Callable[[zipfile.ZipInfo], None]:
    def change(info: zipfile.ZipInfo) -> None:
        for key, value in values.items():
            setattr(info, key, value)

    return change


of_info("symbolic_links", _set(external_attr=(stat.S_IFLNK | 0o777) << 16))
of_info("device_files", _set(external_attr=(stat.S_IFCHR | 0o666) << 16))
of_info("deflated", _set(compress_type=zipfile.ZIP_DEFLATED))
of_info("bzip2", _set(compress_type=zipfile.ZIP_BZIP2))
of_info("extra_fields", _set(extra=struct.pack("<2H4s", 0x9999, 4, b"evil")))


@hostile
def bomb(good: Path, bad: Path) -> None:
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model.json", b" " * (64 << 20))


@hostile
def encrypted_flag(good: Path, bad: Path) -> None:
    data = bytearray(good.read_bytes())
    data[6:8] = struct.pack("<H", 1)
    begin = directory_begin(bytes(data))
    data[begin + 8 : begin + 10] = struct.pack("<H", 1)
    bad.write_bytes(bytes(data))


@hostile
def oversized_record(good: Path, bad: Path) -> None:
    members = members_of(good)
    pack(bad, hashed({**members, "model.json": members["model.json"] + b" " * (17 << 20)}))


# --- hashes --------------------------------------------------------------------------------------------------------
@hostile
def wrong_hash(good: Path, bad: Path) -> None:
    members = members_of(good)
    pack(bad, {**members, "model.json": members["model.json"].replace(b"tiny", b"tine")})


@hostile
def no_hashes(good: Path, bad: Path) -> None:
    pack(bad, {name: data for name, data in members_of(good).items() if name != "hashes.json"})


@hostile
def hash_of_nothing(good: Path, bad: Path) -> None:
    members = members_of(good)
    hashes = {**json.loads(members["hashes.json"]), "more": "0" * 64}
    pack(bad, {**members, "hashes.json": json.dumps(hashes).encode()})


@hostile
def hash_missing(good: Path, bad: Path) -> None:
    members = members_of(good)
    hashes = dict(list(json.loads(members["hashes.json"]).items())[1:])
    pack(bad, {**members, "hashes.json": json.dumps(hashes).encode()})


@hostile
def hashes_of_another_kind(good: Path, bad: Path) -> None:
    pack(bad, {**members_of(good), "hashes.json": b"[" * 50_000})


@hostile
def hash_given_twice(good: Path, bad: Path) -> None:
    members = members_of(good)
    pack(bad, {**members, "hashes.json": members["hashes.json"].replace(b"{", b'{"model.json": "0",', 1)})


@hostile
def no_record(good: Path, bad: Path) -> None:
    pack(bad, hashed({name: data for name, data in members_of(good).items() if name != "model.json"}))


@hostile
def weights_missing(good: Path, bad: Path) -> None:
    members = members_of(good)
    first = next(name for name in members if name.startswith("weights/"))
    pack(bad, hashed({name: data for name, data in members.items() if name != first}))
