"""Independent pieces of work: in this process, in one process a device, or on a Ray cluster.

Results come back to the caller in the order of the pieces, and the caller alone writes: whatever did the work, the
files are the same.
"""

from __future__ import annotations

import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from typing import Any, Protocol

from hllm.arguments import one_of
from hllm.errors import ConfigError, HLLMError

ENGINES = ("local", "ray")
AHEAD = 2  # pieces a process that are handed out before their turn
BLOCKS = 1000  # of pieces, at most, that Ray hands out

Do = Callable[[Any], Any]  # a piece -> its result; both can be pickled


class Work(Protocol):
    """What can be pickled, and made ready on a device ("auto", "cpu", "cuda:1") once a process."""

    def start(self, device: str) -> Do:
        """The function that does a piece."""


def check_engine(engine: str, devices: Sequence[str]) -> None:
    """ConfigError for an engine that does not exist, is not installed, or cannot take these devices."""
    one_of("engine", engine, ENGINES)
    if engine == "ray" and find_spec("ray") is None:
        raise ConfigError("--engine ray needs ray: pip install 'hllm[ray]'")
    if engine == "ray" and len(devices) > 1:
        raise ConfigError("--engine ray finds the cluster's devices itself; leave --device out, or give one")


def spread(
    work: Work, pieces: Iterable[Any], engine: str = "local", devices: Sequence[str] = ("auto",)
) -> Iterator[Any]:
    """The result of each of `pieces`, in order, made by `work`; few are held at a time.

    With several `devices` each has a process of its own. With `engine="ray"` Ray Data does the work: an actor a GPU of
    the cluster, or a node without any; RAY_ADDRESS names the cluster, and without it one is started here. Paths that
    the work reads must be there on every node. Raises what the work raises, HLLMError where a process died.
    """
    check_engine(engine, devices)
    if engine == "ray":
        yield from _on_ray(work, pieces, devices[0])
    elif len(devices) > 1:
        yield from _in_processes(work, pieces, devices)
    else:
        do = None
        for piece in pieces:
            do = do or work.start(devices[0])
            yield do(piece)


def _in_processes(work: Work, pieces: Iterable[Any], devices: Sequence[str]) -> Iterator[Any]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    names = context.Queue()
    for device in devices:
        names.put(device)
    pool = ProcessPoolExecutor(len(devices), context, _begin, (work, names))
    rest, ahead = iter(pieces), deque[Any]()
    try:
        ahead.extend(pool.submit(_work, piece) for piece in islice(rest, AHEAD * len(devices)))
        while ahead:
            outcome = ahead.popleft().result()
            ahead.extend(pool.submit(_work, piece) for piece in islice(rest, 1))
            yield _result(outcome)
    except BrokenProcessPool as err:
        raise HLLMError(
            "a process of the work died, perhaps of too little memory; the same command goes on"
        ) from err
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_started: dict[str, Any] = {}  # of a process of the pool: its work and device, then the function


def _begin(work: Work, names: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, who ends the pool
    _started.update(work=work, device=names.get())


def _work(piece: Any) -> Any:
    return _outcome(_started, piece)


def _outcome(started: dict[str, Any], piece: Any) -> Any:
    """The result, or the user's mistake, which not every library hands on as it is."""
    try:
        if "do" not in started:
            started["do"] = started["work"].start(started["device"])
        return started["do"](piece), None
    except HLLMError as err:
        return None, err


def _result(outcome: Any) -> Any:
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


class _Actor:
    """A process of Ray Data's pool."""

    def __init__(self, work: bytes, device: str) -> None:
        self.started = {"work": pickle.loads(work), "device": device}

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"made": [pickle.dumps(_outcome(self.started, pickle.loads(p))) for p in rows["piece"]]}


def _on_ray(work: Work, pieces: Iterable[Any], device: str) -> Iterator[Any]:
    rows = [{"piece": pickle.dumps(piece)} for piece in pieces]
    if not rows:
        return
    import ray

    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        gpus = 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        n = gpus or sum(node["Alive"] for node in ray.nodes())
        made = ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS)).map_batches(
            _Actor,
            fn_constructor_args=(pickle.dumps(work), device),
            batch_size=1,
            num_gpus=1 if gpus else 0,
            compute=ray.data.ActorPoolStrategy(size=min(n, len(rows))),
        )
        for row in made.iter_rows():
            yield _result(pickle.loads(row["made"]))
    finally:
        if own:
            with suppress(Exception):  # at the end of the interpreter there is nothing to end
                ray.shutdown()
