"""A live source made from a language model and texts, or rebuilt from its specification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hllm.items.encoders.backbones import Backbone
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.tokens import Ragged, prompt_prefix, token_ids, tokenise, without_prefix
from hllm.items.source.live import LiveText
from hllm.items.source.whitening import Whitening


def live_encoder(
    backbone: Backbone,
    texts: Sequence[str | None],
    pooling: str = "mean",
    prompt: str = "",
    max_tokens: int = 256,
    item_token_n: int = 0,
    right_aligned: bool = False,
) -> tuple[PackedEncoder, Ragged]:
    """The encoder of `backbone`, and the token ids of `texts` (whole, the prompt included; None = no text).

    Texts are cut to `max_tokens` beside the prompt, and so that learned item tokens still fit the model.
    """
    limit = min(backbone.max_length - item_token_n, len(token_ids(backbone, [prompt])[0]) + max_tokens)
    sequences = _tokenised(backbone, texts, limit)
    prefix = prompt_prefix(backbone, prompt, [ids for ids in sequences if ids])
    encoder = PackedEncoder(
        backbone.model,
        pooling,
        prefix,
        item_token_n,
        limit + item_token_n if right_aligned else None,
        backbone.pad_id,
    )
    return encoder, without_prefix(sequences, prefix)


def more_texts(backbone: Backbone, encoder: PackedEncoder, texts: Sequence[str | None], limit: int) -> Ragged:
    """Token ids of texts added later (`LiveText.extend`), cut to `limit` tokens in all."""
    return without_prefix(_tokenised(backbone, texts, limit), encoder.prefix.tolist())


def empty_live(spec: dict[str, Any]) -> LiveText:
    """A source of the shapes that `spec` tells (`LiveText.spec`), to load weights into."""
    from transformers import AutoConfig, AutoModel

    settings = dict(spec["model"])
    model = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    encoder = PackedEncoder(
        model, spec["pooling"], spec["prefix"], spec["item_token_n"], spec["align_to"], spec["pad_id"]
    )
    texts = Ragged(
        torch.zeros(spec["n_text_tokens"], dtype=torch.int32),
        torch.zeros(spec["n_items"] + 2, dtype=torch.int64),
    )
    whitening, rank = None, encoder.dim
    if spec["whitening"] is not None:
        dim, rank = spec["whitening"]
        whitening = Whitening(
            torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, rank, dtype=torch.float64)
        )
    adapter = None
    if spec["hidden"] is not None:
        hidden = spec["hidden"]
        adapter = nn.Sequential(nn.Linear(rank, hidden), nn.GELU(), nn.Linear(hidden, spec["width"]))
    return LiveText(encoder, texts, whitening, adapter, spec["train"], lora=spec["lora"])


def _tokenised(backbone: Backbone, texts: Sequence[str | None], limit: int) -> list[list[int]]:
    there = [i for i, text in enumerate(texts) if text is not None]
    found, _ = tokenise(backbone, [texts[i] or "" for i in there], limit)
    sequences: list[list[int]] = [[] for _ in texts]
    for i, ids in zip(there, found, strict=True):
        sequences[i] = ids
    return sequences
