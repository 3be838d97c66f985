"""Facts about events in packed histories: who owns them, which are tied, repeated or duplicates.

All functions take tokens (N,), times (N,) and offsets (n_users + 1,) as a dataset holds them.
"""

from __future__ import annotations

import numpy as np


def owners(offsets: np.ndarray) -> np.ndarray:
    """Dataset row int64 (N,) of the user who owns each event."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def tied_with_previous(times: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Mask bool (N,): the event has the same time as the same user's event before it."""
    tied = np.zeros(len(times), dtype=bool)
    tied[1:] = times[1:] == times[:-1]
    tied[offsets[:-1][np.diff(offsets) > 0]] = False
    return tied


def tied_events(times: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Mask bool (N,): another event of the same user has the same time."""
    tied = tied_with_previous(times, offsets)
    tied[:-1] |= tied[1:]
    return tied


def repeated_events(tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Mask bool (N,): the user met this item in an earlier event."""
    key = owners(offsets) * (int(tokens.max(initial=0)) + 1) + tokens
    order = np.argsort(key, kind="stable")
    repeated = np.zeros(len(tokens), dtype=bool)
    repeated[order[1:]] = key[order[1:]] == key[order[:-1]]
    return repeated


def duplicate_events(tokens: np.ndarray, times: np.ndarray, offsets: np.ndarray) -> int:
    """Number of events beyond the first with the same user, item and time."""
    index = np.flatnonzero(tied_events(times, offsets))
    if not len(index):
        return 0
    columns = np.stack([owners(offsets)[index], times[index], tokens[index]])
    columns = columns[:, np.lexsort(columns)]
    return int((columns[:, 1:] == columns[:, :-1]).all(axis=0).sum())
