"""on_bad_rows: bad rows are left out, counted and kept; a file that is bad as a whole is still refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from llmpipe.artifact import StepRecord
from llmpipe.context import Context
from llmpipe.data import bad_rows, sources
from llmpipe.errors import DataError
from llmpipe.settings import HubSource, PathSource

CHAT = {"question": "q", "answer": "a"}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
LABELLED = {"prompt": "q", "completion": "a", "label": True}
READERS: list[tuple[Callable[..., Iterator[Any]], dict[str, Any], dict[str, Any], str]] = [
    (sources.read_texts, {"text": "t"}, {"text": 5}, "text is a number, not text"),
    (sources.read_conversations, CHAT, CHAT | {"answer": ""}, "answer is empty"),
    (sources.read_preferences, PAIR, {"prompt": "q", "chosen": "a"}, "the column 'rejected' is missing"),
    (sources.read_labelled, LABELLED, LABELLED | {"label": 1}, "label is a number, not true or false"),
    (sources.read_prompts, {"prompt": "q"}, {"prompt": None}, "prompt is null, not text"),
]


@pytest.fixture
def ctx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    record = StepRecord(name="x", kind="sft", stage_version=1, fingerprint="f", seed=3, settings={}, inputs=[])
    said: list[dict[str, Any]] = []
    made = Context(run_dir=tmp_path, step=record, emit=said.append)
    made.said = said  # type: ignore[attr-defined]
    return made


def source(*rows: Any, how: str = "skip", name: str = "a.jsonl", **options: Any) -> list[PathSource]:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    Path(name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return [PathSource(path=name, on_bad_rows=how, **options)]


def said(ctx: Context) -> list[str]:
    return [event["text"] for event in ctx.said]  # type: ignore[attr-defined]


def kept() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("x/bad_rows.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("read", "good", "bad", "wrong"), READERS)
def test_every_kind_of_rows_leaves_bad_ones_out(ctx: Context, read: Any, good: Any, bad: Any, wrong: str) -> None:
    mix = source(good, bad, good, '{"cut', {"foo": 1}, good, good, how="quarantine")
    assert len(list(read(mix, ctx))) == (1 if read is sources.read_prompts else 4)  # one prompt, asked once
    assert said(ctx)[:2] == [
        "a.jsonl: 3 of 7 rows are bad and left out, kept in bad_rows.jsonl; the first:",
        f"  a.jsonl:2: {wrong}",
    ]
    assert said(ctx)[2] == "  a.jsonl:4: the line ends inside a string; was the file cut off?"
    assert [(row["where"], row["row"]) for row in kept()] == [
        ("a.jsonl:2", bad),
        ("a.jsonl:4", '{"cut\n'),
        ("a.jsonl:5", {"foo": 1}),
    ]
    assert kept()[0]["wrong"] == [wrong]
    assert bad_rows.metrics(ctx.dir) == {"bad_rows": 3}


def test_skip_keeps_nothing_but_the_count(ctx: Context) -> None:
    mix = source({"text": "a"}, *[{"text": n} for n in range(5)], *[{"text": "b"}] * 5)
    assert len(list(sources.read_texts(mix, ctx))) == 6
    assert len(said(ctx)) == 4 and said(ctx)[0] == "a.jsonl: 5 of 11 rows are bad and left out; the first:"
    assert not Path("x/bad_rows.jsonl").exists()
    assert bad_rows.metrics(ctx.dir) == {"bad_rows": 5}


def test_the_default_is_an_error(ctx: Context) -> None:
    with pytest.raises(DataError, match=r"^a\.jsonl:2: text is a number, not text$"):
        list(sources.read_texts(source({"text": "a"}, {"text": 1}, {"text": "a"}, how="error"), ctx))
    assert bad_rows.metrics(ctx.dir) == {}


def test_half_may_be_bad_and_no_more(ctx: Context) -> None:
    assert list(sources.read_texts(source({"text": "a"}, {"text": 1}), ctx)) == ["a"]
    with pytest.raises(DataError) as caught:
        list(sources.read_texts(source({"text": "a"}, {"text": 1}, "{", name="b.jsonl"), ctx))
    assert [str(problem) for problem in caught.value.problems] == [
        "b.jsonl: 2 of 3 rows are bad; more than half are not left out",
        "b.jsonl:2: text is a number, not text",
        "b.jsonl:3: the line ends before its last bracket is closed; was the file cut off?",
    ]


def test_the_first_row_may_be_a_bad_one(ctx: Context) -> None:
    assert len(list(sources.read_conversations(source({"foo": 1}, CHAT, CHAT), ctx))) == 2
    assert list(sources.read_texts(source({"a": "x", "b": "y"}, {"text": "t"}, name="b.jsonl"), ctx)) == ["t"]


def test_a_file_of_another_kind_is_refused_with_its_hint(ctx: Context) -> None:
    with pytest.raises(DataError) as caught:
        list(sources.read_conversations(source(PAIR, PAIR), ctx))
    assert "these are preference pairs" in str(caught.value)
    assert caught.value.hint == "name the `format` to learn from the rows all the same"


def test_a_column_that_no_row_has_is_the_recipes_mistake(ctx: Context) -> None:
    mix = source(CHAT, CHAT, format="question-answer", columns={"system": "sytem"})
    with pytest.raises(DataError, match=r"^no row has the column 'sytem', meant as system$"):
        list(sources.read_conversations(mix, ctx))


def test_a_document_counts_once_however_many_of_its_lines_are_bad(ctx: Context) -> None:
    Path("d").mkdir()
    for name in ("a", "b"):
        Path(f"d/{name}.txt").write_text("good", encoding="utf-8")
    Path("d/c.txt").write_bytes("é\né\né\n".encode("latin-1"))
    assert list(sources.read_texts([PathSource(path="d", on_bad_rows="quarantine")], ctx)) == ["good", "good"]
    assert [row["where"] for row in kept()] == ["d/c.txt:1"]
    assert kept()[0]["wrong"] == ["byte 0xe9 at offset 0 is not UTF-8; save the file as UTF-8"]
    assert said(ctx)[0].startswith("d: 1 of 3 rows are bad")


def test_a_source_that_is_read_again_or_in_part_is_counted_once(ctx: Context) -> None:
    mix = source({"text": 1}, *[{"text": "a"}] * 9, {"text": 2}, how="quarantine")
    assert list(islice(sources.read_texts(mix, ctx), 3)) == ["a"] * 3
    assert bad_rows.metrics(ctx.dir) == {"bad_rows": 1}
    assert len(list(sources.read_texts(mix, ctx))) == 9
    assert len(kept()) == 1 and len(said(ctx)) == 2


def test_files_that_are_passed_over_are_said_and_counted(ctx: Context) -> None:
    Path("src/node_modules").mkdir(parents=True)
    for name, text in {"a.py": "x", "b.py": "# @generated", "node_modules/c.js": "x", "__init__.py": ""}.items():
        Path("src", name).write_text(text, encoding="utf-8")
    assert list(sources.read_texts([PathSource(path="src", format="code")], ctx)) == ["x"]
    assert said(ctx) == ["src: 3 files are passed over: 1 empty, 1 generated, 1 vendored"]
    assert bad_rows.metrics(ctx.dir) == {"passed_over_files": 3}


def test_bad_rows_of_several_sources_add_up(ctx: Context) -> None:
    mix = source(CHAT, {}, CHAT, how="quarantine") + source(CHAT, {}, how="skip", name="b.jsonl")
    assert len(list(sources.read_conversations(mix, ctx))) == 3
    assert bad_rows.metrics(ctx.dir) == {"bad_rows": 2}
    assert [row["where"] for row in kept()] == ["a.jsonl:2"]


def test_only_the_first_process_writes(ctx: Context) -> None:
    ctx.rank = 1
    assert list(sources.read_texts(source({"text": "a"}, {"text": 1}, how="quarantine"), ctx)) == ["a"]
    assert not list(ctx.dir.iterdir()) and not said(ctx)


def test_recipes_without_the_key_keep_their_fingerprints() -> None:
    assert PathSource(path="a").model_dump() == {"path": "a", "format": None, "columns": None, "weight": 1.0}
    assert "on_bad_rows" not in HubSource(hub="a/b").model_dump()
    assert PathSource(path="a", on_bad_rows="skip").model_dump()["on_bad_rows"] == "skip"
