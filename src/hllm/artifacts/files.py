"""One file at a time: JSON, safetensors, npy and Parquet.

Every write goes to a temporary file in the same folder and is renamed over the target,
so a reader sees the old file or the new one and never half of one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hllm.artifacts.disk import disk_errors
from hllm.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import polars as pl
    import torch

T = TypeVar("T")
HEADER = "hllm"  # key of our digest and metadata in safetensors headers


_MAPPED = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "u1", "I64": "<i8", "I32": "<i4", "BOOL": "?"}


def home() -> Path:
    """hllm's cache folder: `HLLM_HOME`, or the platform's cache folder. ConfigError where there is none."""
    value = os.environ.get("HLLM_HOME")
    try:
        if value:
            return Path(value).expanduser()
        if os.name == "nt":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif os.uname().sysname == "Darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as err:  # no such user, or a process without a home
        raise ConfigError(
            f"no folder for hllm's cache: HLLM_HOME={value!r}: {err} Set HLLM_HOME to a folder that exists"
        ) from err
    return base / "hllm"


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds.

    The data reach the disk before the rename does, so a power cut cannot leave an empty
    file under the final name. The file gets the permissions of any new file here, whatever the
    library that wrote it thinks. Raises ArtifactError where the folder cannot be written, whichever
    library finds out.
    """
    path = Path(path)
    with disk_errors(f"create {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    try:
        with disk_errors(f"write {path}"):
            mode = _new_file_mode(temporary)
            yield temporary
            temporary.chmod(mode)
            with open(temporary, "rb+") as written:  # Windows syncs no file that is open for reading only
                os.fsync(written.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _new_file_mode(path: Path) -> int:
    """Permissions of a file that is created at `path`: the umask's, asked without changing it."""
    with open(path, "wb") as file:
        mode = os.fstat(file.fileno()).st_mode
    path.unlink()
    return stat.S_IMODE(mode)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: Path | str) -> str:
    """Read UTF-8 text; ArtifactError names a missing or unreadable file."""
    return _read(path, lambda p: p.read_text(encoding="utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Write strict JSON (no NaN), indented, keys in the given order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON; ArtifactError names a missing or damaged file."""
    return _read(path, lambda p: json.loads(p.read_text(encoding="utf-8")))


def write_jsonl(path: Path | str, rows: list[dict[str, Any]]) -> None:
    """Write one strict JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(r, allow_nan=False, ensure_ascii=False) + "\n" for r in rows))


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read one JSON object a line; a missing file is an empty list."""
    if not Path(path).exists():
        return []
    return _read(path, lambda p: [json.loads(line) for line in p.read_bytes().splitlines()])


def write_array(path: Path | str, array: np.ndarray) -> None:
    """Write a numpy array as `.npy`.

    The bytes go through Python's file: `ndarray.tofile`, which `np.save` calls, does not notice when
    the last of them find no room.
    """
    with atomic(path) as temporary, open(temporary, "wb") as file:
        for part in _npy_parts(array):
            file.write(part)


def _npy_parts(array: np.ndarray) -> tuple[bytes, memoryview]:
    """Header and content of a `.npy` file."""
    flat, header = np.ascontiguousarray(array), io.BytesIO()
    if flat.dtype.hasobject:
        raise ValueError("arrays of objects are not written")
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(flat))
    return header.getvalue(), flat.reshape(-1).view(np.uint8).data


def read_array(path: Path | str, mmap: bool = True) -> np.ndarray:
    """Read a `.npy` array, memory-mapped read-only unless `mmap` is false."""
    return _read(path, lambda p: np.load(p, mmap_mode="r" if mmap else None, allow_pickle=False))


def write_tensors(
    path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write tensors as safetensors with a JSON `metadata` object and a digest of everything in the header."""
    from safetensors.torch import save_file

    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(metadata or {}, allow_nan=False)
    with atomic(path) as temporary:
        # One key: safetensors writes several in any order.
        save_file(stored, str(temporary), {HEADER: f"{_digest_tensors(stored, text)} {text}"})


def read_tensors(path: Path | str, device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read tensors and metadata written by `write_tensors`, checked against the digest in the header.

    The file is not mapped afterwards, so that it may be replaced. Files without a digest, of an
    earlier hllm or of others, are read as they are.
    """
    from safetensors import safe_open

    def load(p: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        with safe_open(str(p), framework="pt") as file:
            sha256, text = _header(file.metadata())
            tensors = {k: file.get_tensor(k).clone() for k in file.keys()}  # noqa: SIM118
        if sha256 is not None and sha256 != _digest_tensors(tensors, text):
            raise ArtifactError(f"cannot read {p}: it is damaged: its SHA-256 is not the one in its header")
        return {name: value.to(device) for name, value in tensors.items()}, json.loads(text)

    return _read(path, load)


def map_tensors(path: Path | str) -> dict[str, np.ndarray]:
    """The tensors of a file that `write_tensors` wrote, mapped read-only; nothing is read or checked.

    Of types that numpy has.
    """

    def load(p: Path) -> dict[str, np.ndarray]:
        with open(p, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size < p.stat().st_size:
                raise ArtifactError(f"cannot read {p}: it has no header")
            header = json.loads(file.read(size))
        found: dict[str, np.ndarray] = {}
        for name, told in header.items():
            if name != "__metadata__":
                first, end = told["data_offsets"]
                shape, dtype = tuple(told["shape"]), np.dtype(_MAPPED[told["dtype"]])
                if 8 + size + end > p.stat().st_size:
                    raise ArtifactError(f"cannot read {p}: it ends too early")
                found[name] = np.memmap(p, dtype, "r", 8 + size + first, shape)
        return found

    return _read(path, load)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata alone of a file that `write_tensors` wrote; its tensors are neither read nor checked."""
    from safetensors import safe_open

    def load(p: Path) -> dict[str, Any]:
        with safe_open(str(p), framework="pt") as file:
            found: dict[str, Any] = json.loads(_header(file.metadata())[1])
        return found

    return _read(path, load)


def _header(metadata: Mapping[str, str] | None) -> tuple[str | None, str]:
    """The digest and the JSON text in a safetensors header; one of an earlier hllm has no digest."""
    if metadata and HEADER in metadata:
        sha256, _, text = metadata[HEADER].partition(" ")
        return sha256, text
    return None, (metadata or {}).get("json", "{}")


def _digest_tensors(tensors: Mapping[str, torch.Tensor], metadata: str) -> str:
    """Digest of tensors on the CPU, in name order, with their types, shapes and metadata."""
    import torch

    parts: list[str | np.ndarray] = [metadata]
    for name, value in sorted(tensors.items()):
        flat = value.reshape(-1)
        parts += [f"{name} {value.dtype} {tuple(value.shape)}", flat.view(torch.uint8).numpy()]
    return digest(*parts)


def write_table(path: Path | str, frame: pl.DataFrame) -> None:
    """Write a polars frame as zstd Parquet."""
    with atomic(path) as temporary:
        frame.write_parquet(temporary, compression="zstd", statistics=False)


def read_table(path: Path | str, columns: list[str] | None = None) -> pl.DataFrame:
    """Read a Parquet table into polars."""
    import polars as pl

    return _read(path, lambda p: pl.read_parquet(p, columns=columns))


def copy_file(source: Path | str, target: Path | str) -> None:
    """Copy one file atomically."""
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)


def digest(*parts: bytes | str | np.ndarray) -> str:
    """SHA-256 (hex) over the parts, each preceded by its length so that no two lists collide."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        else:
            data = memoryview(part.encode("utf-8") if isinstance(part, str) else part)
        sha.update(data.nbytes.to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def digest_array(array: np.ndarray) -> str:
    """SHA-256 (hex) of the file that `write_array` makes of an array."""
    sha = hashlib.sha256()
    for part in _npy_parts(array):
        sha.update(part)
    return sha.hexdigest()


def digest_file(path: Path | str, algorithm: str = "sha256") -> str:
    """Checksum (hex) of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _read(path: Path | str, load: Callable[[Path], T]) -> T:
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} not found")
    try:
        return load(path)
    except ArtifactError:
        raise
    except Exception as err:  # each library has its own error classes for a damaged file
        reason = ": ".join([type(err).__name__, *str(err).splitlines()[:1]])
        raise ArtifactError(f"cannot read {path}: {reason[:200]}") from err
