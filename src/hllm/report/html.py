"""A few lines that build HTML and SVG. Text is escaped unless it is already `Html`."""

from __future__ import annotations

from html import escape


class Html(str):
    """Markup that is safe to insert as it is. Only this module and `element` make it."""

    __slots__ = ()


def element(name: str, *children: object, **attributes: object) -> Html:
    """Return `<name attributes>children</name>`.

    A child that is not `Html` is escaped, so a title such as `<b>` shows as written. None
    children and attributes are left out. `class_` gives `class`; `stroke_width` gives
    `stroke-width`; floats are shortened to two decimals.

    >>> element("p", "R&B ", element("b", 1), class_="note")
    '<p class="note">R&amp;B <b>1</b></p>'
    """
    rendered = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{rendered}>{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """Concatenate children; see `element` for how each is treated."""
    return Html(
        "".join(
            c if isinstance(c, Html) else escape(_text(c), quote=False) for c in children if c is not None
        )
    )


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
