"""The kinds of encoder, and what a request needs to know of each before one is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from hllm.items.encoders.backbones import Backbone
    from hllm.items.encoders.hub import ModelFolder
    from hllm.items.encoders.text import Encoder

POOLINGS = ("mean", "last")  # from the states of a text's tokens to one vector, see `pooling.py`


@dataclass(frozen=True)
class Kind:
    """What decides the vectors of this kind of encoder, and how one is made.

    make              (specification, model's folder, device, trust_remote_code) -> encoder
    title             for messages
    is_language_model prompt, pooling, precision and max_tokens have a meaning for it
    separator         stands between an item's fields
    of_catalogue      its vectors depend on all texts of the catalogue, not on their own text alone
    """

    make: Callable[[Mapping[str, Any], ModelFolder | None, torch.device, bool], Encoder]
    title: str
    is_language_model: bool = False
    separator: str = " "  # a control splits texts into words, so fields must not run into each other
    of_catalogue: bool = False


def kind_of(model: str) -> Kind:
    """The kind of the encoder with this canonical name."""
    return CONTROLS.get(model, LANGUAGE_MODEL)


def make_encoder(
    spec: Mapping[str, Any], model: ModelFolder | None, device: torch.device, trust_remote_code: bool = False
) -> Encoder:
    """The encoder that makes the vectors of `spec`; `model` is None for a control."""
    return kind_of(spec["model"]).make(spec, model, device, trust_remote_code)


def _language_model(
    spec: Mapping[str, Any], model: ModelFolder | None, device: torch.device, trust_remote_code: bool
) -> Encoder:
    from hllm.items.encoders.backbones import load_backbone
    from hllm.items.encoders.text import LanguageModelEncoder

    assert model is not None
    backbone = load_backbone(model.path, spec["precision"], device, trust_remote_code, spec["model"])
    if spec.get("item_emb_token_n") or spec.get("right_aligned"):
        return _trained(spec, model, backbone)
    return LanguageModelEncoder(backbone, spec["pooling"], spec["prompt"], spec["max_tokens"])


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


LANGUAGE_MODEL = Kind(_language_model, "language model", is_language_model=True, separator="")
CONTROLS = {"tfidf": Kind(_tfidf, "TF-IDF", of_catalogue=True), "random": Kind(_random, "random")}
