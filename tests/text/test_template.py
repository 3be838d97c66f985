import polars as pl
import pytest

from hllm.errors import ConfigError, DataError
from hllm.text.template import OFFICIAL_PROMPT, Marked, Template, choose_fields, field_text, template_fields


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


def test_natural_sentences_and_format_strings() -> None:
    item = {"title": "Up!", "release_year": 2009, "genres": ["Animation", "Drama"], "brand": None}
    fields = ("title", "release_year", "genres", "brand")
    natural = Template(fields, "", form="natural").render(item)
    assert natural == "Title: Up! Release year: 2009. Genres: Animation, Drama."
    form = "{title} ({release_year}), {{{genres}}} by {brand}"
    assert template_fields(form) == fields
    assert Template(fields, "Say: ", form=form).render(item) == "Say: Up! (2009), {Animation, Drama} by "
    assert Template(("brand",), form="by {brand}").render(item) is None
    assert template_fields("official") is template_fields("natural") is None


@pytest.mark.parametrize(
    "form", ["", "no column", "{}", "{title!r}", "{title:>9}", "{title", "a}", "oficial"]
)
def test_what_is_no_template_is_refused(form) -> None:
    with pytest.raises(ConfigError, match="template"):
        template_fields(form)


@pytest.mark.parametrize("form", ["official", "natural", "{tags}, {title}."])
def test_a_text_knows_where_its_values_stand(form) -> None:
    item = {"title": "Up", "tags": ["Drama", "War"], "brand": None}
    text = Template(("title", "tags", "brand"), "Say: ", form=form).render(item)
    assert {name: text[a:b] for name, a, b in text.fields} == {"title": "Up", "tags": "Drama, War"}
    moved = text.after("Now. ").lower()
    assert {name: moved[a:b] for name, a, b in moved.fields} == {"title": "up", "tags": "drama, war"}
    short = text.shortened([2] * 2, lambda value, n: value[:n])
    assert str(short) == str(text).replace("Drama, War", "Dr")
    assert {name: short[a:b] for name, a, b in short.fields} == {"title": "Up", "tags": "Dr"}
    assert len("\u0130".lower()) == 2  # where letters become two, places are lost
    assert Marked.of([("\u0130", "title")]).lower().fields == ()
