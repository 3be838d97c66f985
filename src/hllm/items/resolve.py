"""A request for item embeddings, resolved once: what is there is loaded, what is missing is encoded."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm import hardware
from hllm.arguments import flag, text, whole
from hllm.errors import AmbiguousError, ArtifactError, DataError
from hllm.items.config import is_store_key
from hllm.items.embeddings import ItemEmbeddings, of_store
from hllm.items.encoders.hub import ModelFolder, find_model
from hllm.items.encoders.kinds import BROUGHT
from hllm.items.encoders.names import is_local
from hllm.items.encoders.precision import auto_precision
from hllm.items.store.encode import Job, shared_store
from hllm.items.store.request import Request, describe_request, describe_spec, index_fingerprint, make_request
from hllm.items.store.shards import (
    Store,
    index_path,
    list_specs,
    read_index,
    spec_key,
    text_key,
    write_index,
)

if TYPE_CHECKING:
    import torch

    from hllm.data.dataset import Dataset
    from hllm.items.encoders.base import Encoder

Spec = dict[str, Any]
MOST = 5  # stores that a message names
MAX_TOKENS = 256  # of a text, beside the prompt, where nothing else is asked for


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
        share: bool = False,
        engine: str = "local",
    ) -> ItemEmbeddings:
        """Encode what is missing, then read the embeddings; arguments and errors as of `embed`."""
        start = time.perf_counter()
        if self.request is None or self.request.kind is BROUGHT:
            return self._unchanged()
        job = self.job(device, batch_size, trust_remote_code, attn, revision, share)
        job.engine = engine
        store = self._store(job.spec)
        stats = job.run(store, progress)
        write_index(store.folder, self._fingerprint(job.spec), job.keys)
        index = read_index(store.folder, self._fingerprint(job.spec))
        result = of_store(self.dataset, job.spec, store, *index)
        result.stats.update(stats, seconds=time.perf_counter() - start)
        if cut := result.stats["truncated"]:
            limit = job.spec["max_tokens"]
            warnings.warn(
                f"{cut:,} item texts were cut to max_tokens={limit}, or to what the model reads at once",
                stacklevel=3,
            )
        return result

    def _unchanged(self) -> ItemEmbeddings:
        """What is there, where nothing here can make more of it."""
        result = self.load()
        result.stats.update(encoded=0, reused=int(result.has_text.sum()), encode_seconds=0.0, seconds=0.0)
        return result

    def job(
        self,
        device: str = "auto",
        batch_size: int | None = None,
        trust_remote_code: bool = False,
        attn: str | None = None,
        revision: str | None = None,
        share: bool = False,
        writes: bool = True,
    ) -> Job:
        """The texts to encode and how; arguments and errors as of `embed`. Nothing is encoded, or written unless
        it `writes`."""
        if batch_size is not None:
            batch_size = whole("batch_size", batch_size)
        device = hardware.check_device(device)
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
        spec, model = self._specify(request, texts, target, trust_remote_code, revision, writes)
        if model is not None:
            spec = {**spec, "made_with": {**spec["made_with"], "attn": attn}}

        def name_of(key: bytes) -> str:
            item_id = self.dataset.item_ids[keys.index(key)]
            return f"item {item_id!r} ({texts[key].removeprefix(request.prompt)[:60]!r})"

        def load() -> Encoder:
            from hllm.items.encoders import make  # and torch

            return make.make_encoder(spec, model, target, trust_remote_code, attn)

        shared = shared_store(spec) if flag("share", share) and request.kind.is_language_model else None
        remote = partial(_encoder_on, spec, model, trust_remote_code, attn)
        return Job(spec, keys, texts, load, batch_size, name_of, target, shared, remote=remote)

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
        others = "; ".join(describe_spec(s) for s in self.specs[:MOST])
        if len(self.specs) > MOST:
            others += (
                f"; and {len(self.specs) - MOST} more, which hllm embed {self.dataset.path} --list prints"
            )
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
        writes: bool = True,
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
        source, revision = (earlier["source"], earlier["revision"]) if earlier else (None, revision)
        model = find_model(request.model, trust_remote_code, source, revision)
        known = earlier or {}
        request = replace(
            request,
            precision=request.precision
            or known.get("precision")
            or auto_precision(device, self.dataset.embeddings_dir if writes else None),
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
        return index_fingerprint(self.dataset, spec["fields"])


def _encoder_on(
    spec: dict[str, Any], model: ModelFolder | None, trust_remote_code: bool, attn: str | None, device: str
) -> Encoder:
    """The encoder of `spec` on a device of another process."""
    from hllm.items.encoders import make

    return make.make_encoder(spec, model, hardware.pick_device(device), trust_remote_code, attn)
