"""Pickles and `.pt` files of other systems, read without running what is in them.

A pickle is a program that may call any function it can name. This reader lets it name numpy
arrays of numbers and text, plain containers and torch tensors, and refuses everything else by name;
what it says of numpy's types is checked before numpy believes it (see inspection.py).
"""

from __future__ import annotations

import collections
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from hllm.errors import ArtifactError
from hllm.formats.inspection import Call, Inspector, Refused

# How a file written by torch.save starts: a zip archive, or (before 1.6) a pickled magic number.
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
HOLDS = "only numpy arrays of numbers and text, plain containers and torch tensors are loaded"


def load_pickle(path: Path | str) -> Any:
    """Read a pickle that holds numpy arrays, plain containers and tensors.

    Raises ArtifactError, naming the global, for a pickle that asks for anything else; and for a
    missing or damaged file.
    """
    path = _existing(path)
    try:
        with open(path, "rb") as file:
            Inspector(file, _PLAIN).load()
            file.seek(0)
            return _Unpickler(file).load()
    except Exception as err:  # a damaged pickle can fail in any way at all
        raise _unreadable(path, err) from err


def load_torch(path: Path | str) -> Any:
    """Read a file written by `torch.save` (zip or pre-1.6), or a plain pickle under such a name, on the CPU.

    Tensors in zip files are memory-mapped. Raises ArtifactError as `load_pickle` does.
    """
    import torch

    path = _existing(path)
    with open(path, "rb") as file:
        head = file.read(len(LEGACY_MAGIC))
    if not head.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
        return load_pickle(path)
    try:
        if not head.startswith(ZIP_MAGIC):  # several pickles in one, of tensors alone
            return torch.load(path, map_location="cpu", weights_only=True)
        _inspect_zip(path)
        with torch.serialization.safe_globals(_numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as err:
        raise _unreadable(path, err, "file") from err


def load_tensor(path: Path | str) -> Any:
    """Read one matrix (a tensor, or a numpy array) as a torch tensor; ArtifactError for anything else."""
    import torch

    value = load_torch(path)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor) or value.dim() != 2:
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise ArtifactError(
            f"{path} holds a {type(value).__name__}{shape}, not one (items, dimensions) tensor"
        )
    return value


def _inspect_zip(path: Path) -> None:
    """Look through the pickles of a zip file of `torch.save`."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                with archive.open(name) as file:
                    Inspector(file, _PLAIN).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")  # numpy's choice for pickles of Python 2

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("torch"):
            if (found := _torch_globals().get(f"{module}.{name}")) is not None:
                return found
        elif (found := _PLAIN.get(f"{module}.{name}")) is not None:
            return found
        raise Refused(f"{module}.{name}")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What protocol 2 calls to rebuild bytes: latin1 and nothing else."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"_codecs.encode with encoding {encoding!r}")
    return text.encode("latin1")


def _bytes(*parts: Any) -> bytes:
    """`bytes`, which given a number would make that many."""
    if parts and not isinstance(parts[0], bytes | bytearray | list | tuple):
        raise Refused(f"bytes of a {type(parts[0]).__name__}")
    return bytes(*parts[:1])


def _load_storage(data: bytes) -> Any:
    """Stands for `torch.storage._load_from_bytes`, which would load without restrictions."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the class it still writes
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _numpy_functions() -> dict[str, Any]:
    """numpy's rebuilding functions, under the module names of numpy 1 and 2."""
    found: dict[str, Any] = {}
    for core in ("numpy.core", "numpy._core"):
        found[f"{core}.multiarray._reconstruct"] = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        found[f"{core}.multiarray.scalar"] = np._core.multiarray.scalar  # type: ignore[attr-defined]
        found[f"{core}.numeric._frombuffer"] = np._core.numeric._frombuffer  # type: ignore[attr-defined]
    found["numpy.ndarray"], found["numpy.dtype"] = np.ndarray, np.dtype
    for name in (
        "bool_",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
    ):
        found[f"numpy.{name}"] = getattr(np, name)
    found |= {"numpy.float32": np.float32, "numpy.float64": np.float64, "numpy.str_": np.str_}
    found |= {
        f"numpy.dtypes.{kind.__name__}": kind for kind in map(type, map(np.dtype, "?bhilqBHILQefdFDSU"))
    }
    return found


def _plain() -> dict[str, Any]:
    found: dict[str, Any] = _numpy_functions()
    found |= {f"collections.{c.__name__}": c for c in (collections.OrderedDict, collections.Counter)}
    found |= {"collections.defaultdict": collections.defaultdict, "collections.deque": collections.deque}
    safe = (bool, int, float, complex, str, list, tuple, dict, set, frozenset, slice)
    found |= {
        f"{builtins}.{kind.__name__}": kind for kind in safe for builtins in ("builtins", "__builtin__")
    }
    found |= {f"{builtins}.bytes": Call(_bytes) for builtins in ("builtins", "__builtin__")}
    return found | {"_codecs.encode": Call(_encode)}


_PLAIN = _plain()


def _torch_globals() -> dict[str, Any]:
    import torch
    from torch import _utils

    found: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor_v2": _utils._rebuild_tensor_v2,
        "torch._utils._rebuild_parameter": _utils._rebuild_parameter,
        "torch.storage._load_from_bytes": _load_storage,
        "torch.Size": torch.Size,
        "torch.device": torch.device,
    }
    return found


def _numpy_globals() -> list[Any]:
    """The same numpy names, in the form that torch's restricted reader takes."""
    return [(value, name) for name, value in _numpy_functions().items()]


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} not found")
    return path


def _unreadable(path: Path, err: Exception, what: str = "pickle") -> ArtifactError:
    """One line: the refused global, which may be any text, or what is wrong with the file."""
    if isinstance(err, Refused):
        asked = str(err).encode("unicode_escape").decode("ascii")[:200]
        return ArtifactError(f"{path} refused: the {what} asks for {asked}; {HOLDS}")
    if named := re.search(r"GLOBAL ([\w.]+)", str(err)):
        return ArtifactError(f"{path} refused: the file asks for {named[1]}; {HOLDS}")
    text = str(err).partition("\n")[0].encode("unicode_escape").decode("ascii")[:200]
    return ArtifactError(f"cannot read {path}: {type(err).__name__}: {text}")
