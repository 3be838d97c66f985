"""Packs give the vectors of padded batches; too little memory halves them."""

import numpy as np
import pytest
import torch

from hllm.errors import ConfigError, DeviceError
from hllm.items.embed import embed
from hllm.items.encoders.backbones import load_backbone
from hllm.items.encoders.packs import PackedLanguageModelEncoder
from hllm.items.encoders.text import LanguageModelEncoder

CPU = torch.device("cpu")
PROMPT = "Say it: "
TEXTS = [PROMPT + text for text in ("Up", "Seven samurai", "a", "The Long Goodbye " * 9, "Heat (1995)")]


@pytest.mark.parametrize("pooling", ["mean", "last", "cls", "weighted-mean", "mean@last2"])
@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_packs_equal_padded_batches(tmp_path, save_model, kind, pooling) -> None:
    folder = save_model(tmp_path, kind)
    padded = LanguageModelEncoder(load_backbone(folder, "fp32", CPU), pooling, PROMPT)
    packed = PackedLanguageModelEncoder(load_backbone(folder, "fp32", CPU), pooling, PROMPT)
    assert bool(packed.try_packs()) == (kind == "t5")  # which then pads
    assert padded.prepare(TEXTS).tolist() == packed.prepare(TEXTS).tolist()
    if kind != "t5":
        assert packed.packed.shares_prefix == (kind == "llama")
        assert len(packed.packed.prefix) == (len(PROMPT) if kind == "llama" else 0)
    rows = np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(packed.encode(rows), padded.encode(rows), atol=1e-5)


def test_embed_in_packs_is_told_and_equal(llama, tmp_path, save_model, make_dataset) -> None:
    options = {"device": "cpu", "precision": "fp32", "progress": False}
    first = embed(make_dataset(), str(llama), **options)
    second = embed(make_dataset(name="again"), str(llama), attn="packed", **options)
    eager = embed(make_dataset(name="eager"), str(llama), attn="eager", **options)
    np.testing.assert_allclose(second.vectors, first.vectors, atol=1e-5)
    np.testing.assert_allclose(eager.vectors, first.vectors, atol=1e-5)
    assert first.spec["key"] == second.spec["key"]
    assert (first.spec["made_with"]["attn"], second.spec["made_with"]["attn"]) == (None, "packed")
    with pytest.raises(ConfigError, match="cannot be run in packs"):
        embed(make_dataset(name="t5"), str(save_model(tmp_path / "t5", "t5")), attn="packed", **options)


def test_too_little_memory_halves_the_batch_down_to_one_text(llama, monkeypatch) -> None:
    encoder = LanguageModelEncoder(load_backbone(llama, "fp32", CPU), "mean", PROMPT)
    encoder.prepare(TEXTS)
    expected, sizes, plain = encoder.encode(np.arange(5)), [], encoder._pooled

    def narrow(rows: np.ndarray, most: int = 2) -> torch.Tensor:
        sizes.append(len(rows))
        if len(rows) > most:
            raise RuntimeError("CUDA out of memory")
        return plain(rows)

    monkeypatch.setattr(encoder, "_pooled", narrow)
    np.testing.assert_allclose(encoder.encode(np.arange(5)), expected, atol=1e-5)
    assert sizes[:2] == [5, 3] and max(sizes[2:]) <= 2
    sizes.clear()
    encoder.encode(np.arange(5))
    assert max(sizes) <= 2  # what did not fit is not tried again
    monkeypatch.setattr(encoder, "_pooled", lambda rows: narrow(rows, 0))
    with pytest.raises(DeviceError, match="too little memory for 1 texts"):
        encoder.encode(np.arange(5))
