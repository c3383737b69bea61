"""What fuzzing feeds llmpipe: recipes and data files that were whole, and then were cut, mixed and misspelt.

`tests/unit/test_fuzz.py` does so for a moment, `benchmarks/fuzz.py` for as long as is wanted.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from llmpipe import recipe as recipes
from llmpipe import yaml_tree
from llmpipe.data import Problems, Row
from llmpipe.data.formats import conversations, documents
from llmpipe.data.labelled import labelled
from llmpipe.data.preferences import preferences
from llmpipe.data.prompts import prompts
from llmpipe.data.ranked import ranked
from llmpipe.data.rows import READERS, read_rows
from llmpipe.errors import LlmpipeError
from tests.unit.books import PAGE, epub, pdf

ODD = ["~", "-1", "0", "1e400", "99999999999999999999", ".nan", "''", "[]", "{}", "[[]]", "{a: }", "null", "no", "64k"]
ODD += [
    "*x",
    "&x y",
    "!!int a",
    "!t",
    "|",
    ">",
    "? ",
    "- ",
    "'",
    '"',
    "\\",
    "\t",
    "\0",
    "\x1b",
    "\u2028",
    "é",
    "💥",
    "%",
]
ODD += ["stage: x", "path: /dev/null", "hub: a/b", "builtin: storyworld", "gguf: x", "function: f.py:f", "weight: -1"]
ODD += ["<<: *x", "0x", "0o8", "1_000", "2020-01-01", "12:30", "---", "...", "#", "@", "`", "9" * 5000]
WORDS = ["kind", "data", "model", "models", "trainer", "lora", "reward", "prompts", "seed", "name", "stages", "tasks"]
WORDS += [
    "sft",
    "pretrain",
    "rlhf-ppo",
    "eval",
    "fail_if",
    "steps",
    "curate",
    "tokenizer",
    "columns",
    "format",
    "texts",
]


@lru_cache
def written() -> list[str]:
    """Return the recipes that ship, each as text."""
    return [path.read_text(encoding="utf-8") for path in recipes.shipped_recipes().values()]


def _pieces(text: str) -> list[str]:
    """Cut a recipe where a person edits it: at spaces, brackets, commas and colons."""
    pieces, last = [], 0
    for at, char in enumerate(text):
        if char in " \n,:{}[]":
            pieces += [text[last:at], char]
            last = at + 1
    return [piece for piece in (*pieces, text[last:]) if piece]


@st.composite
def recipe_texts(draw: Any) -> str:
    """Draw a shipped recipe in which a few pieces are replaced, moved, doubled or gone."""
    pieces = _pieces(draw(st.sampled_from(written())))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(pieces) - 1))
        match draw(st.sampled_from(["odd", "rest", "word", "text", "swap", "double", "gone", "cut"])):
            case "odd":
                pieces[at] = draw(st.sampled_from(ODD))
            case "rest":  # of a line: what a key is set to
                ends = (end for end in range(at, len(pieces)) if pieces[end] == "\n")
                pieces[at : next(ends, at)] = [" ", draw(st.sampled_from(ODD))]
            case "word":
                pieces[at] = draw(st.sampled_from(WORDS))
            case "text":
                pieces[at] = draw(st.text(max_size=8))
            case "swap":
                other = draw(st.integers(0, len(pieces) - 1))
                pieces[at], pieces[other] = pieces[other], pieces[at]
            case "double":
                pieces[at:at] = pieces[at : at + draw(st.integers(1, 30))]
            case "gone":
                del pieces[at : at + draw(st.integers(1, 10))]
            case "cut":
                del pieces[at:]
        if not pieces:
            return ""
    return "".join(pieces)


def read_recipe(text: str, folder: Path) -> None:
    """Check a recipe; nothing but llmpipe's own errors may come of it."""
    with suppress(LlmpipeError):
        recipes.check(yaml_tree.parse(text, shown_as="r.yaml"), folder / "r.yaml")


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["", " ", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
TURN = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]) | CELLS, "content": CELLS}
)
COLUMNS = ["text", "messages", "conversations", "prompt", "completion", "chosen", "rejected", "instruction", "output"]
COLUMNS += ["label", "answers", "scores", "ranking", "system", "tools", "history", "question", "answer", "score"]
VALUES = st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=6), CELLS | st.lists(TURN, max_size=4), max_size=5)


def _packed(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


@lru_cache
def whole() -> dict[str, bytes]:
    """Return a small valid file for each suffix that is read."""
    rows = [{"prompt": "Why?", "chosen": "So.", "rejected": "No.", "n": 1}] * 3
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files = {
        ".txt": b"Once upon a time.\n\nThe end.\n",
        ".jsonl": lines,
        ".json": json.dumps({"data": rows, "version": 1}).encode(),
        ".csv": b'prompt,chosen,rejected\n"a, b",c,d\ne,"f ""g""\nh",i\n',
        ".tsv": b"prompt\tchosen\na\tb\n",
        ".parquet": _packed(rows),
        ".html": PAGE.format(head="<meta charset=utf-8>").encode(),
        ".epub": epub(),
        ".pdf": pdf("Once upon a time", "The end"),
        ".py": b'# SPDX-License-Identifier: MIT\ndef f(x):\n    return "a" + x\n',
    }
    return files | {".jsonl.gz": gzip.compress(lines), ".txt.gz": gzip.compress(files[".txt"])}


@st.composite
def files(draw: Any) -> tuple[str, bytes]:
    """Draw a file of one of the kinds that are read: broken in places, or rows that no format expects."""
    if draw(st.booleans()):
        rows = draw(st.lists(VALUES, min_size=1, max_size=4))
        return ".jsonl", "\n".join(map(json.dumps, rows)).encode()
    suffix = draw(st.sampled_from(sorted(whole())))
    content = bytearray(whole()[suffix])
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["put", "over", "gone", "cut", "double", "flip"])):
            case "put":
                content[at:at] = draw(st.binary(max_size=6))
            case "over":
                content[at : at + 2] = draw(st.binary(min_size=2, max_size=2))
            case "gone":
                del content[at : at + draw(st.integers(1, 40))]
            case "cut":
                del content[at:]
            case "double":
                content[at:at] = content[at : at + draw(st.integers(1, 200))]
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
    return suffix, bytes(content)


TABLES: list[Callable[..., Iterator[Any]]] = [
    conversations, documents, preferences, prompts, ranked, labelled
]  # fmt: skip


def read_file(suffix: str, content: bytes, folder: Path) -> None:
    """Read a file in every way that a stage would; nothing but llmpipe's own errors may come of it."""
    path = folder / f"f{suffix}"
    path.write_bytes(content)
    rows: list[Row] = []
    with suppress(LlmpipeError):
        rows = list(read_rows([path], problems=Problems()))
    for table in TABLES:
        with suppress(LlmpipeError):
            list(table(iter(rows)))


assert set(READERS) >= {suffix.removesuffix(".gz") for suffix in whole()}
