"""A person at the page, in a real browser: scripted models answer, all else is as it ships."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmpipe.ranking.export import export
from llmpipe.ranking.store import Store
from llmpipe.talk.engine import Piece
from llmpipe.talk.kit import Kit
from llmpipe.talk.memory import Memory
from llmpipe.tools.tool import Tool
from llmpipe.tools.toolbox import Toolbox
from tests.unit.scripted import CallingEngine, ScriptedEngine, call
from tests.unit.served import Served, served

sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the path, such as Debian's")

RUN = "runs/quickstart"
HOSTILE = "<script>document.title = 'bad'</script> and <img src=x onerror=\"document.title='bad'\"> stay **words**."
CODE = "Like `this`:\n\n```python\nprint(1 < 2)\n```\n\n1. one\n2. two"


class Slow(ScriptedEngine):
    """Takes its time for each word."""

    def chat(self, *call: Any) -> Iterator[Piece]:
        for piece in super().chat(*call):
            time.sleep(0.02)
            yield piece


class Late(ScriptedEngine):
    """Thinks long before its first word, when it is asked for the first time."""

    def chat(self, *call: Any) -> Iterator[Piece]:
        if not self.asked:
            time.sleep(1.5)
        yield from super().chat(*call)


def engines() -> dict[str, ScriptedEngine]:
    made = {
        "base": ScriptedEngine(["and so the duck went home."], chats=False),
        "sft": ScriptedEngine([HOSTILE, CODE]),
        "ppo": ScriptedEngine(["The duck found the other shoe."]),
    }
    return {f"{RUN}:{stage}": engine for stage, engine in made.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, server: Served, **settings: Any) -> Iterator[Any]:
    """A signed-in page; at the end, nothing went elsewhere and the console is clean."""
    context = browser.new_context(**settings)
    page = context.new_page()
    page.set_default_timeout(10_000)
    requests: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(server.link)
    page.wait_for_selector("#welcome-title:has-text('Talk to'), .turn")
    yield page
    assert wrong == []
    assert [url for url in requests if not url.startswith(f"{server.url}/")] == []
    context.close()


def ask(page: Any, text: str) -> Any:
    """Ask, and return the answers once they are whole."""
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Send", exact=True).wait_for()
    return page.locator(".answers").last


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "memory.sqlite3") as memory:
        yield memory


def test_a_person_chats_compares_and_finds_the_conversation_again(browser: Any, memory: Memory, tmp_path: Path) -> None:
    models = engines()
    with served(models, memory) as server, opened(browser, server) as page:
        page.get_by_label("Model").select_option(f"{RUN}:sft")
        assert "<script>document.title = 'bad'</script>" in ask(page, "Say <b>hello</b>").inner_text()
        assert page.locator(".words strong").inner_text() == "words"
        assert page.locator(".bubble").inner_text() == "Say <b>hello</b>"
        assert page.locator("#turns :is(script, img)").count() == 0

        page.set_input_files("#file", {"name": "shoes.csv", "mimeType": "text/csv", "buffer": b"shoe,red\n"})
        page.get_by_role("button", name="Remove shoes.csv").wait_for()
        answer = ask(page, "What is in it?")
        assert answer.locator("pre").inner_text() == "print(1 < 2)"
        assert answer.locator("ol li").all_inner_texts() == ["one", "two"]
        assert "shoe,red" in models[f"{RUN}:sft"].asked[-1][-1]["content"]

        page.get_by_label("Model").select_option(f"{RUN}:ppo")
        page.locator("summary").click()
        page.get_by_role("checkbox", name="base").check()
        page.get_by_role("checkbox", name="sft").check()
        page.keyboard.press("Escape")
        side_by_side = ask(page, "Tell me a story about a duck and a shoe.")
        assert side_by_side.locator("h2").all_inner_texts() == ["ppo", "base", "sft"]
        page.get_by_role("button", name="The answer of base is better").click()
        side_by_side.locator(".best", has_text="and so the duck went home.").wait_for()

        page.get_by_role("button", name="The answer of sft is bad").last.click()
        page.locator(".thumb.down[aria-pressed=true]").wait_for()

        page.reload()
        page.locator(".best", has_text="and so the duck went home.").wait_for()
        assert page.locator(".thumb[aria-pressed=true]").get_attribute("aria-label") == "The answer of sft is bad"
        assert page.locator(".turn").count() == 6
        assert page.locator(".chip").all_inner_texts() == ["shoes.csv"]
        assert page.get_by_label("Model").input_value() == f"{RUN}:base"
        assert page.title() == "llmpipe"
    with Store(tmp_path / "rankings.sqlite3") as store:
        export(store, tmp_path / "pairs.jsonl", "pairs")
        assert [thumb.is_good for thumb in store.thumbs()] == [False]
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["rejected_models"] for row in rows] == [[f"{RUN}:ppo"], [f"{RUN}:sft"]]


def test_conversations_are_found_renamed_and_deleted(browser: Any, memory: Memory) -> None:
    for question in ("Where is the duck?", "Where is the fox?"):
        memory.add(memory.begin(f"{RUN}:sft"), {"role": "user", "content": question})
    with served(engines(), memory) as server, opened(browser, server) as page:
        titles = page.locator("#list .title")
        titles.nth(1).wait_for()
        assert titles.all_inner_texts() == ["Where is the fox?", "Where is the duck?"]
        page.get_by_label("Search conversations").fill("duck")
        sync_api.expect(titles).to_have_count(1)
        titles.click()
        page.locator(".bubble", has_text="Where is the duck?").wait_for()
        page.get_by_label("Search conversations").fill("")
        page.get_by_label("Rename “Where is the duck?”").click()
        page.get_by_label("Title").fill("Ducks")
        page.keyboard.press("Enter")
        page.locator("#list .title", has_text="Ducks").wait_for()
        page.get_by_label("Delete “Ducks”").click()
        page.get_by_role("button", name="Delete", exact=True).click()
        sync_api.expect(titles).to_have_count(1)
        page.locator("#welcome").wait_for()
    assert [one.title for one in memory.conversations()] == ["Where is the fox?"]


def test_an_answer_is_stopped_and_what_came_is_kept(browser: Any, memory: Memory) -> None:
    slow = Slow(["word " * 400])
    with served({"sft": slow}, memory) as server, opened(browser, server) as page:
        page.get_by_label("Your question").fill("Go on for long")
        page.keyboard.press("Enter")
        page.locator(".words", has_text="word word").wait_for()
        page.keyboard.press("Escape")
        page.locator(".answers .note", has_text="stopped").wait_for()
        assert "word" in ask_again(page, slow)
        page.reload()
        page.locator(".answers").nth(1).wait_for()
    kept = [one.content for one in memory.messages(1)]
    assert [len(one.split()) < 400 for one in kept] == [True] * 4 and kept[1].startswith("word word")
    assert slow.stopped == 1


def ask_again(page: Any, engine: ScriptedEngine) -> str:
    engine.answers[:] = ["Another word."]
    return str(ask(page, "And now?").inner_text())


@pytest.mark.parametrize("is_kept", [True, False])
def test_what_is_stopped_before_its_first_word_was_never_asked(browser: Any, memory: Memory, is_kept: bool) -> None:
    late = Late(["One.", "Two."])
    with served({"sft": late}, memory if is_kept else None) as server, opened(browser, server) as page:
        page.get_by_label("Your question").fill("First")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Stop").wait_for()
        page.wait_for_timeout(300)
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Send", exact=True).wait_for()
        assert page.get_by_label("Your question").input_value() == "First"
        page.wait_for_timeout(1500)
        assert "Two." in ask(page, "Second").inner_text()
        assert page.locator(".turn").count() == 2
    assert [message["content"] for message in late.asked[-1]] == ["Second"]
    assert [one.content for talk in memory.conversations() for one in memory.messages(talk.id)] == (
        ["Second", "Two."] if is_kept else []
    )


def test_a_failure_gives_the_question_back(browser: Any, memory: Memory) -> None:
    from llmpipe.errors import TalkError

    broken = ScriptedEngine([TalkError("the model is out of memory"), "Better now."])
    with served({"sft": broken}, memory) as server, opened(browser, server) as page:
        ask(page, "Hello")
        page.get_by_role("alert").filter(has_text="the model is out of memory").wait_for()
        assert page.get_by_label("Your question").input_value() == "Hello"
        assert page.locator(".turn").count() == 0 and memory.conversations() == []
        assert "Better now." in ask(page, "Hello").inner_text()


def test_a_phone_has_no_sideways_scroll_and_folds_the_side_away(browser: Any, memory: Memory) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
    wide = "A" * 300 + "\n\n```\n" + "x = 1; " * 60 + "\n```"
    models = {f"{RUN}:{stage}": ScriptedEngine([wide]) for stage in ("base", "sft", "ppo")}
    with served(models, memory) as server, opened(browser, server, **phone) as page:
        page.locator("summary").click()
        page.get_by_role("checkbox", name="sft").check()
        page.keyboard.press("Escape")
        ask(page, "B" * 200)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("document.querySelector('#scroll').scrollWidth") <= 390
        assert not page.get_by_label("Search conversations").is_visible()
        page.get_by_role("button", name="Conversations").click()
        page.get_by_label("Search conversations").wait_for()
        page.keyboard.press("Escape")
        page.get_by_label("Search conversations").wait_for(state="hidden")


def test_without_a_memory_the_tab_remembers(browser: Any) -> None:
    engine = ScriptedEngine(["Hello Ann.", "Ann."])
    with served({"sft": engine}) as server, opened(browser, server) as page:
        page.locator("#list-note", has_text="Nothing is kept").wait_for()
        ask(page, "I am Ann.")
        assert "Ann." in ask(page, "Who am I?").inner_text()
    assert [one["content"] for one in engine.asked[-1]] == ["I am Ann.", "Hello Ann.", "Who am I?"]


def test_who_is_not_signed_in_learns_how(browser: Any) -> None:
    with served(engines()) as server:
        page = browser.new_page()
        page.set_default_timeout(10_000)
        reply = page.goto(server.url)
        assert reply.status == 401
        assert page.locator("h1").inner_text() == "You are not signed in"
        page.close()


def test_a_call_is_asked_for_on_the_page(browser: Any, memory: Memory) -> None:
    made: list[Any] = []
    tool = Tool("look_up", "Looks up.", {"type": "object"}, "network", lambda given: str(made.append(given)))
    engine = CallingEngine([call("look_up", at="<b>Bern</b>"), "No.", call("look_up", at="Basel"), "It is warm."])
    kit = Kit(Toolbox([tool]), on=["look_up"])
    with served({"sft": engine}, memory, kit=kit) as server, opened(browser, server) as page:
        for choice, shown in (("Refuse", "No."), ("Allow once", "It is warm.")):
            page.get_by_label("Your question").fill("How is it?")
            page.keyboard.press("Enter")
            question = page.get_by_role("group", name="May look_up be called?")
            question.wait_for()
            page.keyboard.press("Enter")  # in the box for the question: it allows nothing
            question.get_by_role("button", name=choice).click()
            page.locator(".answers .words", has_text=shown).wait_for()
        page.reload()
        page.locator(".words", has_text="It is warm.").wait_for()
        steps = page.locator(".steps li").all_inner_texts()
        page.get_by_role("button", name="deep-search").click(force=True)
        page.get_by_role("alert").filter(has_text="--tools web_search,read_page").wait_for()
    assert steps == ['look_up {"at": "<b>Bern</b>"}: not allowed', 'look_up {"at": "Basel"}']
    assert made == [{"at": "Basel"}]
