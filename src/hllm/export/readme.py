"""The README of an export's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CALL = (
    "`vectors` float32 (B, L, {width}), padded on the right, and `lengths` int64 (B,) to "
    "`queries` float32 (B, {width})"
)
MODEL = {
    "onnx": f"`user_model.onnx`: {CALL}",
    "torch-export": f"`user_model.pt2`, for `torch.export.load`: {CALL}",
    "safetensors": "`user_model.safetensors`: the weights of the user model by name",
    "faiss": "`items.faiss`, for `faiss.read_index`: `search(queries float32 (B, {width}), k)` gives scores and rows "
    "of `items.json`. Queries come from the user model, for example of an ONNX export of the same run",
    "parquet": "`items.parquet`: `item_id`, `vector` (what the user model reads) and `scored` (what a query is "
    "multiplied with), {width} numbers each",
}
VECTORS = "`item_vectors.npy` (n + 1, {width}): what the user model reads, row by row; row 0 is padding"
ARRAYS = [
    VECTORS,
    "`item_scored.npy` (n + 1, {width}): a score is a query times a row",
    "`candidates.npy`: rows that may be recommended",
]
IDS = "`items.json`: item ids by row, null for padding"
FILES = {
    "onnx": [*ARRAYS, IDS], "torch-export": [*ARRAYS, IDS], "safetensors": [*ARRAYS, IDS],
    "faiss": [VECTORS, IDS], "parquet": [],
}  # fmt: skip


def readme(document: Mapping[str, Any]) -> str:
    """What lies in the folder of `export.json`'s document, and how it compares with the run."""
    kind, quantized = document["kind"], document["quantize"] is not None
    files = [MODEL[kind], *FILES[kind]]
    if quantized:
        files.append(
            "`*_scale.npy` (n + 1, 1): what the rows of the 8-bit array of that name are multiplied by"
        )
    lines = [
        f"# {kind} export of a run of hllm",
        "",
        f"{document['n_items']:,} items. A history is read from its last {document['max_len']} events on."
        if document["max_len"]
        else f"{document['n_items']:,} items. Histories are read whole.",
        "",
        *(f"- {line.format(width=document['width'])}" for line in files),
        "- `export.json`: the same for programs",
    ]
    if (p := document["parity"]) is not None:
        lines += [
            "",
            f"Compared with the run on {p['users']:,} of {p['of']:,} test users: the largest difference of a score is "
            f"{p['difference']:.1e} of the user's largest, the first ten items are the same for {p['same']:,} "
            f"({p['overlap']:.4f} of them on average), and NDCG@10 is {p['ndcg']:.4f} where the run has "
            f"{p['run_ndcg']:.4f}.",
        ]
    return "\n".join(lines) + "\n"
