"""What may be typed in a chat, what it shows, and what comes through a pipe; by a scripted engine."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmpipe import console
from llmpipe.cli import app
from llmpipe.context import Context
from llmpipe.data.labelled import labelled
from llmpipe.data.rows import read_rows
from llmpipe.data.sources import read_conversations, read_preferences
from llmpipe.errors import LlmpipeError, TalkError
from llmpipe.ranking.export import export
from llmpipe.ranking.store import Store
from llmpipe.settings import PathSource
from llmpipe.talk import commands, repl
from llmpipe.talk.engine import Piece
from llmpipe.talk.kit import Kit
from llmpipe.talk.memory import Memory
from llmpipe.talk.repl import Chat
from llmpipe.talk.screen import Screen
from llmpipe.talk.session import Session
from llmpipe.tools import toolbox
from llmpipe.tools.tool import Tool
from tests.unit.scripted import CallingEngine, ScriptedEngine, call


class Seen:
    """What a chat printed: answers in `out`, the rest in `err`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        for name, file in (("out", self.out), ("err", self.err)):
            made = Console(file=file, width=width, highlight=False, soft_wrap=True)
            monkeypatch.setattr(console, name, made)

    @property
    def text(self) -> str:
        return self.err.getvalue()


@pytest.fixture(params=[80, 40])
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Seen:
    monkeypatch.chdir(tmp_path)
    return Seen(monkeypatch, 80)


@pytest.fixture
def chat(seen: Seen, tmp_path: Path) -> Iterator[Chat]:
    with Memory(tmp_path / "memory.sqlite3") as memory:
        yield talking(["first", "second"], memory=memory)


def talking(answers: list[Any], *, memory: Memory | None = None, other: str = "another") -> Chat:
    def load(name: str) -> ScriptedEngine:
        if name == "nowhere":
            raise TalkError("no such run, stage, folder or GGUF file")
        return ScriptedEngine([other], name=name)

    return Chat(Session(ScriptedEngine(answers), memory), "folder", load, lambda question: "2")


def said(chat: Chat, line: str, seen: Seen) -> str:
    before = len(seen.text)
    commands.run(chat, line)
    return seen.text[before:]


def test_what_is_no_command_gets_the_nearest_name(chat: Chat) -> None:
    with pytest.raises(TalkError) as wrong:
        commands.run(chat, "/sytem Be short.")
    assert str(wrong.value) == "there is no command /sytem, did you mean /system?"
    assert wrong.value.hint == "a space before it sends it to the model"
    with pytest.raises(TalkError, match=r"^there is no command /xyzzy; /help lists what there is$"):
        commands.run(chat, "/xyzzy")


