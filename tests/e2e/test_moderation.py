"""chat, serve and the page with a policy: the installed command before a server whose model is scripted."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.unit.moderating import BLUNT, logged, moderator
from tests.unit.scripted import ScriptedEngine
from tests.unit.served import TOKEN, Served, served

from .conftest import Shell, environment

ANSWERS = ["It is fine to mail jo@example.org.", "What a blast that was, all of it."]


@pytest.fixture
def model() -> Iterator[Served]:
    with served({"scripted": ScriptedEngine(ANSWERS)}) as server:
        yield server


def test_chat_through_a_pipe_and_its_log(llmpipe: Shell, model: Served) -> None:
    llmpipe.write("policy.yaml", BLUNT + "log: {path: log.jsonl}\n")
    name, env = f"{model.url}/v1#scripted", environment(THE_KEY=TOKEN)
    asked = ("chat", name, "--key-variable", "THE_KEY", "--moderation", "policy.yaml")
    answered = llmpipe(*asked, input="hello", env=env)
    assert answered.stdout == "It is fine to mail [removed].\n"
    told = json.loads(llmpipe(*asked, "--json", input="hello", env=env).stdout)
    reference = logged(llmpipe.folder)[-1]["reference"]
    assert (told["answer"], told["finish"]) == (f"What \n\nHeld back by rude; {reference}.", "content_filter")
    refused = llmpipe(*asked, input="a blast", env=env, code=1)
    reference = logged(llmpipe.folder)[-1]["reference"]
    assert (refused.stdout, refused.stderr.strip()) == ("", f"Held back by rude; {reference}.")
    assert [(one["place"], one["action"]) for one in logged(llmpipe.folder)] == [
        ("output", "redact"),
        ("output", "block"),
        ("input", "block"),
    ]


def test_serve_says_by_what_it_moderates(llmpipe: Shell, model: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", TOKEN)
    llmpipe.write("policy.yaml", BLUNT + "log: {path: log.jsonl}\n")
    name = f"{model.url}/v1#scripted"
    more = ("--port", "0", "--no-memory", "--json", "--moderation", "policy.yaml", "--key-variable", "THE_KEY")
    server = llmpipe.start("serve", name, *more)
    assert server.stdout is not None
    try:
        told = json.loads(server.stdout.readline())
        assert told["moderation"] == "policy.yaml"
        client = openai.OpenAI(base_url=f"{told['address']}/v1", api_key=told["token"], max_retries=0)
        asked: Any = [{"role": "user", "content": "hello"}]
        answer = client.chat.completions.create(model="scripted", messages=asked)
        assert answer.choices[0].message.content == "It is fine to mail [removed]."
        asked[0]["content"] = "a blast"
        with pytest.raises(openai.BadRequestError, match="Held back by rude"):
            client.chat.completions.create(model="scripted", messages=asked)
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)


def test_a_person_at_the_page_is_refused_warned_and_heard(tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs a chromium on the path, such as Debian's")
    from llmpipe.talk.moderated import Moderated

    engine = Moderated(ScriptedEngine(["Gladly."]), moderator(tmp_path))
    with served({"scripted": engine}) as server, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(10_000)
        page.goto(server.link)
        sync_api.expect(page.locator("#welcome-note")).to_contain_text("how to appeal")

        def say(text: str) -> None:
            page.get_by_label("Your question").fill(text)
            page.keyboard.press("Enter")

        say("a blast")
        refusal = page.get_by_role("alert")
        sync_api.expect(refusal).to_contain_text("Held back by rude; m-")
        assert page.get_by_label("Your question").input_value() == "a blast"
        reference = re.search(r"m-\w+", refusal.inner_text())
        assert reference is not None
        say(f"/appeal {reference[0]} it is <b>about</b> a furnace")
        sync_api.expect(page.get_by_text("is noted. A person will read it.")).to_be_visible()
        assert logged(tmp_path)[-1]["appeal"] == "it is <b>about</b> a furnace"
        say("Mail jo@example.org")
        sync_api.expect(page.locator(".steps li", has_text='the rule "data" holds here')).to_be_visible()
        page.screenshot(path=tmp_path / "page.png")
        browser.close()
