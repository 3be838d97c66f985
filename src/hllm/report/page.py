"""`render_report`: plain data in, one self-contained HTML page out."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from hllm.report.charts import breakdown_chart, interval_chart, line_chart
from hllm.report.data import ExampleUser, ModelResult, ReportData, ShownItem
from hllm.report.html import Html, element

CHARTED_METRIC = "ndcg@10"


def render_report(data: ReportData) -> str:
    """Return the page. It refers to nothing outside itself; parts without data are left out."""
    body = element(
        "main",
        element("h1", data.title),
        element("p", data.subtitle, class_="soft") if data.subtitle else None,
        element("p", data.verdict, class_="verdict") if data.verdict else None,
        _highlights(data),
        _results(data),
        _curves(data),
        _breakdowns(data),
        _users(data.users),
        _facts(data),
    )
    style = Html((files("hllm.report") / "style.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", data.title),
        element("style", style),
    )
    return f'<!doctype html>\n<html lang="en">\n{head}\n{element("body", body)}\n</html>\n'


def _section(heading: str, *content: object) -> Html:
    return element("section", element("h2", heading), *content)


def _highlights(data: ReportData) -> Html | None:
    if not data.highlights:
        return None
    tiles = [
        element(
            "div",
            element("span", name),
            element("b", value),
            element("span", remark or "\u00a0"),
            class_="tile",
        )
        for name, value, remark in data.highlights
    ]
    return element("div", *tiles, class_="tiles")


def _results(data: ReportData) -> Html | None:
    if not data.results:
        return None
    charted = (
        CHARTED_METRIC if CHARTED_METRIC in data.results[0].metrics else next(iter(data.results[0].metrics))
    )
    line = element("p", data.result_line, class_="result-line") if data.result_line else None
    return _section(
        f"Metrics on the {data.split} split",
        element(
            "figure",
            element("h3", f"{_metric(charted)} with 95% intervals"),
            interval_chart(data.results, charted),
            class_="card",
        ),
        element(
            "div", element("div", _metric_table(data.results), class_="scroll"), line, class_="card spaced"
        ),
    )


def _metric_table(results: Sequence[ModelResult]) -> Html:
    """One row a metric, one column a model: stays narrow enough for a phone."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    head = element(
        "tr", element("th", "metric"), *(element("th", r.name, class_=_emphasis(r)) for r in results)
    )
    rows = [
        element("tr", element("th", _metric(name)), *(_metric_cell(result, name) for result in results))
        for name in names
    ]
    return element("table", element("thead", head), element("tbody", *rows), class_="numbers")


def _emphasis(result: ModelResult) -> str | None:
    return "run" if result.is_run else None


def _metric_cell(result: ModelResult, name: str) -> Html:
    if name not in result.metrics:
        return element("td", "–")
    interval = result.intervals.get(name)
    small = element("small", f"{interval[0]:.4f}–{interval[1]:.4f}") if interval else None
    return element("td", f"{result.metrics[name]:.4f}", small, class_=_emphasis(result))


def _curves(data: ReportData) -> Html | None:
    curves = [c for c in data.curves if len(c.epochs) > 1]
    if not curves:
        return None
    cards = [element("figure", element("h3", c.name), line_chart(c), class_="card") for c in curves]
    return _section("Learning curves", element("div", *cards, class_="grid2"))


def _breakdowns(data: ReportData) -> Html | None:
    shown = [b for b in data.breakdowns if b.slices]
    if not shown:
        return None
    cards = [
        element(
            "figure", element("h3", f"{_metric(b.metric)} by {b.title}"), breakdown_chart(b), class_="card"
        )
        for b in shown
    ]
    return _section("Who is served well", element("div", *cards, class_="grid2"))


def _users(users: Sequence[ExampleUser]) -> Html | None:
    if not users:
        return None
    return _section(
        "Recommendations for five users" if len(users) == 5 else "Recommendations", *map(_user, users)
    )


def _user(user: ExampleUser) -> Html:
    history = element("div", element("h4", "Last items, newest first"), _items(user.history[::-1]))
    recommended = element("div", element("h4", "Recommended"), _items(user.recommended, ranked=True))
    target = None
    if user.target is not None:
        hit = any(item.is_target for item in user.recommended)
        remark = "recommended" if hit else "not among those shown"
        target = element(
            "p", "Held-out item: ", element("b", user.target.title), f", {remark}", class_="target soft"
        )
    return element(
        "div",
        element("h3", user.name),
        element("div", history, recommended, class_="lists"),
        target,
        class_="card user",
    )


def _items(items: Sequence[ShownItem], ranked: bool = False) -> Html:
    rows = []
    for item in items:
        score = element("em", f"{item.score:.3f}") if item.score is not None else None
        mark = element("em", "✓ held out") if item.is_target else None
        rows.append(
            element("li", element("span", item.title), mark, score, class_="hit" if item.is_target else None)
        )
    return element("ol", *rows, class_="ranked" if ranked else None)


def _facts(data: ReportData) -> Html | None:
    cards = []
    for heading, facts in data.facts.items():
        if not facts:
            continue
        rows = [element("tr", element("th", name), element("td", value)) for name, value in facts.items()]
        table = element("table", element("tbody", *rows), class_="facts")
        cards.append(element("div", element("h3", heading), table, class_="card"))
    command = None
    if data.command:
        command = element("div", element("h3", "Command"), element("pre", data.command), class_="card below")
    if not cards and command is None:
        return None
    return _section("How it was made", command, element("div", *cards, class_="columns"))


def _metric(name: str) -> str:
    """`ndcg@10` as tables print it."""
    base, _, k = name.partition("@")
    return f"{base.upper() if base in ('ndcg', 'hr', 'mrr') else base.capitalize()}{'@' + k if k else ''}"
