"""What users do while a run is served, and items added to it: an embedded sqlite file, shared by all workers."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hllm.data.tables.values import clean_id
from hllm.errors import ArtifactError

VERSION = 1
LONGEST_SESSION = 1000  # events of a user that count, the newest
TABLES = """
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, user TEXT NOT NULL, item TEXT NOT NULL, time REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of ON events (user, time, id);
CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, item TEXT NOT NULL);
"""


class EventStore:
    """Events (user, item, time in seconds since 1970) and added items. Any thread may use it; who reads never
    waits for who writes, in this process or another.

    Raises ArtifactError for a file that is not this store's.
    """

    def __init__(self, path: Path | str) -> None:
        self._reading, self._writing = threading.Lock(), threading.Lock()
        try:
            self._reader, self._db = (
                sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
                for _ in range(2)
            )
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise ArtifactError(
                    f"{path} is of version {version}, this hllm reads {VERSION}; give --events"
                )
            self._db.execute("PRAGMA journal_mode = WAL")  # readers never wait for a writer
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(TABLES)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.Error as err:
            raise ArtifactError(
                f"{path} cannot be used for events ({err}); choose another file with --events FILE"
            ) from err

    def add(self, events: Sequence[tuple[Any, Any, float]]) -> None:
        """Keep events, all or none."""
        rows = [(_key(user), json.dumps(item), time) for user, item, time in events]
        self._write("INSERT INTO events (user, item, time) VALUES (?, ?, ?)", rows)

    def of(self, user: Any) -> list[tuple[Any, float]]:
        """(item id, time) of a user's events, oldest first, the newest 1,000 of them."""
        rows = self._read(
            "SELECT item, time FROM events WHERE user = ? ORDER BY time DESC, id DESC LIMIT ?",
            (_key(user), LONGEST_SESSION),
        )
        return [(json.loads(item), time) for item, time in reversed(rows)]

    def forget(self, user: Any) -> int:
        """Remove a user's events; how many there were."""
        with self._writing:
            return self._db.execute("DELETE FROM events WHERE user = ?", (_key(user),)).rowcount

    def add_items(self, items: Sequence[dict[str, Any]]) -> None:
        """Keep added items, for the other workers and for runs to come."""
        self._write("INSERT INTO items (item) VALUES (?)", [(json.dumps(item),) for item in items])

    def items_after(self, number: int) -> tuple[int, list[dict[str, Any]]]:
        """Items added after item `number`, and the number of the last."""
        rows = self._read("SELECT id, item FROM items WHERE id > ? ORDER BY id", (number,))
        return (rows[-1][0] if rows else number), [json.loads(item) for _, item in rows]

    def close(self) -> None:
        with self._reading, self._writing:
            self._reader.close()
            self._db.close()

    def _read(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        with self._reading:
            return self._reader.execute(query, values).fetchall()

    def _write(self, query: str, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._writing:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(query, rows)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def _key(user: Any) -> str:
    """A user id as text: 196 and "196" are one user, as everywhere."""
    return str(clean_id(user))
