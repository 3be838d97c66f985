"""`hllm import-bytedance FILE DATASET`: a checkpoint of ByteDance's HLLM as a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hllm.cli import console


def import_bytedance(
    file: Annotated[
        Path,
        typer.Argument(help="pytorch_model.bin, the index of its shards, or the folder that holds them."),
    ],
    dataset: Annotated[Path, typer.Argument(help="A dataset folder: its items and histories.")],
    item_llm: Annotated[
        str,
        typer.Option(
            help="Model that the item LLM was trained from: short name, hub name, or a folder with its config.json and "
            "tokenizer. Its weights are not read."
        ),
    ],
    user_llm: Annotated[str, typer.Option(help="The same of the user LLM; no tokenizer is needed.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    max_len: Annotated[
        int | None,
        typer.Option(min=1, help="MAX_ITEM_LIST_LENGTH of its training; the dataset's, or 50, if absent."),
    ] = None,
    max_text_length: Annotated[
        int, typer.Option(min=1, help="MAX_TEXT_LENGTH of its training, the prompt's tokens included.")
    ] = 256,
    fields: Annotated[
        str | None, typer.Option(help="Its text_keys in order, as title,description; all fields if absent.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Its item_prompt; the official one if absent.")] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:N: where the items are encoded.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16 or fp16: in which the items are encoded.")
    ] = "fp32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what run --out holds.")] = False,
) -> None:
    """Turn a checkpoint of ByteDance's HLLM into a run: evaluate, recommend, serve and train on from it.

    Nothing in the file is run. After an interruption the same command goes on where it stopped.
    """
    from hllm import hardware
    from hllm.data.dataset import Dataset
    from hllm.items.encoders.precision import check_precision

    hardware.check_device(device)
    check_precision(precision)
    data = Dataset.load(dataset)
    from hllm.runs.bytedance import Reading, import_checkpoint

    chosen = None if fields is None else [name.strip() for name in fields.split(",") if name.strip()]
    reading = Reading(max_len, max_text_length, chosen, prompt)
    import_checkpoint(
        file, data, item_llm, user_llm, out, reading, device=device, precision=precision, overwrite=overwrite
    )
    console.result(
        f"{data.n_catalogue:,} items encoded by {item_llm} with the weights of {file}; run in {out}"
    )
    console.note(f"next: hllm evaluate {out}; hllm recommend {out} -k 10")
