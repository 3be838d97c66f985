"""Item embeddings of several fields, each from a store of its own (see `hllm.text.fusion`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hllm import artifacts
from hllm.errors import ConfigError
from hllm.items.config import is_store_key
from hllm.items.embeddings import ItemEmbeddings
from hllm.items.resolve import Resolved, resolve
from hllm.items.store.request import check_budgets
from hllm.text.budget import parse_budgets, written_budgets
from hllm.text.fusion import fuse, parse_fusion
from hllm.text.template import choose_fields

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset


def resolve_fields(
    dataset: Dataset,
    fusion: str,
    item_llm: str,
    pooling: str | None = "mean",
    prompt: str | None = None,
    text_fields: Iterable[str] | None = None,
    **others: Any,
) -> Resolved | Fused:
    """As `hllm.items.resolve.resolve`, with fields put together by `fusion` (see `parse_fusion`).

    `item_llm` may then be the keys of the fields' stores, "KEY+KEY", where a model's name alone fits several.
    """
    keys = item_llm.split("+") if isinstance(item_llm, str) else []
    of_stores = bool(keys) and all(map(is_store_key, keys))
    if of_stores and len(keys) > 1 and fusion == "together":
        raise ConfigError(
            f"item_llm={item_llm} names {len(keys)} stores; say how: fusion=mean, learned or concat"
        )
    if fusion == "together":
        return resolve(dataset, item_llm, pooling, prompt, text_fields, **others)
    if of_stores:
        if len(keys) == 1:
            raise ConfigError(
                f"fusion={fusion} puts several stores together; item_llm={item_llm} is the key of one; name the key "
                "of each field's store, as KEY+KEY"
            )
        parse_fusion(fusion, len(keys))
        return Fused([resolve(dataset, key) for key in keys], fusion)
    fields = choose_fields(text_fields, dataset.meta.get("text_fields", []))
    parse_fusion(fusion, len(fields))
    options = others.pop("options", None) or {}
    parts = [
        resolve(
            dataset, item_llm, pooling, prompt, [name], options=_of_field(options, name, fields), **others
        )
        for name in fields
    ]
    return Fused(parts, fusion)


def _of_field(
    options: Mapping[str, str | None], name: str, fields: Sequence[str]
) -> Mapping[str, str | None]:
    """The `options` of the text of one field, to which its own budget of tokens applies."""
    written = options.get("field_tokens")
    if written is None:
        return options
    check_budgets(written, fields)
    budgets = {} if written == "none" else parse_budgets(written)
    own = {field: budget for field, budget in budgets.items() if field == name}
    return {**options, "field_tokens": written_budgets(own)}


@dataclass(frozen=True)
class Fused:
    """One request a field, looked up and completed like one (`Resolved`)."""

    parts: list[Resolved]
    fusion: str

    def load(self) -> ItemEmbeddings:
        """Read the embeddings of every field; errors as of `Resolved.load`."""
        return self._together(lambda part: part.load())

    def complete(self, *arguments: Any, **options: Any) -> ItemEmbeddings:
        """Encode what is missing of every field; arguments and errors as of `Resolved.complete`."""
        return self._together(lambda part: part.complete(*arguments, **options))

    def _together(self, get: Callable[[Resolved], ItemEmbeddings]) -> ItemEmbeddings:
        found = [get(part) for part in self.parts]
        specs = [one.spec for one in found]
        how, weights = parse_fusion(self.fusion, len(found))
        vectors, has_text = fuse([f.vectors for f in found], [f.has_text for f in found], how, weights)
        spec = {
            **specs[0],
            "fields": [name for s in specs for name in s["fields"]],
            "fusion": self.fusion,
            "parts": specs,
            "dim": vectors.shape[1],
            "key": artifacts.digest(self.fusion, *(str(s["key"]) for s in specs))[:16],
        }
        counts = (
            "encoded",
            "reused",
            "from_shared",
            "encode_seconds",
            "seconds",
            "truncated",
            "tokens",
            "computed",
        )
        there = {name for f in found for name in f.stats}
        stats = {name: sum(f.stats.get(name, 0) for f in found) for name in counts if name in there}
        stats["padding"] = sum(f.stats.get("padding", 0.0) * f.stats.get("computed", 0) for f in found) / max(
            stats.get("computed", 0), 1
        )
        peaks = [f.stats["peak_memory"] for f in found if f.stats.get("peak_memory")]
        stats |= {"peak_memory": max(peaks)} if peaks else {}
        stats["without_text"] = int((~has_text[1:]).sum())
        stats["folder"] = ", ".join(str(f.stats["folder"]) for f in found)
        return ItemEmbeddings(vectors, has_text, spec, stats)
