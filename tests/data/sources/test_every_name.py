"""Every data set of `hllm data list`, from files in its published layout, through the command line.

The files are ours: four users with four events each, in the layout and with the dirt of the real
ones. Each data set is prepared and described, and what is printed is checked against its files.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hllm.artifacts import read_json
from hllm.cli import main
from hllm.data.dataset import Dataset
from hllm.data.sources import list_sources

USERS, ITEMS = 4, 5
# (user, item, time): user u has the items u..u+3, modulo 5, newest last; rows are not in time order.
EVENTS = [(u, (u + i) % ITEMS, 1_000_000_000 + 100 * i + u) for i in (2, 0, 3, 1) for u in range(USERS)]


@dataclass(frozen=True)
class Layout:
    """Files of a data set, and what a reader makes of them.

    title    text of item 1, `text_fields` [0]       catalogue  items with those that nobody touched
    counts   what `dataset.json` counts              options    further words of the command line
    """

    files: dict[str, bytes]
    title: str
    catalogue: int = ITEMS
    counts: dict[str, int] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    max_len: int | None = None
    time_unit: str = "s"


def lines(rows: list[str], end: str = "\n") -> bytes:
    return "".join(row + end for row in rows).encode()


def records(items: list[dict[str, Any]], write: Callable[[Any], str]) -> bytes:
    return lines([write(item) for item in items])


# ------------------------------------------------------------------------- MovieLens

FILMS = {1: "Misérables, Les (1995)", 2: 'The "Burbs" (1989)', 3: "Up (2009)", 4: "A::B (1990)"}
FILMS |= {5: "unknown", 6: "Nobody's, Film (2000)"}  # the sixth has no event


def ml_100k() -> Layout:
    data = lines([f"{u + 1}\t{i + 1}\t{1 + i}\t{t}" for u, i, t in EVENTS])
    flags = "|".join(["0"] * 18 + ["1"])
    films = [f"{i}|{title}|01-Jan-1995||http://x.org/{i}|{flags}" for i, title in FILMS.items()]
    people = lines([f"{u + 1}|24|M|other|0246{u}" for u in range(USERS)])
    files = {"u.data": data, "u.item": lines(films).decode().encode("latin-1"), "u.user": people}
    return Layout(files, FILMS[1], catalogue=6)


def ml_dat(encoding: str, people: bool) -> Layout:
    files = {
        "ratings.dat": lines([f"{u + 1}::{i + 1}::{1 + i / 2}::{t}" for u, i, t in EVENTS]),
        "movies.dat": lines([f"{i}::{title}::Drama|War" for i, title in FILMS.items()])
        .decode()
        .encode(encoding),
    }
    if people:
        files["users.dat"] = lines([f"{u + 1}::F::25::1::0246{u}" for u in range(USERS)])
    return Layout(files, FILMS[1], catalogue=6)


def ml_csv() -> Layout:
    rows = [f"{u + 1},{i + 1},{0.5 + i},{t}" for u, i, t in EVENTS]
    quoted = {i: '"{}"'.format(title.replace('"', '""')) for i, title in FILMS.items()}
    films = [f"{i},{title},Comedy|(no genres listed)" for i, title in quoted.items()]
    files = {
        "ratings.csv": lines(["userId,movieId,rating,timestamp", *rows], "\r\n"),
        "movies.csv": b"\xef\xbb\xbf" + lines(["movieId,title,genres", *films], "\r\n"),
        "tags.csv": lines(["userId,movieId,tag,timestamp"]),
    }
    return Layout(files, FILMS[1], catalogue=6)


# ------------------------------------------------------------------------- Amazon

ASINS = [f"B00000000{i}" for i in range(ITEMS)]
REVIEWERS = [f"A1REVIEWER000{u}" for u in range(USERS)]
# Item 4 has no metadata; item 0 occurs twice; one record belongs to an item that nobody rated.
AMAZON_ITEMS: list[dict[str, Any]] = [
    {"asin": ASINS[0], "title": "One &amp; only", "description": "It's\n\"long\"", "related": {"also_bought": []}},
    {"asin": ASINS[1], "title": "Two", "description": ["A list.", "Of two."], "categories": [["Books", "Plays"]]},
    {"asin": ASINS[2], "title": "Three", "price": 4.5, "brand": "ACME"},
    {"asin": ASINS[3], "description": float("nan")},
    {"asin": ASINS[0], "title": "A later duplicate"},
    {"asin": "B999999999", "title": "Unrated"},
]  # fmt: skip
AMAZON_COUNTS = {"duplicate_items": 1, "items_without_metadata": 1, "items_without_text": 2}


def amazon(files: dict[str, bytes], *options: str, **changes: Any) -> Layout:
    return Layout(files, "One & only", counts=AMAZON_COUNTS, options=options, **changes)


def ratings(user_first: bool = True, factor: int = 1, header: str = "") -> bytes:
    rows = []
    for u, i, t in EVENTS:
        pair = (REVIEWERS[u], ASINS[i]) if user_first else (ASINS[i], REVIEWERS[u])
        rows.append(f"{','.join(pair)},{1 + i:.1f},{t * factor}")
    return lines([header, *rows] if header else rows)


def reviews() -> bytes:
    return records(
        [
            {"reviewerID": REVIEWERS[u], "asin": ASINS[i], "overall": 5.0, "unixReviewTime": t,
             "summary": '"Don\'t"\n'}
            for u, i, t in EVENTS
        ],
        json.dumps,
    )  # fmt: skip


LITERALS = records(AMAZON_ITEMS, repr)
JSONS = records(AMAZON_ITEMS, json.dumps)
ITEMS_2023 = records(
    [{"parent_asin" if k == "asin" else k: v for k, v in item.items()} for item in AMAZON_ITEMS], json.dumps
)

# ------------------------------------------------------------------------- pairs, tables

PAIR_EVENTS = lines(["item_id,user_id,timestamp", *(f"{ASINS[i]},u{u},{t}" for u, i, t in EVENTS)])
BOOK_ITEMS = (
    "item_id,description,title\n"
    f'{ASINS[0]},"First line\nsecond, with ""quotes""",One &amp; only\n'
    f"{ASINS[1]},nan,It's a 5\" Disk\n{ASINS[2]},\"['A', 'list']\",Three\n{ASINS[3]},,\n"
    f"{ASINS[0]},again,A duplicate\nB999999999,,Unrated\n"
).encode()
PIXEL_ITEMS = (
    "item_id,view_number,title,tag,description\n"
    f'{ASINS[0]},10,One &amp; only,pets,"A\nb"\n{ASINS[1]},9,"Cats, again",food,\n{ASINS[2]},9,Three,,nan\n'
    f"{ASINS[3]},9,,,\n{ASINS[0]},9,A duplicate,,\nB999999999,9,Unrated,,\n"
).encode()


