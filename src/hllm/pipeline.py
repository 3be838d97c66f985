"""`Recommender`: the one facade over data, items, models, training, evaluation and recommendation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm import hardware
from hllm.arguments import flag, whole
from hllm.arguments import path as checked_path
from hllm.artifacts import locked
from hllm.config import Config, load_config
from hllm.data.batches.queries import history_queries
from hllm.data.dataset import Dataset
from hllm.errors import AmbiguousError, ArtifactError, ConfigError, HLLMError
from hllm.evaluate.evaluation import evaluate, parse_max_len
from hllm.evaluate.metrics import DEFAULT_KS, Metrics, check_k, check_ks
from hllm.items.live_items import LiveItems, live_items
from hllm.items.source.build import settle
from hllm.items.trained import TrainedLLM
from hllm.models.hllm import Network
from hllm.ranks import now
from hllm.recommend.additions import added_dataset, check_new_items
from hllm.recommend.explain import Explanation, explained
from hllm.recommend.frames import to_frame
from hllm.recommend.left_out import LeftOut
from hllm.recommend.only import hidden_items, with_columns
from hllm.recommend.queries import queries_of, title_of
from hllm.recommend.request import answer, make_request
from hllm.recommend.session import Session
from hllm.recommend.similar import Likeness, Searched, check_weight, text_vector
from hllm.recommend.update import extend_source, updated
from hllm.runs.auto_batch import BatchSize, probe, with_fitting_batch
from hllm.runs.folder import check_folder
from hllm.runs.record import RunRecord, new_record
from hllm.runs.save import read_run, trained_llm, write_run
from hllm.runs.settle import settled
from hllm.runs.train import checkpoint_rule, train_network
from hllm.train.trainer import Stopped

if TYPE_CHECKING:
    from typing import Unpack

    import polars as pl

    from hllm.data.batches.queries import Queries
    from hllm.evaluate.best import TopK
    from hllm.items.embeddings import ItemEmbeddings
    from hllm.recommend.options import RuleOptions, SearchOptions


@dataclass(repr=False)
class Recommender:
    """A model with its configuration; after `fit` or `from_pretrained` it recommends.

    >>> from hllm.testing import world
    >>> rec = Recommender.from_preset("sasrec", d_model=16, n_layers=1, epochs=1)
    >>> rec.fit(world(), device="cpu", progress=False).recommend(history=[[10, 15]], k=3).columns
    ['user_id', 'item_id', 'score', 'rank']
    """

    config: Config
    network: Network | None = None
    dataset: Dataset | None = None  # the run's own copy of what recommending needs
    record: RunRecord = field(default_factory=RunRecord)
    item_llm: TrainedLLM | None = None  # where it was trained too: what reads the texts of new items
    _kept_session: Session | None = field(default=None, init=False, repr=False, compare=False)
    _kept_text: tuple[Session, str, Any] | None = field(default=None, init=False, repr=False, compare=False)
    _clocks_said: bool = field(default=False, init=False, repr=False, compare=False)

    @classmethod
    def from_preset(cls, preset: str = "hllm-lite", **settings: Any) -> Recommender:
        """An untrained recommender. Raises ConfigError for an unknown preset or setting."""
        return cls(load_config(preset, overrides=settings))

    def fit(
        self,
        data: Dataset,
        *,
        out: Path | str | None = None,
        device: str = "auto",
        resume: bool = False,
        progress: bool = True,
        embeddings: ItemEmbeddings | None = None,
    ) -> Recommender:
        """Train on `data` and keep the weights of the best validation epoch; returns itself.

        Item embeddings are `embeddings`, or the store's, made first where they are missing. With `out`,
        checkpoints and the finished run go there, and `resume=True` goes on where an interrupted one
        stopped. Raises TrainingError for NaN or collapsed vectors, DeviceError for a missing
        device, ArtifactError where another process is writing `out`.
        """
        folder, resume = None if out is None else checked_path("out", out), flag("resume", resume)
        check_dataset(data)
        if embeddings is not None and not hasattr(embeddings, "spec"):
            raise ConfigError(
                f"embeddings is a {type(embeddings).__name__}, not what hllm.embed(data) returns"
            )
        target = hardware.pick_device(device)
        embeddings = prepared(data, self.config, embeddings)
        if embeddings is None:
            embeddings = _embeddings(data, self.config, device, progress)
        self.config = settled(data, self.config)
        record = new_record(data, self.config, embeddings)
        ranks = now()
        writes = folder is not None and ranks.first
        if folder is not None and writes:
            check_folder(data, folder)
        with locked(folder) if folder is not None and writes else nullcontext():
            self.network, result = train_network(
                data, self.config, embeddings, target, folder, resume, progress
            )
            self.record = record.finished(result)
            live = settle(self.network.source)
            self.item_llm = None
            if live is not None and record.embeddings is not None:
                self.item_llm = TrainedLLM(record.embeddings, live)
            self.dataset = data
            if folder is not None and writes:
                self.save_pretrained(folder)
                self.dataset = Dataset.load(folder / "data")
            ranks.wait()
        return self

    def evaluate(
        self,
        data: Dataset | None = None,
        split: str = "test",
        k: int | Sequence[int] = DEFAULT_KS,
        *,
        keep_seen: bool = False,
        candidates: str | Sequence[Any] = "interacted",
        bootstrap: int = 1000,
    ) -> Metrics:
        """Full-ranking metrics of a split (protocol.md); `data` must be the dataset trained on, or None for it.

        Raises ConfigError for another dataset, an unknown split or k.
        """
        network, own = self._ready()
        if data is not None:
            check_dataset(data)
        if data is not None and data.fingerprint != own.fingerprint:
            raise ConfigError(
                f"this model was trained on {own.meta['name']} {own.fingerprint[:12]}, not on "
                f"{data.meta['name']} {data.fingerprint[:12]}; tokens would not mean the same items"
            )
        return evaluate(
            network,
            own,
            split,
            check_ks(k),
            keep_seen=flag("keep_seen", keep_seen),
            candidates=candidates,
            max_len=self.config.training.max_len,
            ranks=now(),
            bootstrap=whole("bootstrap", bootstrap, 0),
            name=self.config.preset,
            seeds=(self.config.training.seed,),
            checkpoint=f"weights of {self.record.imported}"
            if self.record.imported
            else checkpoint_rule(own, self.config.training),
        )

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

    def add_items(self, items: Any, device: str = "auto") -> Recommender:
        """Make new items recommendable at once, from their text, without training; returns itself.

        `items` is a table with `item_id` and the text columns the model reads. Known ids are refused.
        """
        network, data = self._ready()
        counts: dict[str, int] = {}
        frame = check_new_items(data, items, counts)
        extend_source(network, self.record, frame, device, self.item_llm)
        network.eval()
        self.dataset = added_dataset(data, frame, counts)
        return self

    def update(
        self,
        interactions: Any,
        items: Any = None,
        *,
        train: bool = False,
        settings: Mapping[str, Any] | None = None,
        device: str = "auto",
        source: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> dict[str, int]:
        """Take new events, users and items, without training or with; returns what was new.

        `interactions` is a table user_id, item_id, timestamp, `items` one as for `add_items` (known ones are passed
        over). Histories grow, new users are known, and events that are there already are not added again. With `train`
        the model is trained on from its weights on old and new events, `settings` (epochs, learning_rate, ...) changed;
        held-out events stay held out.
        """
        network, data = self._ready()
        new = updated(
            network, self.config, data, self.record, interactions, items,
            train=train, settings=settings, device=device, source=source, progress=progress, llm=self.item_llm,
        )  # fmt: skip
        self.network, self.config, self.dataset, self.record = new.network, new.config, new.data, new.record
        return new.counts

    def save_pretrained(self, path: Path | str) -> None:
        """Write a run folder: all that recommending needs, and what the run was."""
        network, data = self._ready()
        self.item_llm = write_run(
            checked_path("path", path), network, self.config, data, self.record, self.item_llm
        )
        if self.item_llm is not None:
            self.record = replace(self.record, embeddings=self.item_llm.spec)

    @classmethod
    def from_pretrained(cls, path: Path | str, device: str = "auto") -> Recommender:
        """Load a run folder. Raises ArtifactError, with the next command, for anything else."""
        folder = checked_path("path", path)
        network, config, data, record = read_run(folder, hardware.pick_device(device))
        return cls(config, network, data, record, trained_llm(folder, record))

    def __repr__(self) -> str:
        return f"Recommender({', '.join(f'{name}: {text}' for name, text in self._described().items())})"

    def _repr_html_(self) -> str:
        """A small table for notebooks."""
        from html import escape

        cells = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>"
            for name, text in self._described().items()
        )
        return f"<table><caption>recommender</caption>{cells}</table>"

    def _described(self) -> dict[str, str]:
        """What it is, in a few words."""
        found = {"preset": self.config.preset, "items": self.config.items.item_llm or "ids alone"}
        if self.network is None or self.dataset is None:
            return found | {"state": "not trained"}
        weights = sum(p.numel() for p in self.network.parameters())
        found["trained on"] = f"{self.dataset.meta['name']}, {self.dataset.n_catalogue:,} items"
        if self.record.best:
            value = self.record.best["value"]
            found["best epoch"] = (
                f"{self.record.best['epoch']} ({self.config.training.valid_metric} {value:.4f})"
            )
        return found | {"weights": f"{weights:,}"}

    def _ready(self) -> tuple[Network, Dataset]:
        if self.network is None or self.dataset is None:
            raise HLLMError(
                "this recommender is not trained yet: call fit(data), or Recommender.from_pretrained(RUN)"
            )
        return self.network, self.dataset


def check_dataset(data: Any) -> None:
    """ConfigError for anything but a dataset, such as its path or its tables."""
    if not isinstance(data, Dataset):
        raise ConfigError(
            f"data is a {type(data).__name__}, not a dataset; open one by hllm.load_dataset(FOLDER), or make one by "
            "hllm.Dataset.from_tables(interactions, items)"
        )


def fit_run(
    data: Dataset,
    config: Config,
    folder: Path,
    embeddings: ItemEmbeddings | None,
    batch: BatchSize,
    *,
    device: str = "auto",
    resume: bool = False,
    go_on: str = "the same command",
) -> Recommender:
    """Train a run into `folder`, with `batch` or, where `batch.auto`, with the part of it that fits.

    Raises KeyboardInterrupt, naming `go_on` as what to type, after Ctrl-C, and DeviceError where memory
    runs out, naming the size that fits.
    """
    target = hardware.pick_device(device)

    def train(size: int) -> Recommender:
        recommender = Recommender(batch.config(config, size))
        same = resume and size == batch.size
        try:
            return recommender.fit(data, out=folder, device=device, resume=same, embeddings=embeddings)
        except Stopped as stop:
            raise KeyboardInterrupt(f"{stop}; everything is saved. Go on with {go_on}") from stop

    return with_fitting_batch(
        train, lambda size: probe(data, batch.config(config, size), embeddings, target), batch
    )


def prepared(
    data: Dataset, config: Config, embeddings: ItemEmbeddings | None = None
) -> ItemEmbeddings | None:
    """`embeddings`, or where the item LLM is trained the texts that it reads: those need no `hllm embed`."""
    if not config.items.live or isinstance(embeddings, LiveItems):
        return embeddings
    return live_items(data, config.items, embeddings)


def evaluate_run(
    recommender: Recommender,
    splits: Sequence[str] = ("validation", "test"),
    baselines: bool | Sequence[str] = True,
    **options: Any,
) -> tuple[dict[str, Metrics], dict[str, dict[str, Metrics]]]:
    """Metrics of a trained recommender and of baselines on each split that has anyone to evaluate.

    `baselines`: names, or True for the usual three and False for none.
    """
    from hllm.baselines.fit import SHOWN, fit_baseline

    data = recommender.dataset
    assert data is not None
    splits = [split for split in splits if len(data.queries.get(split, ())) or len(splits) == 1]
    own = {split: recommender.evaluate(split=split, **options) for split in splits}
    others: dict[str, dict[str, Metrics]] = {split: {} for split in splits}
    options = {"ks" if key == "k" else key: value for key, value in options.items()}
    names = (SHOWN if baselines else ()) if isinstance(baselines, bool) else baselines
    for name in names:
        ranker = fit_baseline(name, data)
        for split in splits:
            # Baselines see whole histories; of the trained model's settings only the protocol's matter.
            others[split][name] = evaluate(
                ranker, data, split, name=name, checkpoint="fitted on training", ranks=now(), **options
            )
    return own, others


def _embeddings(data: Dataset, config: Config, device: str, progress: bool) -> ItemEmbeddings | None:
    """The item embeddings a configuration asks for, made where they are missing."""
    items = config.items
    if items.item_llm is None:
        return None
    from hllm.items.fused import resolve_fields

    wanted = resolve_fields(
        data, items.fusion, items.item_llm, items.pooling, items.prompt, items.text_fields
    )
    try:
        return wanted.load()
    except AmbiguousError:
        raise
    except ArtifactError:  # missing, unfinished or damaged
        return wanted.complete(device, progress=progress)
