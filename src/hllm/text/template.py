"""The text an item LLM reads: a prompt, then the item's fields as a template lays them out.

The template "official" (ByteDance's HLLM) is

    Compress the following sentence into embedding: title: Toy Story (1995)genres: Animation

with no separator between fields. It is reproduced to the letter: an embedding depends on every
character, so a tidier template would give other vectors than the published ones. The template "natural" writes
the same as sentences, "Title: Toy Story (1995). Genres: Animation."; any other is a format string over the
columns, "{title}, a {genres} film".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

from hllm.arguments import text
from hllm.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    import polars as pl

OFFICIAL_PROMPT = "Compress the following sentence into embedding: "
OFFICIAL, NATURAL = "official", "natural"
_END = (".", "!", "?", "…", "。")


class Marked(str):
    """A text that knows where in it the fields' values stand.

    fields  (name, first character, character after the last) of each value, in order
    """

    fields: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def of(cls, parts: Iterable[tuple[str, str | None]]) -> Marked:
        """The parts end to end: (text, the field whose value it is, or None)."""
        pieces, spans, at = [], [], 0
        for part, name in parts:
            if name is not None and part:
                spans.append((name, at, at + len(part)))
            pieces.append(part)
            at += len(part)
        text = cls("".join(pieces))
        text.fields = tuple(spans)
        return text

    def after(self, start: str) -> Marked:
        """`start`, then this text."""
        moved = Marked(start + self)
        moved.fields = tuple((name, a + len(start), b + len(start)) for name, a, b in self.fields)
        return moved

    def lower(self) -> Marked:
        low = str.lower(self)
        lower = Marked(low)
        lower.fields = self.fields if len(low) == len(self) else ()  # a few letters become two
        return lower

    def shortened(self, lengths: Sequence[int], head: Callable[[str, int], str]) -> Marked:
        """This text with `head(value, length)` in the place of each value."""
        parts: list[tuple[str, str | None]] = []
        at = 0
        for (name, first, end), length in zip(self.fields, lengths, strict=True):
            parts += [(self[at:first], None), (head(self[first:end], length), name)]
            at = end
        return Marked.of([*parts, (self[at:], None)])


@dataclass(frozen=True)
class Template:
    """`prompt`, then each of `fields` that has a value, as `form` lays them out.

    form  "official": `name: value`, joined by `separator`; "natural": `Name: value.`, joined by spaces; or a format
          string, whose {columns} are `fields` (see `template_fields`) and are empty where there is no value
    """

    fields: tuple[str, ...]
    prompt: str = OFFICIAL_PROMPT
    separator: str = ""
    form: str = OFFICIAL

    def render(self, item: Mapping[str, Any]) -> Marked | None:
        """Text of one item; None if no field has a value (the item then has no embedding)."""
        values = {name: field_text(item.get(name)) for name in self.fields}
        there = {name: value for name, value in values.items() if value}
        if not there:
            return None
        parts: list[tuple[str, str | None]] = [(self.prompt, None)]
        if self.form == OFFICIAL:
            for i, (name, value) in enumerate(there.items()):
                parts += [(f"{self.separator if i else ''}{name}: ", None), (value, name)]
        elif self.form == NATURAL:
            for i, (name, value) in enumerate(there.items()):
                parts += _sentence(name, value.strip(), " " if i else "")
        else:
            for literal, column, *_ in Formatter().parse(self.form):
                parts += [(literal, None), (values.get(column or "", ""), column)]
        return Marked.of(parts)

    def render_all(self, items: pl.DataFrame) -> Sequence[str | None]:
        """Texts of the rows of `items`, in their order. DataError names a field that is no column."""
        for name in self.fields:
            if name not in items.columns:
                raise DataError(unknown("text field", name, items.columns))
        return [self.render(row) for row in items.select(self.fields).iter_rows(named=True)]


def _sentence(name: str, value: str, before: str) -> list[tuple[str, str | None]]:
    label = name.replace("_", " ")
    end = "" if value.endswith(_END) else "."
    return [(f"{before}{label[:1].upper()}{label[1:]}: ", None), (value, name), (end, None)]


def template_fields(form: str) -> tuple[str, ...] | None:
    """The columns that the template `form` names, in order; None for "official" and "natural", which take any.

    ConfigError for a format string without a column, or with more in its braces than a column's name.
    """
    if form in (OFFICIAL, NATURAL):
        return None
    try:
        parts = list(Formatter().parse(text("template", form)))
    except ValueError as err:
        raise ConfigError(f"template {form[:80]!r}: {err}; a brace that is meant is written twice") from err
    names = tuple(dict.fromkeys(name for _, name, *_ in parts if name is not None))
    if not names or "" in names or any(spec or conversion for _, _, spec, conversion in parts):
        raise ConfigError(
            f"template {form[:80]!r} is neither {OFFICIAL} nor {NATURAL}, and no format string with columns in braces, "
            "as {title} by {brand}"
        )
    return names


def field_text(value: Any) -> str:
    """A field's text, unchanged; "" where there is none (null, NaN, or nothing but white space).

    Lists, as some sources have for genres or categories, are joined by a comma and a space.
    """
    if value is None or value != value:  # NaN is the only value unequal to itself
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(text for part in value if (text := field_text(part)))
    text = str(value)
    return text if text.strip() else ""


def choose_fields(asked: Iterable[str] | None, text_fields: Iterable[str]) -> tuple[str, ...]:
    """`asked`, or all of the dataset's `text_fields`, in their order.

    Raises DataError if there are none, ConfigError for an empty or repeating choice. Whether an asked
    field is a column is told by `Template.render_all`, which has the table.
    """
    fields = tuple(text_fields)
    if asked is not None:
        if isinstance(asked, str) or not isinstance(asked, Iterable):
            raise ConfigError(
                f"text_fields={asked!r}: must be a list of texts, for example ['title', 'genres']"
            )
        fields = tuple(text("text_fields", name) for name in asked)
    if asked is None and not fields:
        raise DataError(
            "the dataset has no text fields, so its items cannot be embedded; prepare it with an items table "
            "that has text columns (--items FILE --text-cols title), or train on ids with --preset sasrec"
        )
    if not fields or len(set(fields)) < len(fields):
        raise ConfigError(
            f"text fields {list(fields)} must be distinct and at least one, for example title,genres"
        )
    return fields
