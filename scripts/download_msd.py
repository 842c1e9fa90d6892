#!/usr/bin/env python3
"""Downloads one task of the Medical Segmentation Decathlon, checks its hash and unpacks it.

    scripts/download_msd.py Task04_Hippocampus --out data
    autoseg plan data/Task04_Hippocampus

Needs a network; nothing else in AutoSeg does. An interrupted download is resumed by the same command. The MD5 sums are
those that MONAI publishes with its DecathlonDataset. Data: Antonelli et al. 2022, https://doi.org/10.1038/s41467-022-30695-9,
CC-BY-SA 4.0.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

SOURCE = "https://msd-for-monai.s3-us-west-2.amazonaws.com"

MD5 = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}

MAX_GIB = 40.0  # assumption: the largest task, the liver, is below 30 GiB
UNPACKED_FACTOR = 1.2  # assumption: the archives hold compressed images, so they hardly grow
BLOCK_BYTES = 1 << 20
TIMEOUT_S = 60.0
TRIES = 5
TRY_PAUSE_S = 3.0


class Refused(Exception):
    """What was downloaded, or where it would come from, is not what it should be."""


@dataclass(frozen=True)
class Limits:
    """What a download may do; tests set others.

    Attributes:
        schemes: that an address and every address it redirects to may have.
        max_bytes: largest size of the archive; unpacked it may be a little more.
        tries: connections made before giving up.
        pause_s: between them.
    """

    schemes: tuple[str, ...] = ("https",)
    max_bytes: int = int(MAX_GIB * 2**30)
    tries: int = TRIES
    pause_s: float = TRY_PAUSE_S


class CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the allowed schemes only."""

    def __init__(self, schemes: tuple[str, ...]) -> None:
        self.schemes = schemes

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """The request that follows, if it may."""
        _check_scheme(newurl, self.schemes)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str, schemes: tuple[str, ...]) -> None:
    if urlsplit(url).scheme not in schemes:
        raise Refused(f"{url} is not fetched: only {', '.join(schemes)} is allowed")


def download(url: str, path: Path, md5: str, limits: Limits = Limits()) -> None:
    """Fetches `url` into `path`; what came so far is kept beside it and continued by the next call.

    Raises:
        Refused: scheme, size or hash are wrong; a file with a wrong hash is deleted.
        OSError: the connection failed more often than allowed.
    """
    _check_scheme(url, limits.schemes)
    if path.exists():
        _check_hash(path, md5)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    opener = urllib.request.build_opener(CheckedRedirects(limits.schemes))
    for attempt in range(1, limits.tries + 1):
        try:
            _fetch_rest(opener, url, partial, limits.max_bytes)
            break
        except Refused:
            partial.unlink(missing_ok=True)
            raise
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            permanent = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
            if permanent or attempt == limits.tries:
                raise
            print(f"connection lost ({error}), trying again", file=sys.stderr)
            time.sleep(limits.pause_s)
    _check_hash(partial, md5)
    partial.replace(path)


def _fetch_rest(opener: urllib.request.OpenerDirector, url: str, partial: Path, max_bytes: int) -> None:
    """Appends what is missing of `url` to `partial`."""
    present = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={present}-"} if present else {})
    try:
        response: HTTPResponse = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and present:  # nothing is missing, or the server holds another file: the hash tells
            return
        raise
    with response:
        resumed = response.status == 206
        total = (present if resumed else 0) + int(response.headers.get("Content-Length") or 0)
        _check_size(total, max_bytes, partial.parent)
        with partial.open("ab" if resumed else "wb") as stream:
            _copy(response, stream, max_bytes, total)


def _check_size(total: int, max_bytes: int, folder: Path) -> None:
    if total > max_bytes:
        raise Refused(f"the archive has {total:,} bytes, more than the {max_bytes:,} allowed (--max-gib)")
    if total * (1 + UNPACKED_FACTOR) > shutil.disk_usage(folder).free:
        raise Refused(f"{folder} has too little free space for {total:,} bytes and what is unpacked from them")


