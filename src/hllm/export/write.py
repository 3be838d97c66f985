"""`export`: a folder with the user model, the item vectors beside it, and what was checked.

export.json          what it is: run, format, max_len, parity
user_model.*         .onnx or .pt2: vectors (B, L, w) and lengths (B,) -> queries (B, w); .safetensors: weights
item_vectors.npy     float32 (n + 1, w), what the user model reads; row = number of the item, 0 is padding
item_scored.npy      float32 (n + 1, w), what a query is multiplied with
candidates.npy       int64 (c,), rows that may be recommended
items.json           ids, row by row, null for padding
items.parquet        item_id, vector, scored (with the format parquet, which needs no other file)
pytorch_model.bin    with the format bytedance: both language models under the names of ByteDance's HLLM
                     (`hllm.runs.bytedance.export_checkpoint`)
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hllm.artifacts import atomic, locked, write_array, write_json, write_table, write_tensors
from hllm.data.batches.queries import Queries, eval_queries
from hllm.data.folder import own_names
from hllm.errors import ArtifactError, ConfigError, HLLMError, unknown
from hllm.evaluate.evaluation import parse_max_len
from hllm.export.dense import DenseUserModel

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.models.hllm import HLLM, Network
    from hllm.pipeline import Recommender

FORMATS = ("onnx", "torch-export", "safetensors", "parquet", "bytedance")
NEEDED = {"onnx": ("onnx", "onnxscript")}
TOLERANCE = 1e-4  # relative to the largest score, at least 1
USERS, TOP = 1000, 10
MARKER = "export.json"

Encode = Callable[[np.ndarray, np.ndarray], np.ndarray]  # vectors (B, L, w), lengths (B,) -> queries (B, w)


@dataclass(frozen=True)
class Parity:
    """How an exported model compares with the run on users of its test split.

    users, largest difference of a score, and users whose first ten items are the same
    """

    users: int
    difference: float
    same: int


def export(recommender: Recommender, folder: Path, format: str = "onnx") -> Parity | None:
    """Write `folder` in a format of FORMATS, and check what can be run; None where nothing was.

    Raises ConfigError for an unknown format, a package that is missing, or a user model without a padded form,
    ArtifactError for a folder of something else, and HLLMError where the exported model gives other scores.
    """
    if format not in FORMATS:
        raise ConfigError(unknown("format", format, FORMATS))
    missing = [name for name in NEEDED.get(format, ()) if find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format {format} needs {', '.join(missing)}: pip install 'hllm[export]'")
    network, data = recommender._ready()
    _check_folder(folder)
    max_len = parse_max_len(recommender.config.training.max_len)
    with locked(folder):
        (folder / MARKER).unlink(missing_ok=True)
        if format == "bytedance":
            from hllm.runs.bytedance import export_checkpoint

            export_checkpoint(network, recommender.config, recommender.item_llm, folder)
            kind = {
                "format": "hllm-export",
                "kind": format,
                "run": recommender.record.created,
                "max_len": max_len,
            }
            write_json(folder / MARKER, kind)
            return None
        encode = _write_model(network.model, folder, format)
        raw, scored = (t.float().cpu().numpy() for t in (network.table().raw, network.table().scored))
        _write_items(data, folder, format, raw, scored)
        parity = None if encode is None else compare(network, data, encode, raw, scored, max_len)
        document = {
            "format": "hllm-export", "kind": format, "run": recommender.record.created, "max_len": max_len,
            "width": int(raw.shape[1]), "n_items": int(raw.shape[0]) - 1,
            "parity": None if parity is None else vars(parity),
        }  # fmt: skip
        write_json(folder / MARKER, document)
    return parity


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise ArtifactError(f"{folder} is a file; choose a folder with --out")
    if folder.is_dir() and (names := own_names(folder)) and MARKER not in names:
        raise ArtifactError(f"{folder} is not empty and holds no export; choose another --out")


def _write_model(model: HLLM, folder: Path, format: str) -> Encode | None:
    """Write the user model; returns how to run what was written, where that can be done."""
    if format == "parquet":
        return None
    if format == "safetensors":
        write_tensors(folder / "user_model.safetensors", {n: t.cpu() for n, t in model.state_dict().items()})
        return None
    dense = DenseUserModel(model).eval()
    device = next(dense.parameters()).device
    width = dense.user_model.norm.weight.shape[0]
    example = (torch.randn(3, 5, width, device=device), torch.tensor([5, 2, 4], device=device))
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=1 << 16)
    shapes: dict[str, Any] = {"vectors": {0: batch, 1: length}, "lengths": {0: batch}}
    with torch.no_grad():
        program = torch.export.export(dense, example, dynamic_shapes=shapes)
    if format == "torch-export":
        path, made = folder / "user_model.pt2", io.BytesIO()
        torch.export.save(program, made)
        with atomic(path) as temporary:
            temporary.write_bytes(made.getvalue())
        return _run_program(path, device)
    path = folder / "user_model.onnx"
    names = {"input_names": ["vectors", "lengths"], "output_names": ["queries"]}
    with atomic(path) as temporary, _quiet():
        onnx = torch.onnx.export(program, dynamo=True, verbose=False, **names)  # type: ignore[arg-type]
        assert onnx is not None
        onnx.save(str(temporary), external_data=False)
    return _run_onnx(path) if find_spec("onnxruntime") else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on packages that nothing here needs, and on its own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _run_program(path: Path, device: torch.device) -> Encode:
    module = torch.export.load(str(path)).module()

    def encode(vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            made = module(torch.from_numpy(vectors).to(device), torch.from_numpy(lengths).to(device))
        return np.asarray(made.cpu().numpy())

    return encode


def _run_onnx(path: Path) -> Encode:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def encode(vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(["queries"], {"vectors": vectors, "lengths": lengths})[0])

    return encode


def _write_items(data: Dataset, folder: Path, format: str, raw: np.ndarray, scored: np.ndarray) -> None:
    from hllm.recommend.rules import make_rules

    if format == "parquet":
        import polars as pl

        columns = {"vector": raw[1:], "scored": scored[1:]}
        lists = [
            pl.Series(n, v, dtype=pl.Array(pl.Float32, v.shape[1])).cast(pl.List(pl.Float32))
            for n, v in columns.items()
        ]
        write_table(folder / "items.parquet", pl.DataFrame([data.items["item_id"], *lists]))
        return
    write_array(folder / "item_vectors.npy", raw)
    write_array(folder / "item_scored.npy", scored)
    write_array(folder / "candidates.npy", make_rules(data).candidates)
    write_json(folder / "items.json", [None, *data.item_ids])


def compare(
    network: Network, data: Dataset, encode: Encode, raw: np.ndarray, scored: np.ndarray, max_len: int | None
) -> Parity | None:
    """`encode` against the run on users of the test split, 1,000 at most; None without such users.

    Raises HLLMError where scores differ by more than 1e-4 of the largest.
    """
    from hllm.recommend.session import Session

    queries = eval_queries(data, "test")
    if not len(queries):
        return None
    queries = queries.take(np.unique(np.linspace(0, len(queries) - 1, USERS).round().astype(int)))
    session = Session(network, data, max_len)
    candidates = session.candidates()
    top = session.top(queries, TOP, candidates, keep_seen=True)
    largest, same = 0.0, 0
    edges = np.searchsorted(top.rows, np.arange(len(queries) + 1))
    for first in range(0, len(queries), 32):
        part = slice(first, min(first + 32, len(queries)))
        made = encode(*_padded(queries, part, raw, max_len))
        for row, query in zip(range(part.start, part.stop), made, strict=True):
            mine = slice(edges[row], edges[row + 1])
            scores = scored[candidates.scored] @ query
            scores[candidates.holes] = -np.inf
            order = np.lexsort((candidates.scored, -scores))[:TOP]
            found = scores[np.searchsorted(candidates.scored, top.tokens[mine])]
            scale = max(1.0, float(np.abs(found).max(initial=0)))
            largest = max(largest, float(np.abs(found - top.scores[mine]).max(initial=0)) / scale)
            same += int(np.array_equal(candidates.scored[order][: mine.stop - mine.start], top.tokens[mine]))
    if largest > TOLERANCE:
        raise HLLMError(
            f"the exported model gives scores that differ by {largest:.1e} of the largest, more than {TOLERANCE:.0e}"
        )
    return Parity(len(queries), largest, same)


def _padded(
    queries: Queries, part: slice, raw: np.ndarray, max_len: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """vectors float32 (B, L, w), right-padded, and lengths int64 (B,) of the queries of `part`."""
    ends, starts = queries.ends[part], queries.starts[part]
    lengths = np.minimum(ends - starts, max_len or int((ends - starts).max()))
    rows = np.zeros((len(ends), int(lengths.max())), dtype=np.int64)
    for row, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
        rows[row, :length] = queries.tokens[end - length : end]
    return raw[rows], lengths.astype(np.int64)
