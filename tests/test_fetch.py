"""Downloads against a server of our own: resume, checksums, cache, limits, and what errors say."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hllm import fetch as fetching
from hllm.errors import FetchError
from hllm.fetch import fetch, fetch_package_file, fetch_package_files, first_of

CONTENT = bytes(range(256)) * 4000
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


class Server:
    """What the server does next, and what it was asked."""

    def __init__(self) -> None:
        self.content, self.etag = CONTENT, '"v1"'
        self.cut_after: list[int] = []  # one entry a request: bytes sent before the connection breaks
        self.status: list[int] = []  # one entry a request: an error instead of the file
        self.ranges: list[str | None] = []
        self.url = ""

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.status:
            request.send_error(self.status.pop(0))
            return
        start = 0
        if asked and request.headers.get("If-Range") == self.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            request.send_response(200)
        body = self.content[start:]
        request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", self.etag)
        request.end_headers()
        request.wfile.write(body[: self.cut_after.pop(0)] if self.cut_after else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *args: Any) -> None:
            pass

    monkeypatch.setenv("HLLM_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # no waiting between attempts
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{running.server_address[1]}/data/set.bin"
    yield state
    running.shutdown()
    running.server_close()


def test_a_file_is_fetched_once(server: Server) -> None:
    file = fetch(server.url, sha256=SHA256, md5=MD5, show=False)
    assert file.read_bytes() == CONTENT
    assert fetch(server.url, sha256=SHA256, show=False) == file
    assert len(server.ranges) == 1
    assert [f.name for f in file.parent.iterdir()] == ["set.bin"]  # no .part, no .etag


def test_a_cut_connection_is_resumed(server: Server) -> None:
    server.cut_after = [300_000, 200_000]
    assert fetch(server.url, sha256=SHA256, show=False).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_run_resumes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cut_after = [300_000, 0, 0, 0, 0]
    with pytest.raises(FetchError, match="the same command resumes"):
        fetch(server.url, show=False)
    server.cut_after = []
    assert fetch(server.url, sha256=SHA256, show=False).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=300000-"


def test_another_version_is_not_appended(server: Server) -> None:
    """The file changed between two attempts: begin again rather than join two halves."""
    server.cut_after = [300_000, 0, 0, 0, 0]
    with pytest.raises(FetchError):
        fetch(server.url, show=False)
    server.cut_after, server.etag, server.content = [], '"v2"', CONTENT[::-1]
    assert fetch(server.url, show=False).read_bytes() == CONTENT[::-1]


def test_wrong_checksum(server: Server) -> None:
    with pytest.raises(FetchError, match=f"its md5 is {MD5}, not the published 0000"):
        fetch(server.url, md5="0" * 32, show=False)
    assert not list(fetching.downloads().rglob("set.bin*"))


def test_a_damaged_cache_is_fetched_again(server: Server) -> None:
    file = fetch(server.url, sha256=SHA256, show=False)
    file.write_bytes(b"damaged")
    assert fetch(server.url, sha256=SHA256, show=False).read_bytes() == CONTENT


def test_errors_of_the_server(server: Server) -> None:
    server.status = [404]
    with pytest.raises(FetchError, match=r"set\.bin: HTTP 404"):
        fetch(server.url, show=False)
    assert len(server.ranges) == 1  # asking again would not help
    server.status = [503, 503]
    assert fetch(server.url, show=False).read_bytes() == CONTENT


def test_more_than_the_file_was_there(server: Server) -> None:
    """416: what an earlier run left is longer than the file."""
    part = fetching.downloads() / fetching._cache_name(server.url)
    part = part.with_name(part.name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT + b"more")
    part.with_name(part.name + ".etag").write_text('"v1"')
    server.status = [416]
    assert fetch(server.url, sha256=SHA256, show=False).read_bytes() == CONTENT


def test_two_at_once_download_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, which is not fast, and takes its file."""
    begun, go_on = threading.Event(), threading.Event()
    answer = server.answer

    def slow(request: http.server.BaseHTTPRequestHandler) -> None:
        begun.set()
        assert go_on.wait(600)
        answer(request)

    monkeypatch.setattr(server, "answer", slow)
    monkeypatch.setattr(fetching, "WAIT_SECONDS", 0.0)
    waited = threading.Event()
    taken = fetching._taken

    def watched(*arguments: Any) -> bool:
        if not (got := taken(*arguments)):
            waited.set()
        return got

    monkeypatch.setattr(fetching, "_taken", watched)
    found: list[bytes] = []
    workers = [
        threading.Thread(
            target=lambda: found.append(fetch(server.url, sha256=SHA256, show=False).read_bytes())
        )
        for _ in range(2)
    ]
    workers[0].start()
    assert begun.wait(600)
    workers[1].start()
    assert waited.wait(600)
    go_on.set()
    for worker in workers:
        worker.join(600)
    assert found == [CONTENT, CONTENT]
    assert len(server.ranges) == 1
    assert [f.name for f in fetching.downloads().rglob("set.bin*")] == ["set.bin"]  # and no lock


