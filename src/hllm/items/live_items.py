"""What a trained item LLM starts from: its model's folder and the items' texts, instead of a store's vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.errors import AmbiguousError, ArtifactError, ConfigError, DataError
from hllm.items.config import ItemsConfig
from hllm.items.embeddings import ItemEmbeddings
from hllm.items.encoders.hub import find_model
from hllm.items.resolve import resolve
from hllm.items.store.shards import spec_key

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset

ITEM_TOKEN = "item-token"  # the pooling that reads learned tokens


@dataclass(frozen=True)
class LiveItems(ItemEmbeddings):
    """Texts that an item LLM reads during training.

    vectors  what the dataset's store holds of the untrained model, for the whitening's fit; (0, 0) where it
             holds nothing: they are then computed once
    spec     as of embeddings: it tells the model, its weights, and how texts are made and pooled
    texts    rendered, the prompt included; row = token, None = no text
    folder   of the model, in transformers' layout
    """

    texts: list[str | None] = field(default_factory=list)
    folder: Path = Path()

    @classmethod
    def of(
        cls,
        spec: dict[str, Any],
        texts: list[str | None],
        folder: Path,
        stored: ItemEmbeddings | None = None,
    ) -> LiveItems:
        """`texts` without the padding row."""
        has_text = np.array([False, *(text is not None for text in texts)])
        vectors = np.zeros((0, 0), dtype=np.float32) if stored is None else stored.vectors
        spec = {"key": spec_key(spec), **spec}
        return cls(vectors, has_text, spec, texts=[None, *texts], folder=folder)


def live_items(dataset: Dataset, items: ItemsConfig, stored: ItemEmbeddings | None = None) -> LiveItems:
    """The model and texts that a configuration with a trained item LLM asks for.

    stored  vectors of the same model, if they are at hand already; None: the store is looked into

    Raises ConfigError for an unknown or absent model, FetchError where it cannot be had, DataError where no
    item has text.
    """
    assert items.item_llm is not None
    wanted = resolve(
        dataset, items.item_llm, items.pooling, items.prompt, items.text_fields,
        max_tokens=items.max_tokens, must_exist=True,
    )  # fmt: skip
    request = wanted.request
    if request is None or not request.kind.is_language_model:
        raise ConfigError(f"item_llm={items.item_llm} is no language model; train=frozen reads its vectors")
    texts = list(request.template.render_all(dataset.items))
    if all(text is None for text in texts):
        raise DataError(
            f"none of the {len(texts):,} items has text in the fields {', '.join(request.fields)}"
        )
    model = find_model(request.model)
    spec = {
        "model": request.model,
        "source": model.source,
        "revision": model.revision,
        "weights": model.weights,
        "prompt": request.prompt,
        "fields": list(request.fields),
        "pooling": ITEM_TOKEN if items.item_emb_token_n else request.pooling,
        "precision": "fp32",
        "max_tokens": items.max_tokens,
        "item_emb_token_n": items.item_emb_token_n,
        "right_aligned": items.right_aligned,
    }
    pooled = items.item_emb_token_n == 0 and items.item_llm_init == "pretrained" and not items.right_aligned
    if stored is None and pooled:
        try:
            stored = wanted.load()
        except (AmbiguousError, ArtifactError):  # nothing there that is surely this model's
            stored = None
    if stored is not None and (not pooled or stored.spec.get("weights") != model.weights):
        stored = None
    return LiveItems.of(spec, texts, model.path, stored)
