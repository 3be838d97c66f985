"""The encoder that a specification asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hllm.errors import ConfigError
from hllm.items.encoders.backbones import Backbone, load_backbone
from hllm.items.encoders.base import Encoder
from hllm.items.encoders.controls import RandomEncoder, TfidfEncoder
from hllm.items.encoders.export import copy_item_tokens
from hllm.items.encoders.heads import Keep
from hllm.items.encoders.hub import ModelFolder
from hllm.items.encoders.kinds import BROUGHT, LANGUAGE_MODEL, kind_of
from hllm.items.encoders.own import own_way
from hllm.items.encoders.packed_text import PackedTextEncoder, live_encoder, text_limit
from hllm.items.encoders.packs import PackedLanguageModelEncoder, packs_pay

PACKED = "packed"


def make_encoder(
    spec: Mapping[str, Any],
    model: ModelFolder | None,
    device: torch.device,
    trust_remote_code: bool = False,
    attn: str | None = None,
) -> Encoder:
    """The encoder that makes the vectors of `spec`; `model` is None for a control.

    attn   "packed": without padding; another of transformers' attention implementations by name; None: packed
           where that is faster. Changes rounding alone.
    """
    kind = kind_of(spec["model"])
    if kind is BROUGHT:
        raise ConfigError(
            f"{spec['model']} was brought in, and no model here makes more of it: bring the vectors of all items in "
            "again (hllm embed DATASET --from FILE)"
        )
    if kind is LANGUAGE_MODEL:
        assert model is not None
        return _language_model(spec, model, device, trust_remote_code, attn)
    return RandomEncoder() if spec["model"] == "random" else TfidfEncoder()


def _language_model(
    spec: Mapping[str, Any],
    model: ModelFolder,
    device: torch.device,
    trust_remote_code: bool,
    attn: str | None,
) -> Encoder:
    own_attention, integers = None if attn == PACKED else attn, spec["precision"] == "int8"
    if integers and (device.type != "cpu" or own_attention or spec.get("quantize")):
        raise ConfigError(
            "--precision int8 is for a CPU, without --attn and --quantize; on a GPU --quantize 8bit holds weights so"
        )
    quantize = spec.get("quantize")
    backbone = load_backbone(
        model.path, spec["precision"], device, trust_remote_code, spec["model"], quantize, own_attention
    )
    if spec.get("item_emb_token_n") or spec.get("right_aligned"):
        return _trained(spec, model, backbone)
    own = own_way(model.path, spec["model"]) if spec["pooling"] == "auto" else None
    encoder = PackedLanguageModelEncoder(backbone, spec["pooling"], spec["prompt"], spec["max_tokens"], own)
    encoder.keep = Keep.of(spec)
    if attn == PACKED or (attn is None and packs_pay(device, spec["precision"])):
        reason = encoder.try_packs(integers)
        if reason and (attn == PACKED or integers):
            raise ConfigError(
                f"{spec['model']} cannot be run in packs ({reason}); leave --attn packed and int8 out"
            )
    return encoder


def _trained(spec: Mapping[str, Any], model: ModelFolder, backbone: Backbone) -> Encoder:
    """The encoder of a run's item LLM that reads its vectors at learned tokens, or counts positions from the right."""
    prompt, n = spec["prompt"], spec.get("item_emb_token_n", 0)
    encoder, _ = live_encoder(
        backbone, [], spec["pooling"], prompt, spec["max_tokens"], n, spec.get("right_aligned", False)
    )
    copy_item_tokens(encoder, model.path)
    return PackedTextEncoder(backbone, encoder, text_limit(backbone, prompt, spec["max_tokens"], n))