def test_a_killed_download_holds_nobody_up(
    server: Server, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Its lock ends with it, and what it had is gone on with."""
    server.cut_after = [300_000]
    code = (
        "import os, signal, sys\nfrom hllm import fetch as f\n"
        "f.time.sleep = lambda s: os.kill(os.getpid(), signal.SIGKILL)\n"  # after the first break
        "f.fetch(sys.argv[1], show=False)"
    )
    assert run_python("-c", code, server.url).returncode == -9
    assert sorted(f.name for f in fetching.downloads().rglob("set.bin*")) == [
        "set.bin.part",
        "set.bin.part.etag",
        "set.bin.part.lock",
    ]
    assert fetch(server.url, sha256=SHA256, show=False).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


def test_destination_and_names(server: Server, tmp_path: Path) -> None:
    assert fetch(server.url, dest=tmp_path / "here" / "x", show=False) == tmp_path / "here" / "x"
    names = [
        fetching._cache_name(f"https://a.org/{path}")
        for path in ("x/../../y", "x?v=1", "x?v=2", "%2e%2e/z", "")
    ]
    assert names[0] == "a.org/x/y"
    assert names[1] != names[2]
    assert names[3:] == ["a.org/z", "a.org/index"]
    for url in ("file:///etc/passwd", "ftp://a.org/x", "no address"):
        with pytest.raises(FetchError, match="is not an http"):
            fetch(url)


def test_an_unreachable_home_costs_little(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HLLM_HOME", str(tmp_path))
    with pytest.raises(FetchError, match=r"no connection to 127\.0\.0\.1"):
        fetch("http://127.0.0.1:9/x")
    monkeypatch.setattr(fetching, "CONNECT_SECONDS", 0.05)
    enough, ended = threading.Event(), threading.Event()

    def silence(*args: Any, **options: Any) -> None:
        enough.wait(600)
        ended.set()
        raise OSError("timed out")

    monkeypatch.setattr(fetching.socket, "create_connection", silence)
    with pytest.raises(FetchError, match=r"no connection to a\.org within 0\.05 s"):
        fetch("https://a.org/x")
    assert not ended.is_set()  # nobody waited for it
    enough.set()


def test_a_proxy_is_what_must_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert "no connection to 127.0.0.1" in str(fetching._unreachable("http://a.org/x"))


def test_first_of_names_every_place() -> None:
    def fails(reason: str) -> Path:
        raise FetchError(reason)

    places = [("home", lambda: fails("home: closed.")), ("mirror", lambda: fails("gone"))]
    with pytest.raises(
        FetchError, match=r"cannot get x\. Tried \(1\) home: closed; \(2\) mirror: gone\. Do y"
    ):
        first_of("x", places, "Do y")
    assert first_of("x", [*places, ("disk", lambda: Path("z"))], "Do y") == Path("z")


# ------------------------------------------------------------------------- packages


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A `pip` that finds one wheel and writes down how it was called."""
    monkeypatch.setenv("HLLM_HOME", str(tmp_path / "home"))
    calls: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if command[-1] != "demo==1.0":
            return subprocess.CompletedProcess(command, 1, "", "a warning\nERROR: No matching distribution\n")
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "demo-1.0.whl", "w") as wheel:
            wheel.writestr("demo/model.bin", CONTENT)
            wheel.writestr("demo/other.bin", b"other")
            wheel.writestr("demo/1_Pooling/model.bin", b"inner")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    return calls


def test_package_files(index: list[list[str]]) -> None:
    file = fetch_package_file("demo", "1.0", "demo/model.bin", SHA256)
    assert file.read_bytes() == CONTENT
    assert fetch_package_file("demo", "1.0", "demo/model.bin", SHA256) == file
    assert len(index) == 1  # the second came from the cache
    assert {"download", "--no-deps", "--only-binary=:all:"} <= set(index[0])
    files = fetch_package_files("demo", "1.0", {"demo/model.bin": SHA256, "demo/other.bin": None})
    assert [f.name for f in files] == ["model.bin", "other.bin"]
    assert len(index) == 2
    both = fetch_package_files("demo", "1.0", {"demo/model.bin": SHA256, "demo/1_Pooling/model.bin": None})
    assert both[1] == both[0].parent / "1_Pooling" / "model.bin" and both[1].read_bytes() == b"inner"


def test_package_errors(index: list[list[str]]) -> None:
    with pytest.raises(FetchError, match=r"pip download none==1\.0 failed: No matching distribution"):
        fetch_package_file("none", "1.0", "x")
    with pytest.raises(FetchError, match=r"demo-1\.0\.whl lacks a sound copy of absent"):
        fetch_package_file("demo", "1.0", "absent")
    with pytest.raises(FetchError, match="not the published 00"):
        fetch_package_file("demo", "1.0", "demo/model.bin", "0" * 64)
    assert not list(fetching.downloads().rglob("*.bin"))


def test_python_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(fetching.shutil, "which", lambda name: None)
    with pytest.raises(FetchError, match="ensurepip"):
        fetching._pip()
    monkeypatch.setattr(fetching.shutil, "which", lambda name: f"/bin/{name}")
    assert fetching._pip() == ["/bin/pip"]
