"""Every family through its real class: loaded, tokenised, padded on either side, packed, one at a time."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModel

from hllm import hardware
from hllm.errors import ConfigError
from hllm.items.embed import embed
from hllm.items.encoders import packs, products
from hllm.items.encoders.backbones import load_backbone
from hllm.items.encoders.pack import Pack
from hllm.items.encoders.packed_model import PackedModel
from hllm.items.encoders.packs import PackedLanguageModelEncoder
from hllm.items.encoders.text import LanguageModelEncoder
from hllm.testing.llms import FAMILIES, tiny, write_model

CPU = torch.device("cpu")
PROMPT = "Say it: "
TEXTS = [PROMPT + text for text in ("Up", "Seven samurai", "a", "The Long Goodbye " * 5, "Heat (1995)", "Up")]
POOLINGS = ("mean", "last", "cls", "weighted-mean", "mean@1", "last@last2")
KINDS = [kind for kind in FAMILIES if kind != "t5"]  # which test_packs.py has
WRITTEN_OUT = {"llama", "qwen2", "qwen3", "mistral", "bert", "roberta"}


def written(folder, kind, **options):
    if kind in ("roberta", "mpnet"):  # whose positions count from the padding token's id
        options = {"pad_token": "<eos>", "eos_token": "<pad>"} | options
    return write_model(folder, kind, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_batched_packed_and_one_at_a_time_are_equal(tmp_path, kind) -> None:
    folder = written(tmp_path / "right", kind, padding_side="left")
    backbone = load_backbone(folder, "fp32", CPU)
    model, every = (
        AutoModel.from_pretrained(folder, attn_implementation=backbone.model.config._attn_implementation),
        np.arange(6),
    )
    for pooling in POOLINGS if kind in ("llama", "bert") else ("mean", "last"):
        padded = LanguageModelEncoder(backbone, pooling, PROMPT)
        padded.prepare(TEXTS)
        together = padded.encode(every)
        alone = np.concatenate([padded.encode(every[i : i + 1]) for i in every])
        np.testing.assert_allclose(together, alone, atol=2e-5, err_msg=f"{kind} {pooling}")
        if pooling in ("mean", "last"):
            ids = torch.tensor([backbone.tokenizer(TEXTS[1])["input_ids"]])
            with torch.no_grad():
                states = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            expected = states.mean(0) if pooling == "mean" else states[-1]
            np.testing.assert_allclose(together[1], expected, atol=2e-5)
        packed = PackedLanguageModelEncoder(load_backbone(folder, "fp32", CPU), pooling, PROMPT)
        packed.try_packs()
        packed.prepare(TEXTS)
        np.testing.assert_allclose(
            packed.encode(every), together, atol=2e-5, err_msg=f"{kind} {pooling} packed"
        )
        one = np.concatenate([packed.encode(every[i : i + 1]) for i in every])
        np.testing.assert_allclose(one, together, atol=2e-5)
        if packed.packed is not None:
            assert (packed.packed.backbone.fast is not None) == (kind in WRITTEN_OUT)


@pytest.mark.parametrize("kind", ["roberta", "bert", "gpt2"])
def test_texts_past_the_position_table_are_cut_in_packs_too(tmp_path, kind) -> None:
    backbone = load_backbone(written(tmp_path, kind), "fp32", CPU)
    encoder = PackedLanguageModelEncoder(backbone, "mean", max_tokens=5000)
    encoder.try_packs()
    lengths = encoder.prepare(["x" * 3000, "y"])
    assert lengths[0] == backbone.max_length < 3000 and encoder.truncated.tolist() == [True, False]
    assert np.isfinite(encoder.encode(np.array([0, 1]))).all()


@pytest.mark.parametrize("kind", sorted(WRITTEN_OUT))
@pytest.mark.parametrize("layers", ["", "1", "-2", "last2"])
def test_blocks_written_out_give_the_models_states(kind, layers) -> None:
    model = PackedModel(tiny(kind), 1 if kind == "roberta" else 0, layers)
    pack, ids = Pack([4, 9, 2, 7], CPU, prefix=4 if model.causal else 0), torch.randint(4, 250, (22,))
    with torch.no_grad():
        own = model(pack, ids)
        assert model.speed_up() and model.fast is not None
        torch.testing.assert_close(model(pack, ids), own, rtol=1e-4, atol=1e-5)
    grad = model(pack, ids)  # with gradient the model runs in its own way
    assert grad.requires_grad or not any(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(grad.detach(), own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("kind", sorted(WRITTEN_OUT))
def test_blocks_written_out_in_bf16_are_as_near_to_float32_as_the_models(kind, onednn, monkeypatch) -> None:
    if onednn and not hardware.bf16_is_fast("cpu"):
        pytest.skip("needs a processor with bf16 instructions")
    monkeypatch.setattr(products, "takes_onednn", products.takes_onednn if onednn else lambda linears: False)
    model, pack, ids = tiny(kind), Pack([4, 9, 2, 7], CPU), torch.randint(4, 250, (22,))
    pad_id = 1 if kind == "roberta" else 0
    with torch.no_grad():
        exact = PackedModel(copy.deepcopy(model), pad_id)(pack, ids)
        half = PackedModel(model.bfloat16(), pad_id)
        own = (half(pack, ids) - exact).norm()
        assert half.speed_up() and half.fast is not None
        states = half(pack, ids)
        again = half(pack, ids)
    assert states.dtype is torch.bfloat16 and torch.equal(states, again)
    assert (states - exact).norm() < 1.5 * own + 1e-3 * exact.norm()


def test_what_only_looks_the_same_runs_in_its_own_way() -> None:
    for kind in ("gemma2", "gemma3", "phi", "phi3", "gpt2", "modernbert"):
        assert not PackedModel(tiny(kind)).speed_up()
    scaled = tiny("llama")
    scaled.layers[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert not PackedModel(scaled).speed_up()  # its modules tell nothing, its states do


def test_int8_is_taken_where_its_vectors_are_those_of_float32(llama, make_dataset, monkeypatch) -> None:
    options = {"device": "cpu", "progress": False}
    exact = embed(make_dataset(), str(llama), precision="fp32", **options)
    monkeypatch.setattr(packs, "SAME", 0.8)
    made = embed(make_dataset(name="int8"), str(llama), precision="int8", **options)
    cosine = (made.vectors[1:] * exact.vectors[1:]).sum(1)
    cosine /= np.linalg.norm(made.vectors[1:], axis=1) * np.linalg.norm(exact.vectors[1:], axis=1)
    assert 0.9 < cosine.min() < 1 and made.spec["precision"] == "int8"
    monkeypatch.setattr(packs, "SAME", 1.1)
    with pytest.raises(ConfigError, match=r"int8 gives vectors whose cosine .* use --precision fp32"):
        embed(make_dataset(name="refused"), str(llama), precision="int8", **options)
    for wrong in ({"attn": "eager"}, {"quantize": "8bit"}):
        with pytest.raises(ConfigError, match="int8"):
            embed(make_dataset(name="wrong"), str(llama), precision="int8", **wrong, **options)
