"""Every pooling, of every layer: the same vector from a padded batch, from a pack and from the text alone."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hllm.errors import ConfigError
from hllm.items.config import ItemsConfig, check_pooling
from hllm.items.encoders.backbones import Backbone, load_backbone
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.text import LanguageModelEncoder
from hllm.testing.llms import FAMILIES, tiny

CPU = torch.device("cpu")
PROMPT = "Say it: "
TEXTS = [PROMPT + text for text in ("Up", "Seven samurai", "a", "The Long Goodbye, and some more words")]
POOLINGS = [
    "mean",
    "last",
    "cls",
    "weighted-mean",
    "mean@0",
    "last@1",
    "mean@-2",
    "cls@last2",
    "weighted-mean@last3",
]


def expected(model, ids: list[int], pooling: str) -> torch.Tensor:
    """One text alone, by the definition."""
    how, _, layers = pooling.partition("@")
    with torch.no_grad():
        every = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    if not layers:
        states = every[-1][0]
    elif layers.startswith("last"):
        states = sum(h[0] for h in every[-int(layers[4:]) :]) / int(layers[4:])
    else:
        states = every[int(layers)][0]
    n = torch.arange(1, len(states) + 1).unsqueeze(1)
    return {
        "mean": states.mean(0),
        "last": states[-1],
        "cls": states[0],
        "weighted-mean": (states * n).sum(0) / n.sum(),
    }[how]


OTHERS = ["weighted-mean", "last@1", "cls@last2"]  # of every family but two, which have all


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [(kind, p) for kind in FAMILIES for p in (POOLINGS if kind in ("llama", "bert") else OTHERS)],
)
def test_padded_packed_and_alone_are_equal(byte_tokenizer, kind, pooling) -> None:
    pad = 1 if kind in ("mpnet", "roberta") else 0
    tokenizer = byte_tokenizer(pad_token="<pad>", eos_token="<eos>")
    model = tiny(kind)
    backbone = Backbone(model, tokenizer, CPU, 32, pad, 64)
    encoder = LanguageModelEncoder(backbone, pooling, PROMPT)
    encoder.prepare(TEXTS)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    alone = torch.stack([expected(model, row, pooling) for row in ids])
    np.testing.assert_allclose(encoder.encode(np.arange(4)), alone, atol=1e-5)
    packed = PackedEncoder(tiny(kind), pooling, ids[0][: len(PROMPT)], pad_id=pad)
    own = [row[len(PROMPT) :] for row in ids]
    lengths = torch.tensor([len(row) for row in own])
    with torch.no_grad():
        got = packed(torch.tensor([i for row in own for i in row]), lengths)
    torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-5)
    if pooling != "mean@0":  # embeddings depend on no other token in any model
        assert packed.shares_prefix == (packed.backbone.packed and packed.backbone.causal)


def test_a_layer_that_is_not_there_is_told(llama) -> None:
    encoder = LanguageModelEncoder(load_backbone(llama, "fp32", CPU, name="tiny"), "mean@7")
    encoder.prepare(["abc", "de"])
    with pytest.raises(ConfigError, match="the model has 2 blocks; valid: @0 to @2"):
        encoder.encode(np.array([0, 1]))


@pytest.mark.parametrize(
    "name", ["median", "mean@", "mean@last0", "mean@first", "item-token@2", "last@1.5", ""]
)
def test_unknown_poolings_are_refused_with_the_valid_ones(name) -> None:
    for refused in (check_pooling, lambda name: ItemsConfig(pooling=name)):
        with pytest.raises(ConfigError, match=r"unknown pooling .*weighted-mean"):
            refused(name)
    with pytest.raises((ConfigError, ValidationError)):
        ItemsConfig(pooling=3)
