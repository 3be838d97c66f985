"""`hllm embed`: item embeddings into the dataset's store."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hllm.cli import console, processes

if TYPE_CHECKING:
    from hllm.items.embeddings import ItemEmbeddings


# Groups of `hllm embed --help`.
MODEL, TEXT, WORK = "The model", "What it reads of an item", "How the work is done"
OWN, STORES = "Vectors of your own (no model runs)", "What is there already"


def embed(
    ctx: typer.Context,
    dataset: Annotated[
        Path | None, typer.Argument(help="A dataset folder, made by `hllm data prepare`.")
    ] = None,
    item_llm: Annotated[
        str,
        typer.Option(
            help="Short name (smollm2-135m, tinyllama, ...), hub name, model folder, .gguf file, or a run whose "
            "item LLM was trained; "
            "or a control without a language model: tfidf, random.",
            rich_help_panel=MODEL,
        ),
    ] = "smollm2-135m",
    pooling: Annotated[
        str | None,
        typer.Option(
            help="mean (for hllm-lite; if absent), last (the reference's), cls or weighted-mean; of other layers as "
            "mean@6, mean@last4; auto: the model's own, with its prompt, dense layers and normalisation.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Text before the fields; official prompt if absent.", rich_help_panel=MODEL),
    ] = None,
    fields: Annotated[
        str | None,
        typer.Option(help="Text fields in order, as title,genres; else all.", rich_help_panel=TEXT),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=WORK)] = "auto",
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1, help="Encode on this many GPUs of this host, a process each.", rich_help_panel=WORK
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            "--dtype",
            help="auto, fp32, bf16, fp16, or on a CPU int8, taken only where its vectors stay those of fp32.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    quantize: Annotated[
        str | None,
        typer.Option(help="Weights in 8bit or 4bit (needs bitsandbytes), or none.", rich_help_panel=MODEL),
    ] = None,
    attn: Annotated[
        str | None,
        typer.Option(
            help="packed, sdpa, eager, flash_attention_2, ...; the fastest if absent.", rich_help_panel=MODEL
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel=MODEL)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Items a forward pass. If absent: 32,768 tokens on a GPU, 4,096 in bf16 on a CPU, else 64 items.",
            rich_help_panel=WORK,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of an item's text beside the prompt; 256 if absent.", rich_help_panel=TEXT),
    ] = None,
    long_text: Annotated[
        str,
        typer.Option(
            help="Of texts over --max-tokens: cut their end, keep the heads of all fields, or by bm25 what says most.",
            rich_help_panel=TEXT,
        ),
    ] = "cut",
    fusion: Annotated[
        str,
        typer.Option(
            help="Fields in one text (together), or apart: mean, mean:3,1 (weights), learned, concat.",
            rich_help_panel=TEXT,
        ),
    ] = "together",
    template: Annotated[
        str,
        typer.Option(
            help="official, natural (sentences), or a format string as '{title} by {brand}'.",
            rich_help_panel=TEXT,
        ),
    ] = "official",
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="Strip HTML and stray spaces; tidy lists, prices and dates in fields.",
            rich_help_panel=TEXT,
        ),
    ] = False,
    field_tokens: Annotated[
        str | None,
        typer.Option(help="Most tokens of fields, as title=32,description=128.", rich_help_panel=TEXT),
    ] = None,
    store: Annotated[
        str,
        typer.Option(
            "--store", help="Precision in which vectors are kept: fp32 or fp16.", rich_help_panel=WORK
        ),
    ] = "fp32",
    engine: Annotated[
        str,
        typer.Option(help="local, or ray: a cluster's processes encode, one a GPU.", rich_help_panel=WORK),
    ] = "local",
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Look texts up in, and add them to, the cache of all datasets.",
            rich_help_panel=WORK,
        ),
    ] = False,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Bring in vectors: .npy, .npz, .parquet, .safetensors or .pt; no model runs.",
            rich_help_panel=OWN,
        ),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            help="Item ids of the rows of --from, where it does not hold them: one a line, or .npy.",
            rich_help_panel=OWN,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What --from's vectors are called; else as the file.", rich_help_panel=OWN),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what it would cost in tokens, time and memory; write nothing.",
            rich_help_panel=WORK,
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read every byte of DATASET's embeddings and say what is damaged.",
            rich_help_panel=STORES,
        ),
    ] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Delete what no item of DATASET needs, and what is damaged.",
            rich_help_panel=STORES,
        ),
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run Python code that the model's repository brings.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    list_: Annotated[
        bool,
        typer.Option(
            "--list", help="List item LLMs; with DATASET the embeddings that it has.", rich_help_panel=STORES
        ),
    ] = False,
) -> None:
    """Turn every item's text into a vector with a language model.

    Encodes only what is missing: run it again after an interruption or an edited title.
    """
    from hllm.cli import embed_store
    from hllm.data.dataset import Dataset
    from hllm.engine import check_engine
    from hllm.errors import ConfigError
    from hllm.items import embed as items
    from hllm.text.budget import parse_budgets

    acts = {"--list": embed_store.list_stores, "--verify": embed_store.verify, "--prune": embed_store.prune}
    asked = [option for option, on in zip(acts, (list_, verify, prune), strict=True) if on]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} are two things; ask for one at a time")
    if asked:
        _check_alone(ctx, {asked[0].strip("-"), "list_"}, f"{asked[0]} is of what is there already")
    if list_ and dataset is None:
        embed_store.list_models()
        return
    if dataset is None:
        raise ConfigError("name a dataset folder: hllm embed DATASET, or hllm embed --list for item LLMs")
    data = Dataset.load(dataset)
    if asked:
        acts[asked[0]](data)
        return
    if from_ is not None:
        _check_alone(ctx, {"from_", "ids", "name"}, "--from brings vectors in as they are")
    chosen = None if fields is None else [name.strip() for name in fields.split(",") if name.strip()]
    options: dict[str, Any] = {
        "template": template,
        "clean": clean,
        "field_tokens": parse_budgets(field_tokens or ""),
        "quantize": quantize,
        "long_text": long_text,
        "store": store,
        "fusion": fusion,
        "precision": precision,
        "max_tokens": max_tokens,
    }
    how: dict[str, Any] = {
        "device": device,
        "batch_size": batch_size,
        "trust_remote_code": trust_remote_code,
        "attn": attn,
        "revision": revision,
        "share": share,
    }
    if dry_run:
        for line in embed_store.cost(
            items.estimate(data, item_llm, pooling, prompt, chosen, **options, **how)
        ):
            console.result(line)
        return
    brought: dict[str, Any] = {"vectors": from_, "ids": ids, "name": name}
    if from_ is None:
        check_engine(engine, (device,))
        brought["engine"] = engine
        how["device"] = processes.start(ctx, gpus, device)
    try:
        result = items.embed(data, item_llm, pooling, prompt, chosen, **options, **how, **brought)
    except KeyboardInterrupt as err:
        raise KeyboardInterrupt(
            "interrupted; finished batches are kept, and the same command goes on with the rest"
        ) from err
    for line in summary(result):
        console.result(line)
    console.result(f"next: {train_command(dataset, result.spec, chosen)}")


def _given(ctx: typer.Context) -> set[str]:
    """Names of the parameters that were written in the command."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _check_alone(ctx: typer.Context, allowed: set[str], why: str) -> None:
    """ConfigError for options, other than the `allowed`, beside one that leaves them nothing to say."""
    from hllm.errors import ConfigError

    others = _given(ctx) - {"dataset", *allowed}
    given = [max(param.opts, key=len) for param in ctx.command.params if param.name in others]
    if given:
        raise ConfigError(f"{why}, so {', '.join(given)} would have no effect; leave that out")


