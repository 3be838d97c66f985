"""Recommendations for any number of users into a folder, by one process, several GPUs or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.artifacts import digest_file
from hllm.engine import check_engine, spread
from hllm.pipeline import Recommender
from hllm.recommend.parts import PART_USERS, write_parts
from hllm.recommend.whom import Asked, Whom, entries, whom_of

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Lists:
    """The lists of a part: work for `spread`. `text_ids`: user ids are written as text."""

    run: Path
    options: Mapping[str, Any]
    rules: Mapping[str, Any]
    text_ids: bool

    def start(self, device: str) -> Callable[[Sequence[Any]], tuple[pl.DataFrame, list[str]]]:
        """A function from entries to their rows, and what is to be told of them."""
        return self.of(Recommender.from_pretrained(self.run, device))

    def of(self, recommender: Recommender) -> Callable[[Sequence[Any]], tuple[pl.DataFrame, list[str]]]:
        """The same with a recommender that is there already."""
        import polars as pl

        kind = pl.String if self.text_ids else recommender.dataset.users["user_id"].dtype  # type: ignore[union-attr]

        def some(part: Sequence[Any]) -> tuple[pl.DataFrame, list[str]]:
            frame, notes = recommender.recommend_noted(
                **asdict(whom_of(part)), **self.options, rules=self.rules
            )
            return frame.with_columns(pl.col("user_id").cast(kind)), notes

        return some


@dataclass(frozen=True)
class _Loaded:
    """Work in this process, whose run is open."""

    lists: Lists
    recommender: Recommender

    def start(self, _: str) -> Callable[[Sequence[Any]], tuple[pl.DataFrame, list[str]]]:
        return self.lists.of(self.recommender)


def recommend_parts(
    run: Path,
    out: Path,
    whom: Whom,
    options: Mapping[str, Any],
    rules: Mapping[str, Any],
    *,
    part_users: int = PART_USERS,
    files: Sequence[Path] = (),
    engine: str = "local",
    devices: Sequence[str] = ("auto",),
    progress: bool = True,
) -> tuple[int, int, list[str]]:
    """Write lists for `whom` as Parquet, `part_users` a file; returns numbers of rows and entries, and notes.

    `options` and `rules` are arguments of `Recommender.recommend_noted`; `files` are those that rules came from: where
    their content, the run or an option changes, a folder that was begun is refused. Any `engine`, and any number of
    `devices`, write the same rows. Interrupted or killed, the same call goes on.
    """
    from hllm.progress import progress as bar_of

    check_engine(engine, devices)
    local = engine == "local" and len(devices) == 1
    recommender = Recommender.from_pretrained(run, devices[0] if local else "cpu")
    data = recommender.dataset
    assert data is not None
    who = entries(data, whom)
    whole = data.users["user_id"].dtype.is_integer()
    # Somebody unknown may have an id of another type, and all parts have the same.
    strangers = whom.users is not None and options["unknown"] == "popular"
    named = any(isinstance(entry, Asked) and isinstance(entry.name, str) for entry in who)
    lists = Lists(run.resolve(), options, rules, strangers or named or not whole)
    plain = {key: value for key, value in rules.items() if key not in ("per_user", "only_items")}
    asked = {
        "run": recommender.record.created,
        "fingerprint": data.fingerprint,
        **options,
        **plain,
        "files": [digest_file(path) for path in files],
    }
    work = _Loaded(lists, recommender) if local else lists
    with bar_of("recommend", len(who), "users", progress) as bar:
        rows, notes = write_parts(
            out, who, lambda parts: spread(work, parts, engine, devices), asked, part_users, bar.advance
        )
    return rows, len(who), notes
