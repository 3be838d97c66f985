"""What a report shows, as plain data; `report/collect.py` reads it from a run folder.

Every part may be empty: the page leaves out what a run does not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Series:
    """One learning curve over epochs."""

    name: str
    epochs: list[float]
    values: list[float]
    best_epoch: float | None = None  # marked on the curve


@dataclass(frozen=True)
class ModelResult:
    """Metrics of one model on one split."""

    name: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95%
    is_run: bool = False  # the run itself, not a baseline


@dataclass(frozen=True)
class Slice:
    """One group of users within a breakdown, such as histories of 20 to 49 events."""

    label: str
    users: int
    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Breakdown:
    """A metric over groups of users."""

    title: str
    metric: str
    slices: list[Slice]


@dataclass(frozen=True)
class ShownItem:
    """An item by its title, or by its identifier where it has none."""

    title: str
    score: float | None = None
    is_target: bool = False  # the held-out item


@dataclass(frozen=True)
class ExampleUser:
    """Somebody's last items, oldest first, and what was recommended, best first."""

    name: str
    history: list[ShownItem]
    recommended: list[ShownItem]
    target: ShownItem | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything on the page."""

    title: str
    subtitle: str = ""
    split: str = "test"
    highlights: list[tuple[str, str, str]] = field(default_factory=list)  # name, value, remark
    curves: list[Series] = field(default_factory=list)
    results: list[ModelResult] = field(default_factory=list)
    result_line: str = ""
    verdict: str = ""  # where a baseline does better
    breakdowns: list[Breakdown] = field(default_factory=list)
    users: list[ExampleUser] = field(default_factory=list)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)  # section -> name -> value
    command: str = ""
