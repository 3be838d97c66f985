"""Each option of texts: it changes what is read, is part of the vectors' identity, and holds for new items too."""

import numpy as np
import polars as pl
import pytest
from transformers import ByT5Tokenizer

from hllm.cli import main
from hllm.errors import ConfigError
from hllm.items.embed import embed, load_embeddings
from hllm.items.store.new_items import encode_new_items
from hllm.items.store.request import Request
from hllm.text.budget import head

LLM = {"device": "cpu", "precision": "fp32", "progress": False}
LONG = " ".join(f"word{i}" for i in range(60))
OPTIONS = [
    ({"template": "natural"}, "Title: <b>Up</b> now. Genres: Drama."),
    ({"template": "{genres}: {title}"}, "Drama: <b>Up</b> now"),
    ({"clean": True}, "title: Up nowgenres: Drama"),
]


@pytest.mark.parametrize(("options", "text"), OPTIONS)
def test_options_of_texts(llama, make_dataset, options, text) -> None:
    data = make_dataset(["<b>Up</b> now", LONG], ["Drama", "Noir"])
    plain = embed(data, str(llama), prompt="", **LLM)
    made = embed(data, str(llama), prompt="", **options, **LLM)
    assert Request.of(made.spec).render(data.items)[0] == text
    assert made.spec["key"] != plain.spec["key"]
    assert embed(data, str(llama), prompt="", **options, **LLM).stats["encoded"] == 0
    assert embed(data, str(llama), prompt="", **LLM).spec["key"] == plain.spec["key"]
    new, _ = encode_new_items(
        made.spec, pl.DataFrame({"title": ["<b>Up</b> now"], "genres": ["Drama"]}), "cpu"
    )
    np.testing.assert_allclose(new[0], made.vectors[1], atol=1e-5)
    found = load_embeddings(data, made.spec["key"])
    np.testing.assert_array_equal(found.vectors, made.vectors)


@pytest.mark.parametrize("fast", [True, False])
def test_the_head_of_every_field_is_kept(tmp_path, save_model, make_dataset, fast) -> None:
    folder = save_model(tmp_path / "model", "llama" if fast else "t5")
    if not fast:  # ByT5's tokenizer has no fast form, so it does not say where its tokens stand
        for path in folder.glob("tokenizer*"):
            path.unlink()
        ByT5Tokenizer().save_pretrained(folder)
    data = make_dataset([LONG, LONG, "Up"], ["Drama", "Noir", "War"])
    with pytest.warns(UserWarning, match="2 item texts were cut"):
        cut = embed(data, str(folder), max_tokens=100, prompt="", **LLM)
    np.testing.assert_array_equal(cut.vectors[1], cut.vectors[2])  # the genres are gone
    with pytest.warns(UserWarning, match="2 item texts were cut"):
        heads = embed(data, str(folder), max_tokens=100, prompt="", long_text="heads", **LLM)
    assert not np.allclose(heads.vectors[1], heads.vectors[2])
    np.testing.assert_allclose(heads.vectors[3], cut.vectors[3], atol=1e-5)  # fits as it is
    if fast:  # a token a letter: both genres are whole, and the title has the rest
        short = LONG[: 101 - len("title: genres: Drama")]  # 100, and one for the start of a text
        short = f"title: {short}genres: Drama"
        expected = embed(
            make_dataset([short], [None], name="short"), str(folder), prompt="", template="{title}", **LLM
        )
        np.testing.assert_allclose(heads.vectors[1], expected.vectors[1], atol=1e-5)


def test_budgets_of_fields_are_exact(llama, make_dataset) -> None:
    data = make_dataset([LONG, "Up"], ["Drama", "War"])
    options = {"prompt": "", **LLM}
    with pytest.warns(UserWarning, match="1 item texts were cut"):
        made = embed(data, str(llama), field_tokens={"title": 7, "genres": 3}, **options)
    short = make_dataset([LONG[:7], "Up"], ["Dra", "War"], name="short")
    np.testing.assert_allclose(made.vectors, embed(short, str(llama), **options).vectors, atol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_a_field_keeps_its_budget_where_the_rest_is_still_too_long(
    tmp_path, save_model, make_dataset, fast
) -> None:
    folder = save_model(tmp_path / "model", "llama" if fast else "t5")
    if not fast:
        for path in folder.glob("tokenizer*"):
            path.unlink()
        ByT5Tokenizer().save_pretrained(folder)
    options = {"prompt": "", "max_tokens": 60, **LLM}
    with pytest.warns(UserWarning, match="were cut"):
        made = embed(make_dataset([LONG], [LONG]), str(folder), field_tokens={"title": 5}, **options)
        title = LONG[:5] if fast else head(LONG, 5)  # without a fast form tokens are estimated
        short = embed(make_dataset([title], [LONG], name="short"), str(folder), **options)
    np.testing.assert_allclose(made.vectors, short.vectors, atol=1e-5)


def test_options_on_the_command_line(llama, make_dataset, capsys) -> None:
    data = make_dataset()
    command = ["embed", str(data.path), "--item-llm", str(llama), "--device", "cpu", "--precision", "fp32"]
    options = [
        "--template",
        "{title}, {genres}",
        "--clean",
        "--field-tokens",
        "title=4",
        "--long-text",
        "heads",
    ]
    assert main([*command, *options]) == 0
    (spec,) = [s for s in [load_embeddings(data, str(llama)).spec] if s]
    assert (spec["template"], spec["clean"], spec["field_tokens"]) == ("{title}, {genres}", "yes", "title=4")
    assert f"--set item_llm={spec['key']}" in capsys.readouterr().out
    for wrong, message in (
        (["--template", "{titel}"], "did you mean 'title'"),
        (["--template", "{title}", "--fields", "title"], "names its fields itself"),
        (["--template", "short"], "no format string with columns"),
        (["--field-tokens", "title"], "FIELD=TOKENS"),
        (
            ["--field-tokens", "brand=3", "--fields", "title"],
            "unknown text field that is read 'brand'; valid: title",
        ),
        (["--long-text", "tail"], "heads"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_controls_read_the_same_texts_and_refuse_what_is_of_language_models(make_dataset) -> None:
    data = make_dataset(["<b>Up</b>", "Up"], [None, None])
    made = embed(data, "random", clean=True, template="natural", device="cpu", progress=False)
    np.testing.assert_array_equal(made.vectors[1], made.vectors[2])
    with pytest.raises(ConfigError, match="long_text: random is no language model"):
        embed(data, "random", long_text="heads", device="cpu", progress=False)
