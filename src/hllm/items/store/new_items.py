"""Vectors of items that come after training, made as a run's own were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm import hardware
from hllm.errors import ArtifactError, ConfigError, DataError
from hllm.items.store.encode import make_encoder
from hllm.items.store.request import Request

if TYPE_CHECKING:
    import polars as pl


def encode_new_items(
    spec: Mapping[str, Any], items: pl.DataFrame, device: str = "auto", batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Raw vectors float32 (m, dim) and has_text bool (m,) of the rows of `items`, under a run's `spec`.

    Raises ConfigError for TF-IDF, whose vectors belong to one catalogue; DataError for a missing text
    column or vectors that are not finite; FetchError if the model is nowhere to be had, ArtifactError if
    its weights are not the run's.
    """
    if spec["model"] == "tfidf":
        raise ConfigError(
            "TF-IDF vectors belong to the catalogue they were fitted on: new items need a run whose item_llm is "
            "a language model, for example item_llm=smollm2-135m"
        )
    request = Request(
        spec["model"],
        spec["pooling"],
        spec["prompt"],
        tuple(spec["fields"]),
        spec["precision"],
        spec["max_tokens"],
    )
    texts = request.template.render_all(items)
    has_text = np.array([text is not None for text in texts], dtype=bool)
    vectors = np.zeros((len(texts), spec["dim"]), dtype=np.float32)
    if not has_text.any():
        return vectors, has_text
    model = None
    if not request.is_control:
        from hllm.items.encoders.hub import find_model

        model = find_model(spec["model"], False, spec["source"], spec["revision"])
        if model.weights != spec["weights"]:
            raise ArtifactError(
                f"{spec['model']} has other weights than when this run's items were embedded, so new vectors "
                "would not fit; bring the old model back, or embed and train again"
            )
    encoder = make_encoder(request, model, spec["precision"], hardware.pick_device(device))
    lengths = encoder.prepare([text for text in texts if text is not None])
    order = np.argsort(-lengths, kind="stable")
    found = np.zeros((len(order), spec["dim"]), dtype=np.float32)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        found[rows] = encoder.encode(rows)
    if not np.isfinite(found).all():
        raise DataError(
            f"{spec['model']} in {spec['precision']} gives vectors that are not finite for new items"
        )
    vectors[has_text] = found
    return vectors, has_text
