"""Fields read apart: embedded, found again, trained on, and made for new items."""

import numpy as np
import polars as pl
import pytest

from hllm.errors import ArtifactError, ConfigError
from hllm.items.embed import embed, load_embeddings
from hllm.items.store.new_items import encode_new_items

OPTIONS = {"device": "cpu", "precision": "fp32", "progress": False}


def test_vectors_of_fields_are_put_together_and_found_again(llama, make_dataset) -> None:
    data = make_dataset()
    title, genres = (embed(data, str(llama), text_fields=[name], **OPTIONS) for name in ("title", "genres"))
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
    from hllm.cli.train import _embeddings
    from hllm.config import Config

    found = _embeddings(data, Config(preset="demo", item_llm="random", fusion="concat"))
    assert found is not None and found.spec["dim"] == 512
