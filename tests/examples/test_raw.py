"""Raw files, found wherever the document puts them; Books' told apart by what they hold."""

from __future__ import annotations

import pytest

from hllm.errors import DataError
from rechub_scripts import books, raw

INTERACTIONS, ITEMS = "item_id,user_id,timestamp\na,u,1\n", "item_id,description,title\na,d,t\n"
RATINGS = "u,a,5.0,1\n"


def put(folder, **files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("place", ["", "ml-1m", "data/ml-1m", "data"])
def test_places(tmp_path, place):
    put(tmp_path / place, **{"ratings.dat": "x", "movies.dat.gz": "x"})
    assert raw.find_raw(tmp_path, ("ratings.dat", "movies.dat")) == tmp_path / place
    assert raw.find_raw(tmp_path, ("ratings.dat", "users.dat")) is None


@pytest.mark.parametrize(
    ("files", "interactions", "items"),
    [
        (
            {"amazon_books.csv": INTERACTIONS, "amazon_books.csv.1": ITEMS},
            "amazon_books.csv",
            "amazon_books.csv.1",
        ),
        (
            {"amazon_books.csv": ITEMS, "amazon_books.csv.1": INTERACTIONS},
            "amazon_books.csv.1",
            "amazon_books.csv",
        ),
        (
            {"dataset/amazon_books.csv": INTERACTIONS, "information/amazon_books.csv": ITEMS},
            "dataset/amazon_books.csv",
            "information/amazon_books.csv",
        ),
        (
            {"amazon_books_interactions.csv": INTERACTIONS, "item_information.csv": ITEMS},
            "amazon_books_interactions.csv",
            "item_information.csv",
        ),
        ({"ratings_Books.csv": RATINGS, "meta_Books.json": "x"}, "ratings_Books.csv", "meta_Books.json"),
        (
            {"ratings_Books.csv": RATINGS, "meta_Books.json.gz": "x"},
            "ratings_Books.csv",
            "meta_Books.json.gz",
        ),
    ],
)
def test_books_by_what_lies_there(tmp_path, files, interactions, items):
    put(tmp_path, **files)
    source = "raw" if "ratings_Books.csv" in files else "bytedance"
    for kind, name in (("interactions", interactions), ("items", items)):
        for asked in ("auto", source):
            assert books.find(tmp_path, kind, asked) == books.Found(source, tmp_path / name)
        other = "bytedance" if source == "raw" else "raw"
        assert books.find(tmp_path, kind, other) is None
        with pytest.raises(DataError, match="it holds"):
            books.need_file(tmp_path, kind, other, download=False, overwrite=False)


def test_both_books(tmp_path, capsys):
    put(tmp_path, **{"ratings_Books.csv": RATINGS, "amazon_books.csv": INTERACTIONS})
    found = books.need_file(tmp_path, "interactions", "auto", download=False, overwrite=False)
    assert found.source == "bytedance" and "--data_source raw" in capsys.readouterr().out
    assert books.interactions(found).rows() == [("u", "a", 1)]
    assert books.find(tmp_path, "interactions", "raw").path.name == "ratings_Books.csv"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="--data_dir"):
        books.find(tmp_path / "nowhere", "items", "auto")


def test_books_are_downloaded_once(tmp_path, monkeypatch):
    calls = []

    def fetched(name, folder):
        calls.append((name, folder))
        put(folder, **{"dataset/amazon_books.csv": INTERACTIONS, "information/amazon_books.csv": ITEMS})

    monkeypatch.setattr(raw, "fetch_source", fetched)
    for _ in range(2):
        books.need_file(tmp_path, "interactions", "auto", download=True, overwrite=False)
    assert calls == [("bytedance-books", tmp_path)]
    (tmp_path / "dataset/amazon_books.csv").write_text("damaged")
    books.need_file(tmp_path, "items", "bytedance", download=True, overwrite=True)
    assert (tmp_path / "dataset/amazon_books.csv").read_text() == INTERACTIONS and len(calls) == 2
