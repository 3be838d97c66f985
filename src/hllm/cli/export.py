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
        typer.Option(help="onnx, torch-export, safetensors, parquet, or bytedance (its pytorch_model.bin)."),
    ] = "onnx",
    out: Annotated[Path | None, typer.Option(help="Folder to write; RUN-FORMAT if absent.")] = None,
) -> None:
    """Write user model and item vectors in a format that needs no hllm, and compare it with the run."""
    from hllm.export.write import export as write
    from hllm.pipeline import Recommender

    folder = out or run.parent / f"{run.resolve().name}-{format}"
    parity = write(Recommender.from_pretrained(run, "cpu"), folder, format)
    page = "export.md has a program that reads it"
    if format == "bytedance":
        page = "migrating.md says what reads it"
        console.note(
            f"for ByteDance's code: item_pretrain_dir={folder / 'item_llm'}, user_pretrain_dir={folder / 'user_llm'}, "
            f"item_llm_init=False, user_llm_init=False, val_only=True, checkpoint_dir={folder}"
        )
    elif parity is None:
        console.note("nothing of it was run: it holds no program, or onnxruntime or test users are missing")
    else:
        console.result(
            f"{parity.users:,} test users: largest difference of a score {parity.difference:.1e} of the largest score, "
            f"the same first ten items for {parity.same:,}"
        )
    console.result(f"{format} export in {folder}; docs/{page}")
