"""Bad data, a full disk, no write permission: a plain message, the documented exit code, nothing lost."""

from __future__ import annotations

import json
import resource
import signal

import pytest

from .conftest import environment

CHAT = '{"prompt": "Say duck", "completion": "duck"}\n'

ROWS = {
    "empty": (b"", "chat.jsonl: "),
    "cut off": (CHAT.encode() + b'{"prompt": "Say', "chat.jsonl:2: "),
    "not UTF-8": (CHAT.encode() + b'{"prompt": "\xff", "completion": "x"}\n', "chat.jsonl:2: "),
    "no object": (b"[1, 2]\n" + CHAT.encode(), "chat.jsonl:1: "),
    "a column is missing": (CHAT.encode() + b'{"prompt": "x"}\n', "chat.jsonl:2: "),
    "another type": (CHAT.encode() + b'{"prompt": "x", "completion": 5}\n', "chat.jsonl:2: "),
    "no format fits": (b'{"foo": 1}\n', "chat.jsonl:1: no format fits the columns foo"),
}


@pytest.mark.parametrize("name", ROWS)
def test_bad_rows_are_named_by_file_and_line(llmpipe, run_dir, name) -> None:
    content, wanted = ROWS[name]
    llmpipe.write("chat.jsonl", content)
    done = llmpipe.here("sft", "--run", run_dir, "--name", "new", "--model", "base", "--data", "chat.jsonl", code=5)
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr
    assert (run_dir / "chat" / "manifest.json").is_file()


def test_every_bad_row_of_every_file_in_one_pass(llmpipe, run_dir) -> None:
    llmpipe.write("a.jsonl", CHAT + '{"prompt": 1, "completion": "x"}\n' + CHAT + "{\n")
    llmpipe.write("b.jsonl", '{"prompt": "x"}\n' + CHAT)
    done = llmpipe.here(
        "sft", "--run", run_dir, "--name", "new", "--model", "base", "--data", "*.jsonl", "--json", code=5
    )
    places = [problem["where"] for problem in json.loads(done.stdout)["error"]["problems"]]
    assert sorted(place.rpartition("/")[2] for place in places) == ["a.jsonl:2", "a.jsonl:4", "b.jsonl:1"]


def test_a_text_shorter_than_a_row(llmpipe, run_dir) -> None:
    llmpipe.write("short.txt", "Once.")
    done = llmpipe.here("pretrain", "--run", run_dir, "--name", "new", "--data", "short.txt", "--model", "100k", code=5)
    assert "tokens, less than one row of 512" in done.stderr
    assert "hint: lower context to" in done.stderr


def test_no_conversation_fits(llmpipe, run_dir) -> None:
    llmpipe.write("chat.jsonl", json.dumps({"prompt": "x", "completion": "long " * 500}) + "\n")
    done = llmpipe.here("sft", "--run", run_dir, "--name", "new", "--model", "base", "--data", "chat.jsonl", code=5)
    assert "no conversation fits into 64 tokens" in done.stderr


@pytest.mark.parametrize("limit_bytes", [2_000, 60_000])
def test_a_full_disk(llmpipe, limit_bytes) -> None:
    """A file-size limit fails writes the way a full disk does: early in small files, later in weights."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    done = llmpipe("run", "tiny.yaml", "--until", "base", code=1, preexec_fn=limited)
    assert "there is no room to write: " in done.stderr
    assert "MB are free on its disk" in done.stderr
    assert "Traceback" not in done.stderr
    llmpipe("run", "tiny.yaml", "--until", "base")


def test_no_permission_to_write(llmpipe) -> None:
    llmpipe.write("file", "not a folder")
    done = llmpipe("run", "tiny.yaml", "--run", "file/run", code=2)
    assert done.stderr.startswith("file/run: cannot be made: ")


def test_a_changed_file_is_noticed_at_the_end(llmpipe) -> None:
    """A named pipe stands for a file that someone appends to while the stage reads it."""
    llmpipe.write("text.txt", "Once upon a time. " * 50)
    recipe = "name: x\nstages:\n  tok: {kind: tokenizer, data: {path: text.txt}, algorithm: byte}\n"
    llmpipe.write("x.yaml", recipe)
    code = (
        "import llmpipe.stages.tokenizer as t; learn = t.learn\n"
        "def changed(*args):\n    open('text.txt', 'a', encoding='utf-8').write('more'); return learn(*args)\n"
        "t.learn = changed\n"
    )
    llmpipe.write("hook/sitecustomize.py", code)
    env = environment(PYTHONPATH=str(llmpipe.folder / "hook"))
    done = llmpipe("run", "x.yaml", "--in-process", code=1, env=env)
    assert "text.txt: " in done.stderr and "changed while the stage was reading it" in done.stderr
    assert not (llmpipe.folder / "runs" / "x" / "tok" / "manifest.json").exists()
