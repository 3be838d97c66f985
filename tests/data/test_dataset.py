"""The dataset from tables to arrays: order, masks, identifiers, fingerprint, what training reads."""

import json
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from hllm.data.dataset import Dataset
from hllm.data.tables.schema import Tables
from hllm.errors import ArtifactError, ConfigError, DataError, HLLMError


def table(text):
    """Interactions from lines like `u1: c@30 b@20 a@10`, in file order."""
    rows = []
    for line in text.strip().splitlines():
        user, events = line.strip().split(": ")
        for event in events.split():
            item, time = event.split("@")
            rows.append((user, item, int(time)))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def history(dataset, user):
    row = dataset.row_of(user)
    part = slice(dataset.offsets[row], dataset.offsets[row + 1])
    return [dataset.item_ids[t - 1] for t in dataset.tokens[part]], dataset.times[part].tolist()


def held_out(dataset, split):
    return [dataset.item_ids[t - 1] for t in dataset.tokens[dataset.queries[split]]]


@pytest.fixture
def small():
    events = table("b: x@1 y@2 z@3 x@4\na: z@9 y@8 x@7\nc: q@5")
    items = pl.DataFrame(
        {"item_id": ["w", "z", "y", "x"], "title": ["W", "Z", None, " "], "year": [1, 2, 3, 4]}
    )
    users = pl.DataFrame({"user_id": ["c", "z", "a"], "age": [30, 40, 50]})
    return Dataset.from_tables(events, items, users, name="small", time_unit="s")


def test_layout(small):
    assert small.user_ids == ["a", "b", "c"]
    assert small.item_ids == ["q", "x", "y", "z", "w"]  # candidates sorted, then catalogue-only
    assert (small.n_users, small.n_candidates, small.n_catalogue) == (3, 4, 5)
    assert (
        small.tokens.dtype == np.int32 and small.times.dtype == np.int64 and small.offsets.dtype == np.int64
    )
    assert small.offsets.tolist() == [0, 3, 7, 8]
    assert history(small, "a") == (["x", "y", "z"], [7, 8, 9])
    assert held_out(small, "validation") == ["y", "z"] and held_out(small, "test") == ["z", "x"]
    assert small.train_mask.tolist() == [True, False, False, True, True, False, False, True]
    assert small.items["year"].to_list() == [None, 4, 3, 2, 1]
    assert small.users.rows() == [("a", 50), ("b", None), ("c", 30)]
    assert small.interactions["user_id"].to_list() == list("aaabbbbc")
    assert [small.token_of(i) for i in small.item_ids] == [1, 2, 3, 4, 5]
    assert "3 users, 4 candidates, 5 in the catalogue, 8 interactions" in repr(small)


def test_what_is_not_an_error_is_counted(small):
    assert small.meta["counts"] == {
        "rows": 8,
        "items_without_metadata": 1,
        "catalogue_only_items": 1,
        "items_without_text": 3,
        "users_without_attributes": 1,
        "users_without_events": 1,
        "users_too_short": 1,
        "duplicate_interactions": 0,
        "tied_interactions": 0,
        "repeated_interactions": 1,
        "validation_repeated_targets": 0,
        "test_repeated_targets": 1,
    }
    assert small.meta["evaluated_users"] == small.meta["targets"] == {"validation": 2, "test": 2}


def test_duplicate_rows_are_kept_and_counted():
    data = Dataset.from_tables(table("a: x@1 y@1 x@1 x@1 x@2"))
    assert len(data.tokens) == 5
    assert data.meta["counts"]["duplicate_interactions"] == 2
    assert data.meta["counts"]["tied_interactions"] == 4


