"""What the layers find, what becomes of it, and what the log says."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Any

import pytest

from llmpipe.errors import TalkError
from llmpipe.moderation import Find
from llmpipe.moderation.log import Log
from llmpipe.moderation.moderator import Verdict, warnings
from llmpipe.moderation.words import Personal, Words
from tests.unit.moderating import BLUNT, TOP, guard, logged, moderator


class Probabilities:
    """A layer that gives each text a probability of hate: what stands in it."""

    def find(self, text: str) -> list[Find]:
        return [Find("hate", float(text.split()[-1]), 0, len(text))]


HATE = (
    TOP
    + """\
classifier: {model: unused}
rules:
  odd: {layer: classifier, category: hate, score: 0.4, input: warn}
  hate: {layer: classifier, category: hate, score: 0.8, input: block, tool: redact}
"""
)


def guarded(server: Any, unreachable: str = "block") -> str:
    return f"""\
{TOP}
guard: {{url: "{server.url}", model: watch, timeout_s: 0.3, unreachable: {unreachable}}}
rules:
  guarded: {{layer: guard, category: unsafe, input: block, output: block}}
  weapons: {{layer: guard, category: S9, input: log}}
"""


def excerpts(text: str, found: list[Find]) -> list[tuple[str, str]]:
    return [(one.category, text[one.start : one.end]) for one in found]


@pytest.mark.parametrize(
    "text",
    [
        "a Blast of",
        "a ＢＬＡＳＴ of",
        "a bl\u200bast of",
        "a bla\u00adst!",
        "ⅷ blast",
        "İ blast",
    ],  # İ.lower() is longer
)
def test_words_are_found_as_they_look(text: str) -> None:
    found = Words({"rude": ["blast"]}).find(text)
    assert [one.category for one in found] == ["rude"]
    assert text[found[0].start : found[0].end].strip("!").lower()[:2] in ("bl", "ｂｌ")
    assert not Words({"rude": ["blast"]}).find("blasted outblast")


def test_phrases_and_words_of_two_lists() -> None:
    text = "Kill the lights, then kill."
    found = Words({"one": ["kill the lights"], "two": ["kill", "kill the lights"]}).find(text)
    assert excerpts(text, found) == [("one", "Kill the lights"), ("two", "Kill the lights"), ("two", "kill")]


def test_personal_data_of_the_kinds_that_rules_name() -> None:
    text = "jo@example.org, 4111 1111 1111 1111"
    assert excerpts(text, Personal(["card"]).find(text)) == [("card", "4111 1111 1111 1111")]


def test_what_is_redacted_and_what_is_blocked(tmp_path: Path) -> None:
    judge = moderator(tmp_path).judge
    told = judge("A blast: mail jo@example.org or 4111 1111 1111 1111.", "tool")
    assert told.text == "A [removed]: mail [removed] or [removed]."
    assert [one.rule for one in told.decisions] == ["rude", "data", "data"]
    assert len({one.reference for one in told.decisions}) == 1
    assert judge("A blast: mail jo@example.org.", "input").text == ""
    warned = judge("Mail jo@example.org", "input")
    assert (warned.text, warned.blocked) == ("Mail jo@example.org", None)
    assert warnings(warned.decisions) == [
        f'moderation: the rule "data" holds here (email); {warned.decisions[0].reference}'
    ]


def test_the_threshold_and_the_place_decide(tmp_path: Path) -> None:
    judge = moderator(tmp_path, HATE, classifier=Probabilities()).judge

    def actions(verdict: Verdict) -> list[tuple[str, str]]:
        return [(one.rule, one.action) for one in verdict.decisions]

    assert actions(judge("so 0.39", "input")) == []
    assert actions(judge("so 0.4", "input")) == [("odd", "warn")]
    assert actions(judge("so 0.8", "input")) == [("odd", "warn"), ("hate", "block")]
    assert judge("so 0.9", "tool").text == "[removed]"
    assert actions(judge("so 0.9", "output")) == []


def test_the_log_has_a_hash_and_the_text_only_where_the_policy_says_so(tmp_path: Path) -> None:
    judge = moderator(tmp_path).judge
    blocked = judge("a blast", "input").blocked
    assert blocked is not None
    (line,) = logged(tmp_path)
    assert line.pop("time")
    assert line == {
        "reference": blocked.reference,
        "place": "input",
        "layer": "words",
        "rule": "rude",
        "category": "rude",
        "score": 1.0,
        "action": "block",
        "sha256": hashlib.sha256(b"a blast").hexdigest(),
    }
    assert stat.S_IMODE((tmp_path / "log.jsonl").stat().st_mode) == 0o600
    told = moderator(tmp_path)
    told.log = Log(tmp_path / "log.jsonl", keeps_text=True)
    told.judge("a blast", "input")
    assert logged(tmp_path)[-1]["text"] == "a blast"


def test_nothing_passes_that_the_log_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(TalkError, match="the moderation log cannot be written"):
        Log(tmp_path)
    told = moderator(tmp_path)
    told.log.path = tmp_path
    with pytest.raises(TalkError, match="the moderation log cannot be written"):
        told.judge("a blast", "input")


def test_an_appeal_is_a_line_with_the_reference(tmp_path: Path) -> None:
    told = moderator(tmp_path)
    blocked = told.judge("a blast", "input").blocked
    assert blocked is not None
    assert told.refusal(blocked) == f"Held back by rude; {blocked.reference}."
    assert told.appeal("What is an /appeal?") is None
    said = told.appeal(f"/appeal {blocked.reference} a blast\nfurnace " + 5_000 * "x")
    assert said == f"Your appeal against {blocked.reference} is noted. A person will read it."
    assert logged(tmp_path)[-1]["reference"] == blocked.reference
    assert logged(tmp_path)[-1]["appeal"].startswith("a blast\nfurnace x")
    assert len(logged(tmp_path)[-1]["appeal"]) == 2_000
    for wrong in ("/appeal", "/appeal because", f"/appeal {blocked.reference}"):
        with pytest.raises(TalkError, match="an appeal names a reference and says why"):
            told.appeal(wrong)
    with pytest.raises(TalkError, match="there is no decision m-0000"):
        told.appeal("/appeal m-0000 it was fine")
    (tmp_path / "log.jsonl").unlink()  # someone took it away
    with pytest.raises(TalkError, match=f"there is no decision {blocked.reference}"):
        told.appeal(f"/appeal {blocked.reference} a blast furnace")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("safe", []),
        ("\n\nSafe.\n", []),
        ("unsafe\nS9,S1", ["unsafe", "S9", "S1"]),
        ("UNSAFE\ns9, s99", ["unsafe", "S9"]),
        ("unsafe", ["unsafe"]),
    ],
)
def test_a_guard_says_safe_or_unsafe(tmp_path: Path, answer: str, found: list[str]) -> None:
    with guard() as server:
        server.answer = answer
        layer = moderator(tmp_path, guarded(server)).layers["guard"]
        assert [one.category for one in layer.find("How?")] == found
        path, key, body = server.asked[0]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", None, "watch", 0)
    content = body["messages"][0]["content"]
    mark = next(line for line in content.splitlines() if line.startswith("==="))
    assert f"{mark}\nHow?\n{mark}" in content
    assert "S9: weapons" in content


def test_a_guard_that_asks_itself_is_sent_the_text_alone_and_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_KEY", "open sesame")
    with guard() as server:
        text = guarded(server)
        text = text.replace("model: watch", "model: watch, asks_itself: true, key_variable: GUARD_KEY")
        moderator(tmp_path, text).judge("How?", "input")
        assert server.asked[0][1] == "Bearer open sesame"
        assert server.asked[0][2]["messages"] == [{"role": "user", "content": "How?"}]


def _away(server: Any) -> None:
    server.wait_s = 1.0


def _in_trouble(server: Any) -> None:
    server.status = 500


def _not_ours(server: Any) -> None:
    server.status = 401


def _chatty(server: Any) -> None:
    server.answer = "safe to say that this is unsafe"


@pytest.mark.parametrize("trouble", [_away, _in_trouble, _not_ours, _chatty])
@pytest.mark.parametrize("unreachable", ["block", "allow"])
def test_what_a_guard_cannot_check_is_for_the_policy(tmp_path: Path, trouble: Any, unreachable: str) -> None:
    with guard() as server:
        trouble(server)
        verdict = moderator(tmp_path, guarded(server, unreachable)).judge("How?", "input")
    assert (verdict.text, verdict.is_certain) == ("" if unreachable == "block" else "How?", False)
    (line,) = logged(tmp_path)
    action = "block" if unreachable == "block" else "log"
    assert (line["rule"], line["category"], line["action"]) == ("guard-unreachable", "unreachable", action)
    assert len(server.asked) == 1


def test_a_guard_is_not_sent_what_the_layers_before_it_redact_or_block(tmp_path: Path) -> None:
    with guard() as server:
        text = BLUNT + "  guarded: {layer: guard, category: unsafe, tool: block}\n"
        text += f'guard: {{url: "{server.url}", model: watch, asks_itself: true}}\n'
        judge = moderator(tmp_path, text).judge
        judge("Mail jo@example.org", "tool")
        judge("a blast", "input")
        judge("no rule of the guard is for this place", "output")
        assert [body["messages"][0]["content"] for _, _, body in server.asked] == ["Mail [removed]"]
