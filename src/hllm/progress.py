"""Progress of a long loop: a bar on a terminal, a plain line now and then elsewhere.

for batch in track(batches, "embedding", unit="items", total=1682, size=len):
    ...

embedding: 640/1,682 items (38%), 45.2 items/s, 23 s left
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Protocol, TypeVar

from hllm.ranks import speaks

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

T = TypeVar("T")
PLAIN_INTERVAL = 5.0  # seconds between two plain lines


class Bar(Protocol):
    """What a loop reports to."""

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done."""

    def inside(self, done: int, total: int, unit: str = "steps") -> None:
        """Say how far the unit at hand is, where units are long; its first call shows a line at once."""

    def note(self, text: str) -> None:
        """Show a short `text` beside the counts (the loss, the current file); replaces the last one."""


@contextmanager
def progress(
    description: str,
    total: int | None = None,
    unit: str = "items",
    show: bool = True,
    stream: IO[str] | None = None,
    done: int = 0,
) -> Iterator[Bar]:
    """Yield a `Bar` for a loop of `total` units (None: unknown), `done` of which an earlier one did.

    `stream` is standard error by default. On a terminal the bar redraws in place; anywhere
    else (a log file, a notebook, CI) a line is written every few seconds and one at the end.
    `show=False` is silent, and so is every process but the first of several.
    """
    if not show or not speaks():
        yield _Silent()
        return
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        with _rich_progress(stream, unit) as display:
            yield _Rich(display, description, total, done)
        return
    bar = _Plain(stream, description, total, unit, done)
    yield bar
    bar.finish()  # not after an exception: a loop that broke off is not done


def track(
    iterable: Iterable[T],
    description: str,
    total: int | None = None,
    unit: str = "items",
    show: bool = True,
    size: Callable[[T], int] | None = None,
) -> Iterator[T]:
    """Yield from `iterable`, reporting one unit an element, or `size(element)` units."""
    if total is None and size is None and isinstance(iterable, Sized):
        total = len(iterable)
    with progress(description, total, unit, show) as bar:
        for element in iterable:
            yield element
            bar.advance(1 if size is None else size(element))


def duration(seconds: float) -> str:
    """Seconds as people write them: `0.4 s`, `23 s`, `2 min 05 s`, `3 h 20 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Silent:
    def advance(self, n: int = 1) -> None:
        pass

    def inside(self, done: int, total: int, unit: str = "steps") -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _Plain:
    def __init__(
        self, stream: IO[str], description: str, total: int | None, unit: str, before: int = 0
    ) -> None:
        self.stream, self.description, self.total, self.unit = stream, description, total, unit
        self.done, self.before, self.text = before, before, ""
        self.start = self.printed = time.monotonic()
        self.entered: float | None = None  # how far the first unit was when `inside` was first told

    def advance(self, n: int = 1) -> None:
        self.done += n
        if self._is_due():
            self._print(self._line())

    def inside(self, done: int, total: int, unit: str = "steps") -> None:
        first, share = self.entered is None, done / max(total, 1)
        if first:
            self.entered = share
        if self._is_due(first):
            of = f"/{self.total:,}" if self.total else ""
            at = f"{self.unit.removesuffix('s')} {self.done + 1:,}{of}, {done:,}/{total:,} {unit}"
            self._print(at if first else f"{at}, {self._pace(share)}")

    def note(self, text: str) -> None:
        self.text = text

    def finish(self) -> None:
        elapsed, done = time.monotonic() - self.start, self.done - self.before
        rate = f" ({rate_text(done, elapsed, self.unit)})" if elapsed > 0.05 and done else ""
        self._print(f"{done:,} {self.unit} in {duration(elapsed)}{rate}")

    def _is_due(self, always: bool = False) -> bool:
        now = time.monotonic()
        if not always and now - self.printed < PLAIN_INTERVAL:
            return False
        self.printed = now
        return True

    def _line(self) -> str:
        if not self.total:
            return f"{self.done:,} {self.unit}, {self._pace()}"
        return f"{self.done:,}/{self.total:,} {self.unit} ({self.done / self.total:.0%}), {self._pace()}"

    def _pace(self, share: float = 0.0) -> str:
        """Speed and time left, `share` of the unit at hand counted."""
        elapsed, done = time.monotonic() - self.start, self.done - self.before + share - (self.entered or 0.0)
        rate = rate_text(done, elapsed, self.unit)
        if not self.total:
            return rate
        left = (self.total - self.done - share) * elapsed / done if done > 0 else 0.0
        return f"{rate}, {duration(left)} left"

    def _print(self, line: str) -> None:
        text = f", {self.text}" if self.text else ""
        print(f"{self.description}: {line}{text}", file=self.stream, flush=True)


class _Rich:
    def __init__(self, display: Progress, description: str, total: int | None, done: int = 0) -> None:
        self.display, self.done, self.text, self.shown = display, done, "", 0.0
        self.task = display.add_task(description, total=total, completed=done, text="")

    def advance(self, n: int = 1) -> None:
        self.done += n
        self.display.update(self.task, completed=self.done, text=self.text)

    def inside(self, done: int, total: int, unit: str = "steps") -> None:
        now = time.monotonic()
        if now - self.shown < 0.1:  # as often as the bar is drawn
            return
        self.shown = now
        text = ", ".join(filter(None, (f"{done:,}/{total:,} {unit}", self.text)))
        self.display.update(self.task, completed=self.done + done / max(total, 1), text=text)

    def note(self, text: str) -> None:
        self.text = text
        self.display.update(self.task, text=text)


def rate_text(done: float, seconds: float, unit: str) -> str:
    """Speed with three figures: `1,210 items/s`, `45.2 items/s`, `19.8 s/epoch`."""
    rate = done / seconds if seconds > 0 else 0.0
    if 0 < rate < 1:
        return f"{1 / rate:.3g} s/{unit.removesuffix('s')}"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s"


def _rich_progress(stream: IO[str], unit: str) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: object) -> Text:
            speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
            return Text(rate_text(round(speed * 1000), 1000, unit) if speed else "")

    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[text]}", markup=False),
    ]
    return Progress(*columns, console=Console(file=stream))