def test_training_histories_leave_out_held_events_and_empty_users():
    events = table("a: x@1500 y@2999 z@3000 w@4000 v@5000\nb: x@-1 y@0 z@1\nc: w@7000")
    data = Dataset.from_tables(events, time_unit="ms", split="user-ratio", ratio=(0.4, 0.3, 0.3), seed=1)
    kept = [u for u in "abc" if data.train_mask[data.offsets[data.row_of(u)]]]
    histories = data.train_histories()
    assert len(kept) == 1 and [data.user_ids[u] for u in histories.users] == kept
    data = Dataset.from_tables(events, time_unit="ms")
    histories = data.train_histories()
    assert histories.users.tolist() == [0, 1, 2] and len(histories) == 3
    assert histories.offsets.tolist() == [0, 3, 4, 5]
    assert histories.times.tolist() == [1, 2, 3, -1, 7]  # whole seconds, rounded down
    assert [data.item_ids[t - 1] for t in histories.tokens] == ["x", "y", "z", "x", "w"]
    assert (histories.tokens.dtype, histories.times.dtype) == (np.int32, np.int64)


def test_training_counts(small):
    assert small.train_counts().tolist() == [0, 1, 2, 1, 0, 0]
    assert small.train_counts().dtype == np.int64


def test_case_d3_times_are_exact_and_decide_the_order():
    data = Dataset.from_tables(table("u: c@978300060 b@978300055 a@978300019"))
    assert history(data, "u") == (["a", "b", "c"], [978300019, 978300055, 978300060])
    assert held_out(data, "test") == ["c"]


def test_case_d5_ties_keep_file_order():
    data = Dataset.from_tables(table("u1: 9@5 3@5 7@5 1@5"))
    assert history(data, "u1")[0] == ["9", "3", "7", "1"]
    assert held_out(data, "validation") == ["7"] and held_out(data, "test") == ["1"]


def test_case_d5_shuffled_ties_follow_the_seed_whatever_the_threads(run_python):
    code = """
import json, polars as pl
from hllm.data.dataset import Dataset
events = pl.DataFrame({"user_id": [i % 3 for i in range(60)], "item_id": list(range(60)), "timestamp": 5})
print(json.dumps([Dataset.from_tables(events, ties="shuffle", seed=s).fingerprint for s in (0, 0, 1)]))
"""
    one, four = (run_python("-c", code, POLARS_MAX_THREADS=n).stdout for n in ("1", "4"))
    first, again, other = json.loads(one)
    assert one == four
    assert first == again != other


def test_case_d6_short_users_only_train_and_are_counted():
    events = table("u1: a@1\nu2: a@1 b@2\nu3: a@1 b@2 c@3")
    data = Dataset.from_tables(events)
    asked = np.searchsorted(data.offsets, data.queries["test"], side="right") - 1
    assert [data.user_ids[u] for u in asked] == ["u3"]
    assert (data.queries["test"] > data.offsets[asked]).all()
    assert data.meta["counts"]["users_too_short"] == 2
    with pytest.raises(
        DataError, match=r"filter min_interactions=10 leaves nothing \(6 rows before, 0 after\)"
    ):
        Dataset.from_tables(events, min_interactions=10)


def test_filters_reach_vocabulary_and_users():
    events = table("a: x@1 y@2 z@3\nb: x@1 y@2\nc: z@4 w@5").with_columns(
        rating=pl.Series([5.0, 4, 1, 5, 5, 5, 1])
    )
    data = Dataset.from_tables(events, min_rating=2, min_interactions=2)
    assert data.user_ids == ["a", "b"] and data.item_ids == ["x", "y"]
    assert data.interactions["rating"].to_list() == [5, 4, 5, 5]
    assert data.meta["filters"] == {"min_rating": 2.0, "min_user_interactions": 2, "min_item_interactions": 2}
    assert data.meta["counts"]["below_min_rating"] == 2
    assert data.meta["counts"]["below_min_interactions"] == 1


def test_nobody_to_evaluate_is_said():
    data = Dataset.from_tables(table("a: x@1"))
    assert data.meta["notes"][1:] == [
        "no user can be evaluated on validation: split leave-one-out found no target",
        "no user can be evaluated on test: split leave-one-out found no target",
    ]


def test_unknown_options_are_refused():
    with pytest.raises(ConfigError, match=r"unknown dataset option 'splt' \(did you mean 'split'\?\)"):
        Dataset.from_tables(table("a: x@1"), splt="temporal")


