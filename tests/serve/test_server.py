"""The server as a process: signals, slow clients, several workers and one that is killed, and a real browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hllm.cli import main

ROOT = Path(__file__).resolve().parent.parent.parent


class Server:
    """A running `hllm serve`; `lines` are what it logs."""

    def __init__(self, *arguments: object) -> None:
        path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hllm", "serve", *map(str, arguments), "--port", "0", "--device", "cpu"],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        assert " at http://" in said, said
        self.address = said.split(" at ")[1].split()[0]
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def wait(self, what: Callable[[], Any], seconds: float = 60) -> Any:
        """`what()` once it holds and raises nothing."""
        end = time.monotonic() + seconds
        while True:
            try:
                if found := what():
                    return found
            except OSError:
                pass
            assert time.monotonic() < end, "".join(self.lines)
            time.sleep(0.05)

    def logged(self, text: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines if text in line]


@pytest.fixture
def server(run: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`server(RUN, ...)`: one that answers; it is stopped at the end."""
    begun: list[Server] = []

    def begin(*arguments: object, path: Path = run) -> Server:
        begun.append(made := Server(path, "--events", tmp_path / "e.sqlite", *arguments))
        made.wait(lambda: made.ask("/ready"))
        return made

    yield begin
    for one in begun:
        one.process.terminate()
        one.process.wait(30)


def test_one_worker_from_start_to_stop(server: Any, run: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(run, target_is_directory=True)
    own = server("--log-level", "warning", path=link)
    before = own.ask("/recommend", {"users": ["u001"]})
    assert len(before["rows"]) == 10
    link.unlink()
    own.process.send_signal(signal.SIGHUP)  # the run is gone: the one of before goes on
    own.wait(lambda: own.logged("reload failed"))
    assert own.ask("/recommend", {"users": ["u001"]}) == before
    link.symlink_to(run, target_is_directory=True)
    own.process.send_signal(signal.SIGHUP)
    own.wait(lambda: own.ask("/about")["run"]["number"] > before["run"])
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(30) == -signal.SIGTERM  # after what had begun, as whoever sent it expects


def test_a_slow_client_holds_up_nobody(server: Any) -> None:
    own = server()
    host, port = own.address.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(20)]
    for one in slow:
        one.sendall(
            b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
    assert own.ask("/recommend", {"users": ["u001"]})["rows"]
    for one in slow:
        one.close()
    assert own.ask("/recommend", {"users": ["u001"]})["rows"]


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_sessions_are_kept(server: Any) -> None:
    own = server("--workers", "2")
    expected = own.ask("/recommend", {"users": ["u001"]})["rows"]
    own.ask("/events", {"events": [{"user_id": "new", "item_id": "001"}]})
    session = own.ask("/recommend", {"users": ["new"]})["rows"]
    workers = {line["worker"] for line in own.logged("Started server process")}
    os.kill(next(iter(workers)), signal.SIGKILL)
    time.sleep(0.5)
    for _ in range(20):
        own.wait(lambda: own.ask("/ready"))
        assert own.ask("/recommend", {"users": ["u001"]})["rows"] == expected
        assert own.ask("/recommend", {"users": ["new"]})["rows"] == session
    own.wait(lambda: len({line["worker"] for line in own.logged("Started server process")}) == 3)
    own.process.send_signal(signal.SIGHUP)  # both are replaced, one after the other
    seen = 0
    while len({line["worker"] for line in own.logged("Started server process")}) < 5:
        assert own.ask("/recommend", {"users": ["u001"]})["rows"] == expected
        seen += 1
    assert seen > 3


@pytest.mark.slow
def test_the_page_in_a_browser(server: Any, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    own = server()
    rows = own.ask("/recommend", {"history": [["001", "006"]]})["rows"]
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    options += ["--virtual-time-budget=8000", "--dump-dom"]
    for place, wanted in (("/#items=001,006", rows[0]["title"]), ("/docs", "per_user")):
        command = [browser, *options, own.address + place]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert wanted in done.stdout


def test_mistakes_are_a_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    events = ("--events", str(tmp_path / "e.sqlite"))
    for arguments, words in (
        ((tmp_path / "nothing",), "no run at"),
        ((run, "--port", taken.getsockname()[1], *events), "another --port"),
        ((run, "--api-key", "short"), "8 or more"),
        ((run, "--log-level", "loud"), "valid: debug"),
        ((run, "--events", tmp_path), "another file with --events"),
    ):
        assert main(["serve", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
    taken.close()


def test_without_the_extra_the_command_to_install_it_is_told(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", str(run)]) == 2
    assert "pip install 'hllm[serve]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_broke_stops_no_worker_that_has_it(server: Any, run: Path, tmp_path: Path) -> None:
    """Neither at a reload, nor when a worker dies, which then comes back once the run is whole."""
    link = tmp_path / "current"
    link.symlink_to(run, target_is_directory=True)
    own = server("--workers", "2", path=link)
    own.wait(lambda: len(own.logged("Application startup complete")) == 2)
    expected = own.ask("/recommend", {"users": ["u001"]})["rows"]
    link.unlink()
    own.process.send_signal(signal.SIGHUP)
    own.wait(lambda: own.logged("aborting the restart"))
    os.kill(own.logged("Started server process")[0]["worker"], signal.SIGKILL)
    own.wait(lambda: len(own.logged('"not ready"')) >= 2)
    for _ in range(5):
        assert own.ask("/recommend", {"users": ["u001"]})["rows"] == expected
    link.symlink_to(run, target_is_directory=True)
    own.wait(lambda: len(own.logged("Application startup complete")) >= 3, 90)
    assert own.ask("/recommend", {"users": ["u001"]})["rows"] == expected