def _copy(response: HTTPResponse, stream: IO[bytes], max_bytes: int, total: int) -> None:
    next_line = time.monotonic() + 5
    while block := response.read(BLOCK_BYTES):
        stream.write(block)
        if stream.tell() > max_bytes:
            raise Refused(f"more than the {max_bytes:,} bytes allowed (--max-gib) came")
        if time.monotonic() > next_line:
            next_line = time.monotonic() + 5
            print(f"{stream.tell() / 2**20:,.0f} of {total / 2**20:,.0f} MiB", file=sys.stderr)
    if stream.tell() < total:
        raise ConnectionError(f"the connection ended after {stream.tell():,} of {total:,} bytes")


def _check_hash(path: Path, md5: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != md5:
        path.unlink()
        raise Refused(f"{path.name} has MD5 {digest.hexdigest()}, not {md5}: it was deleted; download it again")


def unpack(archive: Path, folder: Path, max_bytes: int) -> Path:
    """Unpacks a tar archive that holds one folder into `folder`, and returns that folder.

    Everything is unpacked aside and moved in place at the end, so a stop in between leaves nothing half done.
    Links, devices, absolute paths and paths that lead outside are refused before anything is written.

    Raises:
        Refused: the archive holds something else than files in one folder, or more bytes than allowed.
    """
    aside = folder / f".partial-{archive.stem}-{os.getpid()}"
    try:
        with tarfile.open(archive, "r:") as tar:
            members = [member for member in tar.getmembers() if not Path(member.name).name.startswith("._")]
            name = _check_members(members, max_bytes)
            tar.extractall(aside, members, filter="data")
        target = folder / name
        if target.exists():
            raise Refused(f"{target} is already there; remove it first if it should be replaced")
        (aside / name).rename(target)
        return target
    except tarfile.TarError as error:
        raise Refused(f"{archive.name} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_members(members: list[tarfile.TarInfo], max_bytes: int) -> str:
    """The one folder that all members lie in."""
    tops = {Path(member.name).parts[0] for member in members if Path(member.name).parts}
    unsafe = [
        member.name
        for member in members
        if not (member.isfile() or member.isdir()) or ".." in Path(member.name).parts or Path(member.name).is_absolute()
    ]
    if unsafe or len(tops) != 1:
        raise Refused(
            f"the archive holds {', '.join(unsafe or sorted(tops)) or 'nothing'} instead of one folder of files"
        )
    if (size := sum(member.size for member in members)) > max_bytes * UNPACKED_FACTOR:
        raise Refused(f"the archive would unpack to {size:,} bytes")
    return tops.pop()


def fetch_task(task: str, out: Path, source: str, md5: str, limits: Limits, say: Callable[[str], None]) -> Path:
    """Downloads, checks and unpacks one task into `out`; returns its folder."""
    target = out / task
    if target.exists():
        say(f"{target} is already there")
        return target
    archive = out / f"{task}.tar"
    download(f"{source}/{task}.tar", archive, md5, limits)
    say(f"{archive.name}: MD5 {md5} is right")
    unpacked = unpack(archive, out, limits.max_bytes)
    archive.unlink()
    return unpacked


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(MD5), metavar="TASK", help=f"one of: {', '.join(MD5)}")
    parser.add_argument(
        "--out", type=Path, default=Path(), help="folder that the task's folder goes into (default: here)"
    )
    parser.add_argument("--max-gib", type=float, default=MAX_GIB, help="refuse larger archives (default: %(default)s)")
    asked = parser.parse_args()
    try:
        folder = fetch_task(
            asked.task, asked.out, SOURCE, MD5[asked.task], Limits(max_bytes=int(asked.max_gib * 2**30)), print
        )
    except (Refused, OSError, HTTPException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 6 if isinstance(error, Refused) else 5
    print(f"{folder}\nnext: autoseg plan {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
