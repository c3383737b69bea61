"""chat in a real terminal, by a model of a tiny run: one long session in a wide window, one in a narrow one."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pexpect
import pytest

from .conftest import LLMPIPE, Shell, environment

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")
PASTE_ON = "\x1b[?2004h"
"""What a prompt begins with: from then on, what is pasted is told from what is typed."""


class Terminal:
    """A chat in a window of a size, driven by keys."""

    def __init__(self, folder: Path, *arguments: str, columns: int) -> None:
        env = environment(LLMPIPE_HOME=str(folder / "home"), TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1")
        del env["COLUMNS"]
        self.child = pexpect.spawn(
            LLMPIPE, ["chat", *arguments], cwd=folder, env=env, dimensions=(24, columns), timeout=120, encoding="utf-8"
        )
        self.child.delaybeforesend = None

    def wait(self, text: str) -> str:
        """Wait for a text, and return what was shown until then."""
        self.child.expect_exact(text)
        return ESCAPES.sub("", self.child.before)

    def type(self, text: str, *, then: str) -> str:
        """Type a line, wait for what it leads to, and for the next prompt after it."""
        self.child.send(text + "\r")
        shown = self.wait(then)
        return shown + then + self.wait(PASTE_ON)

    def paste(self, text: str) -> None:
        self.child.send(f"\x1b[200~{text}\x1b[201~")

    def leave(self) -> None:
        self.child.sendeof()
        self.child.expect(pexpect.EOF)
        self.child.close()
        assert self.child.exitstatus == 0


@pytest.fixture
def talk(run_dir: Path, llmpipe: Shell) -> Iterator[Callable[..., Terminal]]:
    begun = []

    def start(*arguments: str, columns: int) -> Terminal:
        begun.append(Terminal(llmpipe.folder, *arguments, columns=columns))
        begun[-1].wait("/help lists the commands")
        begun[-1].wait(PASTE_ON)
        return begun[-1]

    yield start
    for terminal in begun:
        terminal.child.close(force=True)


def test_a_chat_with_every_command(talk: Callable[..., Terminal], llmpipe: Shell) -> None:
    wide = talk("runs/tiny", "--max-new-tokens", "12", "--temperature", "3", columns=100)
    wide.type("/help", then="/quit")
    wide.type("/system Be kind.", then="system: Be kind.")
    wide.type("/system off", then="system: none")
    wide.type("/mode deep-search", then="deep-search (now)")
    wide.type("/mode chat", then="chat (now)")
    wide.type("/tools on calculator", then="calculator")
    wide.type("/tools off calculator", then="calculator")
    wide.type("/rnak", then="did you mean /rank?")
    wide.type("/save chats.jsonl", then="there is no answer to save yet")
    wide.child.send("Tell me\x1b\ra story.\\\rOf a duck.")  # Alt-Enter, then a backslash and Enter
    wide.type("", then="")
    wide.type("/save chats.jsonl", then="appended to")
    wide.type("/compare base", then="/rank says which is better")
    wide.child.send("/rank\r")
    wide.wait("1 or 2?")
    wide.type("1", then="kept in")
    wide.type("/good", then="kept in")
    wide.type("/retry", then="")
    wide.type("/memory remember Ducks wear shoes.", then="1  Ducks wear shoes.")
    wide.type("/memory duck", then="user: Tell me a story. Of a duck.")
    wide.type("/forget 1", then="fact 1 is forgotten")
    wide.child.send("never sent\x03")  # Ctrl-C at the prompt clears the line
    wide.type("/undo", then="taken back: Tell me a story. Of a duck.")
    wide.child.send("/quit\r")
    wide.child.expect(pexpect.EOF)
    (row,) = (json.loads(line) for line in (llmpipe.folder / "chats.jsonl").read_text().splitlines())
    assert row["messages"][0] == {"role": "user", "content": "Tell me\na story.\nOf a duck."}
    llmpipe("rank", "runs/tiny", "--export", "pairs.jsonl", "--as", "pairs")
    (pair,) = (json.loads(line) for line in (llmpipe.folder / "pairs.jsonl").read_text().splitlines())
    assert pair["chosen"][0]["content"] == row["messages"][1]["content"]
    llmpipe("rank", "runs/tiny", "--export", "labels.jsonl", "--as", "kto")
    assert "+/tools" in (llmpipe.folder / "home/chat_history").read_text()


@pytest.fixture
def slow() -> Iterator[tuple[str, list[str]]]:
    """Serve a model that says three lines of words and then thinks; gives its name and what it was asked."""
    asked: list[str] = []
    gone = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"id": "slow", "max_model_len": 100_000}]}).encode())

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(content["messages"][-1]["content"])
            self.send_response(200)
            self.end_headers()
            for word in ["\x1b[2J", *[f"word{number} " for number in range(20)]]:
                event = {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.flush()
            gone.wait(60)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1#slow", asked
    gone.set()
    server.shutdown()
    server.server_close()


def test_a_long_paste_and_an_interrupted_answer_in_a_narrow_window(tmp_path: Path, slow: tuple[str, list[str]]) -> None:
    name, asked = slow
    narrow = Terminal(tmp_path, name, columns=40)
    narrow.wait("Ctrl-D")
    narrow.wait(PASTE_ON)
    pasted = " ".join(f"Ente{number}" if number % 9 else f"Schuh{number}\n" for number in range(10_000))
    narrow.paste(pasted)
    narrow.wait("Ente9998")
    narrow.child.send("\r")
    shown = narrow.wait("word18")  # the answer comes word by word, and no line is cut within one
    lines = shown.rpartition("word0 ")[2].splitlines()
    assert max(map(len, lines)) <= 40 and all(line.split()[0].startswith("word") for line in lines if line.strip())
    assert asked == [pasted]
    narrow.child.sendintr()
    narrow.wait("stopped: what was said until then is")
    narrow.wait(PASTE_ON)
    narrow.type("/save kept.jsonl", then="appended")
    narrow.type("/help", then="Ctrl-D: leave")
    narrow.leave()
    (row,) = (json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines())
    assert row["messages"][0]["content"] == pasted
    assert row["messages"][1]["content"].startswith("\x1b[2Jword0 word1 ")


def test_a_pipe_gets_the_answer_alone(run_dir: Path, llmpipe: Shell) -> None:
    options = {"env": environment(LLMPIPE_HOME=str(llmpipe.folder / "home"))}
    asked = ("chat", "runs/tiny", "--max-new-tokens", "9", "--temperature", "3")
    done = llmpipe(*asked, input="Tell me a story about a duck and a shoe.\n", **options)
    assert done.stdout.strip()
    assert done.stderr == "  runs/tiny: its last model, chat\n"
    assert not (llmpipe.folder / "home").exists()


@pytest.fixture
def caller() -> Iterator[tuple[str, list[Any]]]:
    """Serve a model that searches for what it is told, and then says so; and the search, which counts its queries."""
    searched: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/search"):
                searched.append(self.path)
                content: Any = {"results": [{"title": "Ducks", "url": "http://ducks.example", "content": "They swim."}]}
            else:
                content = {"data": [{"id": "caller", "max_model_len": 100_000}]}
            self.reply([json.dumps(content)])

        def do_POST(self) -> None:
            last = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]
            delta: dict[str, Any] = {"content": f"I was told: {last['content'][:60]}"}
            if last["role"] == "user":
                function = {"name": "web_search", "arguments": json.dumps({"query": f"\x1b[2J{last['content']}"})}
                delta = {"tool_calls": [{"index": 0, "id": "one", "type": "function", "function": function}]}
            reason = "tool_calls" if "tool_calls" in delta else "stop"
            events = ({"delta": delta, "finish_reason": None}, {"delta": {}, "finish_reason": reason})
            self.reply([f"data: {json.dumps({'choices': [{'index': 0, **event}]})}\n\n" for event in events])

        def reply(self, parts: list[str]) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write("".join(parts).encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", searched
    server.shutdown()
    server.server_close()


def test_a_call_is_asked_for_in_the_terminal(
    tmp_path: Path, caller: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, searched = caller
    monkeypatch.setenv("LLMPIPE_SEARCH_URL", address)
    chat = Terminal(tmp_path, f"{address}/v1#caller", "--tools", "web_search", "--no-memory", columns=100)
    chat.wait("/help lists the commands")
    chat.wait(PASTE_ON)
    chat.child.send("ducks\ry\r")  # typed before the question is there: no answer to it
    shown = chat.wait("Allow it?")
    assert 'web_search {"query": "\\u001b[2Jducks"}' in shown
    assert "it sends this to other computers and reads what they answer" in shown
    chat.type("", then="I was told: The user did not allow this call.")
    assert searched == []
    chat.child.send("geese\r")
    chat.wait("Allow it?")
    chat.type("y", then="I was told: Result of web_search.")
    chat.child.send("swans\r")
    chat.wait("Allow it?")
    assert len(searched) == 1
    chat.type("a", then="I was told: Result of web_search.")
    chat.type("more swans", then="I was told: Result of web_search.")
    assert len(searched) == 3
    chat.type("/tools", then="allowed")
    chat.type("/tools off web_search", then="off")
    chat.type("teal", then="the model says nothing")
    assert len(searched) == 3
    chat.leave()
