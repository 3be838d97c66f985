"""D10, D11 and what else decides a vector: padding, batches, truncation, the shared prefix."""

import numpy as np
import pytest
import torch

from hllm.errors import ConfigError
from hllm.items.encoders.backbones import load_backbone, quiet
from hllm.items.encoders.pooling import pool
from hllm.items.encoders.prefix import common_prefix
from hllm.items.encoders.text import LanguageModelEncoder
from hllm.items.encoders.tokens import token_ids

CPU = torch.device("cpu")
LONG = " ".join(f"word{i}" for i in range(30))
TEXTS = ["Up", LONG, "Seven samurai", "a", *(f"title {i} and some more" for i in range(12))]


def encode(backbone, texts, pooling, batch_size, prompt="", prefix=True):
    encoder = LanguageModelEncoder(backbone, pooling, prompt, max_tokens=2000)
    encoder.prepare([prompt + text for text in texts])
    if not prefix:
        encoder.prefix = None
    rows = (
        np.arange(len(texts)).reshape(-1, 1)
        if batch_size == 1
        else np.split(np.arange(len(texts)), range(batch_size, len(texts), batch_size))
    )
    return np.concatenate([encoder.encode(part) for part in rows])


def references(folder, texts, pooling):
    """Each text alone through plain transformers."""
    backbone, vectors = load_backbone(folder, "fp32", CPU), []
    for text in texts:
        ids = torch.tensor([backbone.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = backbone.model(input_ids=ids).last_hidden_state[0]
        vectors.append((states[-1] if pooling == "last" else states.mean(0)).numpy())
    return np.stack(vectors)


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_case_d10_vectors_do_not_depend_on_the_batch(tmp_path, save_model, kind, pooling):
    expected = references(save_model(tmp_path, kind), TEXTS, pooling)
    exact, half = (load_backbone(tmp_path, precision, CPU) for precision in ("fp32", "bf16"))
    for batch_size in (1, 2, 64):
        np.testing.assert_allclose(encode(exact, TEXTS, pooling, batch_size), expected, atol=1e-5)
    assert (cosine(encode(half, TEXTS, pooling, 64), expected) > 0.999).all()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_case_d10_vectors_do_not_depend_on_the_tokenizers_padding_side(tmp_path, save_model, pooling):
    right, left = (
        encode(load_backbone(save_model(tmp_path / side, padding_side=side), "fp32", CPU), TEXTS, pooling, 64)
        for side in ("right", "left")
    )
    np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_case_d10_pooling_never_reads_padding_on_either_side(pooling):
    states = torch.randn(3, 4, 8)
    expected = states[:, 3] if pooling == "last" else states.mean(1)
    poison = torch.full((3, 5, 8), torch.nan)
    real, filler = torch.ones(3, 4), torch.zeros(3, 5)
    right = pool(torch.cat((states, poison), 1), torch.cat((real, filler), 1), pooling)
    left = pool(torch.cat((poison, states), 1), torch.cat((filler, real), 1), pooling)
    both = pool(torch.cat((poison, states, poison), 1), torch.cat((filler, real, filler), 1), pooling)
    for got in (right, left, both):
        torch.testing.assert_close(got, expected)
    assert pool(states.bfloat16(), real, pooling).dtype == torch.float32


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_case_d11_no_pad_token(tmp_path, save_model, pooling):
    folder = save_model(tmp_path, pad_token=None)
    backbone = load_backbone(folder, "fp32", CPU)
    assert backbone.tokenizer.pad_token is None
    assert backbone.model.get_input_embeddings().weight.shape[0] == 258  # not resized
    texts = ["a", "a b c"]
    np.testing.assert_allclose(
        encode(backbone, texts, pooling, 2), references(folder, texts, pooling), atol=1e-5
    )


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_shared_prefix_gives_the_same_vectors(llama, pooling):
    prompt, backbone = "Compress this: ", load_backbone(llama, "fp32", CPU)
    encoder = LanguageModelEncoder(backbone, pooling, prompt)
    encoder.prepare([prompt + text for text in TEXTS])
    assert encoder.prefix is not None
    assert encoder.prefix.n_tokens == len(prompt)
    plain = encode(backbone, TEXTS, pooling, 4, prompt=prompt, prefix=False)
    shared = encode(backbone, TEXTS, pooling, 4, prompt=prompt)
    np.testing.assert_allclose(shared, plain, atol=1e-5)


def test_shared_prefix_is_not_used_where_early_tokens_see_later_ones(tmp_path, save_model):
    for kind in ("bert", "t5"):
        encoder = LanguageModelEncoder(load_backbone(save_model(tmp_path / kind, kind), "fp32", CPU), "mean")
        encoder.prepare(["the same start: one", "the same start: another"])
        assert encoder.prefix is None


def test_common_prefix_leaves_every_text_a_token_of_its_own():
    flat, offsets = np.array([5, 6, 7, 5, 6, 5, 6, 8]), np.array([0, 3, 5, 8])
    assert common_prefix(flat, offsets) == 1
    assert common_prefix(np.array([5, 6, 7, 5, 6, 8]), np.array([0, 3, 6])) == 2
    assert common_prefix(np.array([5, 6]), np.array([0, 1, 2])) == 0


def test_truncation_keeps_what_pooling_reads_and_is_counted(tmp_path, save_model, byte_tokenizer):
    from tokenizers.processors import TemplateProcessing

    folder = save_model(tmp_path)
    tokenizer = byte_tokenizer(pad_token="<pad>", eos_token="<eos>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save_pretrained(folder)
    encoder = LanguageModelEncoder(load_backbone(folder, "fp32", CPU), "last", "Prompt: ", max_tokens=20)
    lengths = encoder.prepare(["Prompt: " + "x" * 21, "Prompt: " + "x" * 20, "Prompt: y"])
    assert encoder.truncated.tolist() == [True, False, False]
    assert lengths.tolist() == [29, 29, 10]  # 8 of the prompt, 20 of the text, the final token
    last = [int(encoder.flat[end - 1]) for end in encoder.offsets[1:]]
    assert last == [1, 1, 1]


def test_a_bert_is_not_given_more_than_its_positions(tmp_path, save_model):
    encoder = LanguageModelEncoder(
        load_backbone(save_model(tmp_path, "bert"), "fp32", CPU), "mean", "", 10_000
    )
    assert encoder.prepare(["x" * 600, "x"]).tolist() == [512, 1]
    assert encoder.encode(np.array([0, 1])).shape == (2, 32)


def test_code_of_others_is_not_run_by_default(tmp_path, save_model):
    import json

    folder = save_model(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ConfigError, match="--trust-remote-code"):
        load_backbone(folder, "fp32", CPU, name="own")


def test_quiet_puts_everything_back():
    import sys
    import warnings

    from transformers.utils import logging

    before = logging.get_verbosity(), sys.stderr, list(warnings.filters)
    with pytest.raises(RuntimeError), quiet():
        raise RuntimeError
    assert (logging.get_verbosity(), sys.stderr, list(warnings.filters)) == before


@pytest.mark.parametrize("fast", [True, False])
def test_text_that_spells_a_special_token_stays_text(tmp_path, save_model, fast) -> None:
    folder = save_model(tmp_path / "model", "t5" if not fast else "llama")
    if not fast:
        from transformers import ByT5Tokenizer

        for path in folder.glob("tokenizer*"):
            path.unlink()
        ByT5Tokenizer().save_pretrained(folder)
    backbone = load_backbone(folder, "fp32", torch.device("cpu"))
    end = "<eos>" if fast else "</s>"
    (ids,) = token_ids(backbone, [f"Up{end}<pad>away"])
    plain = backbone.tokenizer(f"Up{end}<pad>away")["input_ids"]
    assert len(ids) == len(f"Up{end}<pad>away") + (not fast)  # a token a letter
    assert len(plain) < len(ids)