def train_command(dataset: Path, spec: dict[str, Any], fields: list[str] | None) -> str:
    """The command that trains on these embeddings, with a --set for each choice that is not the default."""
    from hllm.items.config import ItemsConfig
    from hllm.text.template import OFFICIAL_PROMPT

    settings = {"item_llm": spec["model"]}
    parts = spec.get("parts", [spec])
    if not all(_is_told(dataset, part) for part in parts):
        keys = "+".join(part["key"] for part in parts)
        fusion = ["--set", f"fusion={spec['fusion']}"] if len(parts) > 1 else []
        return shlex.join(["hllm", "train", str(dataset), "--set", f"item_llm={keys}", *fusion])
    if spec["pooling"] != "none":  # of a language model
        settings |= {"pooling": spec["pooling"], "prompt": json.dumps(spec["prompt"])}
    defaults = {name: ItemsConfig.model_fields[name].default for name in settings}
    defaults["prompt"] = json.dumps(OFFICIAL_PROMPT)
    if fields is not None:
        settings["text_fields"], defaults["text_fields"] = f"[{', '.join(fields)}]", None
    if "fusion" in spec:
        settings["fusion"], defaults["fusion"] = spec["fusion"], "together"
    command = ["hllm", "train", str(dataset)]
    for name, value in settings.items():
        if value != defaults[name]:
            command += ["--set", f"{name}={value}"]
    return shlex.join(command)


