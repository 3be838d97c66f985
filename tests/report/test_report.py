"""The page as a reader gets it: complete, self-contained, and safe against what titles contain."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hllm.artifacts import read_json, write_json, write_jsonl
from hllm.errors import ArtifactError
from hllm.evaluate.metrics import EvalProtocol, Metrics, as_document, metric_names, summarise
from hllm.evaluate.slices import slice_rows
from hllm.report.collect import collect
from hllm.report.data import ReportData
from hllm.report.page import render_report
from hllm.report.write import write_report

EVIL = '<script>alert(1)</script> & "Friends" (1996)'


class Reader(html.parser.HTMLParser):
    """Collects tags, their attributes and the text; checks that tags nest."""

    VOID = frozenset({"meta"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f" {data}"


def split_metrics(ndcg: float, hr: float) -> dict[str, Any]:
    return {
        "ndcg@10": ndcg,
        "hr@10": hr,
        "recall@10": hr,
        "intervals": {"ndcg@10": [ndcg * 0.9, ndcg * 1.1]},
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    record = {
        "format": "hllm-run",
        "version": 1,
        "config": {"preset": "demo", "valid_metric": "ndcg@10", "learning_rate": 1e-3, "prompt": None},
        "dataset": {
            "name": "ml-100k",
            "fingerprint": "f00d",
            "n_users": 943,
            "split": {"name": "leave-one-out"},
        },
        "embeddings": {"model": "smollm2-135m", "pooling": "mean"},
        "hardware": {"cpu": "A processor", "gpus": [{"name": "A card"}]},
        "versions": {"torch": "2.13.0"},
        "command": "hllm train data --out 'a b'",
        "created": "2026-01-02 03:04 UTC",
        "best": {"epoch": 2, "ndcg@10": 0.09},
    }
    write_json(folder / "config.json", record)
    write_jsonl(
        folder / "history.jsonl",
        [
            {"epoch": 1, "loss": 7.0},
            {"epoch": 2, "loss": 6.0, "ndcg@10": 0.09},
            {"epoch": 3, "loss": 5.5, "ndcg@10": 0.08},
        ],
    )
    test = split_metrics(0.0943, 0.18) | {"result_line": "demo, f00d, seen filtered", "n_users": 940}
    test["slices"] = {
        "history_length": [
            {"label": "1–9 events", "users": 30, "ndcg@10": 0.07},
            {"label": "none", "users": 0},
        ],
        "item_popularity": [{"label": "rarest 20%", "users": 50, "ndcg@10": 0.02}],
    }
    baselines = {"popularity": split_metrics(0.0432, 0.0838), "markov": split_metrics(0.0471, 0.09)}
    write_json(folder / "metrics.json", {"test": test, "baselines": {"test": baselines}})
    return folder


EXAMPLES = [
    {
        "user_id": "u<1>",
        "history": [{"item_id": 1, "title": "Heat (1995)"}, {"item_id": 2, "title": EVIL}],
        "recommended": [
            {"item_id": 3, "title": "Misérables, Les (1995)", "score": 0.9},
            {"item_id": "007", "title": None, "score": 0.5},
        ],
        "target": {"item_id": 3, "title": "Misérables, Les (1995)"},
    }
]


def test_everything_is_on_the_page(run: Path) -> None:
    path = write_report(run, EXAMPLES)
    assert path == run / "report.html"
    text = Reader(path.read_text(encoding="utf-8")).text
    for expected in [
        "demo on ml-100k", "2026-01-02 03:04 UTC",
        "0.0943", "0.0849–0.1037", "2.00×", "of markov's NDCG@10", "0.0838", "demo, f00d, seen filtered",
        "Training loss", "best: 0.0900 at epoch 2",
        "history length (events)", "1–9 events", "30 users", "rarest 20%",
        "User u<1>", EVIL, "Heat (1995)", "007", "✓ held out",
        "A processor", "gpus.0.name", "A card", "2.13.0", "smollm2-135m", "leave-one-out",
        "hllm train data --out 'a b'",
    ]:  # fmt: skip
        assert expected in text, expected
    assert "recall@10" not in text.lower()  # the same number as hr@10
    assert "none" not in text  # a group without users


def test_the_page_needs_nothing_else(run: Path) -> None:
    page = write_report(run, EXAMPLES).read_text(encoding="utf-8")
    tags = Reader(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe"}
    assert not [a for _, a in tags if {"src", "href", "onload", "onclick"} & set(a)]
    assert not re.search(r"https?://|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_the_report_can_be_made_again_from_the_folder(run: Path) -> None:
    first = write_report(run, EXAMPLES).read_bytes()
    (run / "report.html").unlink()
    assert write_report(run).read_bytes() == first
    assert read_json(run / "examples.json") == EXAMPLES


@pytest.mark.parametrize("missing", ["history.jsonl", "metrics.json"])
def test_missing_parts_are_left_out(run: Path, missing: str) -> None:
    (run / missing).unlink()
    text = Reader(render_report(collect(run))).text
    assert ("Learning curves" in text) == (missing != "history.jsonl")
    assert ("Metrics on the test split" in text) == (missing != "metrics.json")
    assert "Recommendations" not in text


def test_an_empty_report_is_a_page() -> None:
    assert Reader(render_report(ReportData(title=EVIL))).text.count(EVIL) == 2  # window title and heading


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is not a run folder"), ({"format": "hllm-dataset"}, "not a run's"), ([], "not a run's")],
)
def test_foreign_folders_are_refused_and_left_alone(tmp_path: Path, content: Any, message: str) -> None:
    if content is not None:
        write_json(tmp_path / "config.json", content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match=message):
        write_report(tmp_path, EXAMPLES)
    assert sorted(tmp_path.iterdir()) == before


def evaluated(name: str, ranks: np.ndarray, lengths: np.ndarray) -> Metrics:
    users = np.arange(len(ranks))
    values, intervals = summarise(ranks, users, metric_names((10, 50)), 50)
    protocol = EvalProtocol(
        "ml", "f00d", "test", "interacted", 100, "filtered", len(ranks), len(ranks), 0.0, 0.0
    )
    slices = {"history_length": slice_rows(lengths, ranks, users, 50)}
    return Metrics(name, values, intervals, users, users + 1, ranks, protocol, (10, 50), slices)


def test_what_evaluate_writes_is_understood(run: Path) -> None:
    """The two modules agree on the layout of metrics.json."""
    random = np.random.default_rng(0)
    lengths = np.repeat([5, 20, 60], 40)
    ours = evaluated("demo", random.integers(1, 60, 120), lengths)
    popularity = evaluated("popularity", random.integers(1, 90, 120), lengths)
    write_json(run / "metrics.json", as_document({"test": ours}, {"test": {"popularity": popularity}}))
    data = collect(run)
    assert [(r.name, r.is_run) for r in data.results] == [("demo", True), ("popularity", False)]
    assert data.results[0].metrics == {k: v for k, v in ours.values.items() if not k.startswith("recall")}
    assert data.results[1].intervals["ndcg@10"] == popularity.intervals["ndcg@10"]
    assert data.result_line == ours.result_line()
    (breakdown,) = data.breakdowns
    assert [(s.label, s.users) for s in breakdown.slices] == [("5", 40), ("20", 40), ("60", 40)]
    assert all(s.interval and s.interval[0] <= s.value <= s.interval[1] for s in breakdown.slices)
    text = Reader(render_report(data)).text
    assert f"{ours['ndcg@10']:.4f}" in text
    assert ours.result_line() in text
