"""Stores listed, verified, pruned, shared and estimated."""

import re

import numpy as np
import pytest

from hllm.cli import main
from hllm.errors import ConfigError
from hllm.items.embed import embed, estimate, load_embeddings
from hllm.items.store import mapped
from hllm.items.store.shards import Store

LLM = {"device": "cpu", "precision": "fp32", "progress": False}


def out_of(capsys, *arguments, code=0):
    assert main(["embed", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.out + captured.err


def test_stores_are_listed_verified_and_pruned(llama, make_dataset, capsys) -> None:
    data = make_dataset()
    assert "no embeddings yet" in out_of(capsys, data.path, "--list")
    made = embed(data, str(llama), **LLM)
    embed(data, vectors=np.eye(9, 3), ids=list(range(1, 10)), name="ones")
    listed = out_of(capsys, data.path, "--list")
    assert re.search(
        rf"{made.spec['key']}  32 dimensions, 0.0 MiB, .*tiny-llama, fields title,genres", listed
    )
    assert "vectors:ones, fp32, from numpy ndarray" in listed
    verified = out_of(capsys, data.path, "--verify")
    assert verified.count(": sound") == 2 and "8 vectors" in verified and "(0 of 8 that" in verified
    # An edited catalogue needs other texts: the old ones are of no use, the rest stays.
    changed = make_dataset(["Se7en", *["Up"] * 8], [None] * 9)
    with pytest.raises(Exception, match="not finished"):
        load_embeddings(changed, str(llama))
    assert "not finished" in out_of(capsys, changed.path, "--list")
    embed(changed, str(llama), **LLM)
    folder = data.embeddings_dir / made.spec["key"]
    assert len(Store(folder).keys()) == 10 and len(list(folder.glob("index-*"))) == 2
    (folder / ".shard-000009.safetensors.1.tmp").write_bytes(b"left")
    (data.embeddings_dir / "0123456789abcdef").mkdir()
    (data.embeddings_dir / "0123456789abcdef" / "spec.json").write_text("{}")
    assert "spec.json is missing" in out_of(capsys, changed.path, "--verify", code=2)
    pruned = out_of(capsys, changed.path, "--prune")
    assert "0123456789abcdef  0.0 MiB freed, which was of no use and is gone" in pruned
    assert len(Store(folder).keys()) == 2 and len(list(folder.glob("index-*"))) == 1
    assert not list(folder.glob(".*.tmp"))
    assert embed(changed, str(llama), **LLM).stats["encoded"] == 0
    assert out_of(capsys, changed.path, "--verify").count(": sound") == 2


@pytest.mark.parametrize("large", [False, True])
def test_damage_is_found_pruned_and_encoded_again(llama, make_dataset, capsys, monkeypatch, large) -> None:
    if large:
        monkeypatch.setattr(mapped, "WHOLE", 0)
    data = make_dataset()
    made = embed(data, str(llama), **LLM)
    (shard,) = (data.embeddings_dir / made.spec["key"]).glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[content.index(made.vectors[2].tobytes())] ^= 1
    shard.write_bytes(content)
    told = out_of(capsys, data.path, "--verify", code=2)
    assert "shard-000000.safetensors" in told and "(8 of 8 that the items need are missing)" in told
    assert f"hllm embed {data.path} --prune" in told
    out_of(capsys, data.path, "--prune")
    again = embed(data, str(llama), **LLM)
    assert again.stats["encoded"] == 8
    np.testing.assert_array_equal(again.vectors, made.vectors)


def test_a_damaged_index_is_pruned_alone(llama, make_dataset, capsys) -> None:
    data = make_dataset()
    made = embed(data, str(llama), **LLM)
    (index,) = (data.embeddings_dir / made.spec["key"]).glob("index-*")
    index.write_bytes(b"no index")
    assert "index-" in out_of(capsys, data.path, "--verify", code=2)
    out_of(capsys, data.path, "--prune")
    assert not index.exists() and ": sound" in out_of(capsys, data.path, "--verify")
    assert embed(data, str(llama), **LLM).stats["encoded"] == 0


def test_a_shared_cache_gives_texts_to_every_dataset(llama, make_dataset, capsys) -> None:
    one = make_dataset(["Up", "Heat", "Ran"], [None] * 3, name="one")
    two = make_dataset(["Ran", "Alien"], [None] * 2, name="two")
    first = embed(one, str(llama), share=True, **LLM)
    assert (first.stats["encoded"], first.stats["from_shared"]) == (3, 0)
    alone = embed(two, str(llama), **LLM)
    assert alone.stats["encoded"] == 2  # only by option
    three = make_dataset(["Ran", "Alien", "Up"], [None] * 3, name="three")
    second = embed(three, str(llama), share=True, **LLM)
    assert (second.stats["encoded"], second.stats["from_shared"]) == (1, 2)
    np.testing.assert_array_equal(second.vectors[1], first.vectors[3])
    assert embed(three, str(llama), share=True, pooling="last", **LLM).stats["encoded"] == 3
    # A text is a text, whatever column it came from.
    by = make_dataset(["x", "y"], ["title: Ran", "title: Up"], name="columns")
    options = {"template": "{genres}", **LLM}
    assert embed(by, str(llama), share=True, prompt=first.spec["prompt"], **options).stats["from_shared"] == 2
    # But where fields are cut, what is read of a text depends on where they stand.
    ends = make_dataset(["Ran " * 20], ["war " * 20], name="ends")
    with pytest.warns(UserWarning, match="cut"):
        end = embed(ends, str(llama), share=True, max_tokens=40, **LLM)
        head = embed(ends, str(llama), share=True, max_tokens=40, long_text="heads", **LLM)
        few = embed(ends, str(llama), share=True, max_tokens=40, field_tokens={"title": 5}, **LLM)
    assert [made.stats["from_shared"] for made in (end, head, few)] == [0, 0, 0]
    assert len({made.vectors[1].tobytes() for made in (end, head, few)}) == 3
    out = out_of(capsys, two.path, "--item-llm", llama, "--device", "cpu", "--precision", "fp32", "--share")
    assert "0 encoded, 2 reused" in out


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(llama, make_dataset, capsys) -> None:
    data = make_dataset()
    found = estimate(data, str(llama), device="cpu")
    assert (found.texts, found.encoded) == (8, 0) and found.seconds > 0 and found.peak_memory > 1 << 20
    assert not data.embeddings_dir.exists()
    made = embed(data, str(llama), **LLM)
    assert found.tokens == made.stats["tokens"] and found.store == 8 * (32 * 4 + 17)
    assert estimate(data, str(llama), device="cpu").encoded == 8
    told = out_of(capsys, data.path, "--item-llm", llama, "--pooling", "last", "--dry-run", "--device", "cpu")
    assert re.search(
        r"dry run, nothing written: 8 texts, 0 there already, 8 to encode\n[\d,]+ tokens to read", told
    )
    assert re.search(r"about .* s at .* tokens/s .*peak memory so far .* GiB; 0\.0 MiB on the disk", told)
    assert len(list(data.embeddings_dir.iterdir())) == len({made.spec["key"]})
    with pytest.raises(ConfigError, match="of one store"):
        estimate(data, str(llama), fusion="mean")
    with pytest.raises(ConfigError, match="needs a model"):
        estimate(data, "vectors:mine")


def test_what_was_done_is_printed(llama, make_dataset, capsys) -> None:
    data = make_dataset()
    out = out_of(
        capsys, data.path, "--item-llm", llama, "--device", "cpu", "--precision", "fp32", "--store", "fp16"
    )
    assert re.search(
        r"[\d,]+ tokens read, .* tokens/s; [\d,]+ computed, \d+\.\d% padding; peak memory \d\.\d\d GiB", out
    )
    half = load_embeddings(data, str(llama))
    assert half.spec["store"] == "fp16"
    full = embed(make_dataset(name="full"), str(llama), **LLM)
    np.testing.assert_array_equal(half.vectors, full.vectors.astype(np.float16).astype(np.float32))
