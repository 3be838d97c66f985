"""`export`: a folder with the user model, the item vectors beside it, and what was checked.

export.json          what it is: run, format, max_len, quantize, parity
README.md            the same in words
user_model.*         .onnx or .pt2: vectors (B, L, w) and lengths (B,) -> queries (B, w); .safetensors: weights
item_vectors.npy     float32 (n + 1, w), what the user model reads; row = number of the item, 0 is padding
item_scored.npy      float32 (n + 1, w), what a query is multiplied with
*_scale.npy          float32 (n + 1, 1) with --quantize int8: the arrays are int8 then, to be multiplied by it
candidates.npy       int64 (c,), rows that may be recommended
items.json           ids, row by row, null for padding
items.faiss          with the format faiss: an index of the rows of candidates.npy, by inner product
items.parquet        item_id, vector, scored (with the format parquet, which needs no other file)
pytorch_model.bin    with the format bytedance: both language models under the names of ByteDance's HLLM
                     (`hllm.runs.bytedance.export_checkpoint`)
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hllm.artifacts import atomic, locked, write_array, write_json, write_table, write_tensors, write_text
from hllm.data.folder import own_names
from hllm.errors import ArtifactError, ConfigError, unknown
from hllm.evaluate.evaluation import parse_max_len
from hllm.export.check import Parity, compare, padded_queries, run_queries
from hllm.export.dense import DenseUserModel
from hllm.export.index import search_index, write_index
from hllm.export.onnx import check_packages, program_of, quantize_onnx, run_onnx, write_onnx
from hllm.export.readme import readme
from hllm.recommend.rules import make_rules

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.models.hllm import HLLM
    from hllm.pipeline import Recommender

FORMATS = ("onnx", "torch-export", "safetensors", "faiss", "parquet", "bytedance")
NEEDED = {"onnx": ("export", ("onnx", "onnxscript")), "faiss": ("faiss", ("faiss",))}
QUANTIZED = ("onnx", "faiss")  # formats that --quantize is for
MARKER = "export.json"

Encode = Callable[[np.ndarray, np.ndarray], np.ndarray]  # vectors (B, L, w), lengths (B,) -> queries (B, w)


def export(
    recommender: Recommender, folder: Path, format: str = "onnx", quantize: str | None = None
) -> Parity | None:
    """Write `folder` in a format of FORMATS, and check what can be run; None where nothing was.

    `quantize="int8"`: weights and item vectors as 8-bit integers with scales; what is lost stands in the result.

    Raises ConfigError for an unknown format, a package that is missing, or a user model without a padded form,
    ArtifactError for a folder of something else, and HLLMError where the exported model gives other scores.
    """
    _check(format, quantize)
    network, data = recommender._ready()
    _check_folder(folder)
    max_len = parse_max_len(recommender.config.training.max_len)
    document: dict[str, Any] = {
        "format": "hllm-export", "kind": format, "run": recommender.record.created, "max_len": max_len,
    }  # fmt: skip
    with locked(folder):
        _clear(folder)
        if format == "bytedance":
            from hllm.runs.bytedance import export_checkpoint

            export_checkpoint(network, recommender.config, recommender.item_llm, folder)
            write_json(folder / MARKER, document)
            return None
        encode = _write_model(network.model, folder, format, quantize)
        raw, scored = (t.float().cpu().numpy() for t in (network.table().raw, network.table().scored))
        width, search, ask = raw.shape[1], None, None
        raw, scored = _write_items(data, folder, format, raw, scored, quantize)
        if format == "faiss":
            tokens = make_rules(data).candidates
            scored = scored.copy()  # the run's own are ranked by as well
            index, scored[tokens] = write_index(folder / "items.faiss", scored[tokens], tokens, quantize)
            search, ask = search_index(index), run_queries(network, max_len)
        elif encode is not None:
            ask = padded_queries(encode, raw, max_len)
        parity = None
        if ask is not None:
            parity = compare(network, data, ask, scored, max_len, search, exact=quantize is None)
        document |= {
            "width": width, "n_items": len(data.items), "quantize": quantize,
            "parity": None if parity is None else vars(parity),
        }  # fmt: skip
        write_text(folder / "README.md", readme(document))
        write_json(folder / MARKER, document)
    return parity


def _check(format: str, quantize: str | None) -> None:
    if format not in FORMATS:
        raise ConfigError(unknown("format", format, FORMATS))
    if quantize not in (None, "int8"):
        raise ConfigError(unknown("quantize", str(quantize), ("int8",)))
    if quantize is not None and format not in QUANTIZED:
        raise ConfigError(
            f"--quantize {quantize} is for --format {' and '.join(QUANTIZED)}, not for {format}"
        )
    if format in NEEDED:
        extra, packages = NEEDED[format]
        check_packages(packages, f"--format {format}", extra)
    if quantize is not None and format == "onnx":
        check_packages(("onnxruntime",), f"--quantize {quantize}")


def _clear(folder: Path) -> None:
    """Remove what an earlier export left that this one may not write again."""
    (folder / MARKER).unlink(missing_ok=True)
    for path in [*folder.glob("user_model.*"), *folder.glob("item*.np[yz]"), *folder.glob("items.*")]:
        path.unlink()


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise ArtifactError(f"{folder} is a file; choose a folder with --out")
    if folder.is_dir() and (names := own_names(folder)) and MARKER not in names:
        raise ArtifactError(f"{folder} is not empty and holds no export; choose another --out")


def _write_model(model: HLLM, folder: Path, format: str, quantize: str | None) -> Encode | None:
    """Write the user model; returns how to run what was written, where that can be done."""
    if format in ("parquet", "faiss"):
        return None
    if format == "safetensors":
        write_tensors(folder / "user_model.safetensors", {n: t.cpu() for n, t in model.state_dict().items()})
        return None
    dense = DenseUserModel(model).eval()
    device = next(dense.parameters()).device
    width = dense.user_model.norm.weight.shape[0]
    example = (torch.randn(3, 5, width, device=device), torch.tensor([5, 2, 4], device=device))
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=1 << 16)
    program = program_of(dense, example, {"vectors": {0: batch, 1: length}, "lengths": {0: batch}})
    if format == "torch-export":
        path, made = folder / "user_model.pt2", io.BytesIO()
        torch.export.save(program, made)
        with atomic(path) as temporary:
            temporary.write_bytes(made.getvalue())
        return _run_program(path, device)
    path = folder / "user_model.onnx"
    write_onnx(program, path, ("vectors", "lengths"), "queries")
    if quantize is not None:
        quantize_onnx(path)
    return run_onnx(path)


def _run_program(path: Path, device: torch.device) -> Encode:
    module = torch.export.load(str(path)).module()

    def encode(vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            made = module(torch.from_numpy(vectors).to(device), torch.from_numpy(lengths).to(device))
        return np.asarray(made.cpu().numpy())

    return encode


def _write_items(
    data: Dataset, folder: Path, format: str, raw: np.ndarray, scored: np.ndarray, quantize: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Write the item vectors; returns both tables as a reader of the folder has them."""
    if format == "parquet":
        import polars as pl

        columns = {"vector": raw[1:], "scored": scored[1:]}
        lists = [
            pl.Series(n, v, dtype=pl.Array(pl.Float32, v.shape[1])).cast(pl.List(pl.Float32))
            for n, v in columns.items()
        ]
        write_table(folder / "items.parquet", pl.DataFrame([data.items["item_id"], *lists]))
        return raw, scored
    raw = _write_vectors(folder / "item_vectors.npy", raw, quantize)
    if format != "faiss":
        scored = _write_vectors(folder / "item_scored.npy", scored, quantize)
        write_array(folder / "candidates.npy", make_rules(data).candidates)
    write_json(folder / "items.json", [None, *data.item_ids])
    return raw, scored


def _write_vectors(path: Path, vectors: np.ndarray, quantize: str | None) -> np.ndarray:
    """Write vectors float32 (n, w), or 8-bit integers with a scale for each row; returns what a reader has."""
    if quantize is None:
        write_array(path, vectors)
        return vectors
    scale = np.abs(vectors).max(axis=1, keepdims=True) / np.float32(127)
    whole = np.rint(vectors / np.where(scale > 0, scale, 1)).astype(np.int8)
    write_array(path, whole)
    write_array(path.with_name(f"{path.stem}_scale.npy"), scale)
    return whole * scale
