"""The run that is served: its recommender, and what only a service needs of it, titles and a search."""

from __future__ import annotations

import time
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.data.tables.schema import UNITS_PER_SECOND
from hllm.errors import DataError, HLLMError
from hllm.pipeline import Recommender
from hllm.recommend.left_out import LeftOut
from hllm.recommend.queries import title_of
from hllm.serve.events import EventStore

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset

_numbers = count(1)


class Missing(DataError):
    """A user or item that is not there; the message names it."""


class Catalogue:
    """Titles of a dataset's items and a search in them; made anew when items are added."""

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.title = title_of(data)
        self.titles = [self.title(item) for item in data.item_ids]
        self.counts = data.train_counts()[1:]
        self._folded = [folded(title) for title in self.titles]

    @cached_property
    def popular(self) -> list[int]:
        """Places of the items with most training events."""
        return np.argsort(-self.counts, kind="stable")[:50].tolist()

    def search(self, text: str, k: int) -> list[int]:
        """Places of items whose title has every word of `text`; whole and first words come first, then
        popular items. An empty text finds the popular ones."""
        words = folded(text).split()
        if not words:
            return self.popular[:k]
        found = [i for i, title in enumerate(self._folded) if all(word in title for word in words)]
        return sorted(found, key=lambda i: (_distance(self._folded[i], words), -self.counts[i], i))[:k]


def folded(text: str) -> str:
    """Lower case without accents: "Amélie" is found by "amelie"."""
    letters = unicodedata.normalize("NFKD", text)
    return "".join(c for c in letters if not unicodedata.combining(c)).casefold().strip()


def _distance(title: str, words: Sequence[str]) -> int:
    """0 where the title is the text, 1 where it begins with it, 2 where each word begins one, else 3."""
    text = " ".join(words)
    if title == text:
        return 0
    if title.startswith(text):
        return 1
    return 2 if all(f" {word}" in f" {title}" for word in words) else 3


@dataclass(eq=False)
class Live:
    """A loaded run. `recommender` belongs to the thread that answers; the rest may be read anywhere."""

    recommender: Recommender
    path: Path
    added: int = 0  # number of the last added item of the store that it has
    number: int = field(default_factory=lambda: next(_numbers))
    since: float = field(default_factory=time.time)
    _catalogue: Catalogue | None = None

    @classmethod
    def load(cls, path: Path, device: str, store: EventStore) -> Live:
        """Load and try out the run at `path`, with the items added so far. Raises HLLMError for one that
        cannot answer."""
        live = cls(Recommender.from_pretrained(path, device), path)
        live.catch_up(store)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            live.recommender.recommend(users=live.data.user_ids[:1], k=1, unknown="popular")
        _ = live.catalogue.popular
        return live

    @property
    def data(self) -> Dataset:
        """The dataset with items added so far."""
        assert self.recommender.dataset is not None
        return self.recommender.dataset

    @property
    def catalogue(self) -> Catalogue:
        """Titles of the dataset as it is now."""
        made = self._catalogue
        if made is None or made.data is not self.data:
            self._catalogue = made = Catalogue(self.data)
        return made

    def about(self) -> dict[str, Any]:
        """What it is, for /about."""
        return {
            "run": {"name": self.path.resolve().name, "number": self.number, "since": self.since},
            "model": self.recommender.config.preset,
            "data": str(self.data.meta["name"]),
            "users": self.data.n_users,
            "items": self.data.n_catalogue,
        }

    def catch_up(self, store: EventStore) -> list[str]:
        """Take items that another worker, or the run of before, was given; what could not be taken."""
        number, rows = store.items_after(self.added)
        new = list({str(row["item_id"]): row for row in rows if not self.knows(row["item_id"])}.values())
        problems = []
        for part in [new] if len({frozenset(row) for row in new}) == 1 else [[row] for row in new]:
            try:
                self.recommender.add_items(items_frame(part), self.device)
            except HLLMError as err:  # of another catalogue, or a model without text
                problems.append(str(err))
        self.added = number
        if new:
            _ = self.catalogue.popular
        return problems

    def add_items(self, rows: Sequence[dict[str, Any]], store: EventStore) -> None:
        """Make items recommendable, here and in every other worker."""
        self.catch_up(store)
        self.recommender.add_items(items_frame(rows), self.device)
        _ = self.catalogue
        store.add_items(rows)
        self.added, _ = store.items_after(self.added)

    @property
    def device(self) -> str:
        """Where the model is, for encoding texts."""
        network = self.recommender.network
        assert network is not None
        return str(next(network.parameters()).device)

    def knows(self, item: Any) -> bool:
        """Whether the item is in the catalogue."""
        return LeftOut("skip").attempt(self.data.token_of, item, "item_id") is not None

    def user(self, user: Any) -> Any:
        """The user id as the dataset has it. Raises Missing."""
        return self.data.user_ids[_found(self.data.row_of, user)]

    def item(self, item: Any) -> Any:
        """The item id as the catalogue has it. Raises Missing."""
        return self.data.item_ids[_found(self.data.token_of, item) - 1]

    def history(self, user: Any) -> tuple[list[Any], list[int]]:
        """Items of a known user, oldest first, and their times in the dataset's unit. Raises Missing."""
        data, row = self.data, _found(self.data.row_of, user)
        part = slice(int(data.offsets[row]), int(data.offsets[row + 1]))
        ids = data.item_ids
        return [ids[token - 1] for token in data.tokens[part].tolist()], data.times[part].tolist()

    def session(self, user: Any, store: EventStore) -> tuple[list[Any], list[int]] | None:
        """The history of a user with live events, known before or not; None for one without any.

        Times never fall: an event that claims to be older than the history comes right after it.
        """
        events = [(item, moment) for item, moment in store.of(user) if self.knows(item)]
        if not events:
            return None
        try:
            items, times = self.history(user)
        except Missing:
            items, times = [], []
        unit = self.data.meta["time_unit"]
        for item, moment in events:
            last = times[-1] if times else 0
            now = last + 1 if unit == "index" else int(moment * UNITS_PER_SECOND[unit])
            items.append(self.item(item))
            times.append(max(now, last))
        return items, times


def _found(find: Any, value: Any) -> int:
    try:
        return int(find(value))
    except DataError as err:
        raise Missing(str(err)) from None


def items_frame(rows: Sequence[dict[str, Any]]) -> Any:
    """Items of a request as a table. Raises DataError where the values of a column do not agree."""
    import polars as pl

    names = dict.fromkeys(name for row in rows for name in row)
    if "item_id" not in names:
        raise DataError('items have no item_id; give {"item_id": ..., "title": ...} for each')
    try:
        return pl.DataFrame({name: [row.get(name) for row in rows] for name in names})
    except (TypeError, OverflowError, pl.exceptions.PolarsError) as err:
        line = (str(err).splitlines() or [""])[0]
        raise DataError(f"the items' values do not agree in type: {line}") from err
