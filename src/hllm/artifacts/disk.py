"""Failing disks and impossible paths, told in one way whichever library met them.

A full disk is an OSError to Python, a SafetensorError to safetensors, a ComputeError to polars, a
RuntimeError to torch and an OSError without a number to numpy.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hllm.errors import ArtifactError, HLLMError

ROOM = "make room, then run the same command again"
ELSEWHERE = "choose another folder"
ADVICE = {
    "ENOSPC": ROOM,
    "EDQUOT": ROOM,
    "EFBIG": ROOM,
    "EROFS": ELSEWHERE,
    "EACCES": ELSEWHERE,
    "EPERM": ELSEWHERE,
    "ENOTDIR": ELSEWHERE,
    "EISDIR": ELSEWHERE,
    "EEXIST": ELSEWHERE,
    "ELOOP": "it is a link that leads to itself; choose another path",
    "ENAMETOOLONG": "choose a shorter name",
    "ENOENT": "",
    "ENOTEMPTY": "",
    "EIO": "the disk is failing or was taken away",
    "ENODEV": "",
    "ENXIO": "",
    "ESTALE": "",
    "EBUSY": "close what uses it, then run the same command again",
    "EXDEV": "",
    "EMFILE": "too many files are open; raise the limit with: ulimit -n 4096",
}
BY_NUMBER = {getattr(errno, name): advice for name, advice in ADVICE.items() if hasattr(errno, name)}
# What libraries say that give no number of the system's: numpy, torch, and pathlib up to Python 3.12.
SPOKEN = (
    (re.compile(r"\d+ requested and \d+ written"), errno.ENOSPC),
    (
        re.compile(
            r"PytorchStreamWriter failed|unexpected pos \d+ vs|iostream error|No space left on device"
        ),
        errno.ENOSPC,
    ),
    (re.compile(r"Symlink loop"), errno.ELOOP),
)
NUMBER = re.compile(r"os error (\d+)")  # how Rust, of safetensors and polars, quotes the system
SHOWN = 80  # characters of a path in a message


def disk_problem(err: BaseException, told: str = "") -> str | None:
    """What is wrong with the disk or path in one clause, and what to do; None for errors of another kind.

    A path is left out where `told`, the text before it, names it or its folder.
    """
    number = _number(err)
    if number is None:
        return None
    name = getattr(err, "filename", None)
    if number == errno.ENOENT and not name and not _has_working_folder():
        return "the working folder was deleted; change to one that exists"
    text = os.strerror(number)
    shown = str(name or "")
    if name and shown not in told and str(Path(shown).parent) not in told:
        text += f": {shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + '...'}"
    return f"{text}; {BY_NUMBER[number]}" if BY_NUMBER[number] else text


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn any library's error for a failing disk or path into ArtifactError "cannot `doing`: ..."."""
    try:
        yield
    except HLLMError:
        raise
    except Exception as err:
        if (problem := disk_problem(err, doing)) is None:
            raise
        raise ArtifactError(f"cannot {doing}: {problem}") from err


def check_writable(path: Path) -> None:
    """ArtifactError, before long work, where nothing could be written at `path`; makes nothing itself."""
    with disk_errors(f"write {path}"):
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not there.is_dir() and there != path:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        if not os.access(there, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def _number(err: BaseException) -> int | None:
    """The system's number of a disk's or path's error."""
    if isinstance(err, ConnectionError | TimeoutError):
        return None
    number = err.errno if isinstance(err, OSError) else None
    text = str(err)
    if number is None and (quoted := NUMBER.search(text)):
        number = int(quoted[1])
    if number is None and isinstance(err, OSError | RuntimeError):
        number = next((code for spoken, code in SPOKEN if spoken.search(text)), None)
    return number if number in BY_NUMBER else None


def _has_working_folder() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True
