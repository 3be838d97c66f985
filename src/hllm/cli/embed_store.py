"""What `hllm embed` prints of models, of stores and of costs: --list, --verify, --prune, --dry-run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.cli import console

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.items.store.estimate import Estimate


def list_models() -> None:
    """The item LLMs with a short name."""
    from hllm.items.encoders.registry import BACKBONES

    columns = ("name", "on the hub", "licence", "own pooling", "own prompt", "width", "layers")
    precisions = ("fp32", "bf16", "8bit", "4bit")
    rows = []
    for short, m in BACKBONES.items():
        memory = [f"{m.gigabytes(precision):.1f}" for precision in precisions]
        rows.append((short, m.hub, m.licence, m.pooling, m.prompt, m.dim, m.layers, *memory))
    title = "Item LLMs by short name; GB of weights by precision. Any other hub name, folder or GGUF file works too"
    console.table(title, (*columns, *precisions), rows, text_columns=5)


def list_stores(data: Dataset) -> None:
    """What the stores of a dataset hold."""
    from hllm.items.store.request import describe_spec
    from hllm.items.store.upkeep import size_of

    specs = list(_specs(data).items())
    for folder, spec in specs:
        finished = "" if _index(data, spec, folder) else ", not finished"
        size = size_of(folder) / 2**20
        console.result(
            f"{spec['key']}  {spec['dim']} dimensions, {size:,.1f} MiB, {describe_spec(spec)}{finished}"
        )
    if not specs:
        console.result(f"no embeddings yet; next: hllm embed {data.path}")


def verify(data: Dataset) -> None:
    """Read everything; ArtifactError, after all lines, where something is wrong."""
    from hllm.errors import ArtifactError
    from hllm.items.store import upkeep

    bad = 0
    specs = _specs(data)
    for folder in upkeep.stores_in(data.embeddings_dir):
        spec = specs.get(folder)
        needed = None if spec is None else upkeep.needs(spec, data, _item_key())
        found = upkeep.verify(folder, needed, None if spec is None else _fingerprint(data, spec))
        what = "sound" if not found.problems else "; ".join(found.problems)
        bad += bool(found.problems)
        of = (
            ""
            if found.needed is None
            else f" ({found.missing:,} of {found.needed:,} that the items need are missing)"
        )
        size = f"{found.texts:,} vectors, {found.bytes / 2**20:,.1f} MiB{of}"
        console.result(f"{folder.name}  {size}: {what}")
    if not any(True for _ in upkeep.stores_in(data.embeddings_dir)):
        console.result(f"no embeddings yet; next: hllm embed {data.path}")
    if bad:
        raise ArtifactError(
            f"{bad} of the stores are not sound; run hllm embed {data.path} --prune, then embed again: only what is "
            "missing is encoded"
        )


def prune(data: Dataset) -> None:
    """Delete what no item needs, and what is damaged."""
    from hllm.items.store import upkeep

    freed, specs = 0, _specs(data)
    for folder in upkeep.stores_in(data.embeddings_dir):
        spec = specs.get(folder)
        needed = None if spec is None else upkeep.needs(spec, data, _item_key())
        n = upkeep.prune(folder, needed, None if spec is None else _fingerprint(data, spec))
        freed += n
        gone = "" if folder.exists() else ", which was of no use and is gone"
        console.result(f"{folder.name}  {n / 2**20:,.1f} MiB freed{gone}")
    console.result(f"{freed / 2**20:,.1f} MiB freed in {data.embeddings_dir}")


def cost(found: Estimate) -> list[str]:
    """An estimate in words."""
    from hllm.progress import duration, rate_text

    left = found.texts - found.encoded
    lines = [
        f"dry run, nothing written: {found.texts:,} texts, {found.encoded:,} there already, {left:,} to encode"
    ]
    if found.tokens_per_second is not None:
        cut = f", {found.truncated:,} texts cut" if found.truncated else ""
        lines.append(f"{found.tokens:,} tokens to read, the longest text {found.longest:,}{cut}")
        memory = f"peak memory so far {found.peak_memory / 2**30:.2f} GiB; " if found.peak_memory else ""
        speed = rate_text(found.tokens_per_second, 1.0, "tokens")
        lines.append(
            f"about {duration(found.seconds)} at {speed} beside loading, by a few batches; {memory}"
            f"{found.store / 2**20:,.1f} MiB on the disk"
        )
    return lines


def _specs(data: Dataset) -> dict[Path, dict[str, Any]]:
    from hllm.items.store.shards import list_specs

    return {data.embeddings_dir / spec["key"]: spec for spec in list_specs(data.embeddings_dir)}


def _fingerprint(data: Dataset, spec: dict[str, Any]) -> str:
    from hllm.items.store.request import index_fingerprint

    return index_fingerprint(data, spec["fields"])


def _index(data: Dataset, spec: dict[str, Any], folder: Path) -> bool:
    from hllm.items.store.shards import index_path

    return index_path(folder, _fingerprint(data, spec)).is_file()


def _item_key() -> Any:
    from hllm.items.bring import item_key

    return item_key