def test_case_d12_rows_belong_to_their_items(tmp_path):
    events = pl.DataFrame({"user_id": ["u"] * 3, "item_id": [1, 3, 2], "timestamp": [1, 2, 3]})
    items = pl.DataFrame({"item_id": ["3", "2", "1"], "title": ["three", "two", "one"]})
    data = Dataset.from_tables(events, items).save(tmp_path / "d")
    assert data.items.rows() == [(1, "one"), (2, "two"), (3, "three")]
    assert [data.items["title"][int(t) - 1] for t in data.tokens] == ["one", "three", "two"]


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table], ids=["pandas", "polars", "arrow"])
def test_case_d21_identifiers_come_back_unchanged(make, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    events = make({"user_id": ["007", "7", "007"], "item_id": [2**40, 5, 5], "timestamp": [1, 2, 3]})
    items = make({"item_id": [5, 2**40], "title": ["five", "big"]})
    data = Dataset.from_tables(events, items).save(tmp_path / "d")
    assert data.user_ids == ["007", "7"] and data.item_ids == [5, 2**40]
    assert (data.meta["user_id_type"], data.meta["item_id_type"]) == ("str", "int")


def test_unknown_identifiers(small):
    with pytest.raises(DataError, match=r"unknown user_id 'ghost'.*pass history="):
        small.row_of("ghost")
    with pytest.raises(DataError, match="unknown item_id 'X'"):
        small.token_of("X")


FINGERPRINT_CHANGES = {
    "ties": {"ties": "shuffle"},
    "split": {"split": "user-ratio"},
    "filters": {"min_rating": 0.5},
    "unit": {"time_unit": "s"},
}


@pytest.mark.parametrize("change", FINGERPRINT_CHANGES)
def test_fingerprint_covers_how_it_was_made(change):
    events = table("a: x@1 y@2 z@3\nb: x@4 y@5 w@6").with_columns(rating=pl.lit(1.0))
    base = Dataset.from_tables(events, time_unit="ms")
    other = Dataset.from_tables(events, **{"time_unit": "ms", **FINGERPRINT_CHANGES[change]})
    assert base.fingerprint != other.fingerprint
    assert base.items_fingerprint == other.items_fingerprint


def test_fingerprint_covers_identifiers_and_texts():
    events = table("a: x@1 y@2 z@3")
    items = pl.DataFrame({"item_id": ["x", "y", "z"], "title": ["X", "Y", "Z"]})
    base = Dataset.from_tables(events, items)
    again = Dataset.from_tables(events.sample(3, shuffle=True, seed=1), items.reverse(), name="other")
    assert base.fingerprint == again.fingerprint and base.items_fingerprint == again.items_fingerprint
    assert Dataset.from_tables(events, items, seed=5).fingerprint == base.fingerprint
    renamed = Dataset.from_tables(events.with_columns(user_id=pl.lit("b")), items)
    assert renamed.fingerprint != base.fingerprint and renamed.items_fingerprint == base.items_fingerprint
    edited = Dataset.from_tables(events, items.with_columns(title=pl.Series(["X", "Y", "Z!"])))
    assert edited.fingerprint != base.fingerprint and edited.items_fingerprint != base.items_fingerprint
    untitled = Dataset.from_tables(events, items.with_columns(title=pl.Series(["X", "Y", None])))
    empty = Dataset.from_tables(events, items.with_columns(title=pl.Series(["X", "Y", ""])))
    assert untitled.items_fingerprint == empty.items_fingerprint != base.items_fingerprint


def test_embeddings_live_beside_the_dataset_or_in_the_cache(small, tmp_path, monkeypatch):
    monkeypatch.setenv("HLLM_HOME", str(tmp_path / "home"))
    assert small.embeddings_dir == tmp_path / "home" / "embeddings" / small.items_fingerprint
    assert small.save(tmp_path / "d").embeddings_dir == tmp_path / "d" / "embeddings"


def test_loading_for_training_needs_numpy_and_json_only(small, tmp_path, run_python):
    small.save(tmp_path / "d")
    code = """
import sys
from hllm.data.dataset import Dataset
data = Dataset.load(sys.argv[1])
data.copy_to(sys.argv[2])
assert len(data.train_histories()) == 3 and data.train_counts().sum() == 4
print([m for m in ("polars", "pandas", "pyarrow", "torch", "transformers") if m in sys.modules])
"""
    run = run_python("-c", code, str(tmp_path / "d"), str(tmp_path / "run"))
    assert run.stdout.strip() == "[]", run.stderr
    copied = Dataset.load(tmp_path / "run")
    assert copied.fingerprint == small.fingerprint and copied.items.equals(small.items)
    assert history(copied, "b") == history(small, "b")
    with pytest.raises(ArtifactError, match="leaves out interactions"):
        _ = copied.interactions


def test_copy_of_a_dataset_in_memory(small, tmp_path):
    small.copy_to(tmp_path / "run" / "dataset")
    copied = Dataset.load(tmp_path / "run" / "dataset")
    assert copied.users.equals(small.users) and not (tmp_path / "run/dataset/interactions.parquet").exists()


def test_source_tables_keep_their_counts_and_notes():
    tables = Tables(table("a: x@1 y@2"), counts={"bad_lines": 2}, notes=["said once"], time_unit="index")
    data = Dataset.from_source_tables(tables, name="n")
    assert data.meta["counts"]["bad_lines"] == 2 and data.meta["notes"][0] == "said once"
    assert tables.counts == {"bad_lines": 2} and tables.notes == ["said once"]


def test_movielens_1m_sizes(tmp_path, shared_data):
    events = pl.read_parquet(shared_data / "ml-1m/interactions.parquet").rename({"position": "timestamp"})
    lines = (shared_data / "ml-1m/movies.dat").read_text(encoding="latin-1").splitlines()
    items = pl.DataFrame(
        [line.split("::") for line in lines], schema=["item_id", "title", "genres"], orient="row"
    )
    data = Dataset.from_tables(events, items).save(tmp_path / "d")
    assert (data.n_users, data.n_candidates, data.n_catalogue, len(data.tokens)) == (
        6040,
        3416,
        3883,
        999_611,
    )
    assert sum(f.stat().st_size for f in (tmp_path / "d").rglob("*") if f.is_file()) < 30e6


@pytest.mark.parametrize(
    "options",
    [
        {"min_rating": "5"}, {"min_rating": float("nan")}, {"min_interactions": None}, {"min_interactions": 1.5},
        {"time_unit": []}, {"text_fields": 3}, {"text_fields": "title"}, {"columns": "x"}, {"columns": [1]},
        {"name": float("nan")}, {"name": b"x"}, {"drop_duplicates": "yes"}, {"seed": 1.5}, {"ties": []},
        {"split": "user-ratio", "ratio": (float("nan"), 0.5, 0.5)}, {"split": "temporal", "cutoffs": "x"},
        {"split": "cold-items", "cold_share": float("inf")},
    ],
    ids=str,
)  # fmt: skip
def test_case_e24_values_that_cannot_be_are_refused_at_once(options):
    events = table("a: x@1 y@2 z@3\nb: x@4 y@5 w@6")
    with pytest.raises(HLLMError):
        Dataset.from_tables(events, items=pl.DataFrame({"item_id": ["x"], "title": ["X"]}), **options)


def test_case_e24_endless_ratings_are_refused():
    events = table("a: x@1 y@2").with_columns(rating=pl.lit(float("inf")))
    with pytest.raises(DataError, match="rating inf in row 0 is not a number"):
        Dataset.from_tables(events)


def test_a_dataset_shows_itself_in_a_line_and_in_a_notebook():
    data = Dataset.from_tables(table("a: x@1 y@2 z@3"), name="<b>&")
    assert "\n" not in repr(data) and len(repr(data)) < 120
    html = data._repr_html_()
    assert html.startswith("<table>") and "&lt;b&gt;&amp;" in html and data.fingerprint[:12] in html


def test_ratings_that_all_count_alike_are_said():
    events = table("a: x@1 y@2 z@3").with_columns(rating=pl.Series([1.0, 3.0, 5.0]))
    (note,) = (n for n in Dataset.from_tables(events).meta["notes"] if "positives" in n)
    assert "ratings from 1 to 5 are all kept as positives" in note and "--min-rating 3" in note
    for quiet in (Dataset.from_tables(events, min_rating=3.0), Dataset.from_tables(events.drop("rating"))):
        assert not any("positives" in n for n in quiet.meta["notes"])
