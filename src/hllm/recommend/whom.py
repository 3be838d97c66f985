"""Whom one call is for, and the same entry by entry, for calls that are answered in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset


@dataclass(frozen=True)
class Whom:
    """Arguments of `Recommender.recommend` that say whom for."""

    users: Sequence[Any] | None = None
    history: Any = None
    times: Sequence[Any] | None = None
    titles: Sequence[Sequence[str]] | None = None
    split: str | None = None


class Asked(NamedTuple):
    """A history with its name."""

    name: Any
    items: Sequence[Any]
    times: Sequence[Any] | None


def entries(data: Dataset, whom: Whom) -> list[Any]:
    """User ids and `Asked`, one for each list that is wanted; all known users if nobody is named.

    Raises ConfigError for titles and splits, which are answered in one call, DataError for a name given twice.
    """
    if whom.titles is not None or whom.split is not None:
        raise ConfigError("lists in parts are for users and histories; titles and splits go to a file")
    if whom.history is None:
        return list(data.user_ids) if whom.users is None else list(whom.users)
    known = list(whom.users or ())
    lists = whom.history
    if not isinstance(lists, Mapping):
        from hllm.recommend.queries import numbered

        lists = dict(zip(numbered(data, 0, len(lists), bool(known)), lists, strict=True))
    times = whom.times or [None] * len(lists)
    if len(times) != len(lists):
        raise DataError(f"{len(times)} lists of times for {len(lists)} histories; give one for each")
    if twice := {str(user) for user in known} & {str(name) for name in lists}:
        raise DataError(f"two lists would be called {min(twice)!r}; give the history another name")
    return [*known, *(Asked(name, items, t) for (name, items), t in zip(lists.items(), times, strict=True))]


def whom_of(part: Sequence[Any]) -> Whom:
    """The arguments that answer some of the entries."""
    users = [entry for entry in part if not isinstance(entry, Asked)]
    asked = [entry for entry in part if isinstance(entry, Asked)]
    if not asked:
        return Whom(users)
    return Whom(users or None, {a.name: a.items for a in asked}, [a.times for a in asked])
