"""Texts longer than what is read: cut as their tokenizer cuts them, most of them without being read twice."""

from types import SimpleNamespace
from typing import Any

import pytest

from hllm.items.encoders import heads
from hllm.items.encoders.heads import tokenise

TEXTS = [f"{'word ' * (i % 9)}{i}" for i in range(60)]


def backbone(tokenizer: Any) -> Any:
    return SimpleNamespace(tokenizer=tokenizer, pad_id=0)


@pytest.mark.parametrize(
    ("template", "limit"), [("$A", 12), ("$A <eos>", 12), ("<pad> $A <eos> <eos>", 12), ("$A <eos>", 1)]
)
def test_cut_as_the_tokenizer_cuts(byte_tokenizer, monkeypatch, template: str, limit: int) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(pad_token="<pad>", eos_token="<eos>")
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<pad>", "<eos>")]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    expected = [
        tokenizer(text, truncation=True, max_length=limit, split_special_tokens=True)["input_ids"]
        for text in TEXTS
    ]
    read: list[int] = []
    plain = heads.token_ids
    monkeypatch.setattr(
        heads, "token_ids", lambda b, texts, **o: read.append(len(texts)) or plain(b, texts, **o)
    )
    found, truncated = tokenise(backbone(tokenizer), TEXTS, limit)
    assert found == expected
    whole = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert truncated.tolist() == [len(ids) > limit for ids in whole]
    assert read == [len(TEXTS), heads.TRIED]


class Backwards:
    """A tokenizer that cuts the beginning of a text."""

    truncation_side = "right"

    def __call__(
        self, texts: list[str], truncation: bool = False, max_length: int = 0, **_: Any
    ) -> dict[str, Any]:
        rows = [[ord(c) for c in text] for text in texts]
        return {"input_ids": [row[-max_length:] if truncation else row for row in rows]}


def test_a_tokenizer_that_cuts_otherwise_is_asked_for_every_text() -> None:
    found, _ = tokenise(backbone(Backwards()), TEXTS, 5)
    assert found == [[ord(c) for c in text][-5:] for text in TEXTS]
