"""`Recommender`: the one facade over data, items, models, training, evaluation and recommendation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm import hardware
from hllm.arguments import flag, whole
from hllm.arguments import path as checked_path
from hllm.artifacts import locked
from hllm.config import Config, load_config
from hllm.data.dataset import Dataset
from hllm.errors import AmbiguousError, ArtifactError, ConfigError
from hllm.evaluate.evaluation import evaluate
from hllm.evaluate.metrics import DEFAULT_KS, Metrics, check_ks
from hllm.items.live_items import LiveItems, live_items
from hllm.items.source.build import settle
from hllm.items.trained import TrainedLLM
from hllm.ranks import now
from hllm.recommend.additions import added_dataset, check_new_items
from hllm.recommend.answering import Answering
from hllm.recommend.update import extend_source, updated
from hllm.runs.auto_batch import BatchSize, probe, with_fitting_batch
from hllm.runs.folder import check_folder
from hllm.runs.record import new_record
from hllm.runs.save import read_run, trained_llm, write_run
from hllm.runs.settle import settled
from hllm.runs.train import checkpoint_rule, train_network
from hllm.train.trainer import Stopped

if TYPE_CHECKING:
    from hllm.items.embeddings import ItemEmbeddings


class Recommender(Answering):
    """A model with its configuration; after `fit` or `from_pretrained` it recommends.

    >>> from hllm.testing import world
    >>> rec = Recommender.from_preset("sasrec", d_model=16, n_layers=1, epochs=1)
    >>> rec.fit(world(), device="cpu", progress=False).recommend(history=[[10, 15]], k=3).columns
    ['user_id', 'item_id', 'score', 'rank']
    """

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