def pair(name: str, items: bytes, max_len: int) -> Layout:
    files = {f"dataset/{name}.csv": PAIR_EVENTS, f"information/{name}.csv": items}
    return Layout(files, "One & only", counts=AMAZON_COUNTS, max_len=max_len)


def tabular() -> Layout:
    events = lines(["who;what;when", *(f"00{u};{i};{t}000" for u, i, t in EVENTS)])
    items = [f"{i};Thing {i};['a', 'b']" for i in range(6)]
    options = (
        "--interactions {}/events.csv --items {}/things.csv --user-col who --item-col what --time-col when"
    )
    files = {"events.csv": events, "things.csv": lines(["key;name;tags", *items])}
    words = (*options.split(), "--items-id-col", "key", "--text-cols", "name,tags")
    return Layout(files, "Thing 0", catalogue=6, options=words, time_unit="ms")


def recbole() -> Layout:
    inter = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    inter += [f"{u}\t{i}\t{1 + i}\t{t}.0" for u, i, t in EVENTS]
    item = ["item_id:token\ttitle:token_seq\tyear:token", *(f'{i}\tThe "{i}\t199{i}' for i in range(6))]
    files = {
        "set.inter": lines(inter),
        "set.item": lines(item),
        "set.user": lines(["user_id:token\tage:float"]),
    }
    return Layout(files, 'The "0', catalogue=6)


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "ml-100k": ml_100k,
    "ml-1m": lambda: ml_dat("latin-1", people=True),
    "ml-10m": lambda: ml_dat("utf-8", people=False),
    **dict.fromkeys(("ml-latest-small", "ml-20m", "ml-25m", "ml-32m"), ml_csv),
    "amazon-books": lambda: amazon(
        {"ratings_Books.csv": ratings(), "meta_Books.json.gz": gzip.compress(LITERALS)}, "--option", "k=3"
    ),
    "amazon-beauty": lambda: amazon(
        {"reviews_Beauty_5.json.gz": gzip.compress(reviews()), "meta_Beauty.json": LITERALS}
    ),
    "amazon-2014:Toys_and_Games": lambda: amazon(
        {"ratings_Toys_and_Games.csv": ratings(), "meta_Toys_and_Games.json.gz": gzip.compress(LITERALS)}
    ),
    "amazon-2018:All_Beauty": lambda: amazon(
        {"All_Beauty.csv": ratings(user_first=False), "meta_All_Beauty.json.gz": gzip.compress(JSONS)}
    ),
    "amazon-2023:Video_Games": lambda: amazon(
        {"Video_Games.csv.gz": gzip.compress(ratings(True, 1000, "user_id,parent_asin,rating,timestamp")),
         "meta_Video_Games.jsonl.gz": gzip.compress(ITEMS_2023)},
        time_unit="ms",
    ),
    "bytedance-books": lambda: pair("amazon_books", BOOK_ITEMS, 50),
    "pixel200k": lambda: pair("Pixel200K", PIXEL_ITEMS, 10),
    "pixel1m": lambda: pair("Pixel1M", PIXEL_ITEMS, 10),
    "pixel8m": lambda: pair("Pixel8M", PIXEL_ITEMS, 10),
    "recbole": recbole,
    "tabular": tabular,
}  # fmt: skip


