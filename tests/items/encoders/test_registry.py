"""The table of short names."""

import pytest

from hllm.items.config import check_pooling
from hllm.items.encoders.names import canonical
from hllm.items.encoders.registry import BACKBONES, own_prompt


@pytest.mark.parametrize("short", BACKBONES)
def test_every_row_is_whole_and_found_by_each_of_its_names(short) -> None:
    known = BACKBONES[short]
    assert known.hub.count("/") == 1 and known.licence
    assert check_pooling(known.pooling) in ("mean", "last", "cls")
    assert known.dim % 64 == 0 and known.layers >= 6
    # Twelve squared widths a block is what a transformer has, give or take its embeddings and its shape.
    assert 0.5 < known.parameters * 1e6 / (12 * known.layers * known.dim**2) < 7
    assert {canonical(name) for name in (short, known.hub, known.hub.split("/")[1])} == {short}


def test_families_asked_for_are_there() -> None:
    names = " ".join(known.hub.lower() for known in BACKBONES.values())
    families = """smollm2-135m smollm2-360m smollm2-1.7b tinyllama baichuan2-7b-base baichuan2-7b-chat llama-2
        llama-3 qwen2.5 qwen3 qwen3-embedding mistral gemma-2 gemma-3 embeddinggemma phi modernbert bert-base mpnet
        e5 bge gte blair minilm"""
    assert [family for family in families.split() if family not in names] == []


def test_memory_follows_the_precision() -> None:
    assert BACKBONES["baichuan2"].gigabytes("bf16") == pytest.approx(13.982)
    assert BACKBONES["baichuan2"].gigabytes("4bit") == pytest.approx(3.4955)


def test_prompts_of_their_authors() -> None:
    assert own_prompt("e5-small") == "passage: "
    assert own_prompt("org/any") == own_prompt("minilm") == ""
