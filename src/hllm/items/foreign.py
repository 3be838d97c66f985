"""Item vectors that others made, as they come: arrays, frames, files of five kinds, or a model with an `encode`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hllm.data.reading.tablefiles import JSON, PARQUET, has_ending, is_untyped, read_table_file
from hllm.data.tables.frames import column_of, to_polars
from hllm.data.tables.schema import ITEM_ID
from hllm.errors import ArtifactError, DataError

if TYPE_CHECKING:
    import polars as pl

NUMPY, TENSORS, TORCH = (".npy", ".npz"), (".safetensors",), (".pt", ".pth", ".bin")
IDS = (ITEM_ID, "item_ids", "ids", "id", "keys")  # names under which identifiers are looked for
ENDINGS = (*NUMPY, ".parquet", *TENSORS, ".pt")


@dataclass(frozen=True)
class Foreign:
    """Vectors float (n, d) and the identifiers of their rows.

    untyped  whether the identifiers come from a file of text, where 7 may be a number or a text
    source   where they come from, for the record
    """

    vectors: np.ndarray
    ids: pl.Series
    untyped: bool
    source: str


def read_foreign(path: Path, ids: Path | None = None) -> Foreign:
    """The vectors in `path`, whose identifiers stand beside them or, row by row, in the file `ids`.

    .npy (one matrix), .npz, .safetensors and .pt (a matrix and ids by any usual name, or a dictionary from id to
    vector), .parquet and other tables (item_id, and a column of lists or a column a number). Raises DataError for
    another kind of file, or one that holds something else; ArtifactError for a file that cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; give vectors in a file that ends in {', '.join(ENDINGS)}")
    given = None if ids is None else _read_ids(ids)
    name = path.name.lower()
    try:
        if name.endswith(".npy"):
            content: Any = _load_numpy(path, mmap_mode="r")
        elif name.endswith(".npz"):
            if not zipfile.is_zipfile(path):
                raise ArtifactError(f"cannot read {path}: it is cut short, or no NumPy archive")
            with np.load(path, allow_pickle=False) as file:
                content = {key: file[key] for key in file.files}
        elif name.endswith(TENSORS):
            from safetensors.torch import load_file

            content = load_file(path)
        elif name.endswith(TORCH):
            from hllm.formats.pickles import load_torch

            content = load_torch(path)
        elif has_ending(path, (*PARQUET, *JSON)):
            content = read_table_file(path)
        else:
            raise DataError(f"{path}: unknown kind of file; valid endings: {', '.join(ENDINGS)}")
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as err:
        raise ArtifactError(f"cannot read {path}: {' '.join(str(err).split())[:200]}") from err
    except Exception as err:
        if isinstance(err, DataError | ArtifactError):
            raise
        raise ArtifactError(f"cannot read {path}: {type(err).__name__}: {str(err)[:200]}") from err
    found, own, untyped = _split(content, str(path))
    if given is not None:
        own, untyped = given
    return _foreign(found, own, untyped, f"file {path.name}", str(path), "--ids FILE")


def take_foreign(vectors: Any, ids: Any = None) -> Foreign:
    """The same from Python: an array or tensor (n, d) with `ids`, a frame, or a mapping from id to vector."""
    found, own, _ = _split(vectors, "vectors")
    if ids is not None:
        own = _id_column(ids)
    kind = type(vectors).__module__.split(".")[0]
    return _foreign(found, own, False, f"{kind} {type(vectors).__name__}", "vectors", "ids=[...]")


def encode_foreign(model: Any, texts: Sequence[str | None], ids: Sequence[Any]) -> Foreign:
    """Vectors of texts by anything with an `encode(list of texts)`, as sentence-transformers' models have it.

    Equal texts are encoded once; items without text are left out.
    """
    distinct = sorted({text for text in texts if text is not None}, key=lambda text: (-len(text), text))
    if not distinct:
        raise DataError(f"none of the {len(texts):,} items has text")
    made = _matrix(model.encode(distinct), f"{type(model).__name__}.encode")
    if len(made) != len(distinct):
        raise DataError(
            f"{type(model).__name__}.encode gave {len(made):,} vectors for {len(distinct):,} texts"
        )
    row = {text: i for i, text in enumerate(distinct)}
    there = [(item, row[text]) for item, text in zip(ids, texts, strict=True) if text is not None]
    own = _id_column([item for item, _ in there])
    return Foreign(
        made[[i for _, i in there]], own, False, f"{type(model).__module__}.{type(model).__name__}"
    )


def _foreign(
    vectors: np.ndarray, ids: pl.Series | None, untyped: bool, source: str, name: str, advice: str
) -> Foreign:
    if ids is None:
        raise DataError(
            f"{name} says not which item each of its {len(vectors):,} vectors belongs to; give the ids: {advice}"
        )
    if len(ids) != len(vectors):
        raise DataError(
            f"{name} has {len(vectors):,} vectors, but there are {len(ids):,} ids; one id a row is needed"
        )
    return Foreign(vectors, ids, untyped, source)


def _split(content: Any, name: str) -> tuple[np.ndarray, pl.Series | None, bool]:
    """The matrix and the ids in what a file, or a caller, gave."""
    if isinstance(content, Mapping):
        return _of_mapping(content, name)
    if hasattr(content, "columns") or hasattr(content, "__arrow_c_stream__"):
        return _of_frame(to_polars(content), name)
    return _matrix(content, name), None, False


