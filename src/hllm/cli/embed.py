"""`hllm embed`: item embeddings into the dataset's store."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hllm.cli import console

if TYPE_CHECKING:
    from hllm.items.embed import ItemEmbeddings


def embed(
    dataset: Annotated[Path, typer.Argument(help="A dataset folder, made by `hllm data prepare`.")],
    item_llm: Annotated[
        str,
        typer.Option(
            help="Short name (smollm2-135m, tinyllama, ...), hub name, model folder, .gguf file, or a run whose "
            "item LLM was trained; "
            "or a control without a language model: tfidf, random."
        ),
    ] = "smollm2-135m",
    pooling: Annotated[
        str | None, typer.Option(help="mean (for hllm-lite; if absent) or last (the reference's).")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text before the fields; official prompt if absent.")
    ] = None,
    fields: Annotated[
        str | None, typer.Option(help="Text fields in order, as title,genres; else all.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Items a forward pass.")] = 64,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an item's text beside the prompt; 256 if absent.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model's repository brings.")
    ] = False,
) -> None:
    """Turn every item's text into a vector with a language model.

    Encodes only what is missing: run it again after an interruption or an edited title.
    """
    from hllm.data.dataset import Dataset
    from hllm.items import embed as items

    data = Dataset.load(dataset)
    chosen = None if fields is None else [name.strip() for name in fields.split(",") if name.strip()]
    try:
        result = items.embed(
            data,
            item_llm,
            pooling,
            prompt,
            chosen,
            device=device,
            precision=precision,
            batch_size=batch_size,
            max_tokens=max_tokens,
            trust_remote_code=trust_remote_code,
        )
    except KeyboardInterrupt as err:
        raise KeyboardInterrupt(
            "interrupted; finished batches are kept, and the same command goes on with the rest"
        ) from err
    for line in summary(result):
        console.result(line)
    console.result(f"next: {train_command(dataset, result.spec, chosen)}")


def train_command(dataset: Path, spec: dict[str, Any], fields: list[str] | None) -> str:
    """The command that trains on these embeddings, with a --set for each choice that is not the default."""
    from hllm.items.config import ItemsConfig
    from hllm.text.template import OFFICIAL_PROMPT

    settings = {"item_llm": spec["model"]}
    if spec.get("item_emb_token_n"):  # its vectors are named by their store alone
        return shlex.join(["hllm", "train", str(dataset), "--set", f"item_llm={spec['key']}"])
    if spec["source"] != "control":
        settings |= {"pooling": spec["pooling"], "prompt": json.dumps(spec["prompt"])}
    defaults = {name: ItemsConfig.model_fields[name].default for name in settings}
    defaults["prompt"] = json.dumps(OFFICIAL_PROMPT)
    if fields is not None:
        settings["text_fields"], defaults["text_fields"] = f"[{', '.join(fields)}]", None
    command = ["hllm", "train", str(dataset)]
    for name, value in settings.items():
        if value != defaults[name]:
            command += ["--set", f"{name}={value}"]
    return shlex.join(command)


def summary(result: ItemEmbeddings) -> list[str]:
    """What was done, in two lines."""
    from hllm.progress import duration, rate_text

    spec, stats = result.spec, result.stats
    encoded, seconds = stats["encoded"], stats["encode_seconds"]
    rate = ""
    if encoded:
        rate = f" in {duration(stats['seconds'])} with loading ({rate_text(encoded, seconds, 'items')})"
    details = [f"{encoded:,} encoded{rate}", f"{stats['reused']:,} reused"]
    if stats["without_text"]:
        details.append(f"{stats['without_text']:,} without text")
    if stats["truncated"]:
        details.append(f"{stats['truncated']:,} cut to at most {spec['max_tokens']} tokens")
    model = f"{spec['model']} from {spec['source']}, {spec['precision']}, pooling {spec['pooling']}"
    if spec["source"] == "control":
        model = str(spec["model"])
    cosine = f"mean cosine between items {result.mean_cosine:.3f}"
    return [
        f"item embeddings: {', '.join(details)}",
        f"{model}; {spec['dim']} dimensions, {cosine}; in {stats['folder']}",
    ]
