from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hllm.report.html import Html, element, join


@given(st.text())
def test_text_never_becomes_markup(text: str) -> None:
    inside = element("p", text)[len("<p>") : -len("</p>")]
    assert "<" not in inside
    assert ">" not in inside
    assert inside.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == text


def test_attributes_are_escaped_and_named() -> None:
    made = element("text", class_='a"b', text_anchor="end", x=1.50, y=2.0, viewBox="0 0 1 1", id=None)
    assert made == '<text class="a&quot;b" text-anchor="end" x="1.5" y="2" viewBox="0 0 1 1"></text>'


def test_markup_nests_and_none_is_left_out() -> None:
    assert join(element("b", "&"), None, Html("<br>"), 3) == "<b>&amp;</b><br>3"
