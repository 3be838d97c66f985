"""Raw files, found wherever the document puts them; Books' told apart by what they hold."""

from __future__ import annotations

import pytest

from hllm.compat.scripts import books, raw
from hllm.compat.scripts.memory import fits, is_out_of_memory, with_fitting_batch
from hllm.errors import DataError, DeviceError

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


# ------------------------------------------------------------------------ memory


def test_the_largest_batch_that_fits_is_taken():
    def work(size):
        if size > 100:
            raise MemoryError
        return size

    assert with_fitting_batch(work, work, 64, auto=False) == 64
    assert with_fitting_batch(work, work, 1000, auto=True) == 62
    with pytest.raises(DeviceError, match="62 fits"):
        with_fitting_batch(work, work, 1000, auto=False)


def test_where_the_whole_needs_more_than_its_first_steps_the_next_size_has_its_turn():
    tried = []

    def work(size):
        tried.append(size)
        if size > 20:
            raise MemoryError
        return size

    def probe(size):
        if size > 100:
            raise MemoryError

    assert with_fitting_batch(work, probe, 400, auto=True) == 12
    assert tried == [400, 100, 50, 25, 12]
    with pytest.raises(DeviceError, match="100 fits"):
        with_fitting_batch(work, probe, 400, auto=False)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def test_fits_hides_no_other_fault():
    def broken():
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        fits(broken)