def test_help_names_every_command_and_fits(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    seen = Seen(monkeypatch, width)
    shown = said(talking(["a"]), "/help", seen)
    assert all(f"  {name}" in shown for name in commands.COMMANDS)
    assert max(map(len, shown.splitlines())) <= width


def test_system_is_set_shown_and_taken_away(chat: Chat, seen: Seen) -> None:
    assert said(chat, "/system", seen) == "  system: none\n"
    assert said(chat, "/system Be short.", seen) == "  system: Be short.\n"
    chat.say("hi")
    assert chat.session.messages[0] == {"role": "system", "content": "Be short."}
    assert said(chat, "/system off", seen) == "  system: none\n"
    chat.session.engine.chats = False
    with pytest.raises(TalkError, match=r"^scripted knows no turns, so it reads no system text$"):
        commands.run(chat, "/system Be short.")


def test_modes_are_shown_and_changed(chat: Chat, seen: Seen) -> None:
    assert said(chat, "/mode", seen) == "  chat (now), deep-search\n"
    assert said(chat, "/mode deep-search", seen) == "  chat, deep-search (now)\n"


def rows(shown: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in shown.splitlines() if not line.startswith("  /tools"))


def test_tools_are_listed_turned_on_allowed_and_turned_off(chat: Chat, seen: Seen) -> None:
    with toolbox.opened(["calculator", "read_file"], files=list) as box:
        looks = Tool("look_up", "Looks up.", {"type": "object"}, "network", lambda _: "warm")
        chat.session.kit = Kit(toolbox.Toolbox([*box.tools.values(), looks]), on=["look_up"])
        shown = said(chat, "/tools", seen)
        assert rows(shown) == {"calculator": "off", "read_file": "off", "look_up": "each call is asked for"}
        assert rows(said(chat, "/tools on calculator", seen))["calculator"] == "on"
        assert rows(said(chat, "/tools on read_file", seen))["read_file"] == "on, but you named no file"
        assert rows(said(chat, "/tools allow look_up", seen))["look_up"] == "allowed"
        assert rows(said(chat, "/tools off look_up", seen))["look_up"] == "off"
        assert chat.session.kit.allowed == set()
        for line, wrong in (
            ("/tools allow calcolator", "there is no tool calcolator, did you mean calculator?"),
            ("/tools enable calculator", "/tools enable calculator says nothing of a tool"),
            ("/tools allow", "/tools allow says nothing of a tool"),
        ):
            with pytest.raises(TalkError) as refused:
                commands.run(chat, line)
            assert str(refused.value) == wrong
    chat.session.engine.chats = False
    with pytest.raises(TalkError, match=r"^scripted knows no turns, so it calls no tools$"):
        commands.run(chat, "/tools")


def test_a_file_that_cannot_be_sent_along_may_be_read(chat: Chat, seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "big.csv").write_text("a,b\n" + "1,2\n" * 300_000, encoding="utf-8")
    with toolbox.opened(["read_file"], files=list) as box:
        chat.session.kit = Kit(box)
        assert said(chat, "/attach big.csv", seen) == "  big.csv: the model may read it, by the tool read_file\n"
    assert [path.name for path in chat.session.kit.files] == ["big.csv"] and chat.attached == []
    chat.say("How many rows?")
    assert chat.session.question == "Files that read_file reads: big.csv\n\nHow many rows?"


def test_another_conversation_is_asked_anew(chat: Chat) -> None:
    looks = Tool("look_up", "Looks up.", {"type": "object"}, "network", lambda _: "warm")
    chat.session.kit = Kit(toolbox.Toolbox([looks]), on=["look_up"])
    commands.run(chat, "/tools allow look_up")
    commands.run(chat, "/forget this")
    assert chat.session.kit.allowed == set() and chat.session.kit.on == {"look_up"}


def test_steps_stand_on_lines_of_their_own(seen: Seen) -> None:
    script = [f"Let me see. {call('calculator', expression='6 * 7')}", "It is 42."]
    with toolbox.opened(["calculator"], files=list) as box:
        session = Session(CallingEngine(script), kit=Kit(box, on=["calculator"]))
        Chat(session, "folder", lambda name: ScriptedEngine(["a"]), lambda question: "").say("6 * 7?")
    assert seen.out.getvalue() == "Let me see.\n\nIt is 42.\n"
    assert seen.text == '  calculator {"expression": "6 * 7"}\n'


def test_facts_are_kept_found_and_forgotten(chat: Chat, seen: Seen) -> None:
    assert said(chat, "/memory", seen) == "  no fact is kept; /memory remember TEXT keeps one\n"
    assert said(chat, "/memory remember My cat is called Miso.", seen) == "  1  My cat is called Miso.\n"
    chat.say("The cat sleeps.")
    found = said(chat, "/memory cat", seen).splitlines()
    assert found[0] == "  fact 1: My cat is called Miso."
    assert found[1].startswith("  1 · ") and found[1].endswith("user: The cat sleeps.")
    assert said(chat, "/memory zebra", seen) == "  nothing is found\n"
    assert said(chat, "/forget 1", seen) == "  fact 1 is forgotten\n"
    for line, wrong in (("/forget 1", "there is no fact 1"), ("/forget", "what is to be forgotten?")):
        with pytest.raises(TalkError) as refused:
            commands.run(chat, line)
        assert str(refused.value) == wrong


def test_a_conversation_is_forgotten(chat: Chat, seen: Seen) -> None:
    chat.say("a secret")
    assert said(chat, "/forget this", seen) == "  this conversation is forgotten\n"
    assert chat.session.messages == []
    assert chat.session.memory and chat.session.memory.conversations() == []


def test_without_memory_it_is_said(seen: Seen) -> None:
    with pytest.raises(TalkError, match=r"^this chat has no memory$"):
        commands.run(talking(["a"]), "/memory")


def test_what_was_typed_is_kept_beside_the_memory_or_not_at_all(tmp_path: Path) -> None:
    from llmpipe.talk import terminal

    with Memory(tmp_path / "mine" / "memory.sqlite3") as memory:
        terminal._history(memory).append_string("hi")
    kept = tmp_path / "mine" / "chat_history"
    assert "+hi" in kept.read_text(encoding="utf-8") and kept.stat().st_mode & 0o077 == 0
    terminal._history(None).append_string("hi")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_retry_and_undo(chat: Chat, seen: Seen) -> None:
    chat.say("one")
    commands.run(chat, "/retry")
    assert seen.out.getvalue() == "first\nsecond\n"
    assert said(chat, "/undo", seen) == "  taken back: one\n"
    assert chat.session.messages == []


def test_files_go_along_once(chat: Chat, seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("forty-two", encoding="utf-8")
    assert said(chat, "/attach", seen) == "  nothing is attached\n"
    assert said(chat, "/attach 'a b.txt'", seen) == "  a b.txt, 9 characters: goes along with what you say next\n"
    chat.say("What is it?")
    chat.say("And now?")
    assert [("forty-two" in turn["content"]) for turn in chat.session.messages[::2]] == [True, False]


# ---- What is left for training ----------------------------------------------------------------


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    from llmpipe.artifact import StepRecord

    step = StepRecord(name="x", kind="sft", stage_version=1, fingerprint="", seed=0, settings={}, inputs=[])
    return Context(run_dir=tmp_path, step=step, emit=lambda event: None)


def test_what_is_saved_is_read_by_sft(chat: Chat, seen: Seen, ctx: Context, tmp_path: Path) -> None:
    with pytest.raises(TalkError, match=r"^there is no answer to save yet$"):
        commands.run(chat, "/save chats.jsonl")
    chat.session.system = "Be kind."
    chat.say("Größe?\nIn two lines.")
    commands.run(chat, "/save chats.jsonl")
    (tmp_path / "chats.jsonl").write_text((tmp_path / "chats.jsonl").read_text().rstrip("\n"))  # an editor's doing
    chat.say("And?")
    shown = said(chat, "/save chats.jsonl", seen)
    assert shown.splitlines()[0] == f"  appended to {tmp_path / 'chats.jsonl'}"
    rows = [row for _, row in read_conversations([PathSource(path=str(tmp_path / "chats.jsonl"))], ctx)]
    told = [[(turn["role"], turn["content"], turn["train"]) for turn in row.messages] for row in rows]
    first = [("system", "Be kind.", False), ("user", "Größe?\nIn two lines.", False), ("assistant", "first", True)]
    assert told == [first, [*first, ("user", "And?", False), ("assistant", "second", True)]]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("/save", "where to?"),
        ("/save a.txt", "a.txt: is no name for JSON lines"),
        ("/save no/a.jsonl", "no/a.jsonl: cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_saved(chat: Chat, line: str, wrong: str) -> None:
    chat.say("hi")
    with pytest.raises(LlmpipeError) as refused:
        commands.run(chat, line)
    assert str(refused.value) == wrong


def test_answers_are_compared_ranked_and_read_by_reward(
    monkeypatch: pytest.MonkeyPatch, width: int, ctx: Context, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLMPIPE_HOME", str(tmp_path))
    seen = Seen(monkeypatch, width)
    chat = talking(["a worse answer"], other="a better answer")
    for line, wrong in (("/compare b", "there is no answer to compare yet"), ("/rank", "there is nothing to rank yet")):
        with pytest.raises(TalkError) as refused:
            commands.run(chat, line)
        assert str(refused.value) == wrong
    chat.say("Which?")
    begun = len(seen.out.getvalue())
    commands.run(chat, "/compare hub:b")
    shown = seen.out.getvalue()[begun:]
    assert any("a worse answer" in line and "a better answer" in line for line in shown.splitlines()) == (width == 80)
    assert "1  scripted" in shown and "2  b" in shown
    assert "a worse answer" in shown and "a better answer" in shown
    with pytest.raises(TalkError, match=r"^what is ranked is kept with the run, not in mine\.jsonl$"):
        commands.run(chat, "/rank mine.jsonl")
    assert said(chat, "/rank", seen).splitlines()[0] == f"  kept in {tmp_path / 'rankings.sqlite3'}"
    with Store(tmp_path / "rankings.sqlite3") as store:
        export(store, tmp_path / "pairs.jsonl", "pairs")
    ((_, pair),) = read_preferences([PathSource(path=str(tmp_path / "pairs.jsonl"))], ctx)
    assert [turn["content"] for turn in (*pair.prompt, *pair.chosen, *pair.rejected)] == [
        "Which?",
        "a better answer",
        "a worse answer",
    ]
    with pytest.raises(TalkError, match=r"^there is nothing to rank yet$"):  # once is enough
        commands.run(chat, "/rank")


def test_equal_answers_are_not_ranked_and_nobody_is_pressed(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMPIPE_HOME", str(tmp_path))
    chat = talking(["same"], other="same")
    chat.say("Which?")
    commands.run(chat, "/compare hub:b")
    with pytest.raises(TalkError, match=r"^the answers are the same, or one is empty"):
        commands.run(chat, "/rank")
    chat = talking(["one"], other="two")
    chat.ask = lambda question: ""
    chat.say("Which?")
    commands.run(chat, "/compare hub:b")
    assert said(chat, "/rank", seen) == "  nothing is written\n"
    assert not (tmp_path / "rankings.sqlite3").exists()


def test_a_tie_and_two_bad_answers_are_kept_as_such(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMPIPE_HOME", str(tmp_path))
    for answer in "=0":
        chat = talking([f"one {answer}"], other="two")
        chat.ask = lambda question, answer=answer: answer  # type: ignore[misc]
        chat.say("Which?")
        commands.run(chat, "/compare hub:b")
        commands.run(chat, "/rank")
    with Store(tmp_path / "rankings.sqlite3") as store:
        assert [(one.verdict, one.ranks) for one in store.rankings()] == [("ranked", (1, 1)), ("bad", None)]


def test_thumbs_become_labels_for_kto(seen: Seen, tmp_path: Path) -> None:
    with Memory(tmp_path / "memory.sqlite3") as memory:
        chat = talking(["first", "second"], memory=memory)
        with pytest.raises(TalkError, match=r"^there is no answer to judge yet$"):
            commands.run(chat, "/good")
        chat.say("hi")
        commands.run(chat, "/bad")
        assert said(chat, "/good", seen).splitlines()[0] == f"  kept in {tmp_path / 'rankings.sqlite3'}"
        chat.say("and?")
        commands.run(chat, "/bad")
    with Store(tmp_path / "rankings.sqlite3") as store:
        export(store, tmp_path / "labels.jsonl", "kto")
    rows = [one for _, one in labelled(read_rows([tmp_path / "labels.jsonl"]))]
    assert [(one.answer[0]["content"], len(one.prompt), one.is_good) for one in rows] == [
        ("first", 1, True),
        ("second", 3, False),
    ]


def test_a_model_is_opened_once_and_the_chat_survives_one_that_is_not_there(seen: Seen) -> None:
    chat = talking(["one"])
    chat.say("Which?")
    commands.try_run(chat, "/compare nowhere")
    assert "no such run, stage, folder or GGUF file" in seen.text
    assert chat.other("hub:b") is chat.other("hub:b")


# ---- The screen -------------------------------------------------------------------------------


def drawn(text: str, *, width: int, color: bool = False, by: int = 1) -> str:
    file = io.StringIO()
    colors: Any = "standard" if color else None
    screen = Screen(Console(file=file, width=width, force_terminal=True, color_system=colors, highlight=False))
    for start in range(0, len(text), by):
        screen.write(text[start : start + by])
    screen.end()
    return file.getvalue()


def test_words_are_not_cut_and_what_is_no_text_is_dropped() -> None:
    assert drawn("the quick brown fox", width=10) == "the quick\nbrown fox\n"
    assert drawn("  - a list", width=40) == "  - a list\n"
    assert drawn("a\x1b[31mb\x07 [bold]c[/bold]", width=40) == "a[31mb [bold]c[/bold]\n"
    assert drawn("漢字漢字漢", width=4) == "漢字\n漢字\n漢\n"
    assert drawn("```\n" + "x" * 20 + " y\n```", width=10) == "```\n" + "x" * 20 + " y\n```\n"


@pytest.mark.parametrize("by", [1, 3, 1000])
def test_bold_and_code_are_told_apart_and_nothing_is_lost(by: int) -> None:
    text = "Say **it loud**, 2 ** 3, `a * b` now.\n```python\nx = `1`**2\n```\nend ** of it"
    assert drawn(text, width=200, by=by) == text + "\n"
    styled = drawn(text, width=200, color=True, by=by)
    assert "\x1b[1mloud**\x1b[0m, 2" in styled
    assert "\x1b[36m`a" in styled and " now." in styled
    assert " ** 3," in styled and "\x1b[1m**\x1b[0m 3" not in styled


# ---- Through a pipe ---------------------------------------------------------------------------


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    engine = ScriptedEngine(["\x1b[2Jgood **day**"], name="scripted")

    @contextmanager
    def opened(name: str, *, key_variable: str | None = None) -> Iterator[ScriptedEngine]:
        yield engine

    monkeypatch.setattr(repl, "opened", opened)
    monkeypatch.setenv("LLMPIPE_HOME", str(tmp_path / "home"))

    def call(*arguments: str, text: str | bytes = "hi\nthere\n") -> Any:
        done = CliRunner().invoke(app, ["chat", "model", *arguments], input=text)
        done.engine = engine  # type: ignore[attr-defined]
        return done

    return call


def test_a_pipe_gets_the_answer_alone_and_leaves_nothing_behind(piped: Callable[..., Any], tmp_path: Path) -> None:
    done = piped("--system", "Be short.", "--temperature", "0")
    assert (done.exit_code, done.stdout) == (0, "[2Jgood **day**\n")
    assert done.engine.asked == [[{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi\nthere"}]]
    assert done.engine.how[0].temperature == 0
    assert not (tmp_path / "home").exists()


def test_a_pipe_goes_on_with_a_named_conversation(piped: Callable[..., Any], tmp_path: Path) -> None:
    memory = str(tmp_path / "memory.sqlite3")
    assert piped("--memory", memory).exit_code == 0
    assert piped("--memory", memory, "--continue", text="more").exit_code == 0
    done = piped("--memory", memory, "--conversation", "1", text="and more")
    assert [turn["content"] for turn in done.engine.asked[-1]][::2] == ["hi\nthere", "more", "and more"]
    assert piped("--memory", memory, "--conversation", "7").exit_code == 1


def test_through_a_pipe_a_tool_is_called_if_it_was_allowed_ahead(
    piped: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = CallingEngine([call("web_search", query="ducks"), "ok"])

    @contextmanager
    def opened(name: str, *, key_variable: str | None = None) -> Iterator[CallingEngine]:
        yield engine

    monkeypatch.setattr(repl, "opened", opened)
    monkeypatch.setenv("LLMPIPE_SEARCH_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(console, "err", Console(stderr=True, width=200, soft_wrap=True))
    told = '  web_search {"query": "ducks"}'
    done = piped("--tools", "web_search,calculator")
    assert (done.stdout, done.stderr) == ("ok\n", f"{told}: not allowed\n")
    assert engine.offered == [["web_search", "calculator"]] * 2
    engine.answers[:] = [call("web_search", query="ducks"), "ok"]
    done = piped("--allow", "web_search")
    assert done.stderr.startswith(f"{told}\n  web_search failed: ") and done.stdout == "ok\n"


def test_json_has_the_answer_and_what_it_took(piped: Callable[..., Any]) -> None:
    answer = {"model": "scripted", "answer": "[2Jgood **day**", "finish": "stop"}
    assert json.loads(piped("--json").stdout) == answer | {"tokens": {"prompt": 2, "answer": 2}}


@pytest.mark.parametrize(
    ("arguments", "text", "wrong"),
    [
        ((), " \n", "there is nothing to answer"),
        ((), b"caf\xe9", "stdin is no text in UTF-8"),
        (("--continue",), "hi", "there is no conversation to continue yet"),
        (("--no-memory", "--continue"), "hi", "--no-memory keeps nothing"),
        (("--continue", "--conversation", "1"), "hi", "--continue is the newest conversation"),
        (("--tools", "calculater"), "hi", "there is no tool calculater, did you mean calculator?"),
        (("--allow", "notes__write"), "hi", "there is no tool notes__write"),
    ],
)
def test_what_cannot_be_answered(
    piped: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str, wrong: str
) -> None:
    monkeypatch.setattr(console, "err", Console(stderr=True, width=200, soft_wrap=True))
    done = piped(*arguments, text=text)
    assert done.exit_code == 2
    assert wrong in done.stderr


def test_an_interrupted_answer_ends_and_is_kept(seen: Seen) -> None:
    class Interrupted(ScriptedEngine):
        def _told(self, asked: Any, tokens: int, how: Any) -> Iterator[Piece]:
            yield Piece("as far as this")
            raise KeyboardInterrupt

    chat = Chat(Session(Interrupted(["never"])), "folder", lambda name: ScriptedEngine(["a"]), lambda question: "")
    chat.say("Tell.")
    assert seen.out.getvalue() == "as far as this\n"
    assert seen.text == "\n  stopped: what was said until then is kept; /retry asks again\n"
    assert chat.session.answer == "as far as this"
