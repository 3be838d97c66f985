"""A request under all its rules: which items each query may get, and its list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.evaluate.best import TopK
from hllm.evaluate.candidates import Candidates
from hllm.recommend.arrange import Arrangement, arranged, joined
from hllm.recommend.options import capped, check_options, moment_of, span_of, user_tables
from hllm.recommend.rules import tokens_of
from hllm.recommend.session import renumbered

if TYPE_CHECKING:
    from hllm.data.batches.queries import Queries
    from hllm.recommend.session import Session

BLOCK = 256  # queries with lists of their own that are ranked together


@dataclass(frozen=True)
class Request:
    """What may be recommended to the queries of one call.

    hidden   (rows, tokens) int64 (P,): not this item to this query
    allowed  tokens int64 by number of the query: nothing else to these
    """

    candidates: Candidates
    keep_seen: bool
    hidden: tuple[np.ndarray, np.ndarray]
    allowed: dict[int, np.ndarray] = field(default_factory=dict)
    arrangement: Arrangement = field(default_factory=Arrangement)
    approximate: bool | None = None


def make_request(
    session: Session,
    queries: Queries,
    names: Sequence[Any],
    candidates: Candidates,
    keep_seen: bool,
    options: Mapping[str, Any],
) -> Request:
    """The rules `options` (see `RuleOptions`) for `queries`, called `names`; what is not available is left out.

    Raises ConfigError and DataError for rules that cannot be followed.
    """
    check_options(options)
    data = session.data
    if options.get("only_items") is not None:
        wanted = np.unique(tokens_of(data, options["only_items"], "only_items"))
        candidates = Candidates(wanted[candidates.positions(wanted) >= 0])
    spans = session.availability
    at = session.latest if options.get("at") is None else moment_of(data, options["at"])
    if spans is not None:
        candidates = candidates.without(np.flatnonzero((spans[0] > at) | (spans[1] <= at)) + 1)
    hidden = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    allowed: dict[int, np.ndarray] = {}
    if options.get("per_user") is not None:
        allowed, hidden = user_tables(data, options["per_user"], names)
    since = options.get("exclude_seen_since")
    if since is not None and not keep_seen:
        recent = seen_since(queries, at - span_of(data, since))
        hidden = (np.concatenate((hidden[0], recent[0])), np.concatenate((hidden[1], recent[1])))
        keep_seen = True
    most = capped(data, options["diversify"]) if options.get("diversify") is not None else None
    how = Arrangement(most, float(options.get("diversity") or 0.0))
    return Request(candidates, keep_seen, hidden, allowed, how, options.get("approximate"))


def seen_since(queries: Queries, moment: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, token) int64 of the events at `moment` or later; of a history without times, of all events."""
    rows, tokens = queries.history_pairs(slice(None))
    lengths = queries.ends - queries.starts
    first = np.repeat(queries.starts - (np.cumsum(lengths) - lengths), lengths)
    recent = np.asarray(queries.times)[np.arange(len(rows)) + first] >= moment
    if queries.clock is not None:
        recent |= ~queries.clock[rows]
    return rows[recent], tokens[recent]


def answer(
    session: Session, queries: Queries, k: int, request: Request, popular: np.ndarray | None = None
) -> TopK:
    """The best `k` of each query under the rules; of the queries `popular` the most popular items."""
    others = np.zeros(0, np.int64) if popular is None else popular

    def fetch(rows: np.ndarray, size: int) -> TopK:
        return _fetch(session, queries, rows, size, request, others)

    everyone = np.arange(len(queries))
    if not request.arrangement:
        return fetch(everyone, k)
    return arranged(fetch, len(queries), k, request.arrangement, session.directions)


def _fetch(
    session: Session, queries: Queries, rows: np.ndarray, k: int, request: Request, popular: np.ndarray
) -> TopK:
    """The best `k` of the queries `rows`, whoever may get whatever."""
    own = np.array([row for row in rows.tolist() if row in request.allowed], dtype=np.int64)
    rest = np.setdiff1d(rows, own) if len(own) else rows
    parts = []
    if len(rest):
        parts.append(_part(session, queries, rest, k, request, request.candidates, request.hidden, popular))
    for first in range(0, len(own), BLOCK):
        block = own[first : first + BLOCK]
        lists = [request.allowed[row] for row in block.tolist()]
        union = np.unique(np.concatenate(lists))
        union = union[request.candidates.positions(union) >= 0]
        barred = np.stack([~np.isin(union, tokens) for tokens in lists]).nonzero()
        hidden = (
            np.concatenate((request.hidden[0], block[barred[0]])),
            np.concatenate((request.hidden[1], union[barred[1]])),
        )
        if len(union):
            parts.append(_part(session, queries, block, k, request, Candidates(union), hidden, popular))
    return joined(parts)


def _part(
    session: Session,
    queries: Queries,
    rows: np.ndarray,
    k: int,
    request: Request,
    candidates: Candidates,
    hidden: tuple[np.ndarray, np.ndarray],
    popular: np.ndarray,
) -> TopK:
    everyone = len(rows) == len(queries)
    index = session.index(request.approximate, candidates) if candidates is request.candidates else None
    part = session.top(
        queries if everyone else queries.take(rows),
        k,
        candidates,
        request.keep_seen,
        np.flatnonzero(np.isin(rows, popular)),
        hidden if everyone else renumbered(hidden, rows, len(queries)),
        index,
    )
    return part if everyone else TopK(rows[part.rows], part.tokens, part.scores, part.ranks)
