from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hllm.report.charts import breakdown_chart, interval_chart, line_chart, ticks
from hllm.report.data import Breakdown, ModelResult, Series, Slice


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 0.1, [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (5.2, 7.1, [5.5, 6.0, 6.5, 7.0]),
        (1, 30, [10, 20, 30]),
        (3.0, 3.0, [3.0]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_inside_and_are_few(low: float, span: float) -> None:
    made = ticks(low, low + span)
    slack = 1e-6 * max(span, abs(low))
    assert all(low - slack <= t <= low + span + slack for t in made)
    assert 1 <= len(made) <= 7


def points(svg: str) -> list[tuple[float, float]]:
    pairs = ET.fromstring(svg).find("polyline").get("points").split()
    return [tuple(map(float, p.split(","))) for p in pairs]


def test_a_curve_is_drawn_to_scale() -> None:
    drawn = points(line_chart(Series("Training loss", [1, 2, 3], [6.0, 5.0, 5.5])))
    (x1, y1), (x2, y2), (x3, y3) = drawn
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.11)
    assert (y2 - y1) == pytest.approx(2 * (y2 - y3), abs=0.3)  # a unit down is twice half a unit up
    assert y1 < y3 < y2  # larger values stand higher


def test_the_best_epoch_is_marked() -> None:
    svg = line_chart(Series("Validation", [1, 2, 3], [0.1, 0.3, 0.2], best_epoch=2))
    assert "best: 0.3000 at epoch 2" in svg
    x, y = points(svg)[1]
    dot = next(c for c in ET.fromstring(svg).iter("circle") if c.get("class") == "dot accent")
    assert (float(dot.get("cx")), float(dot.get("cy"))) == pytest.approx((x, y), abs=0.1)


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0], [-1.0, -2.0], [1e-9, 2e-9]])
def test_odd_curves_draw(values: list[float]) -> None:
    svg = line_chart(Series("x", [1, 2], values))
    height = float(ET.fromstring(svg).get("viewBox").split()[3])
    assert all(0 <= y <= height for _, y in points(svg))


def test_intervals_and_dots_share_a_scale() -> None:
    results = [
        ModelResult("ours", {"ndcg@10": 0.1}, {"ndcg@10": (0.05, 0.2)}, is_run=True),
        ModelResult("pop", {"ndcg@10": 0.05}),
        ModelResult("other", {"hr@10": 0.5}),
    ]
    svg = ET.fromstring(interval_chart(results, "ndcg@10"))
    assert [t.text for t in svg.iter("text") if t.get("class") == "name"] == [
        "ours",
        "0.1000",
        "pop",
        "0.0500",
    ]
    first, second = [float(c.get("cx")) for c in svg.iter("circle")]
    (bar,) = [line for line in svg.iter("line") if line.get("class").startswith("range")]
    assert float(bar.get("x1")) == pytest.approx(second, abs=0.01)
    assert float(bar.get("x2")) - first == pytest.approx(2 * (first - second), abs=0.05)


def test_groups_without_hits_draw_and_names_are_escaped() -> None:
    groups = [Slice("<5 events", 12, 0.0), Slice("a very long label for a group", 1200, 0.0)]
    svg = breakdown_chart(Breakdown("History length", "ndcg@10", groups))
    texts = [t.text for t in ET.fromstring(svg).iter("text")]
    assert "<5 events" in texts
    assert "1,200 users" in texts
    assert not re.search("nan|inf", svg.replace("info", ""))
