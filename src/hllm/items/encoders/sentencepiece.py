"""A sentencepiece BPE model (tokenizer.model) as a fast tokenizer, without the sentencepiece library.

The file is a protocol buffer of pieces with scores, and of how text is normalised. Sentencepiece joins
the pair of neighbours whose union has the highest score; ranked by that score, the pairs are the
merges of an ordinary BPE.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import unpack
from typing import Any

from hllm.errors import ArtifactError

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_BPE = 2
_SPACE = "\u2581"


@dataclass(frozen=True)
class Pieces:
    """What a tokenizer.model says: pieces by id, each with its score and kind; normalisation."""

    texts: list[str]
    scores: list[float]
    kinds: list[int]
    charsmap: bytes
    dummy_prefix: bool  # a space is put before the text
    squeeze: bool  # runs of spaces become one, spaces at the ends go


def read_pieces(path: Path) -> Pieces:
    """Parse a tokenizer.model; ArtifactError if it is no sentencepiece BPE model."""
    texts, scores, kinds = [], [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                texts.append(piece[1].decode("utf-8"))
                scores.append(unpack("<f", piece.get(2, b"\0\0\0\0"))[0])
                kinds.append(piece.get(3, _NORMAL))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
        charsmap = bytes(normalizer.get(2, b""))
    except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as err:
        raise ArtifactError(f"{path} is no sentencepiece model: {type(err).__name__}: {err}") from err
    if not texts or trainer.get(3, 1) != _BPE:
        raise ArtifactError(f"{path} is no sentencepiece model of the kind BPE; bring it again")
    return Pieces(texts, scores, kinds, charsmap, bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)))


def bpe_tokenizer(path: Path, **special: Any) -> Any:
    """transformers' PreTrainedTokenizerFast of a tokenizer.model.

    `special` are its special tokens (unk_token, bos_token, ...). No token is added before or after a text.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = read_pieces(path)
    vocab = {text: i for i, text in enumerate(pieces.texts)}
    unknown = next((t for t, kind in zip(pieces.texts, pieces.kinds, strict=True) if kind == _UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(pieces, vocab),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=_BYTE in pieces.kinds,
        )
    )
    steps: list[Any] = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    if pieces.squeeze:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if pieces.dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    parts: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts + [decoders.Strip(" ", 1, 0)] * pieces.dummy_prefix)
    # Pieces of the user's are found before all joining; those of spaces alone are joined first as it is.
    own = [t for t, k in zip(pieces.texts, pieces.kinds, strict=True) if k == _USER]
    whole = [text for text in own if _SPACE not in text and " " not in text]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in whole])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def _merges(pieces: Pieces, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs in the order in which sentencepiece joins them: by the score of what they become."""
    joinable = [i for i, kind in enumerate(pieces.kinds) if kind in (_NORMAL, _USER)]
    allowed = {pieces.texts[i] for i in joinable}
    merges = []
    for i in sorted(joinable, key=lambda i: -pieces.scores[i]):
        text = pieces.texts[i]
        splits = [(text[:k], text[k:]) for k in range(1, len(text))]
        pairs = [pair for pair in splits if pair[0] in allowed and pair[1] in allowed]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return merges


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protocol buffer: int for a varint, bytes for everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("the file ends in the middle of a field")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
