"""Which sentences of a long text to keep: those that say most about the item against the catalogue.

Every word of an item has a BM25 weight (Robertson and Zaragoza, 2009; by bm25s; Lu, 2024), with the catalogue's texts
as documents: rare words weigh more, those that the item repeats more again. A sentence is worth the mean weight of its
words, since room is counted in words too. What is kept stays in its order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hllm.text.template import field_text

if TYPE_CHECKING:
    import polars as pl

WORDS_PER_TOKEN = 0.7  # of English in the vocabularies of today; a text that is still too long is cut
_HAN = "\u3040-\u30ff\u3400-\u9fff"  # Chinese and Japanese, where every character counts as a word
_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")


def shorten(items: pl.DataFrame, fields: Sequence[str], max_tokens: int) -> pl.DataFrame:
    """`items` whose texts fit `max_tokens`, by leaving sentences out of the longest of the `fields` that are there.

    Token counts are estimated from words, so that no tokenizer decides what is read.
    """
    import polars as pl

    fields = [name for name in fields if name in items.columns]
    texts = {name: [field_text(value) for value in items[name].to_list()] for name in fields}
    whole = [" ".join(parts) for parts in zip(*texts.values(), strict=True)]
    limit = int(max_tokens * WORDS_PER_TOKEN)
    words = [_words(text) for text in whole]
    long = [i for i, found in enumerate(words) if len(found) > limit]
    if not long:
        return items
    weights = word_weights(words, long)
    for i, of_words in zip(long, weights, strict=True):
        name = max(fields, key=lambda field: len(texts[field][i]))
        others = sum(len(_words(texts[field][i])) for field in fields if field != name)
        texts[name][i] = best_sentences(texts[name][i], limit - others, of_words)
    return items.with_columns(pl.Series(name, values, dtype=pl.String) for name, values in texts.items())


def word_weights(words: Sequence[list[str]], rows: Sequence[int]) -> list[dict[str, float]]:
    """The BM25 weight of each word of the texts `rows`, among all texts, each given as its `words`."""
    import bm25s  # looks for numba, JAX and scipy, where these are installed

    index = bm25s.BM25()  # Lucene's form, k1 = 1.5, b = .75
    index.index(list(words), create_empty_token=False, show_progress=False)
    # A sparse matrix by word; wanted are rows of it.
    texts, starts = index.scores["indices"], index.scores["indptr"]
    order = np.argsort(texts, kind="stable")
    edges = np.searchsorted(texts[order], np.arange(len(words) + 1))
    of_entry = np.repeat(np.arange(len(starts) - 1), np.diff(starts))[order]
    values, names = index.scores["data"][order], sorted(index.vocab_dict, key=index.vocab_dict.__getitem__)
    return [
        {
            names[word]: float(values[at])
            for at, word in enumerate(of_entry[edges[i] : edges[i + 1]], edges[i])
        }
        for i in rows
    ]


def best_sentences(text: str, max_words: int, weights: Mapping[str, float]) -> str:
    """The sentences of `text` whose words have the highest mean of `weights`, at most `max_words` words in all.

    A sentence that does not fit is passed over for one that does. The best is always kept, whole.
    """
    sentences = [part for part in _SENTENCE.split(text) if part and part.strip()]
    if len(sentences) < 2:
        return text
    words = [_words(sentence) for sentence in sentences]
    scores = [sum(weights.get(w, 0.0) for w in some) / max(len(some), 1) for some in words]
    kept: list[int] = []
    left = max_words
    for i in sorted(range(len(sentences)), key=lambda i: (-scores[i], i)):
        if len(words[i]) <= left or not kept:
            kept.append(i)
            left -= len(words[i])
    return " ".join(sentences[i].strip() for i in sorted(kept))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
