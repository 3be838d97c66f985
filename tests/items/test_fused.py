"""Fields read apart: embedded, found again, trained on, and made for new items."""

import re

import numpy as np
import polars as pl
import pytest

from hllm.config import load_config
from hllm.errors import ArtifactError, ConfigError
from hllm.items.embed import embed, load_embeddings
from hllm.items.store.new_items import encode_new_items

OPTIONS = {"device": "cpu", "precision": "fp32", "progress": False}


def test_vectors_of_fields_are_put_together_and_found_again(llama, make_dataset) -> None:
    data = make_dataset()
    padding = [
        embed(make_dataset(name=name), str(llama), text_fields=[name], attn="eager", batch_size=4, **OPTIONS)
        for name in ("title", "genres")
    ]
    title, genres = (embed(data, str(llama), text_fields=[name], **OPTIONS) for name in ("title", "genres"))
    apart = embed(
        make_dataset(name="apart"), str(llama), fusion="mean", attn="eager", batch_size=4, **OPTIONS
    )
    padded = sum(f.stats["padding"] * f.stats["computed"] for f in padding)
    assert apart.stats["padding"] == pytest.approx(padded / apart.stats["computed"]) and padded > 0
    assert apart.stats["peak_memory"] > 1 << 20
    fused = embed(data, str(llama), fusion="mean:3,1", **OPTIONS)
    assert fused.stats["encoded"] == 0  # the stores of the fields are there
    np.testing.assert_allclose(fused.vectors[1], (3 * title.vectors[1] + genres.vectors[1]) / 4, atol=1e-6)
    np.testing.assert_allclose(fused.vectors[5], title.vectors[5], rtol=1e-6)  # has no genres
    wide = load_embeddings(data, str(llama), fusion="concat")
    assert wide.vectors.shape[1] == wide.spec["dim"] == 64
    assert wide.spec["fields"] == ["title", "genres"]
    assert wide.spec["key"] != fused.spec["key"]
    new = pl.DataFrame({"title": ["Up", "Playtime"], "genres": ["Animation", None]})
    vectors, has_text = encode_new_items(wide.spec, new, "cpu")
    np.testing.assert_allclose(vectors[0], wide.vectors[1], atol=1e-5)
    assert has_text.all() and not vectors[1, 32:].any()


def test_what_is_missing_or_cannot_be_is_told(llama, make_dataset) -> None:
    data = make_dataset()
    with pytest.raises(ArtifactError, match=r"no embeddings of .* run: hllm embed"):
        load_embeddings(data, str(llama), fusion="mean")
    with pytest.raises(ConfigError, match="one positive weight for each of the 2 fields"):
        embed(data, str(llama), fusion="mean:1", **OPTIONS)
    with pytest.raises(ConfigError, match="is the key of one"):
        load_embeddings(data, "0123456789abcdef", fusion="mean")


def test_training_reads_fields_apart(make_dataset, tmp_path) -> None:
    from hllm.cli import main

    data = make_dataset()
    assert (
        main(["embed", str(data.path), "--item-llm", "random", "--fusion", "concat", "--device", "cpu"]) == 0
    )
    from hllm.cli.choices import stored_embeddings
    from hllm.config import Config

    found = stored_embeddings(data, Config(preset="demo", item_llm="random", fusion="concat"))
    assert found is not None and found.spec["dim"] == 512


def test_weights_of_fields_are_learned_saved_and_used_for_new_items(llama, make_dataset, tmp_path) -> None:
    import torch

    from hllm.cli import main
    from hllm.pipeline import Recommender

    titles = [f"Film {i}" for i in range(12)]
    data = make_dataset(titles, [None if i % 3 == 0 else f"kind {i % 4}" for i in range(12)], name="learned")
    embed(data, str(llama), fusion="learned", **OPTIONS)
    rec = Recommender.from_preset(
        "demo", item_llm=str(llama), fusion="learned", epochs=1, d_model=16, whiten_rank=8
    )
    rec.fit(data, device="cpu")
    part = rec.network.source.parts["text"]
    assert part.has_field.shape == (13, 2) and int(part.has_field[:, 1].sum()) == 8
    with torch.no_grad():
        part.field_weights.copy_(torch.tensor([2.0, -1.0]))
    rows = part.rows(torch.arange(13))
    w = torch.tensor([2.0, -1.0]).softmax(0)
    both = part.table.view(13, 2, -1)
    token = int(part.has_field.all(1).nonzero()[0])
    torch.testing.assert_close(rows[token], w[0] * both[token, 0] + w[1] * both[token, 1])
    alone = int((part.has_field[:, 0] & ~part.has_field[:, 1]).nonzero()[0])
    torch.testing.assert_close(rows[alone], both[alone, 0])  # the only field has all the weight
    rec.save_pretrained(tmp_path / "run")
    again = Recommender.from_pretrained(tmp_path / "run")
    kept = again.network.source.parts["text"]
    torch.testing.assert_close(kept.rows(torch.arange(13)), rows)
    again.add_items(pl.DataFrame({"item_id": [99], "title": ["Film 3"], "genres": [None]}))
    torch.testing.assert_close(kept.rows(torch.tensor([13]))[0], kept.table[13].view(2, -1)[0])
    assert (
        main(["embed", str(data.path), "--item-llm", "random", "--fusion", "learned", "--device", "cpu"]) == 0
    )


