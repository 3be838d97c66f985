"""One writer a folder: the operating system's lock, which ends with its process however that ends."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hllm.artifacts.disk import disk_errors
from hllm.errors import ArtifactError

LOCK, WRITER = ".hllm.lock", ".hllm.writer"
LOCK_FILES = {LOCK, WRITER}
WAIT_SECONDS = 2.0
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, getattr(errno, "ENOTSUP", errno.EOPNOTSUPP)}


class Busy(ArtifactError):
    """Another process is writing."""


@contextmanager
def held(path: Path, wait: float) -> Iterator[bool]:
    """Hold the lock file `path`; yields whether it is held for the first time, not once more by this thread.

    Raises Busy where another process (or thread) still has it after `wait` seconds. Where the file
    system has no locks, goes on as if alone. The file is removed at the end: filelock looks whether
    what it locked is still under its name.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(str(path), is_singleton=True)
    try:
        lock.acquire(timeout=wait, poll_interval=0.05)
    except Timeout as err:
        raise Busy(f"{path} is held by another process") from err
    except (OSError, NotImplementedError) as err:
        if not isinstance(err, NotImplementedError) and err.errno not in NO_LOCKS:
            raise
        yield True
        return
    try:
        yield lock.lock_counter == 1
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):  # Windows keeps an open file; an empty one is in nobody's way
                path.unlink()
        lock.release()


@contextmanager
def locked(folder: Path | str, wait: float | None = None) -> Iterator[None]:
    """Be the only writer of `folder`, which is made where it is missing, and goes if nothing is written.

    What a process that was killed while writing has left there, or one folder below, is removed. Raises Busy, an
    ArtifactError that names the other writer, where there still is one after `wait`
    seconds (2 by default), and ArtifactError where the folder cannot be written. May be nested.
    """
    folder = Path(folder)
    with disk_errors(f"create {folder}"):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    writer = folder / WRITER
    try:
        lock = held(folder / LOCK, WAIT_SECONDS if wait is None else wait)
        with disk_errors(f"write {folder}"):
            first = lock.__enter__()
    except Busy:
        who, what = _writer(writer)
        raise Busy(
            f"{who} is writing {folder}{what}; wait for it to end, then run the same command again, "
            "or choose another folder"
        ) from None
    try:
        if first:
            with disk_errors(f"write {folder}"):
                writer.write_text(json.dumps(_me()), encoding="utf-8")
            _remove_unfinished(folder)
        yield
    finally:
        if first:
            with suppress(OSError):
                writer.unlink()
        lock.__exit__(None, None, None)
        if is_new:
            with suppress(OSError):  # something was written
                folder.rmdir()


def _remove_unfinished(folder: Path) -> None:
    """Remove temporary files (`artifacts.atomic`) whose process is gone."""
    for pattern in (".*.tmp", "*/.*.tmp"):
        for path in folder.glob(pattern):
            process = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
            if process.isdecimal() and path.is_file() and not _is_alive(int(process)):
                with suppress(OSError):
                    path.unlink()


def _is_alive(process: int) -> bool:
    """Whether a process of this machine still runs; False on Windows, which keeps files that are in use."""
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def _me() -> dict[str, object]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"process": os.getpid(), "command": command[:200], "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _writer(file: Path) -> tuple[str, str]:
    """Which process holds the lock, and what its command is and since when it runs."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return f"process {told['process']}", f" ({told['command']}, since {told['since']})"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process", ""
