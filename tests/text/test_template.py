import polars as pl
import pytest

from hllm.errors import ConfigError, DataError
from hllm.text.template import OFFICIAL_PROMPT, Template, choose_fields, field_text


def test_official_text_to_the_letter():
    text = Template(("title", "genres")).render({"title": "Toy Story (1995)", "genres": "Animation, Comedy"})
    assert text == (
        "Compress the following sentence into embedding: title: Toy Story (1995)genres: Animation, Comedy"
    )


@pytest.mark.parametrize("missing", [None, "", "  ", float("nan"), [], [None, ""]])
def test_missing_fields_are_skipped(missing):
    template = Template(("title", "genres"))
    assert template.render({"title": "Up", "genres": missing}) == OFFICIAL_PROMPT + "title: Up"
    assert template.render({"title": missing, "genres": "War"}) == OFFICIAL_PROMPT + "genres: War"
    assert template.render({"title": missing, "genres": missing}) is None
    assert template.render({"genres": missing}) is None


def test_values_are_not_tidied():
    assert Template(("title",), prompt="").render({"title": " Up \n"}) == "title:  Up \n"
    assert field_text(1995) == "1995"
    assert field_text(0) == "0"
    assert field_text(["Drama", None, "War"]) == "Drama, War"


def test_prompt_and_field_order_are_options():
    item = {"title": "Up", "genres": "Drama"}
    assert Template(("genres", "title"), prompt="Item: ").render(item) == "Item: genres: Dramatitle: Up"
    assert Template(("genres", "title"), "", " ").render(item) == "genres: Drama title: Up"


def test_render_all_keeps_the_order_and_names_an_unknown_field():
    items = pl.DataFrame({"item_id": [3, 1, 2], "title": ["c", None, "b"], "year": [1990, None, 2000]})
    texts = Template(("title", "year"), prompt="").render_all(items)
    assert texts == ["title: cyear: 1990", None, "title: byear: 2000"]
    with pytest.raises(DataError, match=r"'titel' \(did you mean 'title'\?\)"):
        Template(("titel",)).render_all(items)


def test_choose_fields():
    assert choose_fields(None, ["title", "genres"]) == ("title", "genres")
    assert choose_fields(["genres"], ["title", "genres"]) == ("genres",)
    with pytest.raises(DataError, match=r"no text fields.*--preset sasrec"):
        choose_fields(None, [])
    for bad in ([], ["title", "title"]):
        with pytest.raises(ConfigError, match="distinct"):
            choose_fields(bad, ["title"])


def test_text_that_looks_like_syntax_is_text() -> None:
    """Case E23: nothing in a prompt or a value is a format, a field or a mark."""
    template = Template(("title", "{}"), prompt="{title} %s {0}: ", separator="{}")
    item = {"title": "{prompt} <|endoftext|> [bold] \\n %d", "{}": "{title}"}
    assert template.render(item) == "{title} %s {0}: title: {prompt} <|endoftext|> [bold] \\n %d{}{}: {title}"
