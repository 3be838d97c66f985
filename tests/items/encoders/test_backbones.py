"""Models of many kinds, as transformers loads them: vocabularies, position tables, token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, ByT5Tokenizer, PreTrainedTokenizerFast, T5Config, T5Model

from hllm.errors import ArtifactError
from hllm.items.embed import embed
from hllm.items.encoders.backbones import load_backbone, position_limit
from hllm.items.encoders.text import LanguageModelEncoder

CPU = torch.device("cpu")
WORDS = [f"word{i}" for i in range(60)]
LONG = " ".join(WORDS)  # a title of 60 words
SIZE = {
    "vocab_size": 70, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 34, "initializer_range": 0.5,
}  # fmt: skip


def word_tokenizer(pad_id: int = 1) -> PreTrainedTokenizerFast:
    """One token a word; ids 0 to 3 are special, the padding's is `pad_id`."""
    special = ["<s>", "<unk>", "</s>"]
    special.insert(pad_id, "<pad>")
    vocab = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def write(folder: Path, name: str, pad_id: int = 1, **options) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZE | {"pad_token_id": pad_id} | options)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    word_tokenizer(pad_id).save_pretrained(folder)
    return folder


RELATIVES = {  # model: longest text, with a table of 34 positions
    "Camembert": 32, "MPNet": 32, "Longformer": 32, "Roberta": 32, "XLMRoberta": 32, "IBert": 32,
    "Data2VecText": 32, "Luke": 32, "Bert": 34, "Electra": 34, "OPT": 34, "GPT2": 34, "DistilBert": 34,
}  # fmt: skip
OWN = {
    "Longformer": {"attention_window": 4},
    "Luke": {"entity_vocab_size": 9, "entity_emb_size": 16},  # else 128 M weights
    "OPT": {"word_embed_proj_dim": 16, "ffn_dim": 16},
    "DistilBert": {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2},
}


@pytest.mark.parametrize("name", RELATIVES)
def test_case_e7_a_title_longer_than_the_position_table_is_cut(tmp_path, name) -> None:
    folder = write(tmp_path, name, **OWN.get(name, {}))
    backbone = load_backbone(folder, "fp32", CPU)
    assert backbone.max_length == RELATIVES[name]
    encoder = LanguageModelEncoder(backbone, "mean")
    assert encoder.prepare([LONG, "word1 word2"]).tolist() == [RELATIVES[name], 2]
    assert encoder.truncated.tolist() == [True, False]
    vectors = encoder.encode(np.array([0, 1]))
    ids = [backbone.tokenizer(text)["input_ids"][: RELATIVES[name]] for text in (LONG, "word1 word2")]
    plain = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        for row, own in zip(vectors, ids, strict=True):
            mask = torch.ones(1, len(own))
            states = plain(input_ids=torch.tensor([own]), attention_mask=mask).last_hidden_state[0]
            expected = states.mean(0)
            np.testing.assert_allclose(row, expected, atol=1e-5)


def test_case_e7_through_embed_the_cut_title_is_counted(tmp_path, make_dataset) -> None:
    folder = write(tmp_path / "model", "Camembert")
    data = make_dataset([LONG, "word1"], [None, None])
    with pytest.warns(UserWarning, match="1 item texts were cut"):
        made = embed(data, str(folder), prompt="", device="cpu", precision="fp32", progress=False)
    assert np.isfinite(made.vectors).all()
    assert made.stats["truncated"] == 1


def test_a_prompt_that_leaves_no_room_is_told(tmp_path) -> None:
    backbone = load_backbone(write(tmp_path, "Roberta"), "fp32", CPU)
    with pytest.warns(UserWarning, match=r"the prompt's 40 tokens fill all 32 .* shorter prompt"):
        LanguageModelEncoder(backbone, "mean", " ".join(WORDS[:40]))


def test_models_without_a_position_table_have_no_limit(tmp_path) -> None:
    """T5's and MPNet's tables of distances are no tables of positions; a Llama rotates."""
    t5 = T5Model(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).get_encoder()
    assert position_limit(t5, 0) is None
    llama = load_backbone(write(tmp_path, "Llama", num_key_value_heads=2), "fp32", CPU)
    assert position_limit(llama.model, llama.pad_id) is None


@pytest.mark.parametrize("name, options", [("Llama", {"num_key_value_heads": 2}), ("Bert", {})])
def test_case_e7_token_ids_past_the_embedding_table_are_refused(
    tmp_path, make_dataset, name, options
) -> None:
    folder = write(tmp_path / "model", name, vocab_size=44, **options)  # 20 rows fewer than the tokenizer has
    with pytest.raises(ArtifactError, match=r"token id 63, its model knows only 44 \(0 to 43\)"):
        embed(make_dataset(["word59", "word1"], [None, None]), str(folder), device="cpu", progress=False)
    short = make_dataset(["word2 word3", "word1"], [None, None], name="short")  # no such id is needed
    assert embed(short, str(folder), prompt="word4 ", device="cpu", progress=False).stats["encoded"] == 2


def t5(folder: Path) -> Path:
    torch.manual_seed(0)
    config = T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(folder)
    return folder


def test_case_e6_a_model_without_a_vocabulary_file(tmp_path, make_dataset) -> None:
    folder = t5(tmp_path / "model")
    ByT5Tokenizer().save_pretrained(folder)
    assert not (folder / "tokenizer.json").exists()
    data = make_dataset()
    made = embed(data, str(folder), device="cpu", precision="fp32", progress=False)
    assert made.stats["encoded"] == 8
    encoder = AutoModel.from_pretrained(folder).get_encoder().eval()
    text = "Compress the following sentence into embedding: title: Upgenres: Animation"
    with torch.no_grad():
        states = encoder(**ByT5Tokenizer()(text, return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(made.vectors[1], states[0].mean(0), atol=1e-5)
    # Its tokenizer's settings are part of what the vectors depend on.
    ByT5Tokenizer(extra_ids=20, additional_special_tokens=None).save_pretrained(folder)
    assert embed(data, str(folder), device="cpu", progress=False).spec["key"] != made.spec["key"]


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_a_lost_vocabulary_is_told_and_not_made_up(tmp_path, make_dataset, name) -> None:
    """transformers then makes a tokenizer of special tokens alone, and all items would be one vector."""
    folder = write(tmp_path / "model", name)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="vocabulary file is missing"):
        embed(make_dataset(), str(folder), device="cpu", progress=False)


def test_a_model_that_fails_on_a_text_is_named(tmp_path, monkeypatch) -> None:
    backbone = load_backbone(write(tmp_path, "Bert"), "fp32", CPU, name="tiny")
    encoder = LanguageModelEncoder(backbone, "mean")
    encoder.prepare(["word1 word2", "word3"])
    monkeypatch.setattr(backbone.model, "forward", lambda **_: torch.zeros(1)[5])
    with pytest.raises(ArtifactError, match=r"tiny fails on 2 texts of 2 tokens.*--max-tokens"):
        encoder.encode(np.array([0, 1]))
