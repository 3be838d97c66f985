"""Archives: zip and tar files unpacked without trusting the names inside them."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from hllm.artifacts import disk_problem
from hllm.errors import FetchError

# A file that grows beyond these is made to fill the disk.
MAX_GROWTH, GROWTH_FROM, MAX_MEMBERS = 200, 1 << 28, 200_000
Member = tuple[str, bool, int, Callable[[], IO[bytes]]]  # name, whether a folder, bytes, how to open it


def is_archive(path: Path | str) -> bool:
    """Whether `unpack` takes the file. A lone `.gz` is not an archive: readers read it as it is."""
    return Path(path).name.endswith((".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))


def unpack(path: Path | str, into: Path | str) -> Path:
    """Unpack a zip or tar file (`.tar.gz` and others too) into the folder `into`, and return it.

    Files that are there already are replaced. Members that would land outside the folder
    (absolute names, `..`), links and devices, and archives that grow out of all proportion are
    refused before anything is written; members arrive complete or not at all. Raises FetchError
    naming the archive and the reason.
    """
    path, into = Path(path), Path(into)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _write_all(path, _limited(path, _zip_members(path, archive)), into)
        else:
            with tarfile.open(path) as tar:
                _write_all(path, _limited(path, _tar_members(path, tar)), into)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError) as err:
        raise FetchError(f"{path} is not a sound zip or tar file: {err}; delete it and fetch again") from err
    except OSError as err:
        problem = disk_problem(err, f"{path} {into}") or err.strerror or err
        raise FetchError(f"cannot unpack {path} into {into}: {problem}") from err
    return into


def _limited(path: Path, members: Iterator[Member]) -> list[Member]:
    """The members, as long as they are not too many or too large together."""
    found: list[Member] = []
    size, limit = 0, max(GROWTH_FROM, MAX_GROWTH * path.stat().st_size)
    for member in members:
        found.append(member)
        size += member[2]
        if size > limit or len(found) > MAX_MEMBERS:
            raise FetchError(
                f"{path} holds more than {limit / 1e6:,.0f} MB ({MAX_GROWTH} times its own size) or {MAX_MEMBERS:,} "
                "files, the limits for archives; if that is meant, unpack it with another program"
            )
    return found


def _zip_members(path: Path, archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise FetchError(f"{path}: member {info.filename!r} is a link or device; not unpacked")
        yield info.filename, info.is_dir(), info.file_size, partial(archive.open, info)


def _tar_members(path: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    for info in tar:
        if not (info.isreg() or info.isdir()):
            raise FetchError(f"{path}: member {info.name!r} is a link or device; not unpacked")
        yield info.name, info.isdir(), info.size, partial(_opened, tar, info)


def _opened(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    if file is None:
        raise tarfile.ReadError(f"cannot read {info.name}")
    return file


def _write_all(path: Path, members: list[Member], into: Path) -> None:
    targets = [into / _safe_name(path, name) for name, *_ in members]
    into.mkdir(parents=True, exist_ok=True)
    needed, free = sum(size for _, _, size, _ in members), shutil.disk_usage(into).free
    if needed > free:
        raise FetchError(f"{path} needs {needed / 1e9:.1f} GB in {into}, which has {free / 1e9:.1f} GB free")
    for (_, is_folder, _, open_member), target in zip(members, targets, strict=True):
        if is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with open(handle, "wb") as out, open_member() as source:
                shutil.copyfileobj(source, out, 1 << 20)
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)


def _safe_name(path: Path, name: str) -> str:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name or "\0" in name:
        raise FetchError(f"{path}: member {name!r} would land outside the folder; nothing was unpacked")
    return str(parts)
