"""A folder's document lists every file of the folder with its size and SHA-256, and seals itself.

So a folder whose files do not belong together is found when it is read, whichever of them was
damaged, cut, swapped or left over. `publish` writes such a folder so that the old content can be
read until the moment the new document replaces the old one: a file whose name is taken by other
content gets a name of its own, and what no document names any more goes afterwards. Nothing that
a reader has open or mapped (Windows refuses to replace it) is ever replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hllm.artifacts.disk import disk_errors
from hllm.artifacts.files import digest_file, read_json, write_json
from hllm.artifacts.locks import locked
from hllm.errors import ArtifactError

# name -> {"bytes", "sha256"}, and "file" where it lies under another name
Manifest = Mapping[str, Mapping[str, Any]]
SMALL = 1 << 24  # bytes: digests of larger files are remembered for the rest of the process
SETTLED_SECONDS = 2.0  # a file touched this recently may change again within its time stamp's grain
SUFFIX = 8  # hex digits of a digest in a file's name

_digests: dict[tuple[str, int, int, int], str] = {}


def manifest_of(folder: Path | str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The manifest of the files `names`, paths relative to `folder`; ArtifactError for a missing one."""
    return {name: _entry(Path(folder) / name) for name in names}


def file_of(folder: Path | str, manifest: Manifest, name: str) -> Path:
    """Where the file `name` lies; a folder without a manifest, of an earlier hllm, has it under that name."""
    entry = manifest.get(name)
    found = name if entry is None else str(entry.get("file", name))
    return Path(folder) / found


