"""The Decathlon download against a local server that misbehaves in every way servers do."""

import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BODY = bytes(range(256)) * 4000  # 1 MB
TASK = "Task04_Hippocampus"


@pytest.fixture(scope="module")
def script(repository):
    spec = importlib.util.spec_from_file_location("download_msd", repository / "scripts" / "download_msd.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Server(BaseHTTPRequestHandler):
    """Serves `files`; some paths misbehave. Class attributes are set by the fixture."""

    files: dict[str, bytes]
    requests: list[tuple[str, str | None]]
    cut_first = 0

    def do_GET(self):
        name = self.path.strip("/")
        self.requests.append((name, self.headers.get("Range")))
        if name == "redirect":
            self._head(302, Location=f"http://{self.headers['Host']}/good")
        elif name == "to-file":
            self._head(302, Location="file:///etc/hostname")
        elif name == "endless":
            self._head(200)
            self._send_until_closed()
        elif name in self.files:
            self._send(self.files[name])
        else:
            self._head(404)

    def _send(self, body):
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0
        if start and start >= len(body):
            self._head(416)
            return
        self._head(206 if start else 200, **{"Content-Length": str(len(body) - start)})
        cut, type(self).cut_first = self.cut_first, 0
        self.wfile.write(body[start : start + cut] if cut else body[start:])

    def _send_until_closed(self):
        try:
            while True:
                self.wfile.write(b"\0" * 65536)
        except OSError:
            pass

    def _head(self, code, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


class QuietServer(ThreadingHTTPServer):
    """A client that hangs up in the middle is what some tests are about."""

    def handle_error(self, request, client_address):
        pass


@pytest.fixture
def server():
    Server.files, Server.requests, Server.cut_first = {"good": BODY}, [], 0
    listening = QuietServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def limits(script):
    return script.Limits(schemes=("http",), max_bytes=4 << 20, tries=3, pause_s=0.01)


def _md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            member.linkname = content.decode() if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


GOOD_TAR = _tar(
    [
        (TASK, b"", tarfile.DIRTYPE),
        (f"{TASK}/dataset.json", b"{}", tarfile.REGTYPE),
        (f"{TASK}/imagesTr/a.nii.gz", b"abc", tarfile.REGTYPE),
        (f"{TASK}/imagesTr/._a.nii.gz", b"Mac", tarfile.REGTYPE),
    ]
)


def test_a_good_file_arrives_whole(script, server, limits, tmp_path):
    script.download(f"{server}/good", tmp_path / "a", _md5(BODY), limits)
    assert (tmp_path / "a").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_cut_connection_is_continued_where_it_ended(script, server, limits, tmp_path):
    Server.cut_first = 300_000
    script.download(f"{server}/good", tmp_path / "a", _md5(BODY), limits)
    assert (tmp_path / "a").read_bytes() == BODY
    assert Server.requests == [("good", None), ("good", "bytes=300000-")]


def test_an_interrupted_download_is_continued_by_the_next_call(script, server, limits, tmp_path):
    (tmp_path / "a.part").write_bytes(BODY[:1000])
    script.download(f"{server}/good", tmp_path / "a", _md5(BODY), limits)
    assert (tmp_path / "a").read_bytes() == BODY
    assert Server.requests == [("good", "bytes=1000-")]


def test_a_complete_leftover_is_used(script, server, limits, tmp_path):
    (tmp_path / "a.part").write_bytes(BODY)
    script.download(f"{server}/good", tmp_path / "a", _md5(BODY), limits)
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("leftover", [b"", b"something else"])
def test_a_wrong_hash_leaves_nothing(script, server, limits, tmp_path, leftover):
    if leftover:
        (tmp_path / "a.part").write_bytes(leftover)
    with pytest.raises(script.Refused, match="MD5"):
        script.download(f"{server}/good", tmp_path / "a", _md5(b"other" if not leftover else BODY), limits)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_already_there_is_refused(script, server, limits, tmp_path):
    (tmp_path / "a").write_bytes(BODY[:-1])
    with pytest.raises(script.Refused, match="MD5"):
        script.download(f"{server}/good", tmp_path / "a", _md5(BODY), limits)


def test_a_redirect_to_an_allowed_scheme_is_followed(script, server, limits, tmp_path):
    script.download(f"{server}/redirect", tmp_path / "a", _md5(BODY), limits)
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("page", ["to-file", "redirect"])
def test_a_redirect_to_another_scheme_is_refused(script, server, limits, tmp_path, page):
    schemes = ("http",) if page == "to-file" else ("https",)
    opener = script.urllib.request.build_opener(script.CheckedRedirects(schemes))
    with pytest.raises((script.Refused, OSError), match=r"is not (fetched|allowed)"):
        script._fetch_rest(opener, f"{server}/{page}", tmp_path / "a.part", limits.max_bytes)


def test_plain_http_is_refused_by_default(script, server, tmp_path):
    with pytest.raises(script.Refused, match="only https"):
        script.download(f"{server}/good", tmp_path / "a", _md5(BODY))
    assert Server.requests == []


def test_an_announced_size_over_the_cap_is_refused_before_it_comes(script, server, tmp_path):
    limits = script.Limits(schemes=("http",), max_bytes=1000)
    with pytest.raises(script.Refused, match="allowed"):
        script.download(f"{server}/good", tmp_path / "a", _md5(BODY), limits)
    assert list(tmp_path.iterdir()) == []


def test_an_endless_body_is_cut_at_the_cap(script, server, limits, tmp_path):
    with pytest.raises(script.Refused, match="came"):
        script.download(f"{server}/endless", tmp_path / "a", _md5(BODY), limits)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_fails_at_once(script, server, limits, tmp_path):
    with pytest.raises(OSError, match="404"):
        script.download(f"{server}/absent", tmp_path / "a", _md5(BODY), limits)
    assert len(Server.requests) == 1


def test_a_task_is_downloaded_checked_and_unpacked(script, server, limits, tmp_path):
    Server.files[f"{TASK}.tar"] = GOOD_TAR
    folder = script.fetch_task(TASK, tmp_path, server, _md5(GOOD_TAR), limits, lambda _: None)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        f"{TASK}/dataset.json",
        f"{TASK}/imagesTr/a.nii.gz",
    ]
    assert folder == script.fetch_task(TASK, tmp_path, server, "", limits, lambda _: None)
    assert len(Server.requests) == 1


@pytest.mark.parametrize(
    "member",
    [
        ("../escaped", b"x", tarfile.REGTYPE),
        (f"{TASK}/../../escaped", b"x", tarfile.REGTYPE),
        ("/tmp/escaped", b"x", tarfile.REGTYPE),
        (f"{TASK}/link", b"/etc/passwd", tarfile.SYMTYPE),
        (f"{TASK}/link", b"../../escaped", tarfile.LNKTYPE),
        (f"{TASK}/pipe", b"", tarfile.FIFOTYPE),
        ("Task05_Prostate/other", b"x", tarfile.REGTYPE),
        (f"{TASK}/bomb", b"\0" * 2000, tarfile.REGTYPE),
    ],
)
def test_a_hostile_archive_is_refused_before_anything_is_written(script, tmp_path, member):
    (tmp_path / "out").mkdir()
    archive = tmp_path / "out" / "a.tar"
    archive.write_bytes(_tar([(f"{TASK}/dataset.json", b"{}", tarfile.REGTYPE), member]))
    with pytest.raises(script.Refused):
        script.unpack(archive, tmp_path / "out", max_bytes=1000)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a.tar"]


def test_what_is_no_archive_is_refused(script, tmp_path):
    (tmp_path / "a.tar").write_bytes(BODY[:2000])
    with pytest.raises(script.Refused, match="cannot be unpacked"):
        script.unpack(tmp_path / "a.tar", tmp_path, max_bytes=1000)


def test_a_folder_already_there_is_never_replaced(script, tmp_path):
    (tmp_path / TASK).mkdir()
    (tmp_path / TASK / "mine").write_text("keep")
    (tmp_path / "a.tar").write_bytes(GOOD_TAR)
    with pytest.raises(script.Refused, match="already there"):
        script.unpack(tmp_path / "a.tar", tmp_path, max_bytes=10_000)
    assert (tmp_path / TASK / "mine").read_text() == "keep"


def test_an_unknown_task_is_answered_with_the_list(repository):
    command = [sys.executable, str(repository / "scripts" / "download_msd.py"), "Task99"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Task04_Hippocampus" in done.stderr
