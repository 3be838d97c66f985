"""Pooling "auto": what a sentence-transformers folder says about its vectors, and what is assumed without one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hllm.errors import ArtifactError
from hllm.items.embed import embed, load_embeddings
from hllm.items.encoders.backbones import load_backbone
from hllm.items.encoders.own import own_digest, own_way

CPU = torch.device("cpu")
KINDS = "sentence_transformers.models."


def describe(
    folder: Path, pooling: dict, modules=("Normalize",), prompts=None, limit: int = 40, lower=False
) -> Path:
    """Add sentence-transformers' files to a model's folder."""
    names = ["Transformer", "Pooling", *modules]
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": KINDS + name}
        for i, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    settings = {"max_seq_length": limit, "do_lower_case": lower}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts or {}))
    for i, name in enumerate(names):
        if name == "Dense":
            (folder / f"{i}_Dense").mkdir()
            torch.manual_seed(i)
            weights = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
            save_file(weights, folder / f"{i}_Dense" / "model.safetensors")
            config = {
                "in_features": 32,
                "out_features": 8,
                "activation_function": "torch.nn.modules.activation.Tanh",
            }
            (folder / f"{i}_Dense" / "config.json").write_text(json.dumps(config))
    return folder


def states(folder: Path, text: str) -> torch.Tensor:
    backbone = load_backbone(folder, "fp32", CPU)
    with torch.no_grad():
        return backbone.model(
            input_ids=torch.tensor([backbone.tokenizer(text)["input_ids"]])
        ).last_hidden_state[0]


def vector(data, folder: Path) -> np.ndarray:
    """The first item's vector by pooling "auto", which is also found again."""
    options = {"precision": "fp32", "device": "cpu", "progress": False}
    made = embed(data, str(folder), "auto", text_fields=["title"], **options)
    found = load_embeddings(data, str(folder), "auto", None, ["title"])
    np.testing.assert_array_equal(found.vectors, made.vectors)
    return made.vectors[1]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_pooling_prompt_and_normalisation_are_the_folders(tmp_path, save_model, make_dataset, kind) -> None:
    prompts = {"prompts": {"query": "find: ", "document": "text: "}, "default_prompt_name": None}
    folder = describe(
        save_model(tmp_path / "model", kind), {"pooling_mode_mean_tokens": True}, prompts=prompts
    )
    expected = states(folder, "text: title: Up").mean(0)
    np.testing.assert_allclose(vector(make_dataset(), folder), expected / expected.norm(), atol=1e-5)


def test_dense_layers_and_concatenated_poolings(tmp_path, save_model, make_dataset) -> None:
    both = {"pooling_mode_cls_token": True, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
    folder = describe(save_model(tmp_path / "both"), both, modules=())
    own = states(folder, "title: Up")
    data = make_dataset()
    np.testing.assert_allclose(vector(data, folder), torch.cat((own[0], own[-1])), atol=1e-5)
    folder = describe(
        save_model(tmp_path / "dense"), {"pooling_mode_lasttoken": True}, ("Dense", "Normalize")
    )
    torch.manual_seed(2)
    weight, bias = torch.randn(8, 32), torch.randn(8)
    expected = torch.tanh(weight @ states(folder, "title: Up")[-1] + bias)
    np.testing.assert_allclose(vector(data, folder), expected / expected.norm(), atol=1e-5)


def test_a_prompt_may_be_left_out_of_the_mean_and_texts_be_lower_case(
    tmp_path, save_model, make_dataset
) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    prompts = {"prompts": {"item": "Say: "}, "default_prompt_name": "item"}
    folder = describe(save_model(tmp_path / "model"), pooling, (), prompts, lower=True)
    expected = states(folder, "Say: title: up")[4:].mean(0)  # as many as the prompt's tokens less one
    np.testing.assert_allclose(vector(make_dataset(), folder), expected, atol=1e-5)


def test_the_longest_text_is_the_folders(tmp_path, save_model, make_dataset) -> None:
    folder = describe(save_model(tmp_path / "model"), {"pooling_mode_lasttoken": True}, (), limit=12)
    data = make_dataset(["A title of more than twelve bytes", "Up"], [None, None])
    with pytest.warns(UserWarning, match="1 item texts were cut"):
        got = vector(data, folder)
    np.testing.assert_allclose(got, states(folder, "title: A tit")[-1], atol=1e-5)


def test_without_such_a_folder_the_architecture_decides(llama, tmp_path, save_model, make_dataset) -> None:
    assert own_way(llama, "minilm").poolings == ("mean",)
    assert own_way(llama, "bge-small").poolings == ("cls",)
    assert own_way(llama, str(llama)).poolings == ("mean",)
    config = json.loads((save_model(tmp_path / "lm") / "config.json").read_text())
    (tmp_path / "lm" / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    assert own_way(tmp_path / "lm", "org/x").poolings == ("last",)


def test_a_change_of_its_files_makes_other_embeddings(tmp_path, save_model, make_dataset) -> None:
    folder = describe(save_model(tmp_path / "model"), {"pooling_mode_mean_tokens": True})
    before, first = own_digest(folder, "x"), vector(make_dataset(), folder)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert own_digest(folder, "x") != before
    data = make_dataset(name="again")
    assert not np.allclose(vector(data, folder), first)


@pytest.mark.parametrize(
    ("pooling", "modules", "message"),
    [
        ({"pooling_mode_max_tokens": True}, (), "pools by max_tokens"),
        ({}, (), "pools by nothing"),
        ({"pooling_mode_mean_tokens": True}, ("LSTM",), "has a module 'LSTM'"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, save_model, pooling, modules, message) -> None:
    folder = describe(save_model(tmp_path), pooling, modules)
    with pytest.raises(ArtifactError, match=message):
        own_way(folder, "x")
