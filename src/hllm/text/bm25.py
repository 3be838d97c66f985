"""Which sentences of a long text to keep: those that say most about the item against the catalogue.

A sentence is scored as a document of BM25 (Robertson and Zaragoza, 2009) to which the item's whole text is the
query: rare words count more, those that the item repeats more again, and a long sentence has no advantage by its
length. What is kept stays in its order.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hllm.text.template import field_text

if TYPE_CHECKING:
    import polars as pl

K1, B = 1.2, 0.75
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
    long = [i for i, text in enumerate(whole) if len(_words(text)) > limit]
    if not long:
        return items
    idf = inverse_frequencies(whole)
    for i in long:
        name = max(fields, key=lambda field: len(texts[field][i]))
        others = sum(len(_words(texts[field][i])) for field in fields if field != name)
        texts[name][i] = best_sentences(texts[name][i], limit - others, whole[i], idf)
    return items.with_columns(pl.Series(name, values, dtype=pl.String) for name, values in texts.items())


def inverse_frequencies(texts: Sequence[str]) -> dict[str, float]:
    """ln(1 + (n - df + .5) / (df + .5)) of each word of n texts."""
    frequency = Counter(word for text in texts for word in set(_words(text)))
    return {w: math.log(1 + (len(texts) - df + 0.5) / (df + 0.5)) for w, df in frequency.items()}


def best_sentences(text: str, max_words: int, about: str, idf: dict[str, float]) -> str:
    """The sentences of `text` that score highest for the query `about`, at most `max_words` words in all.

    A sentence that does not fit is passed over for one that does. The best is always kept, whole.
    """
    sentences = [part for part in _SENTENCE.split(text) if part and part.strip()]
    words = [_words(sentence) for sentence in sentences]
    if len(sentences) < 2:
        return text
    mean = sum(map(len, words)) / len(words) or 1.0
    query = Counter(_words(about))
    scores = [_score(w, query, idf, mean) for w in words]
    kept: list[int] = []
    left = max_words
    for i in sorted(range(len(sentences)), key=lambda i: (-scores[i], i)):
        if len(words[i]) <= left or not kept:
            kept.append(i)
            left -= len(words[i])
    return " ".join(sentences[i].strip() for i in sorted(kept))


def _score(words: list[str], query: Counter[str], idf: dict[str, float], mean: float) -> float:
    """BM25 of a sentence for a query whose words are weighed by their own saturated count."""
    norm = K1 * (1 - B + B * len(words) / mean)
    return sum(
        idf.get(w, 0.0) * tf * (K1 + 1) / (tf + norm) * query[w] * (K1 + 1) / (query[w] + K1)
        for w, tf in Counter(words).items()
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