def test_the_numbers_of_learned_weights_get_gradients() -> None:
    import torch

    from hllm.items.source.fields_table import FieldsTable, fit_fields, has_fields

    torch.manual_seed(0)
    raw = torch.randn(9, 2 * 6)
    raw[0] = raw[3, :6] = 0.0
    has = has_fields(raw, 2)
    whitening = fit_fields(raw, has, torch.ones(9, dtype=torch.bool), "whiten", 4)
    assert whitening.basis.shape == (12, 8) and not whitening.basis[:6, 4:].any()
    table = FieldsTable(whitening.transform(raw, has.any(1)), has, whitening, 5, 7).double()
    tokens = torch.arange(1, 9)
    table.encode(tokens).square().sum().backward()
    analytic = table.field_weights.grad.clone()
    for i in range(2):
        shifted = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                table.field_weights[i] += step
                shifted.append(float(table.encode(tokens).square().sum()))
                table.field_weights[i] -= step
        assert abs((shifted[0] - shifted[1]) / 2e-6 - float(analytic[i])) < 1e-6


def test_vectors_of_several_widths_are_not_added_up(make_dataset) -> None:
    data = make_dataset(
        ["Up"] * 4 + ["Heat", "Ran", "Seven", "Alien", "Brazil"]
    )  # TF-IDF: as wide as it must be
    for how in ("mean", "learned"):
        with pytest.raises(
            ConfigError, match=f"fusion {how}: the fields' vectors have .* dimensions.* concat"
        ):
            embed(data, "tfidf", fusion=how, progress=False)
    assert embed(data, "tfidf", fusion="concat", progress=False).has_text[1:].all()


def test_the_next_command_names_the_stores_that_a_models_name_does_not_tell_apart(
    llama, make_dataset, capsys
) -> None:
    from hllm.cli import main

    data = make_dataset()
    command = ["embed", str(data.path), "--item-llm", str(llama), "--device", "cpu", "--fusion", "mean"]
    assert main(command) == 0
    assert f"--set item_llm={llama} --set fusion=mean" in capsys.readouterr().out
    assert main([*command, "--field-tokens", "title=2"]) == 0
    keys, fusion = re.search(
        r"--set item_llm=(\w+\+\w+) --set fusion=(\w+)", capsys.readouterr().out
    ).groups()
    short = embed(data, str(llama), fusion="mean", field_tokens={"title": 2}, device="cpu", progress=False)
    found = load_embeddings(data, keys, fusion=fusion)
    np.testing.assert_array_equal(found.vectors, short.vectors)
    assert found.spec["key"] == short.spec["key"]
    with pytest.raises(ConfigError, match="names 2 stores; say how: fusion=mean"):
        load_embeddings(data, keys)
    with pytest.raises(ConfigError, match="which say it already"):
        load_config("demo", overrides={"item_llm": keys, "fusion": fusion, "pooling": "last"})
    assert load_config("demo", overrides={"item_llm": keys, "fusion": fusion}).items.item_llm == keys
    # One store, but a second that the name fits: its key, too.
    alone = ["embed", str(data.path), "--item-llm", str(llama), "--device", "cpu"]
    assert main(alone) == 0 and f"--set item_llm={llama}\n" in capsys.readouterr().out
    assert main([*alone, "--max-tokens", "20"]) == 0
    key = re.search(r"--set item_llm=([0-9a-f]{16})\n", capsys.readouterr().out)[1]
    assert load_embeddings(data, key).spec["max_tokens"] == 20
