"""The dataset: packed histories, masks and queries, with the tables behind them.

A dataset folder loads for training with numpy and JSON alone; the tables are read, with
polars, when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hllm import artifacts
from hllm.arguments import path as checked_path
from hllm.artifacts import Manifest
from hllm.data import folder
from hllm.data.tables.schema import ITEM_ID, UNITS_PER_SECOND, USER_ID, Tables, to_tables
from hllm.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from typing import Unpack

    import polars as pl

    from hllm.data.build import DatasetOptions

T = TypeVar("T")


@dataclass(frozen=True)
class Histories:
    """Training histories laid end to end: U users with at least one training event.

    tokens   int32 (N,)
    times    int64 (N,)      whole seconds
    offsets  int64 (U + 1,)
    users    int64 (U,)      dataset rows
    """

    tokens: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    users: np.ndarray

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Histories of all users, what of them may be trained on, and what is predicted.

    path         its folder; None while it is only in memory
    meta         the content of `dataset.json`
    tokens       int32 (N,)   item tokens, user after user, in history order
    times        int64 (N,)   in the unit of the source (`meta["time_unit"]`), exact
    offsets      int64 (n_users + 1,)
    train_mask   bool (N,)    events that may be inputs, targets or counts in training
    queries      {"validation", "test"}: int64 (Q,) flat positions of the held-out events
    frames       tables in memory; those of a folder are read when first used
    files        the folder's manifest; empty in memory, and for folders of an earlier hllm
    """

    path: Path | None
    meta: dict[str, Any]
    tokens: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    train_mask: np.ndarray
    queries: dict[str, np.ndarray]
    frames: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    files: Manifest = field(default_factory=dict)

    # ------------------------------------------------------------------ making one

    @classmethod
    def from_tables(
        cls,
        interactions: Any,
        items: Any = None,
        users: Any = None,
        *,
        name: str = "tables",
        columns: Mapping[str, str] | None = None,
        text_fields: Sequence[str] | None = None,
        time_unit: str | None = None,
        **options: Unpack[DatasetOptions],
    ) -> Dataset:
        """Make a dataset from pandas, polars or Arrow tables.

        `interactions` has user_id, item_id and timestamp (and optionally rating), `items`
        item_id and text columns, `users` user_id and attributes; `columns` maps these names to
        others. `text_fields` (every text column by default) and `time_unit` (s, ms, us, ns or
        index; guessed by default) describe the tables. Options, with their defaults:
        min_interactions=1, min_user_interactions, min_item_interactions, min_rating=None,
        split="leave-one-out", seed=0, ratio, targets, cutoffs, cold_share, ties="file",
        drop_duplicates=False.

        Raises DataError for tables that cannot be used, ConfigError for invalid options.
        """
        if not isinstance(name, str):
            raise ConfigError(f"name={name!r}: a dataset's name is text")
        tables = to_tables(
            interactions, items, users, columns=columns, text_fields=text_fields, time_unit=time_unit
        )
        return cls.from_source_tables(tables, name=name, **options)

    @classmethod
    def from_source_tables(cls, tables: Tables, *, name: str, **options: Unpack[DatasetOptions]) -> Dataset:
        """Make a dataset from canonical tables, as the readers in `data/sources` return them."""
        from hllm.data.build import build

        built = build(tables, name, options)
        return cls._assemble(None, built.meta, built.arrays, built.frames)

    @classmethod
    def load(cls, path: Path | str) -> Dataset:
        """Open a dataset folder; arrays are memory-mapped, tables read when first used.

        Raises ArtifactError for a missing, foreign, unfinished or damaged folder, and one whose
        files do not belong together.
        """
        path = checked_path("path", path)
        meta, files, arrays = folder.open_dataset(path)
        data = cls._assemble(path, meta, arrays, {}, files)
        if not files:  # of an earlier hllm
            data.verify()
        return data

    @classmethod
    def _assemble(
        cls,
        path: Path | None,
        meta: dict[str, Any],
        arrays: Mapping[str, np.ndarray],
        frames: Mapping[str, pl.DataFrame],
        files: Manifest | None = None,
    ) -> Dataset:
        flat = {name: arrays[name] for name in ("tokens", "times", "offsets", "train_mask")}
        queries = {name: arrays[name] for name in ("validation", "test")}
        return cls(path, meta, **flat, queries=queries, frames=frames, files=files or {})

    # ------------------------------------------------------------------ writing it

    def save(self, path: Path | str) -> Dataset:
        """Write the dataset folder and return the dataset opened from it.

        A dataset that is there already is replaced and its embeddings are kept. Raises
        ArtifactError when `path` holds anything else. Two runs write identical bytes.
        """
        frames = {name: getattr(self, name) for name in folder.TABLES}
        folder.write_dataset(checked_path("path", path), self.meta, self._arrays(), frames)
        return Dataset.load(path)

    def copy_to(self, path: Path | str) -> None:
        """Copy all that recommending needs (no interactions, no embeddings) into a run folder."""
        if self.path is not None:
            folder.copy_dataset(self.path, path, self.meta, self.files, self._arrays())
        else:
            frames = {name: getattr(self, name) for name in ("items", "users")}
            folder.write_dataset(path, self.meta, self._arrays(), frames)

    def _arrays(self) -> dict[str, np.ndarray]:
        own = {name: getattr(self, name) for name in ("tokens", "times", "offsets", "train_mask")}
        return own | self.queries

    # ------------------------------------------------------------------ identity and size

    @property
    def n_users(self) -> int:
        return int(self.meta["n_users"])

    @property
    def n_candidates(self) -> int:
        """Items with an event; their tokens are 1..n_candidates."""
        return int(self.meta["n_candidates"])

    @property
    def n_catalogue(self) -> int:
        """All items; tokens above n_candidates are catalogue-only."""
        return int(self.meta["n_catalogue"])

    @property
    def fingerprint(self) -> str:
        return str(self.meta["fingerprint"])

    @property
    def items_fingerprint(self) -> str:
        return str(self.meta["items_fingerprint"])

    def texts_fingerprint(self, fields: Sequence[str]) -> str:
        """Identity of what the item columns `fields` say: `items_fingerprint`, and columns that are not in it."""
        others: dict[str, str] = self.meta.get("column_digests", {})
        more = [others[name] for name in fields if name in others]
        return artifacts.digest(self.items_fingerprint, *more) if more else self.items_fingerprint

    @property
    def embeddings_dir(self) -> Path:
        """Where the embedding store of these items lives."""
        if self.path is not None:
            return self.path / "embeddings"
        return artifacts.home() / "embeddings" / self.items_fingerprint

    def verify(self) -> None:
        """Raise ArtifactError unless the arrays are, bit for bit, those that the fingerprint stands for.

        To be called where the fingerprint decides: before training, and before going on with it. For a
        folder of an earlier hllm, which has no digests, the fingerprint is made again.
        """
        if self.path is None:
            return
        if self.files:
            folder.check_arrays(self.path, self.files, self._arrays())
            return
        from hllm.data.fingerprint import dataset_fingerprint

        found = dataset_fingerprint(self.items_fingerprint, self.users[USER_ID], self.meta, self._arrays())
        if found != self.fingerprint:
            raise ArtifactError(
                f"{self.path} is damaged, or its files do not belong together: their fingerprint is "
                f"{found[:12]}, not {self.fingerprint[:12]}; {folder.AGAIN} (so, too, where an earlier hllm's "
                "examples/generative split it anew)"
            )

    def __repr__(self) -> str:
        return (
            f"Dataset({self.meta['name']!r}: {self.n_users:,} users, {self.n_candidates:,} candidates, "
            f"{self.n_catalogue:,} in the catalogue, {len(self.tokens):,} interactions)"
        )

    def _repr_html_(self) -> str:
        """A small table for notebooks."""
        from html import escape

        split = self.meta["split"]["name"]
        rows = {
            "users": f"{self.n_users:,}",
            "items": f"{self.n_candidates:,} candidates, {self.n_catalogue:,} in the catalogue",
            "interactions": f"{len(self.tokens):,}",
            "split": f"{split}, " + ", ".join(f"{len(at):,} {name}" for name, at in self.queries.items()),
            "text": ", ".join(self.meta["text_fields"]) or "none",
            "fingerprint": self.fingerprint[:12],
        }
        cells = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table><caption>dataset {escape(str(self.meta['name']))}</caption>{cells}</table>"

    # ------------------------------------------------------------------ tables and identifiers

    @cached_property
    def items(self) -> pl.DataFrame:
        """Items in token order: row i is token i + 1."""
        return self._table("items")

    @cached_property
    def users(self) -> pl.DataFrame:
        """Users in row order, with their attributes."""
        return self._table("users")

    @cached_property
    def interactions(self) -> pl.DataFrame:
        """Filtered interactions, user after user, in history order; not kept in run folders."""
        return self._table("interactions")

    def _table(self, name: str) -> pl.DataFrame:
        if name in self.frames:
            return self.frames[name]
        if self.path is None:
            raise ArtifactError(f"this dataset has no {name} table")
        if name == "interactions" and self._is_copy():
            raise ArtifactError(
                f"{self.path} is the copy in a run folder, which leaves out interactions; "
                "open the dataset folder that the run was trained on"
            )
        return folder.read_table(self.path, self.files, name)

    def _is_copy(self) -> bool:
        """Whether the folder is a run's, which keeps no interactions."""
        file = folder.table_file("interactions")
        return file not in self.files if self.files else not (self.path or Path()).joinpath(file).exists()

    @cached_property
    def item_ids(self) -> list[Any]:
        """Item identifiers in token order: element i is token i + 1."""
        return self.items[ITEM_ID].to_list()

    @cached_property
    def user_ids(self) -> list[Any]:
        """User identifiers in row order."""
        return self.users[USER_ID].to_list()

    @cached_property
    def _tokens_by_id(self) -> dict[Any, int]:
        return {item: token for token, item in enumerate(self.item_ids, start=1)}

    @cached_property
    def _rows_by_id(self) -> dict[Any, int]:
        return {user: row for row, user in enumerate(self.user_ids)}

    def token_of(self, item_id: Any) -> int:
        """Token of an item; DataError names an unknown one."""
        from hllm.data.tables.vocab import lookup

        return lookup(self._tokens_by_id, item_id, ITEM_ID)

    def row_of(self, user_id: Any) -> int:
        """Row of a user; DataError names an unknown one."""
        from hllm.data.tables.vocab import lookup

        hint = "; for someone new pass history=[[item_id, ...]] instead"
        return lookup(self._rows_by_id, user_id, USER_ID, hint)

    # ------------------------------------------------------------------ what training reads

    def train_histories(self) -> Histories:
        """Training events only, in whole seconds; users without any are left out."""
        mask = np.asarray(self.train_mask)
        before = np.zeros(len(mask) + 1, dtype=np.int64)
        np.cumsum(mask, out=before[1:])
        lengths = before[self.offsets[1:]] - before[self.offsets[:-1]]
        users = np.flatnonzero(lengths)
        offsets = np.zeros(len(users) + 1, dtype=np.int64)
        np.cumsum(lengths[users], out=offsets[1:])
        seconds = np.asarray(self.times)[mask] // UNITS_PER_SECOND[self.meta["time_unit"]]
        return Histories(np.asarray(self.tokens)[mask], seconds, offsets, users)

    def train_counts(self) -> np.ndarray:
        """Training events per token, int64 (n_catalogue + 1,); padding's is 0."""
        return np.bincount(self.tokens[self.train_mask], minlength=self.n_catalogue + 1).astype(np.int64)
