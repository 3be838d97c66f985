"""Baichuan2-7B's layout, tokenizer.model and W_pack, on a tiny random checkpoint."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from hllm.errors import ArtifactError
from hllm.items.embed import embed
from hllm.items.encoders.backbones import load_backbone
from hllm.items.encoders.baichuan import load_tokenizer, split_packed
from hllm.items.encoders.sentencepiece import bpe_tokenizer, read_pieces

CPU = torch.device("cpu")
FIXTURES = Path(__file__).parents[2] / "fixtures" / "sentencepiece"
SIZE = {
    "vocab_size": 424, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "hidden_act": "silu", "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "initializer_range": 0.2,
}  # fmt: skip
TOKENIZER = {
    "tokenizer_class": "BaichuanTokenizer", "add_bos_token": False, "add_eos_token": False,
    "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
    "bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": {"content": "</s>"},
    "unk_token": "<unk>", "pad_token": {"content": "<unk>"}, "model_max_length": 100,
}  # fmt: skip


def write(folder: Path, file: str = "pytorch_model.bin", **tokenizer) -> LlamaModel:
    """The files of a Baichuan2 repository; returns the Llama of the same weights."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    llama = LlamaModel(LlamaConfig(**SIZE)).eval()
    own = {f"model.{name}": tensor for name, tensor in llama.state_dict().items()}
    for i in range(2):
        stem = f"model.layers.{i}.self_attn."
        parts = [own.pop(f"{stem}{part}_proj.weight") for part in "qkv"]
        own[f"{stem}W_pack.weight"] = torch.cat(parts)
        own[f"{stem}rotary_emb.inv_freq"] = torch.ones(4)
    own["lm_head.weight"] = torch.randn(424, 32)
    if file.endswith(".bin"):
        torch.save(own, folder / file)
    else:
        from safetensors.torch import save_file

        save_file(own, folder / file)
    config = {
        **SIZE, "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "model_max_length": 100,
        "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"}, "pad_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER | tokenizer))
    for name in ("modeling_baichuan.py", "tokenization_baichuan.py"):
        (folder / name).write_text("raise SystemExit('ran')")
    shutil.copy(FIXTURES / "plain.model", folder / "tokenizer.model")
    return llama


@pytest.mark.parametrize("model", ["plain", "prefixed"])
def test_a_tokenizer_model_gives_sentencepieces_ids(model) -> None:
    expected = json.loads((FIXTURES / "ids.json").read_text())
    tokenizer = bpe_tokenizer(FIXTURES / f"{model}.model", unk_token="<unk>", bos_token="<s>")
    texts = [text for text in expected["texts"] if "<s>" not in text]
    assert len(texts) > 8
    for text, ids in zip(expected["texts"], expected[model], strict=True):
        if text in texts:  # spelled special tokens are special to transformers' tokenizers
            assert tokenizer(text)["input_ids"] == ids, text
    assert tokenizer.decode(tokenizer("Toy Story (1995), 电影")["input_ids"]) == "Toy Story (1995), 电影"


@pytest.mark.parametrize("content", [b"", b"\x0a\xff", b"not a model at all", b"\x0a\x03\x0a\x01a"])
def test_what_is_no_sentencepiece_model_is_told(tmp_path, content) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ArtifactError, match="is no sentencepiece model"):
        read_pieces(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_states_equal_those_of_the_llama_that_it_is(tmp_path, file) -> None:
    llama = write(tmp_path, file)
    backbone = load_backbone(tmp_path, "fp32", CPU, name="baichuan2")
    assert (backbone.dim, backbone.pad_id, backbone.max_length) == (32, 0, 100)
    ids = torch.tensor([backbone.tokenizer("Toy Story (1995)")["input_ids"]])
    with torch.no_grad():
        expected = llama(input_ids=ids).last_hidden_state
        got = backbone.states(backbone.hidden(ids, torch.ones_like(ids)))
    torch.testing.assert_close(got, expected, atol=0, rtol=0)
    half = load_backbone(tmp_path, "bf16", CPU)
    assert half.model.dtype == torch.bfloat16


def test_embed_takes_it_without_its_code(tmp_path, make_dataset) -> None:
    llama = write(tmp_path / "model")
    made = embed(make_dataset(), str(tmp_path / "model"), precision="fp32", device="cpu", progress=False)
    text = "Compress the following sentence into embedding: title: Upgenres: Animation"
    ids = torch.tensor([load_tokenizer(tmp_path / "model")(text)["input_ids"]])
    with torch.no_grad():
        np.testing.assert_allclose(made.vectors[1], llama(input_ids=ids)[0][0].mean(0), atol=1e-5)


def test_first_and_last_tokens_are_added_where_its_settings_say_so(tmp_path) -> None:
    write(tmp_path, add_bos_token=True, add_eos_token=True)
    ids = load_tokenizer(tmp_path)("Up")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2) and len(ids) > 2


def test_the_13b_and_other_weights_are_refused(tmp_path) -> None:
    write(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"hidden_size": 64}))
    with pytest.raises(ArtifactError, match=r"lacks 20 weights of a Baichuan2-7B, the first 'embed_tokens"):
        load_backbone(tmp_path, "fp32", CPU)
    settings.pop("max_position_embeddings")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtifactError, match="13B"):
        load_backbone(tmp_path, "fp32", CPU)


def test_packed_rows_are_queries_keys_and_values_in_turn() -> None:
    packed = torch.arange(12.0).view(6, 2)
    state = split_packed({"model.layers.0.self_attn.W_pack.weight": packed, "lm_head.weight": packed})
    assert state.keys() == {f"layers.0.self_attn.{part}_proj.weight" for part in "qkv"}
    torch.testing.assert_close(state["layers.0.self_attn.k_proj.weight"], packed[2:4])
