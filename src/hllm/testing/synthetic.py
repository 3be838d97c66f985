"""A synthetic world: users, items with texts, times, and an order that a model can learn.

Items are films of a few genres. Each genre is a ring, and a user mostly goes on to the next film of
the ring, at times to any other film. So first-order models and sequence models beat popularity, text
tells the genre, and everything comes from one seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.data.dataset import Dataset

if TYPE_CHECKING:
    import polars as pl

GENRES = ("Comedy", "Western", "Horror", "Musical", "Romance")
ADJECTIVES = ("Quiet", "Golden", "Broken", "Distant", "Hidden", "Last", "Blue", "Sudden", "Paper", "Second")
NOUNS = ("River", "Garden", "Letter", "Island", "Mirror", "Station", "Winter", "Signal", "Harbour", "Song")
START = 978_300_000  # seconds; the first event of the world


def world(
    n_users: int = 60,
    n_items: int = 40,
    length: int = 16,
    *,
    n_extra: int = 3,
    noise: float = 0.2,
    seed: int = 0,
    string_ids: bool = False,
    **options: Any,
) -> Dataset:
    """A dataset in memory of `n_users` histories of 4 to `length` events; see `world_tables`.

    `options` are those of `Dataset.from_tables` (split, min_interactions, ...).
    """
    interactions, items, users = world_tables(
        n_users, n_items, length, n_extra=n_extra, noise=noise, seed=seed, string_ids=string_ids
    )
    return Dataset.from_tables(interactions, items, users, name="world", time_unit="s", **options)


def world_tables(
    n_users: int = 60,
    n_items: int = 40,
    length: int = 16,
    *,
    n_extra: int = 3,
    noise: float = 0.2,
    seed: int = 0,
    string_ids: bool = False,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Interactions, items and users as polars frames.

    `noise` is the share of events that leave their genre's ring. The catalogue has `n_extra` films
    without any event, the last of them without text. Ids are integers, or with `string_ids`
    strings with leading zeros ("u007", "012").
    """
    import polars as pl

    rng = np.random.default_rng(seed)
    user = (lambda u: f"u{u:03}") if string_ids else (lambda u: 100 + u)
    item = (lambda i: f"{i:03}") if string_ids else (lambda i: 10 + i)
    events: list[tuple[Any, Any, int]] = []
    for u in range(n_users):
        time = START + int(rng.integers(0, 10_000_000))
        walk = _walk(rng, n_items, int(rng.integers(4, max(length, 4) + 1)), noise)
        for i in walk:
            events.append((user(u), item(i), time))
            time += int(rng.integers(1, 200_000))
    interactions = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    n = n_items + n_extra
    items = pl.DataFrame(
        {
            "item_id": [item(i) for i in range(n)],
            "title": [None if n_extra and i == n - 1 else title(i) for i in range(n)],
            "genres": [None if n_extra and i == n - 1 else genre(i) for i in range(n)],
        }
    )
    users = pl.DataFrame(
        {"user_id": [user(u) for u in range(n_users)], "age": rng.integers(18, 70, n_users).tolist()}
    )
    return interactions, items, users


def chain(n_users: int = 200, n_items: int = 50, length: int = 20, seed: int = 0) -> Dataset:
    """A dataset in which the item after `i` is always `(i + 1) % n_items`; users differ in their start."""
    import polars as pl

    starts = np.random.default_rng(seed).integers(0, n_items, n_users)
    rows = [(u, (int(starts[u]) + j) % n_items, j) for u in range(n_users) for j in range(length)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Dataset.from_tables(frame, name="chain", time_unit="index")


def title(item: int) -> str:
    """The title of film number `item`: two words and a year, different for the first 100 films."""
    adjective, noun = ADJECTIVES[item % len(ADJECTIVES)], NOUNS[item // len(ADJECTIVES) % len(NOUNS)]
    return f"{adjective} {noun} ({1950 + item % 60})"


def genre(item: int) -> str:
    """The genre of film number `item`."""
    return GENRES[item % len(GENRES)]


def _walk(rng: np.random.Generator, n_items: int, length: int, noise: float) -> list[int]:
    """Distinct items: mostly the next unseen one of the same genre's ring."""
    current = int(rng.integers(n_items))
    walk = [current]
    while len(walk) < min(length, n_items):
        unseen = [i for i in range(n_items) if i not in walk]
        ring = [i for i in unseen if i % len(GENRES) == current % len(GENRES)]
        if ring and rng.random() >= noise:
            current = min(ring, key=lambda i: (i - current) % n_items)
        else:
            current = int(rng.choice(unseen))
        walk.append(current)
    return walk
