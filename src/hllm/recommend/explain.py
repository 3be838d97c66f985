"""Why an item: how its score changes without each event of the history.

Leaving events out one at a time is occlusion (Li et al., 2016, arXiv:1612.08220): it asks the model itself, whatever
it is. Events say nothing alone that only two of them say together, so shares are a guide and no proof.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hllm.arguments import whole
from hllm.data.batches.queries import history_queries, query_batch, query_parts
from hllm.errors import ConfigError, DataError
from hllm.evaluate.evaluation import device_of
from hllm.items.source.text_table import TextTable
from hllm.recommend.similar import detached

if TYPE_CHECKING:
    from hllm.data.batches.queries import Queries
    from hllm.recommend.session import Session

MOST = 100  # events that are left out in turn: the last ones
BATCH = 256


@dataclass(frozen=True)
class Reason:
    """An event of the history, and what the score of the item owes to it.

    change      score with the event minus score without it; None where it is the only one
    share       of all rises of the score, 0 to 1; 0 for an event that lowers it
    similarity  cosine of the item's vector and the event's item's
    time        in the dataset's unit; None without times
    """

    item_id: Any
    title: str
    place: int  # 1 = the latest event
    time: int | None
    change: float | None
    share: float
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """A score, its rank among the candidates that were not seen, and its reasons, the largest share first.

    of_times  score minus that of the same history without times; None where it has none, or the model reads none
    of_text   score minus that of the same item without its text; None where it has none, or the model reads none, or
              reads it through an item LLM that was trained with it
    """

    item_id: Any
    title: str
    score: float
    rank: int | None  # None: no candidate, or seen
    events: int  # in the whole history
    reasons: list[Reason]
    of_times: float | None = None
    of_text: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def explained(session: Session, query: Queries, item: Any, titles: Any, most: int = MOST) -> Explanation:
    """Why `item` has its score for the one query of `query`; `titles(item_id)` names an item.

    most  events that are left out in turn, the last ones. Raises DataError for an unknown item and an empty history.
    """
    if len(query) != 1:
        raise ConfigError("one history at a time can be explained")
    if item is None:
        raise ConfigError("give the item to explain (--item ID)")
    most = whole("most", most)
    data, token = session.data, session.data.token_of(item)
    first, end = int(query.starts[0]), int(query.ends[0])
    if first == end:
        raise DataError("a user without any event cannot be explained; give at least one item of history")
    n_events = end - first
    first = max(first, end - (session.max_len or n_events))  # what the model reads
    tokens, times = np.asarray(query.tokens[first:end]).tolist(), np.asarray(query.times[first:end]).tolist()
    clock = query.clock is None or bool(query.clock[0])
    left_out = range(max(0, len(tokens) - most), len(tokens))
    alone = len(tokens) == 1
    lists = [list(range(len(tokens)))]
    if not alone:
        lists += [[at for at in range(len(tokens)) if at != without] for without in left_out]
    variants = history_queries(
        [[tokens[at] for at in kept] for kept in lists],
        [[times[at] for at in kept] for kept in lists] if clock else None,
        query.time_unit,
    )
    scores = _scores(session, variants, token)
    untimed = (
        _scores(session, history_queries([tokens], None, query.time_unit), token) if clock else scores[:1]
    )
    changes = [None] * len(left_out) if alone else (scores[0] - scores[1:]).tolist()
    rises = np.array([0.0 if change is None else max(change, 0.0) for change in changes])
    shares = np.ones(1) if alone else rises / (rises.sum() or 1.0)
    unit = session.directions(np.array([token, *(tokens[at] for at in left_out)], dtype=np.int64))
    reasons = [
        Reason(
            item_id=(known := data.item_ids[tokens[at] - 1]),
            title=titles(known),
            place=len(tokens) - at,
            time=times[at] if clock else None,
            change=change,
            share=float(share),
            similarity=float(unit[0] @ unit[row + 1]),
        )
        for row, (at, change, share) in enumerate(zip(left_out, changes, shares, strict=True))
    ]
    reasons.sort(key=lambda reason: (-reason.share, -(reason.change or 0.0), reason.place))
    name, score = data.item_ids[token - 1], float(scores[0])
    return Explanation(
        name, titles(name), score, _rank(session, query, token), n_events, reasons,
        of_times=None if np.isclose(score, untimed[0], rtol=1e-5, atol=1e-5) else float(score - untimed[0]),
        of_text=_of_text(session, query, token, score),
    )  # fmt: skip


def _scores(session: Session, queries: Queries, token: int) -> np.ndarray:
    """Score float64 (Q,) of one item for each query."""
    ranker, device = session.ranker, device_of(session.ranker)
    one = torch.tensor([token], device=device)
    found = []
    with torch.no_grad():
        for part in query_parts(queries, session.max_len, BATCH):
            batch = query_batch(queries, part, session.max_len, device)
            found.append(ranker.score(ranker.query(batch), one)[:, 0].double().cpu().numpy())
    return np.concatenate(found)


@torch.no_grad()
def _of_text(session: Session, query: Queries, token: int, score: float) -> float | None:
    """The score minus that of the item as the run would know it without its text."""
    network: Any = session.ranker
    source = detached(network.source)
    tables = [m for m in source.modules() if isinstance(m, TextTable) and bool(m.has_text[token])]
    if not tables:
        return None
    for table in tables:
        table.has_text = table.has_text.clone()
        table.has_text[token] = False
        if table.adapter is None:
            table.table = table.table.clone()
            table.table[token] = 0
    device = device_of(network)
    vector = source.eval().encode(torch.tensor([token], device=device))
    (asked,) = [
        network.query(query_batch(query, part, session.max_len, device))
        for part in query_parts(query, session.max_len, 1)
    ]
    return score - float((asked.float() @ network.model.scorer.item(vector).float().T)[0, 0])


def _rank(session: Session, query: Queries, token: int) -> int | None:
    """Rank of the item among the candidates that the user has not seen."""
    candidates = session.candidates()
    top = session.top(query, len(candidates), candidates)
    at = np.flatnonzero(top.tokens == token)
    return int(top.ranks[at[0]]) if len(at) else None


def in_words(found: Explanation, who: str, shown: int = 5, time_unit: str = "s") -> list[str]:
    """Lines for people: what the item is, and the reasons with a share of it."""
    from hllm.data.tables.schema import UNITS_PER_SECOND

    where = "not among the candidates" if found.rank is None else f"rank {found.rank:,}"
    lines = [f"{found.title} ({found.item_id}) for {who}: score {found.score:.3f}, {where}"]
    reasons = [reason for reason in found.reasons if reason.share > 0][:shown]
    latest = max((r.time for r in found.reasons if r.time is not None), default=None)
    for reason in reasons:
        events = "1 event" if reason.place == 2 else f"{reason.place - 1:,} events"
        when = "the latest event" if reason.place == 1 else f"{events} before the latest"
        if time_unit != "index" and reason.time is not None and latest is not None and reason.place > 1:
            days = (latest - reason.time) / UNITS_PER_SECOND[time_unit] / 86_400
            when += f", {days:.1f} days" if days >= 0.05 else ", the same day"
        change = (
            "the only event"
            if reason.change is None
            else f"the score falls by {reason.change:.3f} without it"
        )
        name, like = f"{reason.title} ({reason.item_id})", f"likeness {reason.similarity:.2f}"
        lines.append(f"{reason.share:4.0%}  {name}: {when}; {change}; {like}")
    if not reasons:
        lines.append("no single event raises the score: without any one of them it is as high or higher")
    for name, value in (("the times of the events", found.of_times), ("the text of the item", found.of_text)):
        if value is not None:
            way = "falls" if value > 0 else "rises"
            lines.append(f"{name}: the score {way} by {abs(value):.3f} without")
    nearest = max(found.reasons, key=lambda reason: reason.similarity)
    lines.append(
        f"nearest in the history: {nearest.title} ({nearest.item_id}), likeness {nearest.similarity:.2f}"
    )
    return lines
