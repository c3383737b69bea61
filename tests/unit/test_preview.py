"""`plan` shows how each data file would be read, from its first row, in text and in JSON."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llmpipe import preview, stages
from llmpipe import recipe as recipes
from llmpipe.plan import Step, make_plan
from llmpipe.preview import TABLES, previews, rows_of
from llmpipe.settings import Accepts
from tests.unit.books import epub
from tests.unit.test_cli import call

FILES: dict[str, str | bytes] = {
    "texts/a.txt": "a",
    "texts/b.md": "b",
    "book.epub": epub(),
    "tree/a.py": "x",
    "chat/alpaca.json": '[{"instruction": "a", "input": "", "output": "b", "id": 1}]',
    "chat/sharegpt.jsonl": '{"conversations": [], "tools": "[]"}\n{"cut off',
    "chat/renamed.csv": "ask,answer\nq,a\n",
    "chat/pairs.jsonl.gz": gzip.compress(b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n'),
    "chat/nothing.jsonl": '{"foo": 1, "bar": 2}\n',
    "chat/broken.jsonl": "{\n",
    "pairs.jsonl": '{"question": "q", "response_j": "a", "response_k": "b"}\n',
    "ranked.jsonl": '{"prompt": "q", "answers": ["a", "b"]}\n',
    "kto.jsonl": '{"prompt": "q", "completion": "a", "label": true}\n',
    "ask.jsonl": '{"question": "q"}\n',
    "refuse.jsonl": '{"prompt": "q", "category": "c"}\n',
    "whom.jsonl": '{"query": "she", "choices": ["a", "b"], "gold": 0}\n',
}
RECIPE = """\
name: x
stages:
  tok: {kind: tokenizer, data: [{path: texts}, {path: book.epub}, {path: tree, format: code}, {builtin: storyworld}]}
  base: {kind: pretrain, data: {path: "chat/nothing.jsonl"}, tokenizer: tok, model: {size: 1M}}
  chat: {kind: sft, model: base, data: {path: "chat/*", columns: {question: ask}}}
  judge: {kind: reward, model: chat, data: {path: "[pr]a*.jsonl"}}
  rated: {kind: kto, model: chat, data: {path: kto.jsonl}}
  ppo: {kind: rlhf-ppo, model: chat, reward: judge, data: {path: ask.jsonl}}
  scores:
    kind: eval
    models: [chat, ppo]
    suites: [samples]
    win_rate: {of: ppo, against: chat}
    questions: {path: ask.jsonl}
    rankings: {path: ranked.jsonl}
    refusals: {path: refuse.jsonl}
    pronouns: {path: whom.jsonl}
"""
SEEN: list[tuple[str, str, str | None, list[str] | None, str | None]] = [
    ("tok", "texts/a.txt", "text", ["text"], None),
    ("tok", "texts/b.md", "text", ["text"], None),
    ("tok", "book.epub", "text", ["text"], None),
    ("tok", "tree/a.py", "code", ["text", "language"], None),
    (
        "base",
        "chat/nothing.jsonl",
        None,
        ["foo", "bar"],
        "cannot tell which column holds the text: foo, bar; say `columns: {text: YOURS}`",
    ),
    ("chat", "chat/alpaca.json", "alpaca", ["instruction", "input", "output", "id"], None),
    ("chat", "chat/broken.jsonl", None, None, "the line ends before its last bracket is closed; was the file cut off?"),
    ("chat", "chat/nothing.jsonl", None, ["foo", "bar"], "there is no column 'ask'"),
    (
        "chat",
        "chat/pairs.jsonl.gz",
        None,
        ["prompt", "chosen", "rejected"],
        "there is no column 'ask'",
    ),
    ("chat", "chat/renamed.csv", "question-answer", ["ask", "answer"], None),
    ("chat", "chat/sharegpt.jsonl", "sharegpt", ["conversations", "tools"], None),
    ("judge", "pairs.jsonl", "question-responses", ["question", "response_j", "response_k"], None),
    ("judge", "ranked.jsonl", "prompt-answers", ["prompt", "answers"], None),
    ("rated", "kto.jsonl", "prompt-completion-label", ["prompt", "completion", "label"], None),
    ("ppo", "ask.jsonl", "question", ["question"], None),
    ("scores", "ranked.jsonl", "prompt-answers", ["prompt", "answers"], None),
    ("scores", "ask.jsonl", "question", ["question"], None),
    ("scores", "refuse.jsonl", "refusals", ["prompt", "category"], None),
    ("scores", "whom.jsonl", "pronouns", ["query", "choices", "gold"], None),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def seen() -> list[dict[str, Any]]:
    return list(previews(make_plan(recipes.load(Path("r.yaml")), Path("run"))))


def test_every_file_is_shown_as_its_stage_would_read_it(place: Path) -> None:
    keys = ("stage", "file", "format", "columns", "problem")
    assert [tuple(one[key] for key in keys) for one in seen()] == SEEN
    assert {one["more"] for one in seen()} == {0}


def test_a_stage_that_is_done_is_not_looked_into(place: Path) -> None:
    steps = make_plan(recipes.load(Path("r.yaml")), Path("run"))
    done = [Step(step.record, "wait" if step.name == "tok" else "skip", "", []) for step in steps]
    assert list(previews(done)) == []


def test_plan_prints_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = " ".join(call(monkeypatch, "plan", "r.yaml").stderr.split())
    assert "data file read as columns tok texts/a.txt text text tok book.epub text text" in shown  # b.md is like a.txt
    assert "chat chat/broken.jsonl ? the line ends before its last bracket is closed; was the file cut off?" in shown
    assert "chat chat/renamed.csv question-answer ask, answer" in shown
    assert json.loads(call(monkeypatch, "plan", "r.yaml", "--json").stdout)["data"] == seen()


def test_of_many_files_the_first_are_shown(place: Path) -> None:
    for number in range(30):
        Path(f"texts/{number:02}.txt").write_text("x", encoding="utf-8")
    ours = [one for one in seen() if one["file"].startswith("texts")]
    assert len(ours) == 10 and ours[-1]["more"] == 22
    assert list(rows_of(ours)) == [("tok", "texts/00.txt", "text", "text"), ("tok", "and 22 more files", "", "")]


def test_only_the_beginning_of_a_file_is_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    rows = preview.read_rows
    monkeypatch.setattr(preview, "read_rows", lambda files, **k: read.append(files[0].name) or rows(files, **k))
    monkeypatch.setattr(preview, "MOST_BYTES", 10)
    by_file = {one["file"]: one for one in seen()}
    assert by_file["chat/alpaca.json"]["columns"] is None
    assert not {"a.txt", "book.epub", "a.py", "alpaca.json"} & set(read) and "sharegpt.jsonl" in read


def test_every_stage_that_reads_rows_is_in_the_table() -> None:
    """Texts are read by the stages that have to do with text alone."""
    kinds = {
        kind
        for kind in stages.STAGES
        for field in stages.load(kind).Settings.model_fields.values()
        for extra in field.metadata
        if isinstance(extra, Accepts) and "dataset" in extra.artifacts
    }
    assert kinds - TABLES.keys() == {"curate", "tokenizer", "pretrain", "eval"}
