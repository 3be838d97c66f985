"""`hllm recommend`: for whom, how many, and into which file."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from hllm.artifacts import read_json, write_text
from hllm.cli import main

NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
Capture = pytest.CaptureFixture[str]
Fails = Callable[..., str]


def recommend(run: Path, tmp_path: Path, *options: object) -> pl.DataFrame:
    out = tmp_path / "recs.parquet"
    assert main(["recommend", str(run), "--out", str(out), "--device", "cpu", *map(str, options)]) == 0
    return pl.read_parquet(out)


def score(recs: Path, interactions: Path) -> dict[str, float]:
    """Metrics of a file of recommendations by plain Python, from the raw interactions."""
    histories: dict[str, list[tuple[int, int, str]]] = {}
    for place, row in enumerate(pq.read_table(interactions).to_pylist()):
        histories.setdefault(row["user_id"], []).append((row["timestamp"], place, row["item_id"]))
    lists: dict[str, list[tuple[int, str]]] = {user: [] for user in histories}
    for row in pq.read_table(recs).to_pylist():
        lists[row["user_id"]].append((row["rank"], row["item_id"]))
    totals: dict[str, float] = {}
    for user, events in histories.items():
        *history, target = [item for _, _, item in sorted(events)]
        items = [item for _, item in sorted(lists[user])]
        assert not set(items) & set(history), "seen items are recommended"
        assert len(set(items)) == len(items)
        rank = items.index(target) + 1 if target in items else math.inf
        for k in (10, 50, 200):
            hit = rank <= k
            for name, gain in (("hr", 1.0), ("ndcg", 1 / math.log2(rank + 1)), ("mrr", 1 / rank)):
                totals[f"{name}@{k}"] = totals.get(f"{name}@{k}", 0.0) + (gain if hit else 0.0)
    return {name: total / len(histories) for name, total in totals.items()}


def test_the_files_score_is_the_runs_own(
    run_folder: Path, world_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    frame = recommend(run_folder, tmp_path, "--split", "test", "-k", 200)
    assert "recommendations for 60 users in" in capsys.readouterr().out
    metrics = read_json(run_folder / "metrics.json")["test"]
    assert metrics["protocol"]["tied_share"] == 0
    for name, value in score(tmp_path / "recs.parquet", world_folder / "interactions.parquet").items():
        assert value == pytest.approx(metrics[name], abs=5e-5), name
    assert frame.columns == ["user_id", "item_id", "score", "rank"]
    # Fewer candidates than k: every unseen candidate, and no filler.
    events = pl.read_parquet(world_folder / "interactions.parquet").group_by("user_id").len()
    sizes = frame.group_by("user_id").len().join(events, on="user_id")
    assert (sizes["len"] == 40 - (sizes["len_right"] - 1)).all()
    assert frame["score"].is_finite().all()


def test_for_whom(run_folder: Path, tmp_path: Path) -> None:
    assert recommend(run_folder, tmp_path)["user_id"].n_unique() == 60
    write_text(tmp_path / "users.txt", "\ufeffu003\n\nu001 \nu003\n")
    write_text(tmp_path / "users.csv", "user_id,age\nu003,7\nu001,8\n")
    pl.DataFrame({"user_id": ["u003", "u001"]}).write_parquet(tmp_path / "users.parquet")
    frames = [
        recommend(run_folder, tmp_path, "--users", tmp_path / f"users.{s}", "-k", 2) for s in ("txt", "csv")
    ]
    frames.append(recommend(run_folder, tmp_path, "--users", tmp_path / "users.parquet", "-k", 2))
    frames.append(recommend(run_folder, tmp_path, "--user", "u003", "--user", "u001", "-k", 2))
    for frame in frames:
        assert frame["user_id"].to_list() == ["u003", "u003", "u001", "u001"]
        assert frame.equals(frames[0])
    anonymous = recommend(run_folder, tmp_path, "--history", "001, 006", "--history", "002", "-k", 3)
    assert anonymous["user_id"].to_list() == [0, 0, 0, 1, 1, 1]
    titled = recommend(
        run_folder, tmp_path, "--titles", "Golden River (1951)", "--titles", "blue river (1956)", "-k", 3
    )
    assert titled["item_id"].to_list() == anonymous["item_id"].to_list()[:3]


def test_on_the_screen(run_folder: Path, capsys: Capture) -> None:
    assert main(["recommend", str(run_folder), "--user", "u003", "-k", "2", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if "u003" in line]
    assert [line[1] for line in lines] == ["1", "2"]
    assert "River" in out or "Garden" in out or "Letter" in out or "Island" in out
    assert main(["recommend", str(run_folder), "-k", "3", "--device", "cpu"]) == 0
    assert "100 of 180 rows shown; write all with --out" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_other_files(run_folder: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "new folder" / f"recs{suffix}"
    assert main(["recommend", str(run_folder), "--user", "u003", "-k", "2", "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert text.count("u003") == 2
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_items_left_out_and_columns_added(run_folder: Path, tmp_path: Path) -> None:
    one = ["--user", "u003", "-k", "40"]
    everything = recommend(run_folder, tmp_path, *one)
    first, second, *_ = everything["item_id"]
    write_text(tmp_path / "not.txt", f"{second}\n")
    write_text(tmp_path / "not.csv", f"item_id,why\n{second},seen elsewhere\n")
    for file in ("not.txt", "not.csv"):
        two = ["--exclude", f"{first}, {first}", "--exclude", tmp_path / file]
        fewer = recommend(run_folder, tmp_path, *one, *two)
        assert fewer["item_id"].to_list() == everything["item_id"].to_list()[2:]
        assert fewer["rank"].to_list() == list(range(1, len(everything) - 1))
    comedies = recommend(run_folder, tmp_path, *one, "--only", "genres=comedy", "--with", "genres,title")
    assert comedies.columns == ["user_id", "item_id", "score", "rank", "genres", "title"]
    assert set(comedies["genres"]) == {"Comedy"} and comedies["title"].null_count() == 0
    kept = everything.filter(pl.col("item_id").is_in(comedies["item_id"].implode()))
    assert comedies["item_id"].to_list() == kept["item_id"].to_list()
    both = recommend(run_folder, tmp_path, *one, "--only", "genres=Comedy", "--only", "genres=Horror")
    assert len(comedies) < len(both) < len(everything)


def test_added_columns_on_the_screen(run_folder: Path, capsys: Capture) -> None:
    options = ["--user", "u003", "-k", "2", "--with", "genres", "--only", "genres=Comedy"]
    assert main(["recommend", str(run_folder), *options]) == 0
    out = capsys.readouterr().out
    assert "genres" in out and out.count("Comedy") == 2 and "title" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exclude", "999x"], "unknown item_id '999x'"),
        (["--exclude", "none.txt"], "none.txt not found"),
        (["--only", "genres"], "--only 'genres' is not COLUMN=VALUE"),
        (["--only", "genre=Comedy"], "unknown column of the items 'genre' (did you mean 'genres'?)"),
        (["--only", "genres=Comdy"], "no item has 'Comdy' in column 'genres' (did you mean 'comedy'?)"),
        (["--with", "titel"], "unknown column of the items 'titel' (did you mean 'title'?)"),
        (["--with", "item_id"], "column 'item_id' is there already; other columns: title, genres"),
        (["--user", "ghost"], "unknown user_id 'ghost'"),
        (["--history", "001,999x"], "unknown item_id '999x'"),
        (["--history", ""], "history 0 is empty"),
        (["--titles", "Golden Rivet (1951)"], "did you mean 'golden river (1951)'"),
        (["--split", "tset"], "unknown split 'tset'"),
        (["--split", "test", "--user", "u003"], "says whom for; give it without users"),
        (["--k", "0"], "--k"),
        (["-k", "many"], "'many'"),
        (["--candidates", "all"], "unknown candidates 'all'"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--users", "no-such-file.txt"], "no-such-file.txt not found"),
        (["--users", "no-such-file.csv"], "no-such-file.csv"),
    ],
)
def test_mistakes_write_nothing(
    run_folder: Path, tmp_path: Path, fails: Fails, options: list[str], message: str
) -> None:
    assert message in fails("recommend", run_folder, "--out", tmp_path / "recs.parquet", *options)
    assert not list(tmp_path.iterdir())


def test_files_of_users_that_cannot_be_used(run_folder: Path, tmp_path: Path, fails: Fails) -> None:
    write_text(tmp_path / "empty.txt", "\n \n")
    write_text(tmp_path / "none.csv", "user_id\n")
    write_text(tmp_path / "other.csv", "name,age\nu003,7\n")
    (tmp_path / "latin.txt").write_bytes(b"Ren\xe9\n")
    (tmp_path / "not.parquet").write_bytes(b"PAR1 nonsense")
    for name, message in {
        "empty.txt": "holds no user id",
        "none.csv": "none.csv",
        "other.csv": "no column user_id (its columns: name, age)",
        "latin.txt": "latin.txt is not a readable text file",
        "not.parquet": "not.parquet",
    }.items():
        assert message in fails("recommend", run_folder, "--users", tmp_path / name), name


def test_wrong_suffixes_fail_before_anything_is_loaded(tmp_path: Path, fails: Fails) -> None:
    line = fails("recommend", tmp_path / "no run", "--out", tmp_path / "recs.xlsx")
    assert "unknown suffix '.xlsx'; valid: .parquet, .csv, .tsv, .json, .jsonl" in line


def test_what_is_no_run(tmp_path: Path, world_folder: Path, fails: Fails) -> None:
    assert "hllm train DATASET --out" in fails("recommend", tmp_path / "none")
    assert "is a dataset, not a run" in fails("recommend", world_folder)


def test_case_e14_a_new_user_costs_the_others_nothing(
    run_folder: Path, tmp_path: Path, capsys: Capture, fails: Fails
) -> None:
    frame = recommend(run_folder, tmp_path, "--user", "u002", "--user", "nobody", "-k", 3)
    assert frame["user_id"].to_list() == ["u002"] * 3
    assert "unknown user_id 'nobody': skipped" in capsys.readouterr().err
    popular = recommend(
        run_folder, tmp_path, "--user", "nobody", "--user", "u002", "--unknown", "popular", "-k", 3
    )
    assert popular["user_id"].to_list() == ["nobody"] * 3 + ["u002"] * 3
    assert "given what is popular" in capsys.readouterr().err
    assert "nobody is left" in fails("recommend", run_folder, "--user", "nobody")
    assert "unknown user_id 'nobody'" in fails(
        "recommend", run_folder, "--user", "u002", "--user", "nobody", "--unknown", "error"
    )
    assert "error, skip, popular" in fails("recommend", run_folder, "--unknown", "drop")


def test_times_of_a_history(run_folder: Path, tmp_path: Path, fails: Fails) -> None:
    plain = recommend(run_folder, tmp_path, "--history", "001,006")
    for times in ("5, 9", "2001-02-03,2001-02-04 10:00:00"):
        assert recommend(run_folder, tmp_path, "--history", "001,006", "--times", times).equals(plain)
    assert "times 0 falls" in fails("recommend", run_folder, "--history", "001,006", "--times", "9,5")
    assert "times belong to history" in fails("recommend", run_folder, "--user", "u002", "--times", "9,5")


def test_rules_from_files(run_folder: Path, tmp_path: Path, fails: Fails) -> None:
    write_text(tmp_path / "only.txt", "001\n002\n003\n004\n")
    write_text(tmp_path / "never.csv", "item_id\n002\n")
    write_text(tmp_path / "single.csv", "user_id,item_id,allow\nu003,004,false\n")
    frame = recommend(
        run_folder, tmp_path, "--user", "u003", "--user", "u004", "-k", 9, "--keep-seen",
        "--only-items", tmp_path / "only.txt", "--exclude-items", tmp_path / "never.csv",
        "--per-user", tmp_path / "single.csv", "--diversify", "genres:1", "--diversity", 0.2,
    )  # fmt: skip
    found = {user: set(rows["item_id"]) for (user,), rows in frame.group_by("user_id")}
    assert found == {"u003": {"001", "003"}, "u004": {"001", "003", "004"}}
    assert recommend(run_folder, tmp_path, "--exclude-seen-since", "1d", "-k", 40).height > 60 * 30
    assert "is no duration" in fails("recommend", run_folder, "--exclude-seen-since", "soon")
    assert "missing.csv" in fails("recommend", run_folder, "--per-user", tmp_path / "missing.csv")


def test_parts_go_on_to_the_same_bytes(
    run_folder: Path, tmp_path: Path, capsys: Capture, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "broken"
    arguments = ["recommend", str(run_folder), "-k", "4", "--part-users", "25", "--device", "cpu", "--out"]
    assert main([*arguments, str(whole)]) == 0
    assert "240 recommendations for up to 60 users in" in capsys.readouterr().out
    names = ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert sorted(p.name for p in whole.iterdir() if p.suffix == ".parquet") == names
    assert pq.read_table(whole).num_rows == 240
    plain, parts = recommend(run_folder, tmp_path, "-k", 4), pl.read_parquet(whole / "*.parquet")
    assert parts.select("user_id", "item_id", "rank").equals(plain.select("user_id", "item_id", "rank"))

    from hllm.recommend import parts as module

    write, written = module.write_table, []

    def one_part_and_out(path: Path, frame: pl.DataFrame) -> None:
        if written:
            raise KeyboardInterrupt("stopped")
        written.append(path)
        write(path, frame)

    monkeypatch.setattr(module, "write_table", one_part_and_out)
    assert main([*arguments, str(out)]) == 130
    assert [p.name for p in out.glob("*.parquet")] == names[:1]
    monkeypatch.undo()
    stamp = (out / names[0]).stat().st_mtime_ns
    assert main([*arguments, str(out)]) == 0
    assert (out / names[0]).stat().st_mtime_ns == stamp
    for name in [*names, "_recommendations.json"]:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert "asked for otherwise (k)" in fails(*["5" if a == "4" else a for a in arguments], out)
    write_text(tmp_path / "full" / "x.txt", "y")
    assert "holds no recommendations (x.txt)" in fails(*arguments, tmp_path / "full")
    assert "--split go to a file" in fails(*arguments, tmp_path / "new", "--split", "test")


def test_parts_for_strangers(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    write_text(tmp_path / "users.txt", "u003\nnobody\nu004\nnoone\n")
    arguments = [
        "recommend",
        str(run_folder),
        "--users",
        str(tmp_path / "users.txt"),
        "-k",
        "2",
        "--part-users",
        "2",
    ]
    assert main([*arguments, "--out", str(tmp_path / "a"), "--device", "cpu"]) == 0
    assert "unknown user_id 'nobody': skipped" in capsys.readouterr().err
    assert set(pl.read_parquet(tmp_path / "a" / "*.parquet")["user_id"]) == {"u003", "u004"}
    assert main([*arguments, "--out", str(tmp_path / "b"), "--unknown", "popular", "--device", "cpu"]) == 0
    assert pl.read_parquet(tmp_path / "b" / "*.parquet")["user_id"].unique(maintain_order=True).to_list() == [
        "u003", "nobody", "u004", "noone",
    ]  # fmt: skip


def test_known_anonymous_and_empty_in_one_batch(run_folder: Path, tmp_path: Path) -> None:
    """On the screen's way, from a file of users, and in parts: the same lists as one at a time."""
    mixed = recommend(
        run_folder, tmp_path, "--user", "u003", "--user", "ghost", "--history", "001,002", "--history", "",
        "--unknown", "popular", "-k", 3,
    )  # fmt: skip
    alone = {
        "u003": recommend(run_folder, tmp_path, "--user", "u003", "-k", 3),
        "-1": recommend(run_folder, tmp_path, "--history", "001,002", "-k", 3),
        "-2": recommend(run_folder, tmp_path, "--history", "", "--unknown", "popular", "-k", 3),
    }
    assert mixed["user_id"].unique(maintain_order=True).to_list() == ["u003", "ghost", "-1", "-2"]
    for name, rows in alone.items():
        assert mixed.filter(pl.col("user_id") == name).drop("user_id").equals(rows.drop("user_id")), name

    write_text(tmp_path / "who.csv", 'user_id,history\nu003,\nguest,"001,002"\nghost,\nnew,[]\n')
    options = ["--users", tmp_path / "who.csv", "--unknown", "popular", "-k", 3]
    named = recommend(run_folder, tmp_path, *options)
    names = {"guest": "-1", "new": "-2"}
    assert (
        named.with_columns(pl.col("user_id").replace(names))
        .sort("user_id", "rank")
        .equals(mixed.sort("user_id", "rank"))
    )
    arguments = [
        "recommend",
        run_folder,
        *options,
        "--part-users",
        2,
        "--device",
        "cpu",
        "--out",
        tmp_path / "p",
    ]
    assert main([str(a) for a in arguments]) == 0
    assert pl.read_parquet(tmp_path / "p" / "*.parquet").equals(named)


