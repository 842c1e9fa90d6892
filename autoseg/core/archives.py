"""Archives of uncompressed files, read so strictly that every byte is accounted for before any of them is believed.

An archive is a zip file as `write_archive` makes it: members one behind the other from the first byte on, not
compressed, then their directory, then nothing. Any zip program opens it; not every zip file is one.
"""

from __future__ import annotations

import hashlib
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from autoseg.core.errors import IntegrityRefusal, MissingInput, RecordFault
from autoseg.core.files import atomic_file
from autoseg.core.records import from_json

HASHES = "hashes.json"
"""The member that holds the SHA-256 of every other one."""

MOST_MEMBERS = 512
_LARGEST_DIRECTORY_BYTES = 1 << 18
_LARGEST_HASHES_BYTES = 1 << 17

_LOCAL = struct.Struct("<4s5H3L2H")
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_SIZES_64 = struct.Struct("<2H2Q")
_LOCATOR_MARK = b"PK\6\7"
_TIME = (1980, 1, 1, 0, 0, 0)  # the same for all, so that equal contents give equal bytes


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a member's bytes are."""

    begin: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive whose structure was found to be sound; contents are verified whenever they are read.

    Attributes:
        path: of the file.
        entries: place of every member.
        hashes: SHA-256 of every member but the list of them.
    """

    path: Path
    entries: dict[str, _Entry]
    hashes: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the members, without the list of hashes."""
        return tuple(name for name in self.entries if name != HASHES)

    @property
    def content(self) -> str:
        """16 hexadecimal digits that change whenever any member does."""
        return hashlib.sha256(json.dumps(self.hashes, sort_keys=True).encode()).hexdigest()[:16]

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self.entries[name].size

    def refusal(self, what: str) -> IntegrityRefusal:
        """The error that says what is wrong with this archive."""
        return _refusal(self.path, what)

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            IntegrityRefusal: they are not those that were written.
        """
        with self.path.open("rb") as stream:
            data = _bytes_of(stream, self.entries[name])
        if hashlib.sha256(data).hexdigest() != self.hashes[name] or zlib.crc32(data) != self.entries[name].crc:
            raise _refusal(self.path, f"{name} does not match its hash")
        return data


def write_archive(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes an archive at once; equal members give equal bytes.

    Args:
        path: of the file; replaced if it exists.
        members: name and content of each, asked for one after the other.
    """
    hashes: dict[str, str] = {}
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
        for name, data in members:
            hashes[name] = hashlib.sha256(data).hexdigest()
            file.writestr(_description(name), data)
        file.writestr(_description(HASHES), json.dumps(hashes, indent=1) + "\n")


def open_archive(path: Path, most_bytes: Callable[[str], int | None]) -> Archive:
    """The archive in a file, its structure and list of hashes checked; members are not read.

    Args:
        path: of the file.
        most_bytes: the most that a member of this name may have; None if there can be no such member.

    Raises:
        MissingInput: there is no such file.
        IntegrityRefusal: it is not an archive, or not exactly one.
    """
    try:
        with path.open("rb") as stream:
            end = _directory_begin(path, stream)
            entries = _entries(path, stream, end, most_bytes)
            raw = _bytes_of(stream, entries[HASHES])
    except FileNotFoundError as error:
        raise MissingInput(f"there is no file {path}", where=str(path)) from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise _refusal(path, f"it cannot be read as an archive: {error}") from error
    hashes = _hashes(path, raw)
    if set(hashes) != set(entries) - {HASHES}:
        different = min(set(hashes) ^ (set(entries) - {HASHES}))
        raise _refusal(path, f"the list of hashes and the members do not agree about {different!r}")
    return Archive(path, entries, hashes)


