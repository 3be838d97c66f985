"""A GGUF file is converted once, to the very weights it holds."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaModel

from hllm import artifacts
from hllm.errors import ArtifactError, ConfigError
from hllm.items.encoders import gguf
from hllm.items.encoders.hub import find_model

HEADS, DIM, LAYERS, VOCAB = 4, 32, 1, 259


def interleave(weight, heads):
    """llama.cpp stores the rows of rotary projections pair by pair, transformers half by half."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def gguf_file(tmp_path, byte_tokenizer):
    """A tiny Llama written as GGUF by llama.cpp's own library, and the model it was written from."""
    from gguf import GGUFWriter

    torch.manual_seed(0)
    model = LlamaModel(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=DIM,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            initializer_range=0.2,
        )
    )
    path = tmp_path / "gg" / "tiny.F32.gguf"
    path.parent.mkdir()
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(DIM)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(DIM // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCAB)
    tokens = sorted(byte_tokenizer().get_vocab(), key=byte_tokenizer().get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*tokens, "Up"])
    writer.add_token_types([3 if i < 2 else 1 for i in range(VOCAB)])
    writer.add_token_merges(["U p"])
    writer.add_eos_token_id(1)
    names = {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "layers.0.input_layernorm": "blk.0.attn_norm",
        "layers.0.post_attention_layernorm": "blk.0.ffn_norm",
        "layers.0.self_attn.q_proj": "blk.0.attn_q",
        "layers.0.self_attn.k_proj": "blk.0.attn_k",
        "layers.0.self_attn.v_proj": "blk.0.attn_v",
        "layers.0.self_attn.o_proj": "blk.0.attn_output",
        "layers.0.mlp.gate_proj": "blk.0.ffn_gate",
        "layers.0.mlp.up_proj": "blk.0.ffn_up",
        "layers.0.mlp.down_proj": "blk.0.ffn_down",
    }
    weights = model.state_dict()
    for ours, theirs in names.items():
        weight = weights[f"{ours}.weight"].numpy()
        if theirs.endswith(("attn_q", "attn_k")):
            weight = interleave(weight, HEADS)
        writer.add_tensor(f"{theirs}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


def test_a_gguf_file_is_converted_to_the_weights_it_holds(gguf_file, capfd):
    path, model = gguf_file
    found = find_model(str(path))
    assert (found.source, found.revision) == ("GGUF file tiny.F32.gguf", None)
    assert found.weights == artifacts.digest_file(path)
    copy = AutoModel.from_pretrained(found.path)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(copy.state_dict()[name], weight, atol=0, rtol=0)
    assert AutoTokenizer.from_pretrained(found.path).tokenize("Up (1)") == ["Up", "Ġ", "(", "1", ")"]
    assert "Converting" not in capfd.readouterr().err  # transformers' bar


def test_the_copy_is_made_once_and_also_found_by_the_folder(gguf_file, monkeypatch):
    path, _ = gguf_file
    first = find_model(str(path))
    monkeypatch.setattr(gguf, "_write_copy", None)  # to call it would fail
    assert find_model(str(path)) == first
    assert find_model(str(path.parent)) == first


def test_an_unfinished_copy_is_made_again(gguf_file):
    path, _ = gguf_file
    folder, sha256 = gguf.convert(path)
    (folder / gguf.MARKER).unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    assert not gguf.is_converted(folder, sha256)
    gguf.convert(path)
    AutoModel.from_pretrained(folder)
    assert not [p for p in folder.parent.iterdir() if p.name.endswith(".tmp")]


def test_a_damaged_file_is_named_and_leaves_nothing(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(ArtifactError, match=r"cannot read .*bad\.gguf as GGUF"):
        find_model(str(path))
    assert not list((artifacts.home() / "models").iterdir())


def test_a_folder_of_several_gguf_files_asks_which(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"2 GGUF files.*--item-llm .*a\.gguf"):
        find_model(str(tmp_path))
