"""The server as a process: signals, slow clients, several workers and one that is killed."""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hllm import Recommender
from hllm.cli import main


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


@asynccontextmanager
async def listening(app: Any, lifespan: str = "off") -> AsyncIterator[int]:
    """The port of 127.0.0.1 at which `app` is served as `hllm serve` does."""
    import uvicorn

    from hllm.serve.protocol import Protocol

    with socket.create_server(("127.0.0.1", 0)) as bound:
        config = uvicorn.Config(app, http=Protocol, log_config=None, lifespan=lifespan)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([bound]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield bound.getsockname()[1]
        server.should_exit = True
        await serving


async def said_to(port: int, *parts: bytes) -> bytes:
    """All that comes back for `parts`, sent one after another, until the service closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(reader.read())
    try:
        for part in parts:
            if answer.done():
                break
            writer.write(part)
            await asyncio.sleep(0.05)
        return await asyncio.wait_for(answer, 5)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_half_a_head_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as the first request of a connection, nor after one that was answered."""
    from hllm.serve import protocol

    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    whole = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.3)  # an answer may take longer than a head
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def main() -> list[bytes]:
        slowly = [whole[n : n + 1] for n in range(10)]
        asked = [(), (whole[:-2],), slowly, (whole, *[b""] * 8, whole[:9])]
        async with listening(app) as port:
            return await asyncio.gather(*(said_to(port, *parts) for parts in asked))

    nothing, half, dripped, second = asyncio.run(main())
    assert (nothing, half, dripped) == (b"", b"", b"")
    assert second.startswith(b"HTTP/1.1 200") and second.count(b"HTTP/1.1") == 1


def test_a_body_that_comes_too_slowly_is_408(run: Path, tmp_path: Path) -> None:
    """Whether its length was told or not, and however steadily it drips; one that takes less time is answered."""
    from hllm.serve.app import create_app
    from hllm.serve.settings import ServeSettings

    settings = ServeSettings(run=run, device="cpu", events=tmp_path / "e.sqlite", body_seconds=0.5)
    app = create_app(settings)
    body = json.dumps({"users": ["u001"], "k": 3}).encode()
    head = b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    told = head + b"content-length: %d\r\n\r\n" % len(body)
    chunks = [b"1\r\n%c\r\n" % byte for byte in body]
    asked = {
        "none of it": (told,),
        "half of it": (told + body[:9],),
        "a byte at a time": (told, *(body[n : n + 1] for n in range(len(body)))),
        "in chunks": (head + b"transfer-encoding: chunked\r\n\r\n", *chunks),
        "in time": (told.replace(b"host", b"connection: close\r\nhost"), body[:9], b"", body[9:]),
    }

    async def main() -> dict[str, tuple[bytes, float]]:
        start = time.monotonic()

        async def ask(name: str) -> tuple[str, tuple[bytes, float]]:
            answer = await said_to(port, *asked[name])
            return name, (answer, time.monotonic() - start)

        async with listening(app, "on") as port:
            return dict(await asyncio.gather(*map(ask, asked)))

    answers = asyncio.run(main())
    assert answers.pop("in time")[0].startswith(b"HTTP/1.1 200")
    for name, (answer, seconds) in answers.items():
        lines, _, said = answer.partition(b"\r\n\r\n")
        assert lines.startswith(b"HTTP/1.1 408") and b"\r\nconnection: close" in lines, name
        assert json.loads(said)["error"] == "the body took longer than 0.5 s", name
        assert 0.5 <= seconds < 3, name
    assert app.state.service.metrics.requests["POST", "other", 408] == len(answers)


