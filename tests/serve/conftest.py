"""A run of the synthetic world, and clients of services of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hllm import Recommender
from hllm.testing import world

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

# Without the extra there is nothing to test: pip install 'hllm[serve]' httpx2
collect_ignore_glob = [] if all(map(find_spec, ("fastapi", "uvicorn", "httpx2"))) else ["test_*.py"]

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = {"d_model": 16, "n_layers": 1, "n_heads": 2, "epochs": 1, "max_len": 12, "batch_tokens": 400}


def trained(out: Path, preset: str = "sasrec", **settings: Any) -> Path:
    """A finished run at `out`."""
    from hllm.items.embed import embed

    data = world(string_ids=True).save(out.with_name(f"{out.name}-data"))
    if preset != "sasrec":
        embed(data, "random", progress=False)
        settings["item_llm"] = "random"
    Recommender.from_preset(preset, **{**SMALL, **settings}).fit(data, out=out, device="cpu", progress=False)
    return out


@pytest.fixture
def train() -> Callable[..., Path]:
    """`train(OUT, PRESET, ...)`: a finished run at OUT."""
    return trained


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads texts; tests only read it."""
    return trained(tmp_path_factory.mktemp("serve") / "run", "hllm-lite", seed=1)


@pytest.fixture(scope="session")
def recommender(run: Path) -> Recommender:
    """The same run, as a Python user has it."""
    return Recommender.from_pretrained(run, "cpu")


@pytest.fixture
def serve(run: Path, tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """A client of a service of `run` with these settings; its events are its own."""
    from fastapi.testclient import TestClient

    from hllm.serve.app import create_app
    from hllm.serve.settings import ServeSettings

    with ExitStack() as stack:

        def begin(path: Path = run, **settings: Any) -> TestClient:
            options = {"run": path, "device": "cpu", "events": tmp_path / "events.sqlite", **settings}
            app = create_app(ServeSettings(**options))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield begin


@pytest.fixture(scope="module")
def client(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service that a file's tests share; they leave no events behind."""
    from fastapi.testclient import TestClient

    from hllm.serve.app import create_app
    from hllm.serve.settings import ServeSettings

    settings = ServeSettings(run=run, device="cpu", events=tmp_path_factory.mktemp("events") / "e.sqlite")
    with TestClient(create_app(settings), raise_server_exceptions=False) as made:
        yield made


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
