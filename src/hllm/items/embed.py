"""Item embeddings in one call: made by a model, brought in, read, or only reckoned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hllm.arguments import flag, one_of, text
from hllm.engine import check_engine
from hllm.errors import ConfigError
from hllm.items.embeddings import ItemEmbeddings
from hllm.items.encoders.hub import trained_settings
from hllm.items.encoders.kinds import BROUGHT, CONTROLS
from hllm.items.encoders.names import canonical
from hllm.items.encoders.precision import check_precision
from hllm.items.resolve import MAX_TOKENS, Resolved
from hllm.settings import shown
from hllm.text.budget import written_budgets
from hllm.text.template import OFFICIAL

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.items.fused import Fused
    from hllm.items.store.estimate import Estimate

# hllm's own, and those of transformers (named here, since importing it takes seconds).
ATTENTIONS = (
    "packed", "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4",
)  # fmt: skip


def embed(
    dataset: Dataset,
    item_llm: Any = "smollm2-135m",
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
    store: str = "fp32",
    share: bool = False,
    engine: str = "local",
    vectors: Any = None,
    ids: Any = None,
    name: str | None = None,
) -> ItemEmbeddings:
    """Embed the text of every item of `dataset`, encoding only what its store does not hold yet.

    With `vectors` nothing is encoded: they are brought in as they are, matched to the items by `ids`, and called
    vectors:NAME; `stats` then counts the items that are `missing` and the vectors that are `surplus`.

    item_llm      a short name (smollm2-135m, tinyllama, ...), a hub name, a local folder or GGUF file,
                  a run whose item LLM was trained, or a control: "tfidf" (TF-IDF and SVD), "random"; or a model
                  in memory with `encode(list of texts)`, as of sentence-transformers (its vectors are brought in)
    pooling       "mean" over all tokens, "weighted-mean" (weights 1, 2, 3, ...), the "last" or first ("cls") token;
                  "mean@6" of the states after block 6, "mean@last4" of the mean of the last four; "auto": the
                  model's own, with its prompt, dense layers and normalisation (sentence-transformers' modules.json).
                  None: as a run's item LLM was trained, else "mean"
    prompt        None: the run's, else the official one; "" for none
    text_fields   None: the dataset's own, in their order
    precision     "fp32", "bf16", "fp16" or "auto": what this dataset's embeddings of the model already
                  have, else bf16 where the hardware is fast at it
    batch_size    texts of a forward pass. None: packs of 32,768 tokens on a GPU, of 4,096 in bf16 on a CPU, else 64
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
    field_tokens  the most tokens that fields keep, {"description": 64}; estimated where no fast tokenizer counts them
    store         precision in which vectors are kept, "fp32" or "fp16"
    share         whether texts are looked up in, and added to, the cache of all datasets under HLLM_HOME
    engine        "local", or "ray": Ray Data's actors, one a GPU of the cluster, encode batches; the store is the same
    vectors       an array (n, d), a frame with item_id and vectors, a mapping from id to vector, or a file of these
                  (.npy, .npz, .parquet, .safetensors, .pt)
    ids           of the rows of `vectors`, where they do not stand beside them: a list, or a file with one a line
    name          of vectors that are brought in; the file's, or "own", if absent

    Ctrl-C loses at most one batch, a killed process the last second or batch. Raises ConfigError for an
    invalid choice, FetchError if the model is nowhere to be had, DataError if no item has text or a
    vector is not finite, DeviceError for a missing device or too little memory, ArtifactError if another
    process writes the same store or the model cannot be used.
    """
    check_engine(engine, (device,))
    options = text_options(quantize, template, clean, field_tokens, long_text, store)
    of_llms = {"pooling": pooling, "precision": precision, "attn": attn, "revision": revision, "share": share}
    if vectors is not None or not isinstance(item_llm, str):
        from hllm.items.bring import bring_in

        _tell_without_effect(
            "vectors are brought in as they are", **of_llms, fusion=fusion, quantize=quantize, store=store
        )
        return bring_in(
            dataset, item_llm, vectors, ids, name, prompt, text_fields, max_tokens or MAX_TOKENS, options
        )
    if ids is not None or name is not None:
        raise ConfigError("ids and name are of vectors that are brought in; give vectors too (--from FILE)")
    _check_attn(attn)
    wanted = requested(
        dataset, item_llm, pooling, prompt, text_fields, precision, max_tokens, options, fusion
    )
    if item_llm.lower() in CONTROLS:
        _tell_without_effect(
            f"{item_llm} is no language model", **of_llms, prompt=prompt, max_tokens=max_tokens
        )
    return wanted.complete(device, batch_size, progress, trust_remote_code, attn, revision, share, engine)


def _check_attn(attn: str | None) -> None:
    """ConfigError for an attention that neither hllm nor transformers has; a name with a slash is a kernel's."""
    if attn is not None and "/" not in text("attn", attn):
        one_of("attn", attn, ATTENTIONS)


