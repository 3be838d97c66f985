"""Runs in other formats: the same scores and lists, also from a program that knows no hllm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from hllm.artifacts import read_json, write_text
from hllm.cli import main
from hllm.data.batches.queries import last_queries, query_batch
from hllm.errors import ArtifactError, ConfigError, HLLMError
from hllm.export import write as module
from hllm.export.check import Ask, compare, padded_queries
from hllm.export.dense import DenseUserModel
from hllm.export.write import export
from hllm.packing import pad
from hllm.pipeline import Recommender
from hllm.testing import world

ROOT = Path(__file__).resolve().parents[2]
NEEDS_ONNX = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs the extra export",
)


@pytest.fixture(scope="module")
def rec() -> Recommender:
    settings: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 2, "epochs": 2, "max_len": 12}
    # Distances past max_distance share a bias: the padded form must find it, too.
    made = Recommender.from_preset("sasrec", **settings, max_distance=5, learning_rate=1e-2, batch_tokens=150)
    return made.fit(world(), device="cpu", progress=False)


def consumer() -> str:
    """The program of docs/export.md."""
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    return str(program)


def test_the_padded_form_is_the_packed_model(rec: Recommender) -> None:
    assert rec.network is not None and rec.dataset is not None
    dense = DenseUserModel(rec.network.model).eval()
    queries = last_queries(rec.dataset, np.arange(20))
    batch = query_batch(queries, slice(0, 20), 12)
    vectors = rec.network.table().raw[batch.tokens]
    wanted = rec.network.query(batch)
    with torch.no_grad():
        rectangle = pad(vectors, batch.offsets)
        found = dense(rectangle, batch.lengths)
        # What lies beyond a length is not looked at, however wide the rectangle.
        wider = torch.full((20, rectangle.shape[1] + 7, rectangle.shape[2]), 9.0)
        wider[:, : rectangle.shape[1]] = torch.where(
            torch.arange(rectangle.shape[1])[None, :, None] < batch.lengths[:, None, None], rectangle, 5.0
        )
        again = dense(wider, batch.lengths)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(again, wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.slow
def test_torch_export(rec: Recommender, tmp_path: Path) -> None:
    parity = export(rec, tmp_path / "out", "torch-export")
    assert parity is not None
    assert (parity.users, parity.same) == (60, 60) and parity.difference < 1e-5
    assert read_json(tmp_path / "out" / "export.json")["parity"]["same"] == 60
    program = torch.export.load(str(tmp_path / "out" / "user_model.pt2")).module()
    for b, length in ((1, 1), (2, 40)):
        assert program(torch.randn(b, length, 16), torch.full((b,), length)).shape == (b, 16)


@NEEDS_ONNX
@pytest.mark.slow
def test_a_program_of_numpy_and_onnxruntime(
    rec: Recommender, tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    parity = export(rec, tmp_path / "out", "onnx")
    assert parity is not None and (parity.users, parity.same) == (60, 60) and parity.difference < 1e-4
    program = consumer()
    assert "hllm" not in program and "torch" not in program
    assert len([line for line in program.splitlines() if line.strip()]) <= 32
    write_text(tmp_path / "consumer.py", program)
    histories = [[10, 15, 20], [12], list(range(10, 30))]
    done = subprocess.run(
        [sys.executable, tmp_path / "consumer.py", tmp_path / "out", json.dumps(histories)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = rec.recommend(history=histories, k=10)
    for number, line in enumerate(done.stdout.splitlines()):
        mine = wanted.filter(pl.col("user_id") == number)
        found = json.loads(line)
        assert [item for item, _ in found] == mine["item_id"].to_list()
        assert [score for _, score in found] == pytest.approx(mine["score"].to_list(), abs=2e-4)


def test_weights_and_vectors(rec: Recommender, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    assert rec.network is not None and rec.dataset is not None
    assert export(rec, tmp_path / "a", "safetensors") is None
    weights = load_file(tmp_path / "a" / "user_model.safetensors")
    assert set(weights) == set(rec.network.model.state_dict())
    raw, scored = (np.load(tmp_path / "a" / f"item_{name}.npy") for name in ("vectors", "scored"))
    assert json.loads((tmp_path / "a" / "items.json").read_text())[1:] == rec.dataset.item_ids
    assert np.load(tmp_path / "a" / "candidates.npy").tolist() == list(range(1, rec.dataset.n_candidates + 1))
    assert export(rec, tmp_path / "b", "parquet") is None
    table = pl.read_parquet(tmp_path / "b" / "items.parquet")
    assert table["item_id"].to_list() == rec.dataset.item_ids
    np.testing.assert_array_equal(np.array(table["vector"].to_list(), np.float32), raw[1:])
    np.testing.assert_array_equal(np.array(table["scored"].to_list(), np.float32), scored[1:])


def test_other_scores_are_an_error(rec: Recommender) -> None:
    assert rec.network is not None and rec.dataset is not None
    dense = DenseUserModel(rec.network.model).eval()
    raw, scored = (t.numpy() for t in (rec.network.table().raw, rec.network.table().scored))

    def ask(factor: float) -> Ask:
        def run(vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                made = dense(torch.from_numpy(vectors), torch.from_numpy(lengths))
            return np.asarray(made) * np.float32(factor)

        return padded_queries(run, raw, 12)

    parity = compare(rec.network, rec.dataset, ask(1.0), scored, 12)
    assert parity is not None and parity.same == parity.users == parity.of == 60 and parity.overlap == 1
    ndcg = rec.evaluate(k=10, bootstrap=0)["ndcg@10"]
    assert parity.ndcg == parity.run_ndcg == pytest.approx(ndcg, abs=1e-9)
    with pytest.raises(HLLMError, match="gives scores that differ by"):
        compare(rec.network, rec.dataset, ask(1.01), scored, 12)
    # Scores are half, lists and ranks the same; with the sign turned they are the other way round.
    half = compare(rec.network, rec.dataset, ask(0.5), scored, 12, exact=False)
    assert half is not None and half.same == 60 and half.ndcg == parity.ndcg
    assert half.difference == pytest.approx(0.5, abs=1e-3)
    worst = compare(rec.network, rec.dataset, ask(-1.0), scored, 12, exact=False)
    assert worst is not None and worst.same == 0 and worst.overlap < 0.3 and worst.ndcg < parity.ndcg


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.skipif(not find_spec("faiss"), reason="needs the extra faiss")
def test_an_index_of_faiss(rec: Recommender, tmp_path: Path, quantize: str | None) -> None:
    import faiss

    assert rec.network is not None and rec.dataset is not None
    parity = export(rec, tmp_path / "out", "faiss", quantize)
    assert parity is not None and parity.users == 60
    assert parity.same == 60 if quantize is None else parity.overlap > 0.8 and parity.difference > 1e-5
    assert parity.run_ndcg == pytest.approx(rec.evaluate(k=10, bootstrap=0)["ndcg@10"], abs=1e-9)
    index = faiss.read_index(str(tmp_path / "out" / "items.faiss"))
    ids = json.loads((tmp_path / "out" / "items.json").read_text())
    query = rec.network.query(query_batch(last_queries(rec.dataset, np.arange(1)), slice(0, 1), 12))
    scores, rows = index.search(query.detach().numpy(), 3)
    wanted = rec.recommend([rec.dataset.users["user_id"][0]], k=3, keep_seen=True)
    assert [ids[row] for row in rows[0]] == wanted["item_id"].to_list()
    assert scores[0].tolist() == pytest.approx(
        wanted["score"].to_list(), abs=1e-4 if quantize is None else 0.1
    )
    assert "items.faiss" in (tmp_path / "out" / "README.md").read_text()


@NEEDS_ONNX
@pytest.mark.slow
def test_a_quantised_model_states_its_loss(
    rec: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rec.save_pretrained(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--quantize", "int8"]) == 0
    told = capsys.readouterr().out
    folder = tmp_path / "run-onnx-int8"
    found = read_json(folder / "export.json")["parity"]
    assert 0.7 < found["overlap"] <= 1 and 1e-5 < found["difference"] < 0.2
    assert f"ndcg@10 {found['run_ndcg']:.4f} before, {found['ndcg']:.4f} after" in told
    raw, scale = (np.load(folder / f"item_vectors{name}.npy") for name in ("", "_scale"))
    assert rec.network is not None and raw.dtype == np.int8
    error = np.abs(raw * scale - rec.network.table().raw.numpy())
    assert (error <= scale / 2 * 1.001).all()
    program = consumer()
    write_text(tmp_path / "consumer.py", program)
    done = subprocess.run(
        [sys.executable, tmp_path / "consumer.py", folder, "[[10, 15, 20]]"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = rec.recommend(history=[[10, 15, 20]], k=10)["item_id"].to_list()
    assert len({item for item, _ in json.loads(done.stdout)} & set(wanted)) >= 7


def test_what_cannot_be_exported(rec: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown format 'tensorrt'"):
        export(rec, tmp_path / "out", "tensorrt")
    write_text(tmp_path / "full" / "notes.txt", "mine")
    with pytest.raises(ArtifactError, match="holds no export"):
        export(rec, tmp_path / "full", "parquet")
    with pytest.raises(ConfigError, match="unknown quantize 'int4'"):
        export(rec, tmp_path / "out", "onnx", "int4")
    with pytest.raises(ConfigError, match="--quantize int8 is for --format onnx and faiss, not for parquet"):
        export(rec, tmp_path / "out", "parquet", "int8")
    monkeypatch.setitem(module.NEEDED, "onnx", ("export", ("no_such_package",)))
    with pytest.raises(ConfigError, match=r"no_such_package: pip install 'hllm\[export\]'"):
        export(rec, tmp_path / "out", "onnx")


def test_on_the_command_line(rec: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rec.save_pretrained(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--format", "parquet"]) == 0
    assert f"parquet export in {tmp_path / 'run-parquet'}" in capsys.readouterr().out
    assert (tmp_path / "run-parquet" / "items.parquet").is_file()
    assert main(["export", str(tmp_path / "run"), "--format", "safetensor"]) == 2
    assert "did you mean 'safetensors'" in capsys.readouterr().err
