"""A live source made from a language model and texts, or rebuilt from its specification."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hllm.items.config import ItemsConfig
from hllm.items.encoders.backbones import load_backbone
from hllm.items.encoders.export import copy_item_tokens
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.packed_text import live_encoder
from hllm.items.encoders.tokens import Ragged
from hllm.items.live_items import ITEM_TOKEN, LiveItems
from hllm.items.source.live import LiveText
from hllm.items.source.text_table import make_adapter
from hllm.items.source.whitening import Whitening


def make_live(
    items: ItemsConfig,
    d_model: int | None,
    trained: torch.Tensor,
    made: LiveItems,
    device: torch.device,
    gradients: str = "auto",
    chunk_tokens: int = 16_384,
    bf16: bool = False,
) -> LiveText:
    """The live source that a configuration asks for, on `device`. It stands where the frozen one would: the
    same whitening, fitted on the first vectors of the `trained` items (n_items + 1,), and the same adapter.

    The random numbers drawn are those of the frozen source; the item LLM's own are drawn apart.
    """
    with apart():
        backbone = load_backbone(
            made.folder, "fp32", device, name=made.spec["model"], init=items.item_llm_init
        )
        encoder, texts = live_encoder(
            backbone,
            made.texts,
            ITEM_TOKEN if items.item_emb_token_n else items.pooling,
            made.spec["prompt"],
            items.max_tokens,
            items.item_emb_token_n,
            items.right_aligned,
        )
        copy_item_tokens(encoder, made.folder)  # a run's item LLM goes on from its own
        start = LiveText(encoder, texts, train="frozen", chunk_tokens=chunk_tokens).to(device)
        start.bf16 = bf16
        stored = torch.from_numpy(made.vectors) if made.vectors.size else None
        start.fit_whitening(trained, items.whiten, items.whiten_rank, stored)
    whitening = start.whitening
    assert whitening is not None
    adapter = None
    if items.adapter_hidden is not None:
        assert d_model is not None
        adapter = make_adapter(whitening.basis.shape[1], items.adapter_hidden, d_model)
    lora = {"rank": items.lora_rank, "alpha": items.lora_alpha, "dropout": items.lora_dropout}
    with apart():
        live = LiveText(
            encoder,
            texts,
            whitening,
            adapter,
            items.train,
            gradients,
            chunk_tokens,
            lora if items.train == "lora" else None,
            backbone,
        )
    live.bf16 = bf16
    return live.to(device)


@contextmanager
def apart() -> Iterator[None]:
    """Random numbers drawn inside leave those that follow as they would be."""
    before = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(before)


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