def _of_frame(frame: pl.DataFrame, name: str) -> tuple[np.ndarray, pl.Series | None, bool]:
    import polars as pl

    key = next((c for c in IDS if c in frame.columns), None)
    lists = [c for c, kind in frame.schema.items() if isinstance(kind, pl.List | pl.Array)]
    numbers = [c for c, kind in frame.schema.items() if kind.is_numeric() and c != key]
    if len(lists) == 1:
        column = frame[lists[0]]
        if not len(column):
            raise DataError(f"{name} has no row; item vectors are one a row")
        lengths = column.list.len() if isinstance(column.dtype, pl.List) else column.arr.len()
        if column.null_count() or lengths.n_unique() != 1:
            raise DataError(f"{name}: the lists of column {lists[0]!r} are not all of one length")
        if not isinstance(column.dtype, pl.Array):
            column = column.list.to_array(int(lengths[0]))
        values = column.to_numpy()
    elif numbers and not lists:
        values = frame.select(numbers).to_numpy()
    else:
        found = ", ".join(f"{c} ({kind})" for c, kind in frame.schema.items())
        raise DataError(
            f"{name} needs {ITEM_ID} and one column of lists, or numbers in columns; it has {found[:300]}"
        )
    return _matrix(values, name), None if key is None else frame[key], False


def _of_mapping(content: Mapping[Any, Any], name: str) -> tuple[np.ndarray, pl.Series | None, bool]:
    """A matrix under one name and ids under another, or a vector under each id."""
    arrays = {key: _array(value) for key, value in content.items()}
    matrices = [key for key, value in arrays.items() if value is not None and value.ndim == 2]
    if len(matrices) == 1:
        key = next((c for c in IDS if c in content), None)
        if key is None:
            others = [k for k, v in arrays.items() if v is not None and v.ndim == 1 and k != matrices[0]]
            key = others[0] if len(others) == 1 else None
        return _matrix(content[matrices[0]], name), None if key is None else _id_column(content[key]), False
    rows = list(arrays.values())
    if rows and all(row is not None and row.ndim == 1 for row in rows):
        if len({row.shape for row in rows if row is not None}) > 1:
            raise DataError(f"{name} holds vectors of several lengths")
        # Names of tensors are texts, whatever the ids are.
        return _matrix(np.stack([r for r in rows if r is not None]), name), _id_column(list(arrays)), True
    listed = ", ".join(str(key)[:40] for key in list(content)[:5])
    raise DataError(
        f"{name} holds {len(matrices)} matrices, where one with ids is needed, or a vector an id (has: {listed})"
    )


def _matrix(values: Any, name: str) -> np.ndarray:
    """`values` as float16, float32 or float64 (n, d)."""
    array = _array(values)
    if array is None or array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        found = type(values).__name__ if array is None else f"{array.dtype} of shape {array.shape}"
        raise DataError(f"{name} holds {found}; item vectors are one matrix of numbers (items, dimensions)")
    return array if array.dtype in (np.float16, np.float32, np.float64) else array.astype(np.float32)


def _array(values: Any) -> np.ndarray | None:
    """Tensors and arrays as numpy arrays; None for what is neither."""
    if type(values).__module__.split(".")[0] == "torch" and hasattr(values, "detach"):
        import torch

        if values.is_meta:  # a shape without numbers
            return None
        values = values.detach().cpu()
        if values.layout is not torch.strided:
            values = values.to_dense()
        try:
            return values.numpy()
        except TypeError:  # bfloat16 and smaller kinds, which NumPy lacks
            return values.float().numpy()
    if isinstance(values, np.ma.MaskedArray) and values.mask.any():  # what is masked is no number
        return values.filled(np.nan) if values.dtype.kind == "f" else None
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, list | tuple) and values:
        try:
            return np.array(values)
        except ValueError:  # rows of several lengths
            return None
    return None


def _load_numpy(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The array in a .npy file; ArtifactError for one of Python objects, which is a pickle and is not opened."""
    _check_numpy(path)
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        if read(file)[2].hasobject:
            raise ArtifactError(
                f"cannot read {path}: it holds Python objects; save numbers (or texts, for ids): array.astype(...)"
            )
    return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)


def _check_numpy(path: Path) -> None:
    """ArtifactError for another kind of file, which NumPy takes for a pickle."""
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ArtifactError(f"cannot read {path}: it is no NumPy file, whatever its name says")


def _id_column(ids: Any) -> pl.Series:
    array = _array(ids)
    values = ids if array is None else array.tolist()
    if isinstance(ids, str | Mapping) or not hasattr(values, "__iter__"):
        raise DataError(f"ids must be a list of identifiers, not {type(ids).__name__}")
    return column_of(ITEM_ID, list(values))


def _read_ids(path: Path) -> tuple[pl.Series, bool]:
    """Identifiers, one a row, and whether their type is to be told by their values."""
    if not path.is_file():
        raise DataError(f"ids: {path} is no file; give one id a line (.txt), a table with {ITEM_ID}, or .npy")
    if path.suffix == ".npy":
        try:
            return _id_column(_load_numpy(path)), False
        except (ValueError, OSError, EOFError) as err:
            raise ArtifactError(f"cannot read {path}: {err}") from err
    frame = read_table_file(path)
    key = next((c for c in IDS if c in frame.columns), None)
    if key is None:
        if frame.width > 1:
            raise DataError(f"{path} has no column {ITEM_ID}; found: {', '.join(frame.columns)[:200]}")
        frame = read_table_file(path, header=False)  # one id a line
        key = frame.columns[0]
    return frame[key], is_untyped(path)