def without_duplicates(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """The object of `json.loads(object_pairs_hook=...)`; raises ValueError for a key given twice."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given twice")
        found[key] = value
    return found


def _description(name: str) -> zipfile.ZipInfo:
    description = zipfile.ZipInfo(name, _TIME)
    description.external_attr = (stat.S_IFREG | 0o644) << 16
    description.create_system = 3  # Unix, whatever this system is
    return description


def _bytes_of(stream: BinaryIO, entry: _Entry) -> bytes:
    stream.seek(entry.begin)
    return stream.read(entry.size)


def _hashes(path: Path, raw: bytes) -> dict[str, str]:
    try:
        json.loads(raw, object_pairs_hook=without_duplicates)
        return from_json(dict[str, str], raw, str(path))
    except (ValueError, RecursionError, RecordFault) as error:
        raise _refusal(path, f"its list of hashes cannot be read: {error}") from error


def _directory_begin(path: Path, stream: BinaryIO) -> int:
    """First byte of the directory, after the end of the file was found to fit to it exactly."""
    size = stream.seek(0, 2)
    behind = size - _END.size
    if behind < 0:
        raise _refusal(path, f"{size} bytes are too few for an archive")
    stream.seek(behind)
    mark, disk, first_disk, here, count, length, begin, comment = _END.unpack(stream.read(_END.size))
    if (mark, disk, first_disk, comment) != (b"PK\5\6", 0, 0, 0) or here != count:
        raise _refusal(path, "the end is not that of an archive; perhaps it was cut off")
    stream.seek(max(0, behind - _LOCATOR_64.size))
    if stream.read(4) == _LOCATOR_MARK:
        behind -= _END_64.size + _LOCATOR_64.size
        count, length, begin = _large_end(path, stream, behind)
    if count > MOST_MEMBERS or length > _LARGEST_DIRECTORY_BYTES:
        raise _refusal(path, f"{count} members in a directory of {length} bytes are too many")
    if begin + length != behind:
        raise _refusal(path, "there are bytes that belong to no member")
    return int(begin)


def _large_end(path: Path, stream: BinaryIO, behind: int) -> tuple[int, int, int]:
    """Members, length and first byte of the directory of an archive of more than 2 GiB."""
    if behind < 0:
        raise _refusal(path, "it is too small for what its end says")
    stream.seek(behind)
    fields = _END_64.unpack(stream.read(_END_64.size))
    locator = _LOCATOR_64.unpack(stream.read(_LOCATOR_64.size))
    mark, length_of_rest, _, _, disk, first_disk, here, count, length, begin = fields
    if (mark, length_of_rest, disk, first_disk) != (b"PK\6\6", _END_64.size - 12, 0, 0) or here != count:
        raise _refusal(path, "its end is not that of an archive")
    if locator != (_LOCATOR_MARK, 0, behind, 1):
        raise _refusal(path, "its end does not lead to its directory")
    return count, length, begin


def _entries(path: Path, stream: BinaryIO, end: int, most_bytes: Callable[[str], int | None]) -> dict[str, _Entry]:
    """Place of every member, each checked, one behind the other from the first byte of the file to `end`."""
    entries: dict[str, _Entry] = {}
    position = 0
    with zipfile.ZipFile(stream) as file:
        members = file.infolist()
    for member in members:
        fault = _fault_of(member, most_bytes) or (
            f"{member.orig_filename} is there twice" if member.orig_filename in entries else None
        )
        if fault is None and member.header_offset != position:
            fault = f"{member.orig_filename} does not lie where it should"
        if fault is not None:
            raise _refusal(path, fault)
        entry = _entry(path, stream, member)
        entries[member.orig_filename] = entry
        position = entry.begin + entry.size
    if position != end:
        raise _refusal(path, "the members do not fill the file")
    if HASHES not in entries:
        raise _refusal(path, "it has no list of hashes")
    return entries


def _fault_of(member: zipfile.ZipInfo, most_bytes: Callable[[str], int | None]) -> str | None:
    """What is wrong with a member according to the directory."""
    name = member.orig_filename
    most = _LARGEST_HASHES_BYTES if name == HASHES else most_bytes(name)
    kind = stat.S_IFMT(member.external_attr >> 16)
    checks = (
        (most is None, "there can be no such member"),
        (member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size, "it is compressed"),
        (member.flag_bits != 0, "it is encrypted or of a kind that is not used"),
        (kind not in (0, stat.S_IFREG), "it is not a plain file"),
        (most is not None and member.file_size > most, f"{member.file_size} bytes are too many"),
    )
    return next((f"{name!r}: {fault}" for is_wrong, fault in checks if is_wrong), None)


def _entry(path: Path, stream: BinaryIO, member: zipfile.ZipInfo) -> _Entry:
    """The place of a member, after its own header was found to say the same as the directory."""
    name = member.orig_filename.encode()
    stream.seek(member.header_offset)
    mark, _, flags, method, _, _, crc, stored, size, length, extra = _LOCAL.unpack(stream.read(_LOCAL.size))
    own_name, own_extra = stream.read(length), stream.read(extra)
    if own_extra == _SIZES_64.pack(1, 16, member.file_size, member.file_size):
        stored = size = member.file_size  # an archive of more than 2 GiB keeps sizes there
    elif own_extra:
        raise _refusal(path, f"{member.orig_filename}: its header holds more than it should")
    found = (mark, flags, method, crc, stored, size, own_name)
    if found != (b"PK\3\4", 0, 0, member.CRC, member.file_size, member.file_size, name):
        raise _refusal(path, f"{member.orig_filename}: its header and the directory do not agree")
    return _Entry(stream.tell(), member.file_size, member.CRC)


def _refusal(path: Path, what: str) -> IntegrityRefusal:
    return IntegrityRefusal(
        f"{path.name} is not a sound model file: {what}",
        where=str(path),
        why="it was cut off, changed, or made by something else",
        do="get it again from where it was made, with autoseg model export",
    )
