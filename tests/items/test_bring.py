"""Vectors of others: every way in gives the same, and what does not fit is told by value, type and number."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from hllm.cli import main
from hllm.errors import ArtifactError, ConfigError, DataError
from hllm.items.embed import embed, load_embeddings
from hllm.items.store.new_items import encode_new_items

IDS = list(range(1, 10))
X = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
ORDER = [4, 2, 0, 8, 6, 1, 3, 5, 7]


def written(folder, kind):
    """The vectors in shuffled order as a file of this kind, and its --ids file where it needs one."""
    ids, x, file = [IDS[i] for i in ORDER], X[ORDER], folder / f"my vectors.{kind.split('-')[0]}"
    beside = None
    if kind == "npy":
        np.save(file, x)
        beside = folder / "ids.txt"
        beside.write_text("\n".join(map(str, ids)) + "\n")
    elif kind == "npz":
        np.savez(file, embeddings=x, ids=np.array(ids))
    elif kind == "parquet":
        pl.DataFrame({"item_id": ids, "embedding": x.tolist(), "note": ["a"] * 9}).write_parquet(file)
    elif kind == "parquet-columns":
        pl.DataFrame({"item_id": ids, **{f"d{i}": x[:, i] for i in range(6)}}).write_parquet(file)
    elif kind == "jsonl":
        file.write_text(
            "".join(
                json.dumps({"item_id": i, "v": row}) + "\n" for i, row in zip(ids, x.tolist(), strict=True)
            )
        )
    elif kind == "safetensors":
        save_file({"vectors": torch.from_numpy(x), "item_ids": torch.tensor(ids)}, file)
    elif kind == "safetensors-rows":
        save_file({str(i): torch.from_numpy(row.copy()) for i, row in zip(ids, x, strict=True)}, file)
    elif kind == "pt":
        torch.save(torch.from_numpy(x), file)
        beside = folder / "ids.npy"
        np.save(beside, np.array(ids))
    elif kind == "pt-dict":
        torch.save({i: torch.from_numpy(row.copy()) for i, row in zip(ids, x, strict=True)}, file)
    return file, beside


FILES = (
    "npy", "npz", "parquet", "parquet-columns", "jsonl", "safetensors", "safetensors-rows", "pt", "pt-dict",
)  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_gives_each_item_its_own_vector(tmp_path, make_dataset, capsys, kind) -> None:
    data = make_dataset()
    file, ids = written(tmp_path, kind)
    options = [] if ids is None else ["--ids", str(ids)]
    assert main(["embed", str(data.path), "--from", str(file), *options, "--name", "mine"]) == 0
    out = capsys.readouterr().out
    assert "9 brought in from file" in out and "0 items without one, 0 of no item" in out
    assert out.endswith(f"next: hllm train {data.path} --set item_llm=vectors:mine\n")
    found = load_embeddings(data, "vectors:mine")
    rows = [IDS.index(item) for item in data.item_ids]
    np.testing.assert_allclose(found.vectors[1:], X[rows], rtol=0, atol=1e-6 if kind == "jsonl" else 0)
    assert found.has_text.tolist() == [False] + [True] * 9


@pytest.mark.parametrize(
    "given",
    [
        (X, IDS),
        (torch.from_numpy(X).bfloat16(), torch.tensor(IDS)),
        (torch.from_numpy(X).to_sparse(), IDS),
        (X.tolist(), np.array(IDS, dtype=np.int32)),
        (pl.DataFrame({"item_id": IDS, "v": X}), None),
        (pd.DataFrame(X).assign(item_id=IDS), None),
        (pl.DataFrame({"item_id": IDS, "v": X.tolist()}).to_arrow(), None),
        (dict(zip(IDS, X, strict=True)), None),
        ({"vectors": X.astype(np.float64), "ids": IDS}, None),
    ],
    ids=["array", "tensor", "sparse", "lists", "polars", "pandas", "arrow", "mapping", "named"],
)
def test_every_way_in_from_python(make_dataset, given) -> None:
    data = make_dataset()
    made = embed(data, vectors=given[0], ids=given[1], name="mine")
    rows = [IDS.index(item) for item in data.item_ids]
    np.testing.assert_allclose(made.vectors[1:], X[rows], atol=0.02 if torch.is_tensor(given[0]) else 1e-7)
    assert made.stats["brought"] == 9 and made.stats["missing"] == made.stats["surplus"] == 0
    assert load_embeddings(data, "vectors:mine").spec["key"] == made.spec["key"]


def test_missing_and_surplus_are_counted_and_the_same_vectors_are_one_store(make_dataset) -> None:
    data = make_dataset()
    few = embed(data, vectors=np.concatenate([X[:7], X[:2]]), ids=[*IDS[:7], 77, 78], name="few")
    assert (few.stats["brought"], few.stats["missing"], few.stats["surplus"]) == (7, 2, 2)
    assert int(few.has_text.sum()) == 7
    again = embed(data, vectors=np.concatenate([X[:7]])[::-1], ids=IDS[:7][::-1], name="few")
    assert again.spec["key"] == few.spec["key"]
    half = embed(data, vectors=X.astype(np.float16), ids=IDS, name="half")
    assert half.spec["precision"] == "fp16"
    file = next((data.embeddings_dir / half.spec["key"]).glob("shard-*"))
    assert file.stat().st_size < 9 * (6 * 2 + 17) + 900
    with pytest.warns(UserWarning, match="only 2 of 9 items have a vector"):
        embed(data, vectors=X[:2], ids=IDS[:2], name="two")


class Model:
    """Like a sentence-transformers object."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:
        self.read += texts
        return np.array([[len(text), text.count("e"), 1.0] for text in texts])


