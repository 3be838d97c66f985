"""The page in a real browser: Chromium, by keyboard and by touch, wide and narrow, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]
MARKUP = "<img src=x onerror=alert(1)><b>Bold</b> & Co"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """`visit(SERVER, PATH, ...)`: a page that asks nobody but the server, and whose script has no fault."""
    contexts, faults = [], []

    def begin(own: Any, path: str = "/", width: int = 1280, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on("request", lambda r: r.url.startswith(own.address) or faults.append(r.url))
        page.goto(own.address + path)
        return page

    yield begin
    for context in contexts:
        context.close()
    assert not faults


def titles(page: Any, which: int = 0) -> list[str]:
    """What list `which` recommends, by title."""
    lines = page.locator(".list").nth(which).locator(".recs .title")
    return lines.evaluate_all("all => all.map(one => one.firstChild.textContent)")


def expected(own: Any, **body: Any) -> list[str]:
    return [row["title"] for row in own.ask("/recommend", body)["rows"]]


def test_by_keyboard_alone(server: Any, visit: Any) -> None:
    own = server()
    page = visit(own)
    page.wait_for_selector("#popular button")
    page.focus("#query")
    with page.expect_response(lambda answer: answer.url.endswith("q=river")):
        page.keyboard.type("river")
    page.wait_for_selector("#found [aria-selected=true]")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#found-1[aria-selected=true]")
    second = page.locator("#found [aria-selected=true]").text_content()
    page.keyboard.press("Enter")
    page.wait_for_selector(".recs li")
    picked = own.ask(f"/search?q={second.split()[0]}+river")["rows"][0]
    assert page.locator("#picked span").all_text_contents() == [second] == [picked["title"]]
    first = titles(page)
    assert first == expected(own, history=[[picked["item_id"]]])
    while not page.evaluate("document.activeElement.textContent === 'Why?'"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".why li")
    assert page.locator(".why li span").first.text_content() == second
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".like li")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # like the first: the list changes, and says how
    page.wait_for_selector(".move.new, .move.up")
    assert titles(page) != first
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == f"Like: {titles(page)[0]}"  # who liked one goes on from the next
    page.focus("#tab-picks")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.type("u001")
    page.keyboard.press("Enter")
    page.wait_for_selector("#user-items li")
    assert titles(page) == expected(own, users=["u001"])
    page.reload()
    page.wait_for_selector("#user-items li")  # the address keeps what was shown
    page.fill("#user-id", "ghost")
    page.keyboard.press("Enter")
    page.wait_for_selector(".list .problem:not([hidden])")
    assert "'ghost'" in page.locator(".list .problem").first.text_content()


def test_the_focus_is_never_lost(server: Any, visit: Any) -> None:
    """What was pressed may be gone from the page; the next key then goes on from there, not from its top."""
    own = server()
    page = visit(own)
    page.wait_for_selector("#popular button")
    while not page.evaluate("document.activeElement.closest('#popular') !== null"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".recs li")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("river")
    page.wait_for_selector("#found [aria-selected=true]")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#picked li').length === 2")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first is removed
    page.wait_for_function("document.querySelectorAll('#picked li').length === 1")
    kept = page.locator("#picked span").text_content()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Remove {kept}"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "query"


def test_two_runs_on_a_phone_in_the_dark(server: Any, visit: Any, train: Any, tmp_path: Any) -> None:
    own = server("--compare", train(tmp_path / "other", seed=5))
    page = visit(own, "/#items=001,006", 360, color_scheme="dark", is_mobile=True, has_touch=True)
    page.wait_for_selector(".shared")
    both = [expected(own, history=[["001", "006"]], compared=compared) for compared in (False, True)]
    assert [titles(page, 0), titles(page, 1)] == both
    shared = len(set(both[0]) & set(both[1]))
    assert page.text_content("#agree").startswith(f"{shared} of 10 ")
    assert page.locator(".list .shared:not(.alone)").count() == 2 * shared
    page.locator("#compared").get_by_text("Why?").first.tap()
    page.wait_for_selector("#compared .why li, #compared .more p")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 21)"
    small = page.locator("button:visible").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().height < 36).map(one => one.textContent)"
    )
    assert not small  # a finger finds each
    wide = visit(own, "/#items=001,006")
    wide.wait_for_selector(".shared")
    tops = wide.locator(".list").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert tops[0] == tops[1]  # side by side


def test_keys_markup_and_the_interface(server: Any, visit: Any, browser: Any) -> None:
    own = server("--api-key", "secret-key-1")
    page = visit(own)
    page.wait_for_selector("#ask-key:not([hidden])")
    page.fill("#key", "secret-key-1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#popular button")
    added = page.evaluate("""title => call("items", { items: [{ item_id: "new/1,2", title }] })""", MARKUP)
    assert added["added"] == 1
    page.fill("#query", "co bold")
    page.wait_for_selector("#found [aria-selected=true]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".recs li")
    assert page.locator("#picked span").all_text_contents() == [MARKUP]
    page.reload()
    page.wait_for_selector(".recs li")
    assert page.locator("#picked span").all_text_contents() == [MARKUP]
    assert page.locator("img").count() == 0
    page.click("footer a")
    page.wait_for_selector("section table")
    assert page.get_by_text("per_user", exact=True).count() == 1
    assert page.locator("h2", has_text="/recommend").count() == 1
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    names = page.locator("td:first-child code").evaluate_all(
        "all => all.map(one => one.getClientRects().length)"
    )
    assert set(names) == {1}  # no name is broken over lines
