"""What a trained model is asked: lists for users and histories, items like another, why an item is in a list."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.arguments import flag
from hllm.config import Config
from hllm.data.batches.queries import history_queries
from hllm.data.dataset import Dataset
from hllm.errors import ConfigError, HLLMError
from hllm.evaluate.evaluation import parse_max_len
from hllm.evaluate.metrics import check_k
from hllm.items.trained import TrainedLLM
from hllm.models.hllm import Network
from hllm.recommend.explain import Explanation, explained
from hllm.recommend.frames import to_frame
from hllm.recommend.left_out import LeftOut
from hllm.recommend.only import hidden_items, with_columns
from hllm.recommend.queries import queries_of, title_of
from hllm.recommend.request import answer, make_request
from hllm.recommend.session import Session
from hllm.recommend.similar import Likeness, Searched, check_weight, text_vector
from hllm.runs.record import RunRecord

if TYPE_CHECKING:
    from typing import Unpack

    import polars as pl

    from hllm.data.batches.queries import Queries
    from hllm.evaluate.best import TopK
    from hllm.recommend.options import RuleOptions, SearchOptions


@dataclass(repr=False)
class Answering:
    """A model with its configuration and the dataset it was trained on, as far as it answers questions.

    How it is trained, saved and loaded is `hllm.pipeline.Recommender`'s.
    """

    config: Config
    network: Network | None = None
    dataset: Dataset | None = None  # the run's own copy of what recommending needs
    record: RunRecord = field(default_factory=RunRecord)
    item_llm: TrainedLLM | None = None  # where it was trained too: what reads the texts of new items
    _kept_session: Session | None = field(default=None, init=False, repr=False, compare=False)
    _kept_text: tuple[Session, str, Any] | None = field(default=None, init=False, repr=False, compare=False)
    _clocks_said: bool = field(default=False, init=False, repr=False, compare=False)

    def recommend(
        self,
        users: Sequence[Any] | None = None,
        *,
        history: Sequence[Sequence[Any]] | Mapping[Any, Sequence[Any]] | None = None,
        times: Sequence[Any] | None = None,
        titles: Sequence[Sequence[str]] | None = None,
        split: str | None = None,
        k: int = 10,
        keep_seen: bool = False,
        exclude: Sequence[Any] = (),
        candidates: str | Sequence[Any] = "interacted",
        unknown: str = "error",
        only: Mapping[str, Any] | None = None,
        columns: Sequence[str] = (),
        **rules: Unpack[SearchOptions],
    ) -> pl.DataFrame:
        """The best `k` items a user: a frame `user_id, item_id, score, rank`, ids as the dataset has them.

        Whom for: `users` (ids), `history` (lists of item ids, oldest first, or a mapping from names to them; with
        `times`, a list for each, in the dataset's unit or as datetimes), `titles` (the same by title), together
        or alone; or `split` ("test": every test user from the history before the held-out item); all known users
        if none is given. `user_id` of a history without a name is its number, 0, 1, ..., and beside others -1,
        -2, .... Items of the history are left out unless `keep_seen`.
        `candidates="catalogue"` includes items without any event, a list of item ids only those; added
        items always compete otherwise. `only={"genres": "Comedy"}` keeps the items with that value, or label, in a
        column of the items; `columns=["title"]` adds columns of the items to the frame.

        `unknown` is for users who are unknown or have no history, and for unknown items in a history:
        "error" raises DataError naming all of them, "skip" leaves them out, "popular" gives such users
        the most popular items. What is prepared stays for the next call.

        Further rules, by name: only_items, exclude_seen_since, per_user, at, diversify, diversity (`RuleOptions`).
        They hold before the best k are taken; where fewer items are allowed there are fewer rows. With `text` (and
        `text_weight`, .5) items are searched for by history and free text together.
        """
        return self.recommend_noted(
            columns,
            users=users,
            history=history,
            times=times,
            titles=titles,
            split=split,
            k=k,
            keep_seen=keep_seen,
            exclude=exclude,
            candidates=candidates,
            unknown=unknown,
            only=only,
            rules=rules,
        )[0]

    def recommend_noted(self, columns: Sequence[str] = (), **asked: Any) -> tuple[pl.DataFrame, list[str]]:
        """`recommend`, and a line on each kind of what was unknown or empty, and what became of it."""
        top, names, notes = self.top_noted(**asked)
        _, data = self._ready()
        return with_columns(to_frame(top, names, data), data, columns), notes

    def top_noted(
        self,
        users: Sequence[Any] | None,
        history: Sequence[Sequence[Any]] | Mapping[Any, Sequence[Any]] | None,
        times: Sequence[Any] | None,
        titles: Sequence[Sequence[str]] | None,
        split: str | None,
        k: int,
        keep_seen: bool,
        exclude: Sequence[Any],
        candidates: str | Sequence[Any],
        unknown: str,
        only: Mapping[str, Any] | None = None,
        rules: Mapping[str, Any] | None = None,
    ) -> tuple[TopK, list[Any], list[str]]:
        """`recommend_noted` without a frame: numbers, what the queries are called that they count, and notes."""
        _, data = self._ready()
        session, left_out = (
            self._session((rules or {}).get("text"), (rules or {}).get("text_weight")),
            LeftOut(unknown),
        )
        queries, names = queries_of(data, users, history, times, titles, split, left_out)
        empty = np.flatnonzero(queries.ends == queries.starts)
        if len(empty) and unknown == "skip":
            rest = np.setdiff1d(np.arange(len(queries)), empty)
            queries, names, empty = queries.take(rest), [names[row] for row in rest], empty[:0]
        self._say_what_clocks_are_assumed(queries)
        hidden = exclude if only is None else hidden_items(data, exclude, only)
        chosen = session.candidates(candidates, hidden)
        request = make_request(session, queries, names, chosen, flag("keep_seen", keep_seen), rules or {})
        return answer(session, queries, check_k(k), request, empty), names, left_out.notes

    def session(self) -> Session:
        """Model, dataset and prepared candidates, for what asks more often, or for more, than `recommend`."""
        return self._session()

    def _session(self, text: Any = None, text_weight: Any = None) -> Session:
        """The session of the last call, as long as model, data and settings are the same; another with `text`."""
        network, data = self._ready()
        if text is not None:
            weight = check_weight(0.5 if text_weight is None else text_weight)
            return self._session().ranked_by(Searched(network, self._text_vector(text), weight))
        max_len = parse_max_len(self.config.training.max_len)
        kept = self._kept_session
        if kept is None or kept.ranker is not network or kept.data is not data or kept.max_len != max_len:
            self._kept_session = kept = Session(network, data, max_len)
        return kept

    def _text_vector(self, text: Any) -> Any:
        """Vector (w,) of a free text; that of the last one is kept, for the parts of a long answer."""
        network, _ = self._ready()
        session, kept = self._session(), self._kept_text
        if kept is None or kept[0] is not session or not isinstance(text, str) or kept[1] != text:
            vector = text_vector(network, self.record.embeddings, text, llm=self.item_llm)
            self._kept_text = kept = (session, text, vector)
        return kept[2]

    def similar(
        self,
        item: Any = None,
        *,
        text: str | None = None,
        k: int = 10,
        exclude: Sequence[Any] = (),
        candidates: str | Sequence[Any] = "interacted",
        only: Mapping[str, Any] | None = None,
        columns: Sequence[str] = (),
        **rules: Unpack[RuleOptions],
    ) -> pl.DataFrame:
        """The `k` items most like an item, or like a free text: a frame `item_id, score, rank`.

        The score is the cosine of item vectors; a text gets the vector that a new item with it would have. Rules,
        `only` and `columns` are those of `recommend`. Raises DataError for an unknown item, ConfigError where a run
        cannot read text.
        """
        network, data = self._ready()
        if (item is None) == (text is None):
            raise ConfigError("give either an item (--item ID) or a text (--text TEXT)")
        token = None if item is None else data.token_of(item)
        vector = self._text_vector(text) if token is None else network.table().raw[token]
        session = self._session().ranked_by(Likeness(network, vector))
        queries = history_queries([[] if token is None else [token]])  # an item is not like itself
        chosen = session.candidates(
            candidates, exclude if only is None else hidden_items(data, exclude, only)
        )
        request = make_request(session, queries, [0], chosen, False, rules)
        frame = to_frame(answer(session, queries, check_k(k), request), [0], data).drop("user_id")
        return with_columns(frame, data, columns)

    def explain(
        self,
        user: Any = None,
        item: Any = None,
        *,
        history: Sequence[Any] | None = None,
        times: Sequence[Any] | None = None,
        most: int = 100,
    ) -> Explanation:
        """Why `item` has its score for a user, or for a history of item ids: what each event adds to it.

        The last `most` events are left out in turn. Raises DataError for who or what is unknown, or an empty history.
        """
        _, data = self._ready()
        if (user is None) == (history is None):
            raise ConfigError("give either a user (--user ID) or a history (--history ID,ID)")
        if history is None:
            query, _ = queries_of(data, [user])
        else:
            query, _ = queries_of(data, history=[history], times=None if times is None else [times])
        return explained(self._session(), query, item, title_of(data), most)

    def _say_what_clocks_are_assumed(self, queries: Queries) -> None:
        """Warn once a recommender where a model that reads times is given histories without any."""
        users = self.config.users
        biased = users.user_model == "hstu" and users.time_bias
        reads = biased or users.time_embedding != "none"
        if self._clocks_said or not reads or queries.clock is None or queries.clock.all():
            return
        self._clocks_said = True
        assumed = "goes without time bias" if biased else "is taken as events of one moment"
        warnings.warn(
            f"this model reads the times of events; a history without times {assumed}. "
            "Give times=[[...]] (--times) to get what a known user gets",
            UserWarning,
            stacklevel=5,
        )

    def _ready(self) -> tuple[Network, Dataset]:
        if self.network is None or self.dataset is None:
            raise HLLMError(
                "this recommender is not trained yet: call fit(data), or Recommender.from_pretrained(RUN)"
            )
        return self.network, self.dataset