def _tell_without_effect(why: str, **given: Any) -> None:
    """Warn of what is given and not read."""
    defaults = ("auto", "together", "fp32")
    told = [
        f"{name}={shown(value)}"
        for name, value in given.items()
        if not (value is None or value is False or (isinstance(value, str) and value in defaults))
    ]
    if told:
        warnings.warn(f"{why}: {', '.join(told)} without effect", stacklevel=3)


def text_options(
    quantize: str | None,
    template: str,
    clean: bool,
    field_tokens: Mapping[str, int] | None,
    long_text: str,
    store: str,
) -> dict[str, str | None]:
    """Those arguments of `embed` as a `Request` has them."""
    if not isinstance(field_tokens, Mapping | None):
        raise ConfigError(
            f"field_tokens={shown(field_tokens)}: must be a mapping, for example {{'title': 32}}"
        )
    return {
        "quantize": quantize,
        "template": template,
        "clean": "yes" if flag("clean", clean) else "no",
        "field_tokens": written_budgets(field_tokens or {}),
        "long_text": long_text,
        "store": store,
    }


def estimate(
    dataset: Dataset,
    item_llm: str = "smollm2-135m",
    pooling: str | None = None,
    prompt: str | None = None,
    text_fields: Sequence[str] | None = None,
    *,
    precision: str = "auto",
    max_tokens: int | None = None,
    fusion: str = "together",
    quantize: str | None = None,
    template: str = OFFICIAL,
    clean: bool = False,
    field_tokens: Mapping[str, int] | None = None,
    long_text: str = "cut",
    store: str = "fp32",
    **how: Any,
) -> Estimate:
    """What `embed` would cost with the same arguments: nothing is written. `how`: device, batch_size, ..., share.

    Raises what `embed` raises, and ConfigError for fields that are read apart.
    """
    from hllm.items.store.estimate import estimate as measure

    if fusion != "together":
        raise ConfigError("a dry run is of one store; leave fusion out, and name one field")
    _check_attn(how.get("attn"))
    options = text_options(quantize, template, clean, field_tokens, long_text, store)
    wanted = requested(
        dataset, item_llm, pooling, prompt, text_fields, precision, max_tokens, options, fusion
    )
    assert isinstance(wanted, Resolved)
    if wanted.request is None or wanted.request.kind is BROUGHT:
        raise ConfigError(f"a dry run needs a model to encode with, not {item_llm}")
    job = wanted.job(**how, writes=False)
    return measure(job, wanted._store(job.spec))


def requested(
    dataset: Dataset,
    item_llm: str,
    pooling: str | None,
    prompt: str | None,
    text_fields: Sequence[str] | None,
    precision: str,
    max_tokens: int | None,
    options: Mapping[str, str | None],
    fusion: str,
) -> Resolved | Fused:
    """What is asked of `embed`, looked up."""
    from hllm.items.fused import resolve_fields

    text("fusion", fusion)
    if max_tokens is None:
        max_tokens = int(trained_settings(canonical(item_llm)).get("max_tokens", MAX_TOKENS))
    precision = check_precision(precision)
    return resolve_fields(
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
