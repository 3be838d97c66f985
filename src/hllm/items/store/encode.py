"""The loop that completes a store: plan batches, encode what is missing, refuse what is not finite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.errors import DataError
from hllm.items.encoders.controls import RandomEncoder, TfidfEncoder
from hllm.items.store.shards import Shard, Store, locked
from hllm.progress import progress

if TYPE_CHECKING:
    import torch

    from hllm.items.encoders.hub import ModelFolder
    from hllm.items.encoders.text import Encoder
    from hllm.items.store.request import Request


def make_encoder(
    request: Request,
    model: ModelFolder | None,
    precision: str,
    device: torch.device,
    trust_remote_code: bool = False,
) -> Encoder:
    """The encoder of a request; `model` is None for the controls."""
    if model is None:
        return TfidfEncoder() if request.model == "tfidf" else RandomEncoder()
    from hllm.items.encoders.backbones import load_backbone
    from hllm.items.encoders.text import LanguageModelEncoder

    backbone = load_backbone(model.path, precision, device, trust_remote_code, request.model)
    assert request.max_tokens is not None
    return LanguageModelEncoder(backbone, request.pooling, request.prompt, request.max_tokens)


def complete_store(
    folder: Path,
    spec: Mapping[str, Any],
    texts: Mapping[bytes, str],
    load: Callable[[], Encoder],
    batch_size: int,
    name_of: Callable[[bytes], str],
    show: bool = True,
) -> tuple[int, float]:
    """Encode the `texts` (by key) that the store in `folder` lacks; return their number and the seconds.

    `load` makes the encoder, and is not called if nothing is missing. `name_of` names an item for an
    error. Batches are planned from all the texts, so that an interrupted encoding goes on with the
    batches, and to the bits, of an uninterrupted one. Raises DataError at the first vector that is not
    finite; it is not stored, all others up to there are.
    """
    with locked(folder):
        store = Store(folder)
        store.drop_damaged()
        missing = texts.keys() - store.rows.keys()
        start = time.perf_counter()
        if not missing:
            store.write_spec(spec)
        else:
            encoder = load()
            keys = sorted(texts)
            lengths = encoder.prepare([texts[key] for key in keys])
            store.write_spec({**spec, "dim": encoder.dim})
            start = time.perf_counter()  # loading a model is not encoding
            wanted = np.array([key in missing for key in keys])
            with progress(f"embedding with {spec['model']}", len(missing), "items", show) as bar:
                for rows in planned_batches(lengths, wanted, batch_size):
                    vectors = encoder.encode(rows)
                    finite = np.isfinite(vectors).all(1)
                    good = rows[finite]
                    if len(good):
                        store.append(Shard(vectors[finite], [keys[i] for i in good], encoder.truncated[good]))
                    if not finite.all():
                        raise _not_finite(name_of(keys[rows[~finite][0]]), int((~finite).sum()), spec)
                    bar.advance(len(rows))
        seconds = time.perf_counter() - start
        store.compact()
    return len(missing), seconds


def planned_batches(lengths: np.ndarray, wanted: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Rows int64 of each batch, longest texts first, without those that are not `wanted` bool (n,).

    Longest first, so that too little memory shows at once and the estimate of the time left errs on
    the safe side. A batch of which only some texts are missing shrinks to these.
    """
    order = np.argsort(-lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        rows = rows[wanted[rows]]
        if len(rows):
            yield rows


def _not_finite(item: str, count: int, spec: Mapping[str, Any]) -> DataError:
    precision = spec["precision"]
    advice = {
        "fp16": "float16 overflows in some models: use --precision bf16",
        "bf16": "use --precision fp32",
        "fp32": "the weights may be damaged: download the model again, or use another one",
    }[precision]
    more = f" (and {count - 1} more of its batch)" if count > 1 else ""
    return DataError(
        f"{spec['model']} in {precision} gives a vector with NaN or infinity for {item}{more}; {advice}"
    )