def _is_told(dataset: Path, spec: dict[str, Any]) -> bool:
    """Whether a run's settings tell these vectors from all others of the model that the dataset has."""
    from hllm.items.store.request import OFF, Request
    from hllm.items.store.shards import list_specs

    if spec.get("item_emb_token_n") or any(name in spec for name in OFF if name != "quantize"):
        return False
    request = Request(spec["model"], spec["pooling"], spec["prompt"], tuple(spec["fields"]))
    return sum(request.matches(other) for other in list_specs(dataset / "embeddings")) < 2


def summary(result: ItemEmbeddings) -> list[str]:
    """What was done, in two or three lines."""
    from hllm.progress import duration, rate_text

    spec, stats = result.spec, result.stats
    cosine = f"mean cosine between items {result.mean_cosine:.3f}"
    where = f"{spec['dim']} dimensions, {cosine}; in {stats['folder']}"
    if "brought" in stats:
        return [
            f"item vectors: {stats['brought']:,} brought in from {spec['source']} ({spec['precision']}), "
            f"{stats['missing']:,} items without one, {stats['surplus']:,} of no item",
            f"{spec['model']}; {where}",
        ]
    encoded, seconds = stats["encoded"], stats["encode_seconds"]
    rate = ""
    if encoded:
        rate = f" in {duration(stats['seconds'])} with loading ({rate_text(encoded, seconds, 'items')})"
    details = [f"{encoded:,} encoded{rate}", f"{stats['reused']:,} reused"]
    if stats.get("from_shared"):
        details[-1] += f" ({stats['from_shared']:,} from the shared cache)"
    if stats["without_text"]:
        details.append(f"{stats['without_text']:,} without text")
    if stats["truncated"]:
        details.append(f"{stats['truncated']:,} cut to at most {spec['max_tokens']} tokens")
    model = f"{spec['model']} from {spec['source']}, {spec['precision']}, pooling {spec['pooling']}"
    if spec["source"] == "control":
        model = str(spec["model"])
    lines = [f"item embeddings: {', '.join(details)}", f"{model}; {where}"]
    if stats.get("computed"):
        memory = stats.get("peak_memory")
        lines.insert(
            1,
            f"{stats['tokens']:,} tokens read, {rate_text(stats['tokens'], seconds, 'tokens')}; {stats['computed']:,} "
            f"computed, {stats.get('padding', 0.0):.1%} padding"
            + (f"; peak memory {memory / 2**30:.2f} GiB" if memory else ""),
        )
    return lines
