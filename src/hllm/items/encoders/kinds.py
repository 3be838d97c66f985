"""The kinds of encoder, and what a request needs to know of each before one is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hllm.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from hllm.items.encoders.backbones import Backbone
    from hllm.items.encoders.hub import ModelFolder
    from hllm.items.encoders.text import Encoder

PACKED = "packed"
VECTORS = "vectors:"  # begins the name of vectors that were brought in, not made here


@dataclass(frozen=True)
class Kind:
    """What decides the vectors of this kind of encoder, and how one is made.

    make              (specification, model's folder, device, trust_remote_code, attn) -> encoder
    title             for messages
    is_language_model prompt, pooling, precision and max_tokens have a meaning for it
    separator         stands between an item's fields
    of_catalogue      its vectors depend on all texts of the catalogue, not on their own text alone
    """

    make: Callable[[Mapping[str, Any], ModelFolder | None, torch.device, bool, str | None], Encoder]
    title: str
    is_language_model: bool = False
    separator: str = " "  # a control splits texts into words, so fields must not run into each other
    of_catalogue: bool = False


def kind_of(model: str) -> Kind:
    """The kind of the encoder with this canonical name."""
    return BROUGHT if model.startswith(VECTORS) else CONTROLS.get(model, LANGUAGE_MODEL)


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
    return kind_of(spec["model"]).make(spec, model, device, trust_remote_code, attn)


def _language_model(
    spec: Mapping[str, Any],
    model: ModelFolder | None,
    device: torch.device,
    trust_remote_code: bool,
    attn: str | None,
) -> Encoder:
    from hllm.items.encoders.backbones import load_backbone
    from hllm.items.encoders.heads import Keep
    from hllm.items.encoders.own import own_way
    from hllm.items.encoders.packs import PackedLanguageModelEncoder, packs_pay

    assert model is not None
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
    from hllm.items.encoders.export import copy_item_tokens
    from hllm.items.encoders.packed_text import PackedTextEncoder
    from hllm.items.source.live_build import live_encoder, text_limit

    prompt, n = spec["prompt"], spec.get("item_emb_token_n", 0)
    encoder, _ = live_encoder(
        backbone, [], spec["pooling"], prompt, spec["max_tokens"], n, spec.get("right_aligned", False)
    )
    copy_item_tokens(encoder, model.path)
    return PackedTextEncoder(backbone, encoder, text_limit(backbone, prompt, spec["max_tokens"], n))


def _tfidf(*_: Any) -> Encoder:
    from hllm.items.encoders.controls import TfidfEncoder

    return TfidfEncoder()


def _random(*_: Any) -> Encoder:
    from hllm.items.encoders.controls import RandomEncoder

    return RandomEncoder()


def _brought(spec: Mapping[str, Any], *_: Any) -> Encoder:
    raise ConfigError(
        f"{spec['model']} was brought in, and no model here makes more of it: bring the vectors of all items in again "
        "(hllm embed DATASET --from FILE)"
    )


BROUGHT = Kind(_brought, "vectors of others")
LANGUAGE_MODEL = Kind(_language_model, "language model", is_language_model=True, separator="")
CONTROLS = {"tfidf": Kind(_tfidf, "TF-IDF", of_catalogue=True), "random": Kind(_random, "random")}