def test_a_model_in_memory_reads_each_text_once(make_dataset) -> None:
    data, model = make_dataset(), Model()
    made = embed(data, model, prompt="Item: ", template="natural", name="st")
    assert sorted(model.read) == sorted(set(model.read)) and len(model.read) == 8
    text = "Item: Title: Up. Genres: Animation."
    assert text in model.read
    token = data.item_ids.index(1) + 1
    np.testing.assert_array_equal(made.vectors[token], [len(text), text.count("e"), 1])
    assert load_embeddings(data, "vectors:st").stats["without_text"] == 0


def test_ids_are_matched_exactly_and_their_types_are_named(make_dataset, tmp_path) -> None:
    text = make_dataset(["a", "b", "c"], [None] * 3, ids=["007", "7", "x"], name="text")
    made = embed(text, vectors=X[:3], ids=["7", "007", "x"], name="mine")
    np.testing.assert_array_equal(made.vectors[text.item_ids.index("007") + 1], X[1])
    for ids, message in (
        ([7, 8, 9], "int64|'007' is not written as an integer"),
        (["a", "b", "c"], r"no id .* is an item's \('a', 'b', 'c', String there; '007'"),
        (["7", "7", "x"], "more than once, the first is '7'"),
        (["7", "x"], "has 3 vectors, but there are 2 ids"),
        ("7", "must be a list of identifiers"),
        (None, r"give the ids: ids=\[...\]"),
    ):
        with pytest.raises(DataError, match=message):
            embed(text, vectors=X[:3], ids=ids, name="mine")
    numbers = make_dataset()
    file = tmp_path / "ids.csv"
    file.write_text("item_id\n" + "\n".join(map(str, IDS)) + "\n")
    np.save(tmp_path / "x.npy", X)
    assert embed(numbers, vectors=tmp_path / "x.npy", ids=file).stats["brought"] == 9
    file.write_text("item_id\n" + "\n".join(f"0{i}" for i in IDS) + "\n")
    with pytest.raises(DataError, match=r"string|String|not written as an integer"):
        embed(numbers, vectors=tmp_path / "x.npy", ids=str(file))


