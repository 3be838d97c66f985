"""`hllm data`: what it prints, and that a mistake is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hllm.cli import main
from hllm.data import prepare as preparing
from hllm.data.sources import list_sources

EVENTS = "user,item,when\n" + "".join(f"u{u},{i},{1_700_000_000 + i}\n" for u in range(3) for i in range(5))


@pytest.fixture
def events(tmp_path: Path) -> Path:
    file = tmp_path / "events.csv"
    file.write_text(EVENTS)
    (tmp_path / "items.csv").write_text("item,title\n" + "".join(f"{i},Title {i}\n" for i in range(7)))
    return file


def prepare(events: Path, out: Path, *more: str) -> int:
    columns = ["--user-col", "user", "--item-col", "item", "--time-col", "when"]
    files = ["--interactions", str(events), "--items", str(events.with_name("items.csv"))]
    return main(["data", "prepare", "tabular", *files, *columns, "--out", str(out), *more])


def test_prepare_says_what_it_made(events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    assert prepare(events, out) == 0
    printed = capsys.readouterr().out
    assert "dataset set: 3 users, 5 candidate items (7 in the catalogue), 15 interactions" in printed
    assert "split leave-one-out: users evaluated 3 in validation, 3 in test" in printed
    assert "catalogue only items 2" in printed
    assert "text, in prompt order: title; 0 items without any" in printed
    assert "trains with windows" not in printed
    meta = json.loads((out / "dataset.json").read_text())
    assert f"fingerprint {meta['fingerprint']}" in printed
    assert f"written to {out}" in printed
    assert printed.splitlines()[-1] == f"next: hllm embed {out}"


def test_every_option_arrives(events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    original = preparing.prepare

    def record(name: str, source_dir: Path | None, out: Path, **options: Any) -> Any:
        seen.update({k: v for k, v in options.items() if v is not None}, source_dir=source_dir)
        return original("tabular", events.parent, out, interactions=events, item_col="item", user_col="user",
                        time_col="when")  # fmt: skip

    monkeypatch.setattr(preparing, "prepare", record)
    arguments = (
        "--from D --interactions I --items J --users K --user-col a --item-col b --time-col c --rating-col d "
        "--text-cols e,f --time-unit ms --delimiter ; --no-header --encoding latin-1 --natural-titles "
        "--min-rating 4 --min-interactions 5 --min-user-interactions 6 --min-item-interactions 7 "
        "--no-items-header --items-id-col g --users-id-col h "
        "--split user-ratio --ratio 0.7,0.1,0.2 --targets all --cutoffs 2024-05-31,0.9 --cold-share 0.2 "
        "--ties shuffle --seed 3 --max-len 50 --filter k-core --option k=3"
    )
    assert main(["data", "prepare", "tabular", "--out", str(tmp_path / "set"), *arguments.split()]) == 0
    assert seen == {
        "source_dir": Path("D"), "interactions": Path("I"), "items": Path("J"), "users": Path("K"),
        "user_col": "a", "item_col": "b", "time_col": "c", "rating_col": "d", "text_cols": "e,f",
        "time_unit": "ms", "delimiter": ";", "header": False, "encoding": "latin-1",
        "items_header": False, "items_id_col": "g", "users_id_col": "h", "natural_titles": True,
        "min_rating": 4.0, "min_interactions": 5, "min_user_interactions": 6, "min_item_interactions": 7,
        "split": "user-ratio", "ratio": (0.7, 0.1, 0.2), "targets": "all", "cutoffs": ("2024-05-31", 0.9),
        "cold_share": 0.2, "ties": "shuffle", "seed": 3, "max_len": 50, "filter": "k-core", "k": 3,
    }  # fmt: skip


def test_without_texts_it_points_at_the_model_that_needs_none(
    events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["--user-col", "user", "--item-col", "item", "--time-col", "when", "--max-len", "all"]
    out = tmp_path / "set"
    command = ["data", "prepare", "tabular", "--interactions", str(events), *columns, "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "text: none, so nothing to embed (--items FILE" in printed
    assert "trains with windows of all events unless told otherwise" in printed
    assert printed.splitlines()[-1] == f"next: hllm train {out} --preset sasrec --out RUN"


def test_describe(events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(events, tmp_path / "set", "--split", "user-ratio", "--ratio", "0.34,0.33,0.33")
    capsys.readouterr()
    assert main(["data", "describe", str(tmp_path / "set"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["n_users"], values["split"]["name"]) == (3, "user-ratio")
    assert main(["data", "describe", str(tmp_path / "set")]) == 0
    assert "5 candidates, 2 only in the catalogue" in capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    table = capsys.readouterr().out
    assert "ml-100k" in table and "4.9 MB" in table and "title, genres" in table
    md5 = "0e33842e24a9c977be4e0107933c0723"
    assert f"ml-100k  https://files.grouplens.org/datasets/movielens/ml-100k.zip  md5 {md5}" in table
    assert "amazon-2018:CATEGORY  https://mcauleylab.ucsd.edu" in table and "/CATEGORY.csv\n" in table
    assert "pixel1m  by hand, see https://github.com/westlake-repl/PixelRec" in table
    assert "pixel200k, pixel1m, pixel8m: non-commercial research" in table
    for source in list_sources():
        assert source.citation in table and source.licence in table and source.size in table
    assert main(["data", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ml-1m"]["urls"] == ["https://files.grouplens.org/datasets/movielens/ml-1m.zip"]
    assert rows["ml-1m"]["text_fields"] == ["title", "genres"]


def test_list_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "ml-1m"]) == 0
    lines = capsys.readouterr().out.splitlines()
    url = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
    assert f"urls: {url}" in lines
    assert f"md5: {url} c4d9eecfca2ab87c1945afe126590906" in lines
    assert "text_fields: title, genres" in lines
    assert any(line.startswith("citation: Harper and Konstan") for line in lines)


def test_fetch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that are there already are not fetched again."""
    for name in ("u.data", "u.item", "u.user"):
        (tmp_path / name).write_text("x")
    assert main(["data", "fetch", "ml-100k", "--dir", str(tmp_path)]) == 0
    assert f"next: hllm data prepare ml-100k --from {tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prepare ml-100 --out {out}", "did you mean 'ml-100k'"),
        ("prepare ml-100k --from {out}/none --out {out}", "does not exist"),
        ("prepare tabular --out {out}", "--interactions FILE"),
        ("prepare tabular --from {tmp} --interactions events.csv --out {out}", "--user-col user"),
        ("prepare tabular --interactions {tmp}/event.csv --out {out}", "did you mean 'events.csv'"),
        ("prepare ml-100k --out {out} --user-col x", "user_col does not belong to ml-100k"),
        ("prepare ml-100k --out {out} --ratio a,b", "--ratio 'a,b'"),
        ("prepare ml-100k --out {out} --option x", "is not KEY=VALUE"),
        ("prepare ml-100k --out {out} --option a-b=1 --option a_b=2", "--option gives a_b twice: 1 and '2'"),
        ("prepare ml-100k --out {tmp}", "choose another folder"),
        ("prepare ml-100k", "--out"),
        ("prepare ml-100k --out {out} --split random", "unknown split 'random'"),
        ("prepare ml-100k --out {out} --max-len 0", "max_len=0"),
        ("prepare ml-100k --out {out} --max-len long", "max_len='long'"),
        ("fetch tabular", "tabular has no download"),
        ("describe {out}", "hllm data prepare"),
        ("describe {tmp}", "is not a dataset folder"),
        ("prepar ml-100k", "prepare"),
    ],
)
def test_mistakes_are_one_line(
    events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    out = tmp_path / "set"
    assert main(["data", *arguments.format(out=out, tmp=tmp_path).split()]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not out.exists()


HOSTILE = "\x1b[31m[bold]{0}</b>\u202e"


def test_case_e23_no_text_is_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences and markup in names of columns, files and data sets, in texts and ids."""
    events = tmp_path / "events.csv"
    events.write_text(
        "user_id,item_id,timestamp\n" + "".join(f"u,{HOSTILE}{i},{i}\n" for i in range(4)), encoding="utf-8"
    )
    items = tmp_path / "items.csv"
    items.write_text(f"item_id,{HOSTILE}\n" + "".join(f"{HOSTILE}{i},{HOSTILE}\n" for i in range(4)), "utf-8")
    out = tmp_path / f"{HOSTILE[:-5]}x"
    assert (
        main(
            [
                "data",
                "prepare",
                "tabular",
                "--interactions",
                str(events),
                "--items",
                str(items),
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert main(["data", "describe", str(out)]) == 0
    assert main(["data", "describe", str(out), "--json"]) == 0
    assert (
        main(
            ["data", "prepare", "tabular", "--interactions", str(events), "--item-col", HOSTILE, "--out", "x"]
        )
        == 2
    )
    shown = "".join(capsys.readouterr())
    assert "\x1b" not in shown and "\u202e" not in shown
    assert "\\u001b[31m[bold]{0}" in shown


def test_case_e23_errors_do_not_repeat_a_long_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tmp_path / "events.csv"
    for line in (f"u,a,{'x' * 100_000}", f"u,a,{'9' * 5000}", "u,a," + "x y" * 10_000):
        events.write_text(f"user_id,item_id,timestamp\nu,a,1\n{line}\n")
        assert (
            main(["data", "prepare", "tabular", "--interactions", str(events), "--out", str(tmp_path / "o")])
            == 2
        )
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and len(error.replace(str(tmp_path), "")) < 400


def test_duplicates_are_said_and_dropped_by_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tmp_path / "events.csv"
    events.write_text("user_id,item_id,timestamp,rating\nu,a,1,1\nu,a,1,1\nu,b,2,5\nu,c,3,5\n")
    arguments = ["data", "prepare", "tabular", "--interactions", str(events), "--out", str(tmp_path / "o")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "1 duplicate interactions are kept; --drop-duplicates keeps one of each" in shown
    assert "ratings from 1 to 5 are all kept as positives" in shown
    assert main([*arguments, "--drop-duplicates"]) == 0
    shown = capsys.readouterr().out
    assert "dropped duplicates 1" in shown and "are kept;" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "prepare", "ml-100kk", "--out", "x"],
        ["data", "prepare", "tabular", "--split", "foo", "--out", "x"],
        ["data", "describe", "nowhere"],
        ["data", "list", "ml-1mm"],
    ],
    ids=" ".join,
)
def test_typos_are_answered_before_anything_heavy_is_loaded(run_python: Any, arguments: list[str]) -> None:
    code = (
        "import sys; from hllm.cli import main; code = main(sys.argv[1:]); "
        "print(code, [m for m in ('torch', 'polars', 'pandas', 'transformers') if m in sys.modules])"
    )
    assert run_python("-c", code, *arguments).stdout == "2 []\n"
