"""Recommendations for any number of users as a folder of Parquet files, a part at a time.

_recommendations.json   what was asked, and the number of parts once all are there; readers of Parquet folders pass
                        over names with an underscore
part-00000.parquet      user_id, item_id, score, rank of the first users, and so on
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.artifacts import digest, locked, read_json, write_json, write_table
from hllm.data.folder import own_names
from hllm.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import polars as pl

MARKER, FORMAT = "_recommendations.json", "hllm-recommendations"
PART_USERS = 10_000

# Parts -> the rows and notes of each, in order.
Answers = Callable[[Iterator[Sequence[Any]]], "Iterator[tuple[pl.DataFrame, list[str]]]"]


def write_parts(
    folder: Path,
    users: Sequence[Any],
    answers: Answers,
    asked: Mapping[str, Any],
    part_users: int = PART_USERS,
    done: Callable[[int], object] = lambda users: None,
) -> tuple[int, list[str]]:
    """Write what `answers` gives for `part_users` users at a time; returns the number of rows, and this call's notes.

    A part is there whole or not at all, and depends on its own users alone: a call that was interrupted, or killed,
    goes on where it stopped, and ends with the same bytes. Memory holds one part. `asked` is what must be the same
    for that: the run and the options. Raises ArtifactError where `folder` holds anything else.
    """
    import polars as pl

    if part_users < 1:
        raise ConfigError(f"part_users={part_users}: at least one")
    identity = {**asked, "part_users": part_users, "users": len(users), "users_digest": _digest(users)}
    with locked(folder):
        _claim(folder, identity)
        parts = list(_parts(folder, users, part_users))
        missing = [(path, part) for path, part in parts if not path.exists()]
        done(len(users) - sum(len(part) for _, part in missing))
        notes = []
        for (path, part), (frame, told) in zip(missing, answers(part for _, part in missing), strict=True):
            write_table(path, frame)
            notes += told
            done(len(part))
        n_parts = len(parts)
        rows = sum(int(pl.scan_parquet(path).select(pl.len()).collect().item()) for path, _ in parts)
        write_json(folder / MARKER, {"format": FORMAT, "asked": identity, "parts": n_parts, "rows": rows})
    return rows, notes


def _parts(folder: Path, users: Sequence[Any], size: int) -> Iterator[tuple[Path, Sequence[Any]]]:
    for number, first in enumerate(range(0, len(users), size)):
        yield folder / f"part-{number:05}.parquet", users[first : first + size]


def _digest(users: Sequence[Any]) -> str:
    return digest(*(digest(repr(list(users[i : i + 50_000]))) for i in range(0, len(users), 50_000)))


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make the folder this request's, or go on with it."""
    marker = folder / MARKER
    if not marker.is_file():
        if names := sorted(own_names(folder)):
            raise ArtifactError(
                f"{folder} is not empty and holds no recommendations ({', '.join(names[:3])}); choose another --out"
            )
        write_json(marker, {"format": FORMAT, "asked": dict(identity)})
        return
    held = read_json(marker)
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise ArtifactError(f"{marker} is not of ours; choose another --out")
    before = held["asked"]
    changes = [key for key in {**before, **identity} if before.get(key) != identity.get(key)]
    if changes:
        raise ArtifactError(
            f"{folder} holds recommendations that were asked for otherwise ({', '.join(sorted(changes))}); "
            "choose another --out, or remove it"
        )
