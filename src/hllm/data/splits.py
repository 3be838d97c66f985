"""Which events are trained on, and which are predicted: the splits of protocol.md.

A split works on packed histories (users in order, events in history order) and gives

    train_mask   bool (N,)    events that may be inputs, targets or counts in training
    queries      {"validation": int64 (Q,), "test": int64 (Q,)}   positions of the held-out events

The query of position p is asked for the user who owns p, given all of that user's events
before p. `counts` says who could not be asked, and why.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hllm.data.tables.events import owners
from hllm.errors import ConfigError, DataError, unknown

TIES = ("file", "shuffle")
MIN_EVENTS = 3  # leave-one-out: one event to learn from, one to validate, one to test


@dataclass(frozen=True)
class SplitOptions:
    """A split by name, with the options that belong to it.

    seed         user-ratio, cold-items (and ties="shuffle")
    ratio        user-ratio: shares of training, validation and test users, default 0.8, 0.1, 0.1
    targets      user-ratio: "last", or "all" events of a held-out user
    cutoffs      temporal: validation and test cut-off, each a time in the data's unit (int), an ISO
                 date (str) or the share of events up to it (float below 1); default 0.8, 0.9
    cold_share   cold-items: share of candidates that training never sees, default 0.1

    Raises ConfigError for an unknown name, a value out of range, or an option of another split.
    """

    name: str = "leave-one-out"
    seed: int = 0
    ratio: tuple[float, float, float] | None = None
    targets: str | None = None
    cutoffs: tuple[int | float | str, int | float | str] | None = None
    cold_share: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in SPLITS:
            raise ConfigError(unknown("split", self.name, SPLITS))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed!r}: must be a whole number from 0 to {2**32 - 1}")
        for option, owner in OWNERS.items():
            if getattr(self, option) is not None and self.name != owner:
                raise ConfigError(f"{option} belongs to split={owner}, not to split={self.name}")
        for option in ("ratio", "cutoffs"):  # lists come from YAML and the command line
            if isinstance(getattr(self, option), list):
                object.__setattr__(self, option, tuple(getattr(self, option)))
        _check_ratio(self.ratio)
        if self.targets not in (None, "last", "all"):
            raise ConfigError(unknown("targets", self.targets, ("last", "all")))
        _check_cutoffs(self.cutoffs)
        if self.cold_share is not None and not (_is_number(self.cold_share) and 0 < self.cold_share < 1):
            raise ConfigError(f"cold_share={self.cold_share!r}: must lie between 0 and 1")

    def as_dict(self) -> dict[str, Any]:
        """The options that matter to this split, defaults filled in, for `dataset.json`."""
        out: dict[str, Any] = {"name": self.name, "seed": self.seed}
        for option, owner in OWNERS.items():
            if owner == self.name:
                value = getattr(self, option)
                value = DEFAULTS[option] if value is None else value
                out[option] = list(value) if isinstance(value, tuple) else value
        return out


OWNERS = {"ratio": "user-ratio", "targets": "user-ratio", "cutoffs": "temporal", "cold_share": "cold-items"}
DEFAULTS: dict[str, Any] = {
    "ratio": (0.8, 0.1, 0.1),
    "targets": "last",
    "cutoffs": (0.8, 0.9),
    "cold_share": 0.1,
}


@dataclass(frozen=True)
class Packed:
    """What a split reads: tokens (N,), times (N,) in `time_unit`, offsets (n_users + 1,)."""

    tokens: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    n_candidates: int
    time_unit: str = "s"

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Split:
    """Result: mask and query positions (sorted), what was skipped, and the options as resolved."""

    train_mask: np.ndarray
    queries: dict[str, np.ndarray]
    counts: dict[str, int]
    options: dict[str, Any]


def make_split(data: Packed, options: SplitOptions) -> Split:
    """Split packed histories. Deterministic: the same data and options give the same arrays."""
    return SPLITS[options.name](data, options.as_dict())


def leave_one_out(data: Packed, options: dict[str, Any]) -> Split:
    """Last event = test, the one before = validation; users with fewer than 3 events only train."""
    ends = data.offsets[1:][data.lengths >= MIN_EVENTS]
    mask = np.ones(len(data.tokens), dtype=bool)
    mask[ends - 1] = mask[ends - 2] = False
    counts = {"users_too_short": int((data.lengths < MIN_EVENTS).sum())}
    return Split(mask, {"validation": ends - 2, "test": ends - 1}, counts, options)


def user_ratio(data: Packed, options: dict[str, Any]) -> Split:
    """Users in order of their identifiers, shuffled by seed, cut by ratio; held-out users never train."""
    n_users = len(data.offsets) - 1
    order = np.arange(n_users)
    np.random.RandomState(options["seed"]).shuffle(order)
    train = int(n_users * options["ratio"][0])
    validation = int(n_users * options["ratio"][1])
    group = np.empty(n_users, dtype=np.int8)  # 0 training, 1 validation, 2 test
    group[order] = np.repeat([0, 1, 2], [train, validation, n_users - train - validation])
    queries, counts = {}, {}
    for number, name in ((1, "validation"), (2, "test")):
        users = group == number
        counts[f"{name}_users_too_short"] = int((users & (data.lengths < 2)).sum())
        if options["targets"] == "last":
            queries[name] = data.offsets[1:][users & (data.lengths >= 2)] - 1
        else:
            events = np.repeat(users, data.lengths)
            events[data.offsets[:-1][data.lengths > 0]] = False  # nothing comes before a first event
            queries[name] = np.flatnonzero(events)
    return Split(np.repeat(group == 0, data.lengths), queries, counts, options)


def temporal(data: Packed, options: dict[str, Any]) -> Split:
    """A user's first event after each cut-off; training ends at the validation cut-off.

    The validation target must lie at or before the test cut-off: an event that is a test target
    is not used to choose a model. Users whose first event ever is the target have no history
    and are counted.
    """
    marks = [_cutoff(value, data) for value in options["cutoffs"]]
    if marks[0] >= marks[1]:
        raise DataError(
            f"cutoffs {options['cutoffs']} are at times {marks[0]} and {marks[1]}: "
            "the validation cut-off must come before the test cut-off"
        )
    rows = owners(data.offsets)
    queries, counts = {}, {}
    for name, mark, end in (("validation", marks[0], marks[1]), ("test", marks[1], None)):
        after = np.flatnonzero(data.times > mark)
        users, first = np.unique(rows[after], return_index=True)
        targets = after[first]
        if end is not None:
            users, targets = users[data.times[targets] <= end], targets[data.times[targets] <= end]
        has_history = targets > data.offsets[users]
        counts[f"{name}_users_without_history"] = int((~has_history).sum())
        counts[f"{name}_users_without_target"] = len(data.offsets) - 1 - len(users)
        queries[name] = targets[has_history]
    return Split(data.times <= marks[0], queries, counts, {**options, "cutoff_times": marks})


def cold_items(data: Packed, options: dict[str, Any]) -> Split:
    """Leave-one-out over the users whose held-out event is a cold item; no cold item is ever trained on."""
    base = leave_one_out(data, options)
    cold = np.zeros(int(data.tokens.max(initial=0)) + 1, dtype=bool)
    cold[cold_tokens(data.n_candidates, options["cold_share"], options["seed"])] = True
    queries = {name: at[cold[data.tokens[at]]] for name, at in base.queries.items()}
    counts = {**base.counts, "cold_items": int(cold.sum()), "cold_events": int(cold[data.tokens].sum())}
    return Split(base.train_mask & ~cold[data.tokens], queries, counts, options)


def cold_tokens(n_candidates: int, share: float, seed: int) -> np.ndarray:
    """Tokens int64 of the cold items: a seeded `share` of the candidates, at least one, sorted."""
    tokens = np.arange(1, n_candidates + 1)
    np.random.RandomState(seed).shuffle(tokens)
    return np.sort(tokens[: max(1, round(share * n_candidates))])


SPLITS: dict[str, Callable[[Packed, dict[str, Any]], Split]] = {
    "leave-one-out": leave_one_out,
    "user-ratio": user_ratio,
    "temporal": temporal,
    "cold-items": cold_items,
}


def history_order(
    users: np.ndarray, times: np.ndarray, items: np.ndarray, ties: str = "file", seed: int = 0
) -> np.ndarray:
    """Row order int64 (N,) that makes histories: by user, by time, equal times by `ties`.

    "file" keeps the order of the rows. "shuffle" orders equal times at random, by the seed alone:
    neither the order of the rows nor the number of threads plays a part (case D5).
    """
    if ties == "file":
        return np.lexsort((times, users))
    if ties != "shuffle":
        raise ConfigError(unknown("ties", ties, TIES))
    order = np.lexsort((items, times, users))
    key = np.random.RandomState(seed).permutation(len(users))
    return order[np.lexsort((key, times[order], users[order]))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(value == value)


def _check_ratio(ratio: Any) -> None:
    if ratio is None:
        return
    numbers = isinstance(ratio, tuple) and len(ratio) == 3 and all(map(_is_number, ratio))
    if not numbers or min(ratio) < 0 or ratio[0] == 0 or abs(sum(ratio) - 1) > 1e-6:
        raise ConfigError(f"ratio={ratio!r}: give three shares that sum to 1, for example 0.8, 0.1, 0.1")


def _check_cutoffs(cutoffs: Any) -> None:
    """What can be said of cut-offs without the data: their number, their kinds, and their order."""
    if cutoffs is None:
        return
    if not isinstance(cutoffs, tuple) or len(cutoffs) != 2:
        raise ConfigError(f"cutoffs={cutoffs!r}: give two, for validation and for test")
    values = [_moment(v) if isinstance(v, str) else v for v in cutoffs]
    for value in values:
        whole = _is_number(value) and abs(value) < 2**63 and value == int(value)
        if not whole and not _is_share(value):
            raise ConfigError(f"cutoff {value!r}: give a whole time, an ISO date, or a share between 0 and 1")
    kinds = {(isinstance(v, str), _is_share(v)) for v in cutoffs}
    if len(kinds) == 1 and values[0] >= values[1]:
        raise ConfigError(f"cutoffs={cutoffs}: the validation cut-off must come before the test cut-off")


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _moment(text: str, unit: str = "us") -> int:
    """An ISO date as a time in `unit`."""
    try:
        if not re.match(r"\d{4}-\d\d", text):  # numpy also takes "now" and "NaT"
            raise ValueError(text)
        return int(np.array(text, dtype=f"datetime64[{unit}]").astype(np.int64))
    except ValueError as err:
        raise ConfigError(f"cutoff {text!r} is not an ISO date such as 2024-05-31") from err


def _cutoff(value: int | float | str, data: Packed) -> int:
    """A cut-off as a time in the data's unit; a float below 1 is a share of all events."""
    if isinstance(value, str):
        if data.time_unit == "index":
            raise ConfigError(f"cutoff {value!r} is a date, but the times are positions; give a number")
        return _moment(value, data.time_unit)
    if _is_share(value):
        return int(np.sort(data.times)[max(0, int(np.ceil(value * len(data.times))) - 1)])
    return int(value)
