"""ByteDance's checkpoint files: the shapes in which they come, and what is no such file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hllm.errors import ArtifactError
from hllm.formats.bytedance import read_checkpoint, write_checkpoint


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "item_llm.model.norm.weight": torch.randn(4),
        "user_llm.model.norm.weight": torch.randn(4),
        "item_emb_tokens": torch.randn(1, 1, 4),
        "logit_scale": torch.tensor(2.5),
    }


def check(path: Path) -> None:
    wanted, found = tensors(), read_checkpoint(path)
    assert list(found.item_llm) == ["model.norm.weight"] and list(found.user_llm) == ["model.norm.weight"]
    assert torch.equal(found.item_llm["model.norm.weight"], wanted["item_llm.model.norm.weight"])
    assert torch.equal(found.user_llm["model.norm.weight"], wanted["user_llm.model.norm.weight"])
    assert found.item_tokens is not None and torch.equal(found.item_tokens, wanted["item_emb_tokens"][0])
    assert found.logit_scale.shape == () and found.logit_scale == 2.5


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"_forward_module.module.{name}": value for name, value in state.items()},
        lambda state: {name.replace("llm.", "llm._orig_mod."): value for name, value in state.items()},
        lambda state: {"module": state, "global_steps": 7, "ds_version": "0.14.2", "optimizer": None},
        lambda state: {"model": {f"module.{n}": v for n, v in state.items()}, "epoch": 3},
        lambda state: {"state_dict": state},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers(wrap: Any, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(wrap(tensors()), path, _use_new_zipfile_serialization=not legacy)
    check(path)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_shards(kind: str, tmp_path: Path) -> None:
    stem = "model" if kind == "safetensors" else "pytorch_model"
    place = {}
    for i, (name, value) in enumerate(tensors().items(), 1):
        place[name] = f"{stem}-0000{i}-of-00004.{kind}"
        (save_file if kind == "safetensors" else torch.save)({name: value}, tmp_path / place[name])
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"weight_map": place}))
    check(index)
    check(tmp_path)
    (tmp_path / place["logit_scale"]).unlink()
    with pytest.raises(ArtifactError, match="of-00004"):
        read_checkpoint(index)


def test_tensors_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors(), path)
    maps = Path("/proc/self/maps")
    found = read_checkpoint(path)
    if maps.exists():
        assert str(path) in maps.read_text()
    assert found.path == path


def test_round_trip(tmp_path: Path) -> None:
    wanted = tensors()
    path = tmp_path / "pytorch_model.bin"
    write_checkpoint(
        path,
        {"model.norm.weight": wanted["item_llm.model.norm.weight"]},
        {"model.norm.weight": wanted["user_llm.model.norm.weight"]},
        wanted["item_emb_tokens"][0],
        wanted["logit_scale"],
    )
    check(path)
    raw = torch.load(path, weights_only=True)
    assert {name: value.shape for name, value in raw.items()} == {n: v.shape for n, v in wanted.items()}


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch hacked",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("logit_scale"), "has no logit_scale"),
        (lambda s: s.pop("user_llm.model.norm.weight"), r"has no user_llm\.\* weights"),
        (lambda s: s.update(logit_scale=torch.ones(2)), r"logit_scale is \(2,\), expected \(\)"),
        (
            lambda s: s.update(item_emb_tokens=torch.ones(4)),
            r"item_emb_tokens is \(4,\), expected \(1, 1, d\)",
        ),
        (lambda s: s.update(logit_scale=torch.ones((), dtype=torch.int64)), "logit_scale is torch.int64"),
        (lambda s: s.update(logit_scale=2.5), "logit_scale is float"),
        (lambda s: (s.clear(), s.update(weight=torch.ones(2))), "weights, but weight;"),
        (lambda s: s.update(evil=Evil()), "system"),
    ],
)
def test_wrong_content(change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state, path = tensors(), tmp_path / "pytorch_model.bin"
    change(state)
    torch.save(state, path)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value) and not (tmp_path / "hacked").exists()


def test_wrong_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.bin"
    torch.save(tensors() | {"item_llm.big": torch.zeros(50_000)}, whole)
    for name, content, message in [
        ("empty.bin", b"", "is empty; download it again"),
        ("cut.bin", whole.read_bytes()[:100_000], "download it again"),
        ("text.bin", b"version https://git-lfs.github.com/spec/v1\n", "cannot read"),
        ("list.bin", pickle.dumps([1, 2]), "holds a list, no state_dict"),
        ("evil.bin", pickle.dumps(Evil()), "refused"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=message):
            read_checkpoint(tmp_path / name)
    with pytest.raises(ArtifactError, match="not found; give the"):
        read_checkpoint(tmp_path / "nowhere.bin")