def write(folder: Path, layout: Layout) -> Path:
    for name, data in layout.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_no_name_is_forgotten() -> None:
    assert {name.split(":")[0] for name in LAYOUTS} == {source.name for source in list_sources()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_prepare_and_describe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = LAYOUTS[name]()
    raw, out = write(tmp_path / "raw", layout), tmp_path / "set"
    options = [option.format(raw) for option in layout.options]
    assert main(["data", "prepare", name, "--from", str(raw), "--out", str(out), *options]) == 0
    printed = capsys.readouterr()
    title = "set" if name in ("tabular", "recbole") else name
    size = f"4 users, 5 candidate items ({layout.catalogue} in the catalogue), 16 interactions"
    assert f"dataset {title}: {size}" in printed.out
    assert printed.out.splitlines()[-1] == f"next: hllm embed {out}"
    meta = read_json(out / "dataset.json")
    assert (meta["n_users"], meta["n_candidates"], meta["n_interactions"]) == (4, 5, 16)
    assert (meta["name"], meta.get("max_len"), meta["time_unit"]) == (title, layout.max_len, layout.time_unit)
    assert meta["evaluated_users"] == {"validation": 4, "test": 4}
    assert {key: meta["counts"].get(key) for key in layout.counts} == layout.counts
    dataset = Dataset.load(out)
    assert dataset.items[meta["text_fields"][0]][0] == layout.title
    # The history of the first user: items 0, 1, 2, 3 in the order of their times.
    assert dataset.tokens[:4].tolist() == [1, 2, 3, 4]

    assert main(["data", "describe", str(out)]) == 0
    described = capsys.readouterr().out
    assert f"dataset {title}" in described
    assert f"5 candidates, {layout.catalogue - 5} only in the catalogue" in described
    assert ", ".join(meta["text_fields"]) in described
    assert "4 targets of 4 users" in described


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n not in ("tabular", "recbole")])
def test_the_text_fields_are_those_of_the_list(name: str, tmp_path: Path) -> None:
    source = next(s for s in list_sources() if s.name == name.split(":")[0])
    raw = write(tmp_path / "raw", LAYOUTS[name]())
    assert main(["data", "prepare", name, "--from", str(raw), "--out", str(tmp_path / "set"),
                 *LAYOUTS[name]().options]) == 0  # fmt: skip
    assert tuple(read_json(tmp_path / "set" / "dataset.json")["text_fields"]) == source.text_fields


def test_the_two_filters_of_books(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ByteDance's one pass may leave items below k, `--filter k-core` does not."""
    layout = LAYOUTS["amazon-books"]()
    # User 9 has three events: one of an item with few others, which goes with the next round.
    rare = lines([f"{user},{item},5.0,{t}" for t, (user, item) in enumerate(
        [("A9", ASINS[0]), ("A9", ASINS[1]), ("A9", "RARE000001"), ("A8", "RARE000001"), ("A7", "RARE000001")]
    )])  # fmt: skip
    raw = write(tmp_path / "raw", layout)
    (raw / "ratings_Books.csv").write_bytes(layout.files["ratings_Books.csv"] + rare)
    sizes = {}
    for rule in ("bytedance", "k-core", "none"):
        out = tmp_path / rule
        command = ["data", "prepare", "amazon-books", "--from", str(raw), "--out", str(out)]
        assert main([*command, "--filter", rule, "--option", "k=3"]) == 0
        meta = read_json(out / "dataset.json")
        sizes[rule] = (meta["n_users"], meta["n_candidates"], meta["n_interactions"])
    assert sizes == {"bytedance": (5, 6, 19), "k-core": (4, 5, 16), "none": (7, 6, 21)}
    assert "filter k-core with k=3 kept 16 of 21 interactions" in capsys.readouterr().out
    assert main([*command, "--filter", "5-core"]) == 2
    assert "valid: bytedance, k-core, none" in capsys.readouterr().err