def check_file(
    folder: Path | str, manifest: Manifest, name: str, advice: str = "", digest: bool = True
) -> Path:
    """The path of a file that is the one the manifest describes: in size and, with `digest`, in every byte.

    A large file's digest is computed once a process, and again when its size, time or inode has
    changed. ArtifactError names a file that is missing or another.
    """
    path, entry = file_of(folder, manifest, name), manifest.get(name)
    if entry is None:
        return path
    with disk_errors(f"read {path}"):
        if not path.is_file():
            raise ArtifactError(f"{path} is missing, damaged or replaced: it is not there{_advised(advice)}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            difference = f"it has {size:,} bytes, not {entry['bytes']:,}"
        elif digest and _digest(path) != entry["sha256"]:
            difference = "its SHA-256 is another"
        else:
            return path
    raise ArtifactError(
        f"{path} is damaged, or not the file that was written with this folder: {difference}{_advised(advice)}"
    )


def check_manifest(
    folder: Path | str, manifest: Manifest, later: Collection[str] = (), advice: str = ""
) -> None:
    """`check_file` for every file; large ones among `later` only in size: who reads them checks them."""
    for name, entry in manifest.items():
        check_file(folder, manifest, name, advice, digest=name not in later or entry["bytes"] <= SMALL)


def write_document(path: Path | str, value: Mapping[str, Any], files: Manifest | None = None) -> None:
    """Write a folder's document as JSON, with its manifest and a digest of its own content."""
    document = {**value, **({} if files is None else {"files": files})}
    write_json(path, {**document, "seal": _seal(document)})


def read_document(path: Path | str, advice: str = "") -> dict[str, Any]:
    """Read what `write_document` wrote, `files` included; one of an earlier hllm has neither seal nor files.

    ArtifactError where it is missing, no document, or changed since it was written.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} holds a {type(document).__name__}, not an object{_advised(advice)}")
    seal = document.pop("seal", None)
    if (seal is not None or "files" in document) and seal != _seal(document):
        raise ArtifactError(f"{path} was changed or damaged after it was written{_advised(advice)}")
    return document


def publish(
    folder: Path | str,
    marker: str,
    document: Mapping[str, Any],
    files: Mapping[str, Callable[[Path], object]],
    expected: Manifest | None = None,
) -> dict[str, dict[str, Any]]:
    """Write a folder's files, then its document `marker`, in place of what is there; returns the manifest.

    Each of `files` writes to the path it is given. A reader, a failure or a kill sees the old folder
    or the new one. Where `expected` has a file, ArtifactError unless it came out like that. Files that
    neither document names are left alone.
    """
    folder = Path(folder)
    with locked(folder), disk_errors(f"write {folder}"):
        known = {*files, *_names_in(folder / marker)}
        if not (folder / marker).exists():  # what an interrupted writing left is in nobody's use
            _remove((path for name in known for path in _versions(folder, name)), folder)
        made: list[Path] = []
        manifest: dict[str, dict[str, Any]] = {}
        try:
            for name, write in files.items():
                manifest[name] = _put(folder, name, write, made, (expected or {}).get(name))
            write_document(folder / marker, document, manifest)
        except BaseException:
            _remove(reversed(made), within=folder)
            raise
        kept = {file_of(folder, manifest, name) for name in manifest}
        _remove((path for name in known for path in _versions(folder, name) if path not in kept), folder)
    return manifest


def _put(
    folder: Path,
    name: str,
    write: Callable[[Path], object],
    made: list[Path],
    expected: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Write one file under its name, or another if that is taken by other content; returns its entry."""
    path = folder / name
    staged = path.with_name(f".{path.name}.new.{os.getpid()}.tmp")
    try:
        write(staged)
        entry = _entry(staged)
        if expected is not None and entry["sha256"] != expected["sha256"]:
            raise ArtifactError(
                f"the source of {path} changed while it was in use; run the same command again"
            )
        if path.exists() and not _holds(path, entry):
            path = path.with_name(f"{path.stem}-{entry['sha256'][:SUFFIX]}{path.suffix}")
        if not _holds(path, entry):
            os.replace(staged, path)
            made.append(path)
    finally:
        staged.unlink(missing_ok=True)
    other = path.relative_to(folder).as_posix()
    return entry if other == name else {**entry, "file": other}


def _entry(path: Path) -> dict[str, Any]:
    with disk_errors(f"read {path}"):
        return {"bytes": path.stat().st_size, "sha256": digest_file(path)}


def _holds(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file has the content of `entry`."""
    return path.is_file() and path.stat().st_size == entry["bytes"] and digest_file(path) == entry["sha256"]


def _names_in(document: Path) -> Collection[str]:
    """Names in the manifest of a document that may be missing, damaged or of an earlier hllm."""
    try:
        files = read_json(document)["files"]
    except (ArtifactError, KeyError, TypeError):
        return ()
    return files if isinstance(files, dict) else ()


def _versions(folder: Path, name: str) -> Iterator[Path]:
    """Where a file of that name, or one that is being written, may lie."""
    path = folder / name
    if not path.parent.is_dir():
        return
    for entry in path.parent.iterdir():
        stem, _, tail = entry.stem.rpartition("-")
        suffixed = stem == path.stem and entry.suffix == path.suffix and len(tail) == SUFFIX
        unfinished = entry.suffix == ".tmp" and entry.name.lstrip(".").startswith(f"{path.name}.")
        if entry.name == path.name or suffixed or unfinished:
            yield entry


def _remove(paths: Iterable[Path], within: Path) -> None:
    """Remove files as far as the system lets us, and folders inside `within` that are empty then."""
    for path in list(paths):
        with suppress(OSError):
            path.unlink()
            if path.parent != within:
                path.parent.rmdir()


def _seal(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _digest(path: Path) -> str:
    """SHA-256 of a file, remembered where it is large and has not been touched just now."""
    stat = path.stat()
    key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key in _digests:
        return _digests[key]
    found = digest_file(path)
    if stat.st_size > SMALL and time.time() - stat.st_mtime > SETTLED_SECONDS:
        _digests[key] = found
    return found


def _advised(advice: str) -> str:
    return f"; {advice}" if advice else ""
