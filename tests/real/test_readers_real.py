"""Real text comes back from the new readers as it went in: through a page, a book, a packed file, with bad rows."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from llmpipe.artifact import StepRecord
from llmpipe.context import Context
from llmpipe.data import bad_rows
from llmpipe.data.rows import expand, read_rows
from llmpipe.data.sources import read_documents
from llmpipe.settings import PathSource
from tests.real.shared import real
from tests.unit.books import CHAPTER, PARTS, epub

LANGUAGES = ("de", "en", "fr", "it", "ja", "nl", "ru", "zh-cn")


def paragraphs(name: str, count: int) -> list[str]:
    """Return the longest paragraphs of a text, in their order."""
    text = real("pretrain", "multilingual", f"debian-faq.{name}.txt").read_text(encoding="utf-8")
    found = list(dict.fromkeys(" ".join(part.split()) for part in text.split("\n\n")))
    longest = set(sorted(found, key=len)[-count:])
    return [part for part in found if part in longest]


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_page_in_each_language_keeps_its_paragraphs(name: str, tmp_path: Path) -> None:
    wanted = paragraphs(name, 12)
    body = "".join(f"<p>{html.escape(part)}</p>" for part in wanted)
    menu = "".join(f'<li><a href="/{n}">Menu {n}</a></li>' for n in range(20))
    page = f'<html lang="{name}"><body><nav><ul>{menu}</ul></nav><article>{body}</article></body></html>'
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (row,) = read_rows([tmp_path / "page.html"])
    text = str(row.value["text"])
    assert [part for part in wanted if part not in text] == []
    assert "Menu" not in text and row.value["language"] == name


def test_a_book_of_wikitext_keeps_every_line(tmp_path: Path) -> None:
    lines = real("pretrain", "wikitext2.valid.txt").read_text(encoding="utf-8").splitlines()
    wanted = [" ".join(line.split()) for line in lines if line.strip()]
    half = len(wanted) // 2
    chapters = ("".join(f"<p>{html.escape(line)}</p>" for line in part) for part in (wanted[:half], wanted[half:]))
    first, second = (CHAPTER.replace("{{}}", "").replace("{0}", "x") + chapter for chapter in chapters)
    content = epub({"OEBPS/text/b.xhtml": first, "OEBPS/text/a b.xhtml": second})
    assert set(PARTS) >= {"OEBPS/text/b.xhtml", "OEBPS/text/a b.xhtml"}
    (tmp_path / "book.epub").write_bytes(content)
    (row,) = read_rows([tmp_path / "book.epub"])
    found = [line for line in str(row.value["text"]).split("\n") if line not in ("", "x", "It is x.", "So.")]
    assert found == wanted


def test_web_pages_with_bad_rows_among_them(tmp_path: Path) -> None:
    """c4 packed with zstd, every seventh line broken: the others are all there, and the broken ones are kept."""
    from backports import zstd

    lines = real("pretrain", "c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
    broken = [line[: len(line) // 2] if number % 7 == 6 else line for number, line in enumerate(lines)]
    (tmp_path / "c4.jsonl.zst").write_bytes(zstd.compress("\n".join(broken).encode()))
    (tmp_path / "x").mkdir()
    record = StepRecord(name="x", kind="pretrain", stage_version=1, fingerprint="", seed=1, settings={}, inputs=[])
    ctx = Context(run_dir=tmp_path, step=record, emit=lambda event: None)
    source = PathSource(path=str(tmp_path / "c4.jsonl.zst"), on_bad_rows="quarantine")
    found = [text for _, text in read_documents([source], ctx)]
    assert found == [json.loads(line)["text"] for number, line in enumerate(lines) if number % 7 != 6]
    kept = [json.loads(line) for line in (tmp_path / "x" / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["row"].rstrip("\n") for row in kept] == [line for n, line in enumerate(broken) if n % 7 == 6]
    assert bad_rows.metrics(ctx.dir) == {"bad_rows": 42}


def test_our_own_source_tree() -> None:
    """Every module of this package is code under the Apache licence, and none of it was made by a machine."""
    package = Path(__file__).parents[2] / "llmpipe"
    rows = list(read_rows(expand(str(package), base=Path(), format="code")))
    named = sorted(
        path.name
        for kind in ("*.py", "*.js", "*.css", "*.toml", "*.yaml")
        for path in package.rglob(kind)
        if path.stat().st_size
    )
    assert sorted(Path(row.where.rpartition(":")[0]).name for row in rows) == named
    assert {row.value["language"] for row in rows} == {"python", "javascript", "css", "toml", "yaml"}
    assert {row.value["licence"] for row in rows} == {"Apache-2.0"}