def test_what_is_no_matrix_of_finite_numbers_is_told(make_dataset, tmp_path) -> None:
    data = make_dataset()
    bad = X.copy()
    bad[3, 2] = np.nan
    for vectors, message in (
        (X[0], r"float32 of shape \(6,\)"),
        (X[None], r"shape \(1, 9, 6\)"),
        (X.astype(str), "one matrix of numbers"),
        ([[1.0, 2.0], [1.0]], "one matrix of numbers"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (bad, r"vector of item 4 .* NaN"),
        (X.astype(np.float64) * 1e300, "beyond 1e"),
        (np.ma.masked_array(X, X > 1), "NaN"),
        (torch.empty(9, 6, device="meta"), "holds Tensor"),
        (np.ones_like(X), "all 9 vectors in .* are the same"),
        (pl.DataFrame(schema={"item_id": pl.Int64, "v": pl.List(pl.Float32)}), "has no row"),
        ({"a": X, "b": X}, "2 matrices"),
        ({1: X[0], 2: X[0, :3]}, "several lengths"),
        (pl.DataFrame({"item_id": IDS, "title": ["x"] * 9}), r"one column of lists, or numbers"),
        (pl.DataFrame({"item_id": [1, 2], "v": [[1.0, 2.0], [1.0]]}), "not all of one length"),
    ):
        with pytest.raises(DataError, match=message):
            embed(data, vectors=vectors, ids=IDS if not hasattr(vectors, "keys") else None, name="bad")
    files = {
        "x.npy": b"",
        "y.npy": b"hello",
        "z.npz": b"PK",
        "text.npz": b"hello",  # NumPy takes it for a pickle, and advises to trust it
        "a.safetensors": b"1234",
        "b.pt": b"",
        "c.parquet": b"x",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((ArtifactError, DataError), match=name):
            embed(data, vectors=tmp_path / name, ids=None)
    np.save(tmp_path / "object.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match=r"object\.npy: it holds Python objects"):
        embed(data, vectors=tmp_path / "object.npy")
    with pytest.raises(ArtifactError, match="is cut short, or no NumPy archive"):
        embed(data, vectors=tmp_path / "text.npz")
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match=r"ids: .*absent is no file; give one id a line"):
        embed(data, vectors=tmp_path / "x.npy", ids=tmp_path / "absent")
    with pytest.raises(DataError, match=r"vector of item .* beyond 1e\+15"):  # which no training takes either
        embed(data, vectors=X * 1e20, ids=data.item_ids)
    (tmp_path / "model.xyz").write_text("")
    with pytest.raises(DataError, match="valid endings"):
        embed(data, vectors=tmp_path / "model.xyz")
    assert not list(data.embeddings_dir.glob("*/shard-*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "absent.npy"], "absent.npy is no file"),
        (["--ids", "x"], "give vectors too (--from FILE)"),
        (["--item-llm", "vectors:gone"], "hllm embed"),
        (["--from", "{x}", "--name", "a/b"], "letters, digits"),
        (["--from", "{x}", "--ids", "absent.txt"], "absent.txt"),
        (["--from", "{x}"], "give the ids: --ids FILE"),
        (["--from", "{x}", "--dry-run"], "--dry-run would have no effect"),
        (["--from", "{x}", "--item-llm", "minilm", "--store", "fp16"], "--item-llm, --store would have no"),
        (["--from", "{x}", "--device", "tpu", "--gpus", "2"], "--device, --gpus would have no effect"),
        (["--list", "--prune"], "--list and --prune are two things"),
        (["--prune", "--dry-run"], "--prune is of what is there already, so --dry-run would have no effect"),
        (["--verify", "--from", "{x}", "--pooling", "last"], "--pooling, --from would have no effect"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(make_dataset, tmp_path, capsys, options, message) -> None:
    data = make_dataset()
    np.save(tmp_path / "x.npy", X)
    assert main(["embed", str(data.path), *(o.format(x=tmp_path / "x.npy") for o in options)]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_training_with_them_and_new_items_without(make_dataset, llama, tmp_path) -> None:
    from hllm.pipeline import Recommender
    from hllm.testing.synthetic import world

    data = world().save(tmp_path / "world")
    made = embed(data, "random", device="cpu", progress=False)
    embed(data, vectors=made.vectors[1:], ids=data.item_ids, name="same")
    small = {"d_model": 8, "n_heads": 2, "n_layers": 1, "epochs": 1, "whiten_rank": 4}
    runs = [
        Recommender.from_preset("demo", item_llm=llm, **small).fit(data, device="cpu", progress=False)
        for llm in ("random", "vectors:same")
    ]
    first, second = (run.evaluate(data).values for run in runs)
    assert first == second  # to the last digit
    with pytest.warns(UserWarning, match="new items have no vector, as vectors:same was brought in"):
        vectors, has = encode_new_items(runs[1].record.embeddings, pl.DataFrame({"title": ["Up"]}), "cpu")
    assert not has.any() and not vectors.any()
    with pytest.raises(ConfigError, match="no model here reads a text"):
        runs[1].similar(text="a film")
    assert main(["items", str(data.path), "--item-llm", "vectors:same"]) == 0


def test_what_cannot_be_or_is_not_read_is_told(make_dataset) -> None:
    data = make_dataset()
    for options, message in (
        ({"name": 5}, "name=5: must be a text"),
        ({"field_tokens": "title=3"}, "field_tokens='title=3': must be a mapping"),
    ):
        with pytest.raises(ConfigError, match=message):
            embed(data, vectors=X, ids=IDS, **options)
    for fusion in (None, 5):
        with pytest.raises(ConfigError, match=f"fusion={fusion}: must be a text"):
            embed(data, "random", fusion=fusion)
    with pytest.warns(
        UserWarning, match="brought in as they are: pooling='last', precision='bf16', store='fp16'"
    ):
        embed(data, vectors=X, ids=IDS, pooling="last", precision="bf16", store="fp16")
