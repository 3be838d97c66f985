from __future__ import annotations

import io

import pytest

from hllm import progress as module
from hllm.progress import duration, progress, rate_text, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_plain_lines_tell_rate_and_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    with progress("embed", total=100, unit="items", stream=stream) as bar:
        for seconds, n in [(2.0, 5), (4.0, 35), (0.5, 5), (5.0, 15), (8.5, 40)]:
            clock.now += seconds
            bar.note(f"shard {n}")
            bar.advance(n)
    assert stream.getvalue().splitlines() == [
        "embed: 40/100 items (40%), 6.67 items/s, 9.0 s left, shard 35",
        "embed: 60/100 items (60%), 5.22 items/s, 7.7 s left, shard 15",
        "embed: 100/100 items (100%), 5 items/s, 0.0 s left, shard 40",
        "embed: 100 items in 20 s (5 items/s), shard 40",
    ]


def test_an_unknown_total(clock: Clock) -> None:
    stream = io.StringIO()
    with progress("read", unit="rows", stream=stream) as bar:
        clock.now += 6
        bar.advance(1200)
    assert stream.getvalue().splitlines()[0] == "read: 1,200 rows, 200 rows/s"


def test_a_broken_loop_is_not_reported_as_done() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), progress("embed", stream=stream) as bar:
        bar.advance()
        raise RuntimeError
    assert stream.getvalue() == ""


def test_inside_a_long_unit_there_is_a_line_at_once_and_then_every_few_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    with progress("train", total=10, unit="epochs", stream=stream, done=2) as bar:
        bar.inside(50, 200)  # resumed a quarter into the third
        for step in range(51, 201):
            clock.now += 0.1
            bar.inside(step, 200)
        bar.note("loss 4.2")
        bar.advance()
        clock.now += 5
        bar.inside(0, 200)
    assert stream.getvalue().splitlines() == [
        "train: epoch 3/10, 50/200 steps",
        "train: epoch 3/10, 101/200 steps, 20 s/epoch, 2 min 30 s left",
        "train: epoch 3/10, 152/200 steps, 20 s/epoch, 2 min 25 s left",
        "train: epoch 4/10, 0/200 steps, 26.7 s/epoch, 3 min 07 s left, loss 4.2",
        "train: 1 epochs in 20 s (20 s/epoch), loss 4.2",
    ]


def test_a_bar_moves_inside_a_unit(clock: Clock) -> None:
    stream = Terminal()
    with progress("train", total=4, unit="epochs", stream=stream, done=1) as bar:
        bar.note("loss 4.2")
        clock.now += 1
        bar.inside(30, 100)
        assert bar.display.tasks[0].completed == 1.3  # type: ignore[attr-defined]
        assert bar.display.tasks[0].fields["text"] == "30/100 steps, loss 4.2"  # type: ignore[attr-defined]
        bar.advance()
        assert bar.display.tasks[0].completed == 2  # type: ignore[attr-defined]


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), "embed", show=False)) == [0, 1, 2]
    with progress("embed", show=False) as bar:
        bar.note("x")
    assert capsys.readouterr() == ("", "")


def test_track_counts_elements_by_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(["ab", "cde"], "embed", total=5, size=len)) == ["ab", "cde"]
    assert list(track(iter("xyz"), "read", unit="files")) == ["x", "y", "z"]
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" in ")[0] for line in err.splitlines()] == ["embed: 5 items", "read: 3 files"]


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with progress("embed [1/2]", total=4, unit="items", stream=stream) as bar:
        bar.note("loss [x] 4.2")
        bar.advance(4)
    shown = stream.getvalue()
    assert "embed [1/2]" in shown
    assert "4/4" in shown
    assert "loss [x] 4.2" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (12_000, "3 h 20 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("done", "seconds", "text"),
    [
        (12_100, 10, "1,210 items/s"),
        (452, 10, "45.2 items/s"),
        (2, 40, "20 s/item"),
        (0, 3, "0 items/s"),
        (1, 0, "0 items/s"),
    ],
)
def test_rate(done: int, seconds: float, text: str) -> None:
    assert rate_text(done, seconds, "items") == text
