"""People at the ranking page, in a real browser: two at once, by keys and by touch, a server that goes away."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmpipe.ranking.agreement import tried
from llmpipe.ranking.store import Store
from tests.unit.rounds import Page, begin, page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the path, such as Debian's")

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "rankings.sqlite3") as store:
        yield store


@contextmanager
def opened(browser: Any, server: Page, name: str, **settings: Any) -> Iterator[Any]:
    """The page of an annotator; at the end, nothing went elsewhere, no model was named, and the console is clean."""
    context = browser.new_context(**settings)
    tab = context.new_page()
    tab.set_default_timeout(15_000)
    requests, wrong, told = [], [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("response", lambda reply: told.append(reply.text()) if "/api/" in reply.url else None)
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto(server.link(name))
    tab.wait_for_selector(".card")
    yield tab
    assert wrong == [] and [url for url in requests if not url.startswith(f"{server.url}/")] == []
    assert "secret" not in " ".join(told) + tab.content()
    context.close()


def numbers(tab: Any) -> dict[str, int]:
    """Return under which number each answer stands."""
    return {text: number for number, text in enumerate(tab.locator(".card .words").all_inner_texts(), 1)}


def rank(tab: Any, *keys: str) -> None:
    """Type keys and wait until the next question is there, or all is ranked."""
    before = tab.locator("#count").inner_text()
    for key in keys:
        tab.keyboard.press(key)
    sync_api.expect(tab.locator("#count")).not_to_have_text(before)


def test_two_people_at_once_by_keys_and_by_touch_and_a_server_that_goes_away(browser: Any, store: Store) -> None:
    form = begin(store, prompts=2, count=3, gold=1)
    with (
        page(store, form) as server,
        opened(browser, server, "ann") as ann,
        opened(browser, server, "bob", **PHONE) as bob,
    ):
        assert ann.locator("#criterion").inner_text().lower() == "overall"
        assert ann.evaluate("document.activeElement.id") == "criterion"
        rank(ann, "2", "=", "1", "Enter")  # the third is the last
        assert bob.evaluate("document.documentElement.scrollWidth") == 390
        count = bob.locator(".card").count()  # a gold question has two answers
        for number in range(count):
            bob.locator(".card").nth(number).get_by_role("radio").nth(0 if number == count - 1 else 1).tap()
        assert bob.locator("#order").inner_text() == f"{count} > {' = '.join('12'[: count - 1])}"
        bob.get_by_label("Comment").fill("two of a kind")
        bob.get_by_role("button", name="Keep").tap()
        sync_api.expect(bob.locator("#count")).to_have_text("2 of 3")
    (of_ann,) = store.rankings("ann")
    (of_bob,) = store.rankings("bob")
    assert sorted(of_ann.ranks) == [1, 1, 2] and sorted(of_bob.ranks) == [1, 2, 2][:count]
    assert of_bob.comment == "two of a kind"

    with page(store, form) as server, opened(browser, server, "ann") as ann:  # begun anew
        assert ann.locator("#count").inner_text() == "2 of 3"
        ann.keyboard.press("u")
        sync_api.expect(ann.locator("#order")).to_have_text("1 = 2 > 3")
        assert ann.locator("#count").inner_text() == "1 of 3"
        rank(ann, "Enter")
        for _ in range(2):
            known = numbers(ann)
            best = next((n for text, n in known.items() if text.startswith("a good one")), None)
            rank(ann, str(best), "Enter") if best else rank(ann, "b")
        sync_api.expect(ann.locator("#told")).to_have_text("All is ranked. Thank you.")
    tasks = {task.id: task for task in store.tasks()}
    assert tried(tasks, store.rankings())["ann"].share == 1
    assert [one.verdict for one in store.rankings("ann")].count("bad") == 1


def test_keys_do_what_they_say_and_not_while_one_writes(browser: Any, store: Store) -> None:
    form = begin(store, prompts=3, count=4)
    with page(store, form) as server, opened(browser, server, "ann") as ann:
        ann.keyboard.type("31")
        assert ann.locator("#order").inner_text() == "3 > 1"
        assert ann.get_by_role("button", name="Keep").is_disabled()
        ann.keyboard.press("Backspace")
        assert ann.locator("#order").inner_text() == "3"
        ann.keyboard.press("Enter")
        assert ann.locator("#told").inner_text() == "Some answers have no place yet."
        ann.keyboard.press("c")
        ann.keyboard.type("subs 12")
        assert ann.get_by_label("Comment").input_value() == "subs 12" and ann.locator("#order").inner_text() == "3"
        ann.keyboard.press("Escape")
        ann.get_by_role("group", name="Place of answer 3").get_by_role("radio").first.focus()
        ann.keyboard.press("ArrowRight")
        assert ann.locator("#order").inner_text() == "3"  # still alone, now at the second place
        rank(ann, "s")
        assert ann.get_by_label("Comment").input_value() == ""
    (kept,) = store.rankings()
    assert (kept.verdict, kept.comment, kept.ranks) == ("skipped", "subs 12", None)
