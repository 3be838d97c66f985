"""Vectors of items that come after training, made as a run's own were."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm import hardware
from hllm.errors import ArtifactError, ConfigError
from hllm.items.encoders.hub import ModelFolder, find_model
from hllm.items.encoders.kinds import BROUGHT
from hllm.items.store.batches import planned_batches
from hllm.items.store.encode import encode_batches
from hllm.items.store.request import Request
from hllm.text.fusion import fuse, parse_fusion

if TYPE_CHECKING:
    import polars as pl

    from hllm.items.encoders.base import Encoder


def encode_new_items(
    spec: Mapping[str, Any], items: pl.DataFrame, device: str = "auto", batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Raw vectors float32 (m, dim) and has_text bool (m,) of the rows of `items`, under a run's `spec`.

    Raises ConfigError for an encoder whose vectors belong to one catalogue (TF-IDF); DataError for a
    missing text column or vectors that are not finite; FetchError if the model is nowhere to be had,
    ArtifactError if its weights are not the run's.
    """
    if "parts" in spec:  # fields read apart
        parts = [encode_new_items(part, items, device, batch_size) for part in spec["parts"]]
        how, weights = parse_fusion(spec["fusion"], len(parts))
        return fuse([part[0] for part in parts], [part[1] for part in parts], how, weights)
    request = Request.of(spec)

    def load() -> Encoder:
        from hllm.items.encoders import make  # and torch

        return make.make_encoder(spec, _model_of(spec, request), hardware.pick_device(device))

    return encode_with(load, spec, items, batch_size)


def encode_with(
    make: Callable[[], Encoder], spec: Mapping[str, Any], items: pl.DataFrame, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """As `encode_new_items`, by the encoder that `make` gives if any item has text."""
    request = Request.of(spec)
    if request.kind.of_catalogue:
        raise ConfigError(
            f"{request.kind.title} vectors belong to the catalogue they were fitted on: new items need a run whose "
            "item_llm is a language model, for example item_llm=smollm2-135m"
        )
    if request.kind is BROUGHT:
        warnings.warn(
            f"the {len(items):,} new items have no vector, as {spec['model']} was brought in: they share the learned "
            "one; bring the vectors of all items in again and train again",
            stacklevel=2,
        )
    rendered = request.render(items)
    has_text = np.array([text is not None for text in rendered], dtype=bool)
    vectors = np.zeros((len(rendered), spec["dim"]), dtype=np.float32)
    texts = [text for text in rendered if text is not None]
    if not texts:
        return vectors, has_text
    encoder = make()
    wanted = np.ones(len(texts), dtype=bool)
    batches = planned_batches(encoder.prepare(texts), wanted, batch_size, budget=encoder.budget)
    found = np.flatnonzero(has_text)

    def name_of(row: int) -> str:
        return f"the new item {texts[row].removeprefix(request.prompt)[:60]!r}"

    for rows, made in encode_batches(encoder, batches, wanted, spec, name_of):
        vectors[found[rows]] = made
    return vectors, has_text


def _model_of(spec: Mapping[str, Any], request: Request) -> ModelFolder | None:
    """The model that made a run's vectors; None for a control."""
    if not request.kind.is_language_model:
        return None
    model = find_model(spec["model"], False, spec["source"], spec["revision"])
    if model.weights != spec["weights"]:
        raise ArtifactError(
            f"{spec['model']} has other weights than when this run's items were embedded, so new vectors "
            "would not fit; bring the old model back, or embed and train again"
        )
    return model