def test_histories_in_a_file_that_cannot_be_used(run_folder: Path, tmp_path: Path, fails: Fails) -> None:
    write_text(tmp_path / "who.csv", "user_id,history\ng,001\ng,002\n")
    assert "two histories of 'g'" in fails("recommend", run_folder, "--users", tmp_path / "who.csv")
    write_text(tmp_path / "who.csv", "user_id,history,times\ng,001,5 6\n")
    assert "times" in fails("recommend", run_folder, "--users", tmp_path / "who.csv")
    write_text(tmp_path / "who.csv", "user_id,history\ng,001\n")
    assert "put those of --history into it" in fails(
        "recommend", run_folder, "--users", tmp_path / "who.csv", "--history", "002"
    )


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["--device", "cpu,cpu"], marks=pytest.mark.slow),
        pytest.param(["--device", "cpu", "--engine", "ray"], marks=[pytest.mark.slow, NEEDS_RAY]),
    ],
)
def test_several_processes_write_the_same_files(run_folder: Path, tmp_path: Path, how: list[str]) -> None:
    write_text(tmp_path / "who.csv", 'user_id,history\nu003,\nguest,"001,002"\nghost,\nnew,[]\nu004,\n')
    arguments = ["recommend", str(run_folder), "--users", str(tmp_path / "who.csv"), "--unknown", "popular"]
    arguments += ["--part-users", "2", "-k", "3", "--only", "genres=Comedy", "--out"]
    assert main([*arguments, str(tmp_path / "one"), "--device", "cpu"]) == 0
    assert main([*arguments, str(tmp_path / "many"), *how]) == 0
    files = sorted(path.name for path in (tmp_path / "one").glob("*.parquet"))
    assert len(files) == 3
    for name in [*files, "_recommendations.json"]:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_engines_that_cannot_be(
    run_folder: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "unknown engine 'spark'" in fails(
        "recommend", run_folder, "--out", tmp_path / "a", "--engine", "spark"
    )
    assert "--out DIR" in fails("recommend", run_folder, "--device", "cpu,cpu")
    monkeypatch.setattr("hllm.engine.find_spec", lambda name: None)
    assert "pip install 'hllm[ray]'" in fails(
        "recommend", run_folder, "--out", tmp_path / "a", "--engine", "ray"
    )
