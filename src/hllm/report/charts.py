"""The report's charts, drawn as inline SVG. Colours are CSS variables of style.css."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hllm.report.data import Breakdown, ModelResult, Series
from hllm.report.html import Html, element

WIDTH = 440  # of the drawing; the page scales it to the column
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 34


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) from `low` to `high` inclusive."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(series: Series) -> Html:
    """A learning curve; the best epoch, where there is one, carries a dot and its value."""
    height = 220
    low, high = _padded(series.values)
    first, last = min(series.epochs), max(series.epochs)
    span = (last - first) or 1.0

    def x(epoch: float) -> float:
        return LEFT + (epoch - first) / span * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return height - BOTTOM - (value - low) / (high - low) * (height - TOP - BOTTOM)

    parts = [_horizontal_line(y(t), text) for t, text in _labelled(ticks(low, high, 4))]
    whole = [t for t in ticks(first, last, 6) if t == int(t)] or [first]
    parts += [_label(x(t), height - BOTTOM + 18, f"{t:g}", "middle") for t in whole]
    parts.append(_label(WIDTH - RIGHT, height - 2, "epoch", "end"))
    points = " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in zip(series.epochs, series.values, strict=True))
    parts.append(element("polyline", points=points, class_="curve"))
    for epoch, value in zip(series.epochs, series.values, strict=True):
        hint = element("title", f"epoch {epoch:g}: {value:.4f}")
        parts.append(element("circle", hint, cx=x(epoch), cy=y(value), r=7, class_="hover"))
    parts += _best_mark(series, x, y)
    return _svg(height, f"{series.name} by epoch", parts)


def interval_chart(results: Sequence[ModelResult], metric: str) -> Html:
    """One row a model: a dot at its value, a bar over its 95% interval."""
    rows = [
        (r.name, r.metrics[metric], r.intervals.get(metric), r.is_run, "")
        for r in results
        if metric in r.metrics
    ]
    return _rows_chart(f"{metric} by model", rows)


def breakdown_chart(breakdown: Breakdown) -> Html:
    """One row a group of users, with the group's size under its name."""
    rows = [(s.label, s.value, s.interval, True, f"{s.users:,} users") for s in breakdown.slices]
    return _rows_chart(f"{breakdown.metric} by {breakdown.title.lower()}", rows)


Scale = Callable[[float], float]  # from a value to a coordinate
Row = tuple[str, float, tuple[float, float] | None, bool, str]  # name, value, interval, accent, remark


def _rows_chart(name: str, rows: Sequence[Row]) -> Html:
    left, right, row_height = 132, 58, 40
    height = TOP + row_height * len(rows) + BOTTOM
    highest = max(max(value, interval[1] if interval else 0.0) for _, value, interval, _, _ in rows)
    axis = ticks(0.0, highest or 1.0, 4)
    high = max(highest, axis[-1]) or 1.0
    base = height - BOTTOM

    def x(value: float) -> float:
        return left + value / high * (WIDTH - left - right)

    parts = []
    for t, text in _labelled(axis):
        parts.append(element("line", x1=x(t), x2=x(t), y1=TOP, y2=base, class_="grid"))
        parts.append(_label(x(t), base + 18, text, "middle"))
    for i, (row_name, value, interval, accent, remark) in enumerate(rows):
        y = TOP + row_height * (i + 0.5)
        kind = "accent" if accent else "plain"
        parts.append(_label(left - 12, y - (3 if remark else -4), _shortened(row_name), "end", "name"))
        if remark:
            parts.append(_label(left - 12, y + 13, remark, "end"))
        hint = f"{row_name}: {value:.4f}"
        end = value
        if interval:
            hint += f", 95% interval {interval[0]:.4f} to {interval[1]:.4f}"
            end = max(end, interval[1])
            parts.append(
                element("line", x1=x(interval[0]), x2=x(interval[1]), y1=y, y2=y, class_=f"range {kind}")
            )
        parts.append(
            element("circle", element("title", hint), cx=x(value), cy=y, r=5.5, class_=f"dot {kind}")
        )
        parts.append(_label(x(end) + 10, y + 4, f"{value:.4f}", "start", "name"))
    return _svg(height, name, parts)


def _best_mark(series: Series, x: Scale, y: Scale) -> list[Html]:
    if series.best_epoch is None or series.best_epoch not in series.epochs:
        return []
    value = series.values[series.epochs.index(series.best_epoch)]
    text = f"best: {value:.4f} at epoch {series.best_epoch:g}"
    return [
        element("circle", cx=x(series.best_epoch), cy=y(value), r=5.5, class_="dot accent"),
        _label(
            WIDTH - RIGHT, y(min(series.values)) - 6, text, "end", "name"
        ),  # the free corner of a rising curve
    ]


def _svg(height: float, name: str, parts: Sequence[Html]) -> Html:
    return element(
        "svg", element("title", name), *parts, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=name
    )


def _horizontal_line(y: float, text: str) -> Html:
    line = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
    return Html(line + _label(LEFT - 8, y + 4, text, "end"))


def _label(x: float, y: float, text: str, anchor: str, class_: str | None = None) -> Html:
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=class_)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of `values` with room above and below; a flat curve lies in the middle."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return (max(low - room, 0.0) if low >= 0 else low - room), high + room


def _labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Each tick with its text, all with the decimals that tell them apart."""
    step = values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(value, f"{value:.{decimals}f}" if value else "0") for value in values]


def _shortened(text: str, length: int = 18) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
