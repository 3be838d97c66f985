"""Item embeddings: a request is resolved once, then what is missing is encoded, or what is there is read."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm import hardware
from hllm.arguments import flag, text, whole
from hllm.errors import AmbiguousError, ArtifactError, DataError
from hllm.items.config import is_store_key
from hllm.items.encoders.hub import trained_settings
from hllm.items.encoders.kinds import make_encoder
from hllm.items.encoders.names import canonical, is_local
from hllm.items.encoders.precision import auto_precision, check_precision
from hllm.items.store.encode import complete_store
from hllm.items.store.mapped import StoredVectors
from hllm.items.store.request import Request, describe_request, describe_spec, make_request
from hllm.items.store.shards import (
    Store,
    index_path,
    list_specs,
    read_index,
    read_spec,
    spec_key,
    text_key,
    write_index,
)
from hllm.text.budget import written_budgets
from hllm.text.template import OFFICIAL

if TYPE_CHECKING:
    import torch

    from hllm.data.dataset import Dataset
    from hllm.items.encoders.hub import ModelFolder

Spec = dict[str, Any]
RESIDENT = 2 << 30  # bytes of vectors that are read into memory at once
SAMPLED = 1_000_000
MAX_TOKENS = 256  # of a text, beside the prompt, where nothing else is asked for


@dataclass(frozen=True)
class ItemEmbeddings:
    """Raw item vectors of one catalogue.

    vectors   float32 (n_catalogue + 1, d), row = token; row 0 and rows without text are zero. More than 2 GiB
              are a `StoredVectors`, which reads from the store what is indexed
    has_text  bool (n_catalogue + 1,)
    spec      model, source, revision, weights, prompt, fields, pooling, precision, max_tokens, dim, key
    stats     of the call that made them: `encoded`, `reused` (distinct texts), `truncated`,
              `without_text` (items), `encode_seconds` (without loading the model), `seconds`, `folder`
    """

    vectors: np.ndarray
    has_text: np.ndarray
    spec: dict[str, Any]
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def mean_cosine(self) -> float:
        """Mean cosine between two different items' vectors: near 1 means that they need centring.

        Of more than a million items an even sample counts.
        """
        total, place = np.zeros(self.vectors.shape[1]), np.flatnonzero(self.has_text)
        place = place[np.linspace(0, len(place) - 1, min(len(place), SAMPLED)).astype(int)]
        for some in np.array_split(place, -(-len(place) // 65_536) or 1):
            rows = self.vectors[some].astype(np.float64)
            total += (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)).sum(0)
        n = len(place)
        return float((np.square(total).sum() - n) / (n * (n - 1))) if n > 1 else 1.0


def embed(
    dataset: Dataset,
    item_llm: str = "smollm2-135m",
    pooling: str | None = None,
    prompt: str | None = None,
    text_fields: Sequence[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    progress: bool = True,
    max_tokens: int | None = None,
    trust_remote_code: bool = False,
    quantize: str | None = None,
    attn: str | None = None,
    revision: str | None = None,
    long_text: str = "cut",
    fusion: str = "together",
    template: str = OFFICIAL,
    clean: bool = False,
    field_tokens: Mapping[str, int] | None = None,
) -> ItemEmbeddings:
    """Embed the text of every item of `dataset`, encoding only what its store does not hold yet.

    item_llm      a short name (smollm2-135m, tinyllama, ...), a hub name, a local folder or GGUF file,
                  a run whose item LLM was trained, or a control: "tfidf" (TF-IDF and SVD), "random"
    pooling       "mean" over all tokens, "weighted-mean" (weights 1, 2, 3, ...), the "last" or first ("cls") token;
                  "mean@6" of the states after block 6, "mean@last4" of the mean of the last four; "auto": the
                  model's own, with its prompt, dense layers and normalisation (sentence-transformers' modules.json).
                  None: as a run's item LLM was trained, else "mean"
    prompt        None: the run's, else the official one; "" for none
    text_fields   None: the dataset's own, in their order
    precision     "fp32", "bf16", "fp16" or "auto": what this dataset's embeddings of the model already
                  have, else bf16 where the hardware is fast at it
    batch_size    texts of a forward pass. None: 64, or packs of 16,384 tokens on a GPU
    max_tokens    longer texts are cut (and counted); tokens of the prompt not included. None: the run's, or 256
    quantize      "8bit" or "4bit" weights (bitsandbytes), "none"; None: as what is there already, else "none"
    attn          "packed" (without padding), or an attention of transformers ("sdpa", "eager", ...); None: the
                  fastest. Changes rounding alone
    revision      branch, tag or commit on the hub; the commit is recorded
    long_text     what is kept of a text over max_tokens: its start ("cut"), the start of every field ("heads"), or of
                  its longest field the sentences that say most about the item ("bm25"; see `hllm.text.bm25`)
    fusion        fields read in one text ("together"), or each in its own and their vectors averaged ("mean", with
                  weights "mean:3,1", or "learned" ones) or laid side by side ("concat")
    template      how fields are laid out: "official" ("title: Up"), "natural" ("Title: Up."), or a format string over
                  the columns, "{title} by {director}"
    clean         whether fields lose markup, stray white space and the like (see `hllm.text.clean`)
    field_tokens  the most tokens that fields keep, {"description": 64}; about, as no tokenizer decides it

    Ctrl-C loses at most one batch, a killed process the last few seconds. Raises ConfigError for an
    invalid choice, FetchError if the model is nowhere to be had, DataError if no item has text or a
    vector is not finite, DeviceError for a missing device or too little memory, ArtifactError if another
    process writes the same store or the model cannot be used.
    """
    if max_tokens is None:
        max_tokens = int(trained_settings(canonical(item_llm)).get("max_tokens", MAX_TOKENS))
    precision = check_precision(precision)
    options = {
        "quantize": quantize,
        "template": template,
        "clean": "yes" if flag("clean", clean) else "no",
        "field_tokens": written_budgets(field_tokens or {}),
        "long_text": long_text,
    }
    from hllm.items.fused import resolve_fields

    wanted = resolve_fields(
        dataset,
        fusion,
        item_llm,
        pooling,
        prompt,
        text_fields,
        precision=None if precision == "auto" else precision,
        max_tokens=max_tokens,
        must_exist=True,
        options=options,
    )
    return wanted.complete(device, batch_size, progress, trust_remote_code, attn, revision)


def load_embeddings(
    dataset: Dataset,
    item_llm: str,
    pooling: str = "mean",
    prompt: str | None = None,
    text_fields: Sequence[str] | None = None,
    fusion: str = "together",
) -> ItemEmbeddings:
    """The embeddings that `embed` made of this dataset's items. Needs neither polars nor transformers.

    `item_llm` may also be a store's key (16 hex digits), which settles what matches more than once.
    Raises ArtifactError, with the command to run, if they are missing, unfinished, damaged or ambiguous.
    """
    from hllm.items.fused import resolve_fields

    return resolve_fields(dataset, fusion, item_llm, pooling, prompt, text_fields).load()


def resolve(
    dataset: Dataset,
    item_llm: str,
    pooling: str | None = "mean",
    prompt: str | None = None,
    text_fields: Iterable[str] | None = None,
    precision: str | None = None,
    max_tokens: int | None = None,
    must_exist: bool = False,
    options: Mapping[str, str | None] | None = None,
) -> Resolved:
    """What is asked for, and what of it is in the dataset's stores; see `embed` for the arguments.

    Raises ConfigError for an invalid choice; a local model folder may be gone unless it `must_exist`.
    """
    specs = list_specs(dataset.embeddings_dir)
    text("item_llm", item_llm)
    if is_store_key(item_llm):
        found = [spec for spec in specs if spec["key"] == item_llm]
        request = Request.of(found[0]) if found else None
        return Resolved(dataset, request, found, specs, f"store {item_llm}")
    if max_tokens is not None:
        max_tokens = whole("max_tokens", max_tokens)
    names = dataset.meta.get("text_fields", [])
    request = make_request(
        names, item_llm, pooling, prompt, text_fields, precision, max_tokens, must_exist, options
    )
    found = [spec for spec in specs if request.matches(spec)]
    return Resolved(dataset, request, found, specs, describe_request(request))


@dataclass
class Resolved:
    """One request on one dataset, looked up once: `load` what is there, or `complete` it.

    `found` are the specifications, among all `specs` of the dataset's stores, that answer the request.
    """

    dataset: Dataset
    request: Request | None  # None: a store's key that is not there
    found: list[Spec]
    specs: list[Spec]
    what: str
    stores: dict[str, Store] = field(default_factory=dict)  # opened so far; each shard is read once

    def load(self) -> ItemEmbeddings:
        """Read the embeddings; errors as of `load_embeddings`."""
        spec = self._finished()
        store = self._store(spec)
        keys, has_text = read_index(store.folder, self._fingerprint(spec))
        return of_store(self.dataset, spec, store, keys, has_text)

    def complete(
        self,
        device: str = "auto",
        batch_size: int | None = None,
        progress: bool = True,
        trust_remote_code: bool = False,
        attn: str | None = None,
        revision: str | None = None,
    ) -> ItemEmbeddings:
        """Encode what is missing, then read the embeddings; arguments and errors as of `embed`."""
        if batch_size is not None:
            batch_size = whole("batch_size", batch_size)
        start, device = time.perf_counter(), hardware.check_device(device)
        if self.request is None:
            self._finished()  # raises: what to run cannot be told from a key
        request = self.request
        assert request is not None
        earlier = self.found[0] if len(self.found) == 1 else {}
        request = replace(
            request,
            max_tokens=earlier.get("max_tokens", MAX_TOKENS)
            if request.max_tokens is None
            else request.max_tokens,
            options=request.choices(earlier),
        )
        rendered = request.render(self.dataset.items)
        keys = [None if text is None else text_key(text) for text in rendered]
        texts = {key: text for key, text in zip(keys, rendered, strict=True) if key and text is not None}
        if not texts:
            raise DataError(
                f"none of the {len(keys):,} items has text in the fields {', '.join(request.fields)}"
            )
        target = hardware.pick_device(device)  # after what is told without torch
        spec, model = self._specify(request, texts, target, trust_remote_code, revision)
        if model is not None:
            spec = {**spec, "made_with": {**spec["made_with"], "attn": attn}}
        store = self._store(spec)

        def name_of(key: bytes) -> str:
            item_id = self.dataset.item_ids[keys.index(key)]
            return f"item {item_id!r} ({texts[key].removeprefix(request.prompt)[:60]!r})"

        encoded, encode_seconds = complete_store(
            store,
            spec,
            texts,
            lambda: make_encoder(spec, model, target, trust_remote_code, attn),
            batch_size,
            name_of,
            progress,
        )
        write_index(store.folder, self._fingerprint(spec), keys)
        result = of_store(self.dataset, spec, store, *read_index(store.folder, self._fingerprint(spec)))
        result.stats.update(
            encoded=encoded,
            reused=len(texts) - encoded,
            encode_seconds=encode_seconds,
            seconds=time.perf_counter() - start,
        )
        if cut := result.stats["truncated"]:
            warnings.warn(
                f"{cut:,} item texts were cut to max_tokens={spec['max_tokens']}, or to what the model reads at once",
                stacklevel=3,
            )
        return result

    def _finished(self) -> Spec:
        """Specification of the one finished store that answers the request."""
        done = [s for s in self.found if index_path(self._folder(s), self._fingerprint(s)).is_file()]
        if len(done) == 1:
            return done[0]
        if done:
            listed = "; ".join(f"{s['key']} ({describe_spec(s)})" for s in done)
            raise AmbiguousError(
                f"{len(done)} sets of embeddings match {self.what}: {listed}. Choose one by its key, for "
                f"example item_llm={done[0]['key']} (--set item_llm={done[0]['key']}), or delete the others' "
                f"folders in {self.dataset.embeddings_dir}"
            )
        command = self.request.command(self.dataset.path) if self.request else "hllm embed"
        if self.found:
            raise ArtifactError(f"embeddings of {self.what} are not finished for these items; run: {command}")
        others = "; ".join(describe_spec(s) for s in self.specs)
        raise ArtifactError(
            f"no embeddings of {self.what}"
            + (f" (there are: {others})" if others else "")
            + f"; run: {command}"
        )

    def _specify(
        self,
        request: Request,
        texts: dict[bytes, str],
        device: torch.device,
        trust_remote_code: bool,
        revision: str | None = None,
    ) -> tuple[Spec, ModelFolder | None]:
        """The specification to complete, and the model for it (None: a control, or nothing is missing).

        What the dataset already has is continued: the same source, revision and precision, so that a
        rerun encodes nothing and needs no network. A local folder is always hashed, as it may have changed.
        """
        if not request.kind.is_language_model:
            return self._new_spec(request, None, device), None
        earlier = self.found[0] if len(self.found) == 1 else None
        if revision is not None and earlier and not str(earlier["revision"]).startswith(revision):
            earlier = None
        if earlier and not is_local(request.model) and not (self._store(earlier).find(list(texts)) < 0).any():
            return earlier, None
        from hllm.items.encoders.hub import find_model

        source, revision = (earlier["source"], earlier["revision"]) if earlier else (None, revision)
        model = find_model(request.model, trust_remote_code, source, revision)
        known = earlier or {}
        request = replace(
            request,
            precision=request.precision
            or known.get("precision")
            or auto_precision(device, self.dataset.embeddings_dir),
        )
        return self._new_spec(request, model, device), model

    def _new_spec(self, request: Request, model: ModelFolder | None, device: torch.device) -> Spec:
        fingerprint = self.dataset.texts_fingerprint(request.fields)
        spec = {
            "model": request.model,
            "source": model.source if model else "control",
            "revision": model.revision if model else None,
            "weights": model.weights if model else None,
            "prompt": request.prompt,
            "fields": list(request.fields),
            "pooling": request.pooling,
            "precision": request.precision,
            "max_tokens": request.max_tokens,
            "catalogue": fingerprint if request.kind.of_catalogue else None,
            **request.choices({}),
            **request.trained,
        }
        if model and request.pooling == "auto":
            from hllm.items.encoders.own import own_digest

            spec["own"] = own_digest(model.path, request.model)
        made_with = {"device": str(device), "versions": hardware.describe_versions()}
        return {"key": spec_key(spec), **spec, "made_with": made_with}

    def _folder(self, spec: Spec) -> Path:
        return self.dataset.embeddings_dir / str(spec["key"])

    def _store(self, spec: Spec) -> Store:
        key = spec["key"]
        if key not in self.stores:
            self.stores[key] = Store(self._folder(spec))
        return self.stores[key]

    def _fingerprint(self, spec: Spec) -> str:
        return self.dataset.texts_fingerprint(spec["fields"])


def of_store(
    dataset: Dataset, spec: Spec, store: Store, keys: np.ndarray, has_text: np.ndarray
) -> ItemEmbeddings:
    """The vectors of a catalogue whose token i + 1 has the text with key `keys[i]`, if it has one.

    keys uint8 (n, 16); has_text bool (n,)
    """
    places = np.full(len(keys) + 1, -1, dtype=np.int64)  # row = token
    has_text = np.concatenate(([False], has_text))
    places[has_text] = store.find(keys[has_text[1:]])
    lost = int((places[has_text] < 0).sum())
    if len(keys) != dataset.n_catalogue or lost:
        damaged = f", {len(store.damaged)} files are damaged" if store.damaged else ""
        raise ArtifactError(
            f"embeddings in {store.folder} do not cover the dataset's {dataset.n_catalogue:,} items ({lost:,} "
            f"are missing{damaged}); run `hllm embed` again with the same options: it encodes only these"
        )
    spec = {**(read_spec(store.folder) or spec), "dim": store.dim}
    stored = StoredVectors(store.read, places, store.dim or 0)
    vectors: Any = stored if 4 * stored.size > RESIDENT else stored[:]
    stats = {
        "truncated": int(store.truncated(places[has_text]).sum()),
        "without_text": int((~has_text[1:]).sum()),
        "folder": str(store.folder),
    }
    return ItemEmbeddings(vectors, has_text, spec, stats)
