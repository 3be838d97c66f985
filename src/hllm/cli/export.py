"""`hllm export RUN`: the run for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hllm.cli import console


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, as `hllm train` writes it.")],
    format: Annotated[
        str,
        typer.Option(
            help="onnx, torch-export, safetensors, faiss, parquet, or bytedance (its pytorch_model.bin)."
        ),
    ] = "onnx",
    quantize: Annotated[
        str | None, typer.Option(help="int8: 8-bit weights and item vectors; for onnx and faiss.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; RUN-FORMAT, or RUN-FORMAT-int8, if absent.")
    ] = None,
) -> None:
    """Write user model and item vectors in a format that needs no hllm, and compare it with the run."""
    from hllm.runs.folder import read_record

    read_record(run)  # a mistake is answered before torch is there
    from hllm.export.write import export as write
    from hllm.pipeline import Recommender

    name = "-".join([run.resolve().name, format, *([quantize] if quantize else [])])
    folder = out or run.parent / name
    parity = write(Recommender.from_pretrained(run, "cpu"), folder, format, quantize)
    page = "docs/export.md has a program that reads it"
    if format != "onnx":
        page = "its README.md says what the files hold"
    if format == "bytedance":
        page = "docs/migrating.md says what reads it"
        console.note(
            f"for ByteDance's code: item_pretrain_dir={folder / 'item_llm'}, user_pretrain_dir={folder / 'user_llm'}, "
            f"item_llm_init=False, user_llm_init=False, val_only=True, checkpoint_dir={folder}"
        )
    elif parity is None:
        console.note(
            "nothing of it was compared: it holds nothing to run, or onnxruntime or test users are missing"
        )
    else:
        of = "" if parity.users == parity.of else f" of {parity.of:,}"
        console.result(
            f"{parity.users:,}{of} test users: largest difference of a score {parity.difference:.1e} of the largest "
            f"score, the same first ten items for {parity.same:,}"
        )
        if quantize:
            console.result(
                f"{parity.overlap:.4f} of the first ten items are the same, mean over users; "
                f"ndcg@10 {parity.run_ndcg:.4f} before, {parity.ndcg:.4f} after"
            )
    console.result(f"{format} export in {folder}; {page}")