@pytest.mark.slow
def test_workers_end_with_their_parent(server: Any) -> None:
    own = server("--workers", "2")
    own.wait(lambda: len(own.logged("Application startup complete")) == 2)
    own.process.kill()
    host, port = own.address.removeprefix("http://").split(":")

    def gone() -> bool:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except ConnectionRefusedError:
            return True
        return False

    own.wait(gone, 20)


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
    own.wait(lambda: len(own.logged("Application startup complete")) == 3)
    own.process.send_signal(signal.SIGHUP)  # the new one reloads like the other
    own.wait(lambda: len({line["worker"] for line in own.logged('"reloaded"')}) == 2)
    assert own.ask("/recommend", {"users": ["u001"]})["rows"] == expected
    assert len(own.logged("Started server process")) == 3


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_reload_closes_no_connection(
    server: Any, train: Any, run: Path, tmp_path: Path, workers: int
) -> None:
    """Of kept connections that write all the time, and of those that rest meanwhile; each answer is one run's."""
    other, link = train(tmp_path / "other", seed=5), tmp_path / "current"
    link.symlink_to(run, target_is_directory=True)
    own = server("--workers", workers, "--log-level", "info", path=link)
    own.wait(lambda: len(own.logged("Application startup complete")) == workers)
    body = json.dumps({"users": ["u001", "u002"], "history": [["001", "006"]], "k": 5})
    alone = {
        path: Recommender.from_pretrained(path, "cpu").recommend(**json.loads(body)) for path in (run, other)
    }
    # The runs' own scores differ by far more than those of a batch by rounding.
    expected = {
        path: [(str(r[0]), r[1], round(r[2], 3)) for r in frame.rows()] for path, frame in alone.items()
    }
    assert expected[run] != expected[other]
    done = threading.Event()

    class Client:
        def __init__(self) -> None:
            self.connection = http.client.HTTPConnection(own.address.removeprefix("http://"), timeout=60)
            self.connection.connect()
            self.socket, self.answers = self.connection.sock, 0
            self.runs: list[Path] = []

        def ask(self) -> None:
            self.connection.request("POST", "/recommend", body, {"content-type": "application/json"})
            answer = self.connection.getresponse()
            said = json.loads(answer.read())
            assert answer.status == 200 and self.connection.sock is self.socket
            rows = [(str(r["user_id"]), r["item_id"], round(r["score"], 3)) for r in said["rows"]]
            (found,) = (path for path, wanted in expected.items() if rows == wanted)
            self.answers += 1
            if self.runs[-1:] != [found]:
                self.runs.append(found)

        def keep_asking(self) -> None:
            while not done.is_set():
                self.ask()

    writing, resting = [Client() for _ in range(12)], [Client() for _ in range(6)]
    for client in resting:
        client.ask()
    with ThreadPoolExecutor(len(writing)) as pool:
        asking = [pool.submit(client.keep_asking) for client in writing]
        try:
            for number, path in enumerate((other, run, other), 1):
                link.unlink()
                link.symlink_to(path, target_is_directory=True)
                own.process.send_signal(signal.SIGHUP)
                own.wait(lambda n=number: len(own.logged('"reloaded"')) == n * workers)
                counts = [client.answers for client in writing]
                own.wait(lambda c=counts: all(one.answers > n + 1 for one, n in zip(writing, c, strict=True)))
        finally:
            done.set()
        for one in asking:
            one.result()
    for client in resting:
        client.ask()
    assert {tuple(client.runs) for client in writing} == {(run, other, run, other)}
    assert {tuple(client.runs) for client in resting} == {(run, other)}
    assert len(own.logged("Started server process")) == workers


def test_mistakes_are_a_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    events = ("--events", str(tmp_path / "e.sqlite"))
    for arguments, words in (
        ((tmp_path / "nothing",), "no run at"),
        ((run, "--port", taken.getsockname()[1], *events), "another --port"),
        ((run, "--host", "nowhere.invalid", "--api-key", "secret-key", *events), "another --host"),
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


def test_the_end_of_a_worker_that_is_starting_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after the time in which it should have shown a sign of life, for which it was asked before it ended."""
    import uvicorn
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors.multiprocess import Process

    from hllm.serve.run import Workers

    monkeypatch.setattr("uvicorn.supervisors.multiprocess.SIGNALS", {})  # this process keeps its own
    config = uvicorn.Config("nothing:app", log_config=None, timeout_worker_healthcheck=20)
    workers, worker = Workers(config, sockets=[]), Process(config, [])
    code = f"import time; time.sleep(0.5); raise SystemExit({STARTUP_FAILURE})"
    process: Any = multiprocessing.get_context("spawn").Process(
        target=exec, args=(code, {"held": worker.child_conn})
    )
    worker.process = process
    monkeypatch.setattr(worker, "kill", lambda: None)  # what it ends with is its own
    workers.processes = [worker]
    worker.start()
    start = time.monotonic()
    workers.keep_subprocess_alive()
    assert worker.exitcode == STARTUP_FAILURE and workers.should_exit.is_set()
    assert time.monotonic() - start < 15


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
    own.wait(lambda: own.logged("reload failed"))
    os.kill(own.logged("Started server process")[0]["worker"], signal.SIGKILL)
    own.wait(lambda: len(own.logged('"not ready"')) >= 2)
    for _ in range(5):
        assert own.ask("/recommend", {"users": ["u001"]})["rows"] == expected
    link.symlink_to(run, target_is_directory=True)
    own.wait(lambda: len(own.logged("Application startup complete")) >= 3, 90)
    assert own.ask("/recommend", {"users": ["u001"]})["rows"] == expected


@pytest.mark.slow
def test_a_minute_of_load_with_reloads_and_a_killed_worker(run: Path, tmp_path: Path) -> None:
    """benchmarks/soak.py: no wrong row, no request lost but by the kill, the session kept, no growth of memory."""
    root = Path(__file__).resolve().parent.parent.parent
    path = os.pathsep.join([str(root / "src"), os.environ.get("PYTHONPATH", "")])
    out = tmp_path / "soak.json"
    command = [sys.executable, root / "benchmarks/soak.py", "--run", run, "--seconds", "50", "--reloads", "2"]
    subprocess.run(
        [*map(str, command), "--out", str(out)], env={**os.environ, "PYTHONPATH": path}, check=True
    )
    result = json.loads(out.read_text())["result"]
    counts = result["counts"]
    assert (result["reloads"], result["killed_workers"]) == (2, 1)
    assert (counts["wrong"], counts["broken"]) == (0, 0) and counts["broken by the kill"] <= 4  # clients
    assert counts["status 200"] > 500 and all(name == "status 200" for name in counts if "status" in name)
    assert result["memory_mib_last_quarter"] < 1.1 * result["memory_mib_first_quarter"]
