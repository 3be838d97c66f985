"""Item embeddings: encode what is missing, store it, and give every token its row."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm import artifacts, hardware
from hllm.errors import ArtifactError, ConfigError, DataError
from hllm.items.config import is_store_key
from hllm.items.encoders.names import is_local
from hllm.items.encoders.precision import auto_precision, check_precision
from hllm.items.store.encode import complete_store, make_encoder
from hllm.items.store.request import Request, find_spec, make_request, matching_specs
from hllm.items.store.shards import SPEC_FILE, Store, read_index, spec_key, text_key, write_index

if TYPE_CHECKING:
    import torch

    from hllm.data.dataset import Dataset
    from hllm.items.encoders.hub import ModelFolder
    from hllm.items.encoders.text import Encoder


@dataclass(frozen=True)
class ItemEmbeddings:
    """Raw item vectors of one catalogue.

    vectors   float32 (n_catalogue + 1, d), row = token; row 0 and rows without text are zero
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
        """Mean cosine between two different items' vectors: near 1 means that they need centring."""
        rows = self.vectors[self.has_text].astype(np.float64)
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        n = len(unit)
        return float((np.square(unit.sum(0)).sum() - n) / (n * (n - 1))) if n > 1 else 1.0


def embed(
    dataset: Dataset,
    item_llm: str = "smollm2-135m",
    pooling: str = "mean",
    prompt: str | None = None,
    text_fields: Sequence[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    progress: bool = True,
    max_tokens: int = 256,
    trust_remote_code: bool = False,
) -> ItemEmbeddings:
    """Embed the text of every item of `dataset`, encoding only what its store does not hold yet.

    item_llm      a short name (smollm2-135m, tinyllama, ...), a hub name, a local folder or GGUF file,
                  or a control: "tfidf" (TF-IDF and SVD), "random"
    pooling       "mean" over all tokens, or the "last" token
    prompt        None: the official one; "" for none
    text_fields   None: the dataset's own, in their order
    precision     "fp32", "bf16", "fp16" or "auto": what this dataset's embeddings of the model already
                  have, else bf16 where the hardware is fast at it
    max_tokens    longer texts are cut (and counted); tokens of the prompt not included

    An interrupted call loses at most one batch. Raises ConfigError for an invalid choice, FetchError if
    the model is nowhere to be had, DataError if no item has text or a vector is not finite, DeviceError
    for a missing device or too little memory, ArtifactError if another process writes the same store.
    """
    if batch_size < 1 or max_tokens < 1:
        raise ConfigError(f"batch_size={batch_size} and max_tokens={max_tokens} must be at least 1")
    asked = None if check_precision(precision) == "auto" else precision
    names = dataset.meta.get("text_fields", [])
    request = make_request(names, item_llm, pooling, prompt, text_fields, asked, max_tokens)
    start, target = time.perf_counter(), hardware.pick_device(device)
    rendered = request.template.render_all(dataset.items)
    keys = [None if text is None else text_key(text) for text in rendered]
    texts = {text_key(text): text for text in rendered if text is not None}
    if not texts:
        raise DataError(f"none of the {len(keys):,} items has text in the fields {', '.join(request.fields)}")
    spec, model = _specify(dataset, request, texts, target, trust_remote_code)
    folder = dataset.embeddings_dir / spec["key"]

    def load() -> Encoder:
        return make_encoder(request, model, spec["precision"], target, trust_remote_code)

    def name_of(key: bytes) -> str:
        item_id = dataset.item_ids[keys.index(key)]
        return f"item {item_id!r} ({texts[key].removeprefix(request.prompt)[:60]!r})"

    encoded, encode_seconds = complete_store(folder, spec, texts, load, batch_size, name_of, progress)
    write_index(folder, dataset.texts_fingerprint(request.fields), keys)
    result = _read(dataset, spec["key"])
    result.stats.update(
        encoded=encoded,
        reused=len(texts) - encoded,
        encode_seconds=encode_seconds,
        seconds=time.perf_counter() - start,
    )
    if cut := result.stats["truncated"]:
        warnings.warn(f"{cut:,} item texts were cut to max_tokens={max_tokens} tokens", stacklevel=2)
    return result


def _specify(
    dataset: Dataset, request: Request, texts: dict[bytes, str], device: torch.device, trust_remote_code: bool
) -> tuple[dict[str, Any], ModelFolder | None]:
    """The specification to complete, and the model for it (None: a control, or nothing is missing).

    What the dataset already has is continued: the same source, revision and precision, so that a
    rerun encodes nothing and needs no network. A local folder is always hashed, as it may have changed.
    """
    root = dataset.embeddings_dir
    if request.is_control:
        return _new_spec(dataset, request, None, "fp32", device), None
    matching = matching_specs(root, request)
    earlier = matching[0] if len(matching) == 1 else None
    if earlier and not is_local(request.model) and texts.keys() <= Store(root / earlier["key"]).rows.keys():
        return earlier, None
    from hllm.items.encoders.hub import find_model

    source, revision = (earlier["source"], earlier["revision"]) if earlier else (None, None)
    model = find_model(request.model, trust_remote_code, source, revision)
    precision = request.precision or (earlier["precision"] if earlier else auto_precision(device, root))
    return _new_spec(dataset, request, model, precision, device), model


def _new_spec(
    dataset: Dataset, request: Request, model: ModelFolder | None, precision: str, device: torch.device
) -> dict[str, Any]:
    spec = {
        "model": request.model,
        "source": model.source if model else "control",
        "revision": model.revision if model else None,
        "weights": model.weights if model else None,
        "prompt": request.prompt,
        "fields": list(request.fields),
        "pooling": request.pooling,
        "precision": precision,
        "max_tokens": request.max_tokens,
        # The statistics of TF-IDF are those of one catalogue.
        "catalogue": dataset.texts_fingerprint(request.fields) if request.model == "tfidf" else None,
    }
    made_with = {"device": str(device), "versions": hardware.describe_versions()}
    return {"key": spec_key(spec), **spec, "made_with": made_with}


def load_embeddings(
    dataset: Dataset,
    item_llm: str,
    pooling: str = "mean",
    prompt: str | None = None,
    text_fields: Sequence[str] | None = None,
) -> ItemEmbeddings:
    """The embeddings that `embed` made of this dataset's items. Needs neither polars nor transformers.

    `item_llm` may also be a store's key (16 hex digits), which settles what matches more than once.
    Raises ArtifactError, with the command to run, if they are missing, unfinished, damaged or ambiguous.
    """
    if is_store_key(item_llm):
        return _read(dataset, find_spec(dataset, item_llm)["key"])
    names = dataset.meta.get("text_fields", [])
    request = make_request(names, item_llm, pooling, prompt, text_fields, must_exist=False)
    return _read(dataset, find_spec(dataset, request)["key"])


def _read(dataset: Dataset, key: str) -> ItemEmbeddings:
    folder = dataset.embeddings_dir / key
    spec = artifacts.read_json(folder / SPEC_FILE)
    keys = read_index(folder, dataset.texts_fingerprint(spec["fields"]))
    store = Store(folder)
    lost = sum(key is not None and key not in store.rows for key in keys)
    if len(keys) != dataset.n_catalogue or lost:
        damaged = f", {len(store.damaged)} files are damaged" if store.damaged else ""
        raise ArtifactError(
            f"embeddings in {folder} do not cover the dataset's {dataset.n_catalogue:,} items ({lost:,} are "
            f"missing{damaged}); run `hllm embed` again with the same options: it encodes only these"
        )
    has_text = np.array([False, *(key is not None for key in keys)])
    present = [key for key in keys if key is not None]
    vectors = np.zeros((len(keys) + 1, spec["dim"]), dtype=np.float32)
    vectors[has_text] = store.vectors(present)
    stats = {
        "truncated": int(store.truncated(present).sum()),
        "without_text": len(keys) - len(present),
        "folder": str(folder),
    }
    return ItemEmbeddings(vectors, has_text, spec, stats)
