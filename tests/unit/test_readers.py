"""Web pages, books, code and zstd: what is read of them, and that no file, however broken, is more than a problem."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmpipe import packages
from llmpipe.artifact import Input, StepRecord
from llmpipe.data import Problems, readers
from llmpipe.data.readers import books, code, documents, web
from llmpipe.data.rows import READERS, Row, expand, read_rows
from llmpipe.errors import DataError, StageError, UsageError
from llmpipe.plan import Step
from tests.unit.books import CHAPTER, PAGE, PARTS, epub, pdf


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(name: str, content: bytes | None = None) -> tuple[list[Row], list[str], dict[str, int]]:
    """Return the rows, the problems and what was passed over of a file or a source tree."""
    if content is not None:
        Path(name).write_bytes(content)
    noted = Problems()
    rows = list(read_rows(expand(name, base=Path(), format="code"), problems=noted))
    return rows, [str(problem) for problem in noted.listed], dict(noted.passed_over)


def problem(name: str, content: bytes) -> str:
    rows, problems, _ = read(name, content)
    assert not rows and len(problems) == 1
    return problems[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_page_gives_its_main_text(encoding: str, packed: bool) -> None:
    head = '<meta charset="iso-8859-1">' if encoding == "latin-1" else ""
    content = PAGE.format(head=head).encode(encoding)
    name = "p.html.gz" if packed else "p.html"
    rows, problems, _ = read(name, gzip.compress(content) if packed else content)
    assert not problems
    assert rows[0].where == f"{name}:1"
    text = str(rows[0].value.pop("text"))
    assert rows[0].value == {"title": "Der Fuchs", "language": "de", "licence": "CC-BY-SA-4.0"}
    assert text.count("über den faulen Hund") == 5
    assert "Kontakt" not in text and "Impressum" not in text


BAD_PAGES = {
    "": "p.html: the file is empty",
    "<html><body></body></html>": "p.html: no main text is found in this page",
    "just words": "p.html: no main text is found in this page",
    '<meta charset="utf-9"><p>x': "p.html: the page names an encoding that there is not: utf-9",
    "<p>\xe9t\xe9": "p.html: byte 0xe9 at offset 3 is not UTF-8, which a page is that names no encoding",
    '<meta charset="UTF-8">\xe9': "p.html: byte 0xe9 at offset 22 is not UTF-8, which the page names",
}


@pytest.mark.parametrize("content", BAD_PAGES)
def test_a_bad_page(content: str) -> None:
    assert problem("p.html", content.encode("latin-1")) == BAD_PAGES[content]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'<meta charset="latin1">\x93Hi\x94', "“Hi”"),
        ('<meta charset="utf-16">é'.encode(), "é"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">я'.encode("koi8-r"), "я"),
        ("<?xml version='1.0' encoding='shift_jis'?>日本".encode("shift_jis"), "日本"),
    ],
)
def test_names_of_encodings_mean_what_browsers_take_them_for(raw: bytes, text: str) -> None:
    found, wrong = web.decoded(raw)
    assert found.endswith(text) and wrong is None


def test_a_book_is_read_in_its_own_order() -> None:
    rows, problems, _ = read("b.epub", epub())
    assert not problems
    assert rows == [
        Row(
            "b.epub:1",
            {
                "text": "f&irst\nIt is f&irst.\nSo.\n\nlast\nIt is last.\nSo.",
                "title": "Two Tales",
                "author": "A. Hare",
                "language": "en",
                "licence": "CC0",
            },
        )
    ]


CONTAINER, PACKAGE, LAST = "META-INF/container.xml", "OEBPS/package.opf", "OEBPS/text/a b.xhtml"
BAD_BOOKS = {
    "no container": ({CONTAINER: None}, "META-INF/container.xml is missing in the book"),
    "empty container": ({CONTAINER: "<a/>"}, "the book does not say where its package is"),
    "no XML": ({PACKAGE: "<a"}, "OEBPS/package.opf is not XML: unclosed token: line 1, column 0"),
    "no chapters": ({PACKAGE: "<a/>"}, "there is no text in this book"),
    "a chapter is gone": ({LAST: None}, "OEBPS/text/a b.xhtml is missing in the book"),
    "locked": (
        {LAST: b"\x80\x81"},
        "OEBPS/text/a b.xhtml: byte 0x80 at offset 0 is not UTF-8, which a page is that names no encoding; "
        "is the book locked (DRM)?",
    ),
    "entities": (
        {PACKAGE: '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>' + PARTS[PACKAGE]},
        "OEBPS/package.opf defines entities of its own",
    ),
}


@pytest.mark.parametrize("name", BAD_BOOKS)
def test_a_bad_book(name: str) -> None:
    changes, message = BAD_BOOKS[name]
    assert problem("b.epub", epub(changes)) == f"b.epub: {message}"


def test_a_zip_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "MAX_BYTES", 2**20)
    many = {LAST: CHAPTER.format("a" * 600_000), "OEBPS/text/b.xhtml": CHAPTER.format("b" * 600_000)}
    for bomb in ({LAST: b"\0" * 2**22}, many):
        assert problem("b.epub", epub(bomb)) == "b.epub: the book unpacks to more than 1 MB"


def test_a_broken_archive_is_a_problem() -> None:
    locked, torn = bytearray(epub()), bytearray(epub())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = -1
        while (start := locked.find(mark, start + 1)) >= 0:
            locked[start + place] |= 1  # the bit that says that a password is needed
    body = torn.index(b"container.xml") + len(b"container.xml")
    torn[body : body + 8] = b"\xff" * 8
    for content, why in ((locked, "encrypted"), (torn, "Error -3"), (epub()[:100], "not a zip file")):
        said = problem("b.epub", bytes(content))
        assert said.startswith("b.epub: this is not a valid epub file (") and why in said


def test_what_pypdf_raises_of_its_own_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import pypdf

    def stumble(file: object) -> None:
        raise TypeError("unsupported operand\nand more")

    monkeypatch.setattr(pypdf, "PdfReader", stumble)
    assert problem("b.pdf", pdf("x")) == "b.pdf: the pdf cannot be read (TypeError: 'unsupported operand')"


def test_a_pdf_is_read_page_by_page() -> None:
    rows, problems, _ = read("b.pdf", pdf("Hello there", "", "The end", title="Two  Lines"))
    assert not problems
    assert rows == [Row("b.pdf:1", {"text": "Hello there\n\nThe end", "title": "Two Lines"})]
    assert problem("b.pdf", pdf("")) == "b.pdf: there is no text in this pdf; a scan must be recognised (OCR) first"


@pytest.mark.parametrize("content", [b"%PDF", pdf("Hello")[:200], b"\0" * 100])
def test_a_bad_pdf(content: bytes) -> None:
    assert problem("b.pdf", content).startswith("b.pdf: the pdf cannot be read (")


def test_a_locked_pdf() -> None:
    import pypdf

    writer = pypdf.PdfWriter()
    writer.add_blank_page(10, 10)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write("b.pdf")
    assert read("b.pdf")[1] == ["b.pdf: the pdf is locked by a password"]


def test_zstd_beside_gzip() -> None:
    from backports import zstd

    packed = zstd.compress(b'{"text": "a"}\n{"text": "b"}\n' * 50)
    rows, problems, _ = read("a.jsonl.zst", packed)
    assert len(rows) == 100 and rows[1] == Row("a.jsonl.zst:2", {"text": "b"}) and not problems
    assert read("a.jsonl.zst", packed[:-9])[1] == ["a.jsonl.zst: the zstd data ends too early; was the file cut off?"]
    wrong = "this is not valid zstd data; pack the file again or drop .zst from its name"
    assert problem("a.jsonl.zst", b"plain") == f"a.jsonl.zst: {wrong}"
    assert problem("a.jsonl", packed) == "a.jsonl: the file is zstd-compressed; let its name end in .zst"


LONG = "x=1;" * 100
TREE = {
    "LICENSE": "Apache License\nVersion 2.0, January 2004",
    "src/main.py": "# SPDX-License-Identifier: (MIT OR Apache-2.0)\nprint()\n",
    "src/util.go": "package util\n",
    "src/data.json": "{}",
    "src/__init__.py": "",
    "src/blank.py": "\n\n",
    "src/made.go": "// Code generated by protoc-gen-go. DO NOT EDIT.\npackage made\n",
    "src/made_pb2.py": "x = 1\n",
    "src/told.py": '"""Tables that were generated by a physicist, and code that is not."""\n',
    "web/app.js": LONG,
    "web/app.min.css": "a{}",
    "web/theme.css": "a {}\n",
    "web/pnpm-lock.yaml": "a: 1\n",
    "web/node_modules/left/pad.js": "x\n",
    "lib/COPYING": "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007",
    "lib/a.c": "int a;\n",
    "lib/b.c": "/* Permission is hereby granted, free\n * of charge, to any person */\nint b;\n",
    "bad.py": "é",
}


@pytest.fixture
def tree(here: Path) -> Path:
    root = here / "vendor" / "tree"  # what lies above the source says nothing about it
    for name, text in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="latin-1")
    (root / ".git").mkdir()
    return root


def test_a_source_tree(tree: Path) -> None:
    rows, problems, passed_over = read("vendor/tree")
    found = {row.where: (row.value["language"], row.value.get("licence")) for row in rows}
    assert found == {
        "vendor/tree/lib/a.c:1": ("c", "GPL-3.0"),
        "vendor/tree/lib/b.c:1": ("c", "MIT"),
        "vendor/tree/src/main.py:1": ("python", "MIT OR Apache-2.0"),
        "vendor/tree/src/told.py:1": ("python", "Apache-2.0"),
        "vendor/tree/src/util.go:1": ("go", "Apache-2.0"),
        "vendor/tree/web/theme.css:1": ("css", "Apache-2.0"),
    }
    assert rows[0].value["text"] == "int a;\n"
    assert problems == ["vendor/tree/bad.py:1: byte 0xe9 at offset 0 is not UTF-8; save the file as UTF-8"]
    assert passed_over == {"generated": 2, "empty": 2, "minified": 2, "lock files": 1, "vendored": 1}


@pytest.mark.parametrize(
    ("head", "is_made"),
    [
        ("// Code generated by protoc-gen-go. DO NOT EDIT.", True),
        ("# Autogenerated by Thrift Compiler (0.19.0)", True),
        ("/* AUTO-GENERATED FILE. DO NOT MODIFY. */", True),
        ("-- do not edit: this is generated from schema.sql", True),
        ('"""This file was automatically generated."""', True),
        (" * @generated SignedSource<<abc>>", True),
        ("# The report is generated by this module.", False),
        ("# Do not edit the table by hand.", False),
        ("def generated(): ...", False),
        ("# author@generatedcode.example", False),
    ],
)
def test_what_says_that_it_was_generated(head: str, is_made: bool) -> None:
    for text in (head, "#!/bin/sh\n\n" + head + "\nx\n"):
        rows, _, passed_over = read("a.py", text.encode())
        assert (len(rows), passed_over) == ((0, {"generated": 1}) if is_made else (1, {}))


LICENCE_TEXTS = {
    "MIT": "Permission is hereby granted, free of charge, to any person",
    "ISC": "Permission to use, copy, modify, and/or distribute this software for any",
    "Apache-2.0": "Licensed under the Apache License, Version 2.0 (the License)",
    "GPL-2.0": "under the terms of the GNU General Public License as published by the FSF; version 2 of the License",
    "GPL-3.0": "GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007",
    "LGPL-2.1": "GNU LESSER GENERAL PUBLIC LICENSE\n Version 2.1, February 1999",
    "LGPL-3.0": "GNU LESSER GENERAL PUBLIC LICENSE Version 3 ... incorporates the GNU General Public License version 3",
    "AGPL-3.0": "GNU AFFERO GENERAL PUBLIC LICENSE Version 3",
    "MPL-2.0": "subject to the terms of the Mozilla Public License, v. 2.0.",
    "BSD-2-Clause": "Redistribution and use in source and binary forms, with or without modification",
    "BSD-3-Clause": "Redistribution and use in source and binary forms ... Neither the name of the copyright holder",
    "Unlicense": "This is free and unencumbered software released into the public domain.",
    "CC0-1.0": "CC0 1.0 Universal",
}


def test_licences_are_known_by_their_words() -> None:
    assert LICENCE_TEXTS.keys() == code.LICENCES.keys()
    for name, text in LICENCE_TEXTS.items():
        assert code.licence_in("/* " + text.replace(" ", "\n * ", 3) + " */") == name
    assert code.licence_in("# SPDX-License-Identifier: EUPL-1.2\n") == "EUPL-1.2"
    assert code.licence_in("all rights reserved") is None


def test_a_licence_above_the_repository_is_not_its_own(here: Path) -> None:
    Path("LICENSE").write_text("MIT License", encoding="utf-8")
    Path("repo/.git").mkdir(parents=True)
    Path("folder").mkdir()
    for name in ("repo", "folder"):
        Path(name, "a.py").write_text("x", encoding="utf-8")
    assert [read(name)[0][0].value.get("licence") for name in ("repo", "folder")] == [None, "MIT"]


def test_code_is_read_from_a_folder_only_when_it_is_asked_for(tree: Path) -> None:
    assert [path.name for path in expand("vendor", base=Path())] == ["data.json"]
    (tree / "src/data.json").unlink()
    with pytest.raises(DataError, match="only source code is in this directory; `format: code` reads it"):
        expand("vendor", base=Path())
    assert [path.name for path in expand("vendor/tree/lib/*.c", base=Path())] == ["a.c", "b.c"]


@pytest.mark.parametrize("suffix", [".html", ".pdf", ".epub", ".py", ".csv", ".json", ".jsonl"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_are_more_than_a_problem(suffix: str, data: st.DataObject) -> None:
    whole = {".html": PAGE.encode(), ".pdf": pdf("Hello", "there"), ".epub": epub()}.get(
        suffix, b'{"text": "a\xc3\xa9"}\n'
    )
    cut = data.draw(st.integers(0, len(whole)))
    garbage = data.draw(st.binary(max_size=40))
    content = bytearray(whole[:cut] + garbage + whole[cut + data.draw(st.integers(0, 40)) :])
    name = f"f{suffix}"
    Path(name).write_bytes(content)
    noted = Problems()
    for row in read_rows([Path(name)], problems=noted):
        assert row.where.startswith(name) and isinstance(row.value, dict)
    assert all(str(problem).startswith(name) for problem in noted.listed)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_there", lambda module: False)
    files = dict.fromkeys(("a.html", "b.html", "c.txt", "d.pdf", "e.jsonl.zst", "f.html.gz"), "")
    entry = Input(field="data", source={"path": "*"}, identity="", files=files)
    record = StepRecord(
        name="base", kind="pretrain", stage_version=1, fingerprint="", seed=1, settings={}, inputs=[entry]
    )
    packages.refuse_without_readers([Step(record, "skip", "unchanged", [])])
    with pytest.raises(UsageError) as caught:
        packages.refuse_without_readers([Step(record, "run", "first time", [])])
    assert [str(problem) for problem in caught.value.problems] == [
        f"{file}: stage base needs the package {module} to read it, which is not installed"
        for file, module in (("a.html", "trafilatura"), ("d.pdf", "pypdf"), ("e.jsonl.zst", "backports.zstd"))
    ]
    assert caught.value.hint == "pip install 'llmpipe[data]'"
    monkeypatch.undo()
    assert not packages.is_there("no_such_package.at_all")
    with pytest.raises(StageError, match=r"^no_such_package is not installed$"):
        readers.optional("no_such_package")


def test_the_suffixes_of_code_are_no_others() -> None:
    assert len(code.LANGUAGES) > 80 and code.LANGUAGES[".py"] == "python" and code.LANGUAGES[".cpp"] == "c++"
    assert not code.LANGUAGES.keys() & {name for name, reader in READERS.items() if reader is not code.source}


WORDS = "Ein großes Haus 🦊 steht\nam See.\r\n"
LARGE = {
    "blank lines": (WORDS * 3 + "\n") * 90_000,
    "lines": WORDS * 260_000,
    "words": "größer " * 1_100_000,
    "one word": "a" + "🦊" * 2_200_000,
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("packed", [False, True])
def test_a_large_text_is_many_documents(name: str, packed: bool) -> None:
    whole = LARGE[name]
    path = Path("large.txt.gz" if packed else "large.txt")
    path.write_bytes(gzip.compress(whole.encode(), 1) if packed else whole.encode())
    rows = list(read_rows([path]))
    found = [str(row.value["text"]) for row in rows]
    assert len(found) > 100
    assert max(len(text.encode()) for text in found) <= documents.PIECE_BYTES
    assert "".join(found) == whole.replace("\r\n", "\n")
    end = {"blank lines": "\n\n", "lines": "\n", "words": " ", "one word": "🦊"}[name]
    assert all(text.endswith(end) for text in found)
    line = 1
    for row, text in zip(rows, found, strict=True):
        assert row.where == f"{path}:{line}"
        line += text.count("\n")


def test_a_text_that_is_not_large_stays_whole() -> None:
    whole = "word " * (documents.LARGE_BYTES // 5) + "end"
    Path("a.txt").write_bytes(whole.encode())
    assert [row.value["text"] for row in read_rows([Path("a.txt")])] == [whole]
    Path("a.txt").write_bytes(b"ab" + whole.encode())
    assert len(list(read_rows([Path("a.txt")]))) > 100


def test_bad_bytes_of_a_large_text_cost_their_piece_alone() -> None:
    whole = bytearray(b"one line\n\n" * 900_000)
    whole[5_000_004] = 0xFF
    whole[5_000_014] = 0xFE
    Path("a.txt").write_bytes(whole)
    noted = Problems()
    rows = list(read_rows([Path("a.txt")], problems=noted))
    kept = sum(len(str(row.value["text"])) for row in rows)
    assert len(whole) - documents.PIECE_BYTES <= kept < len(whole)
    assert [str(problem) for problem in noted.listed] == [
        "a.txt:1000001: byte 0xff at offset 5000004 is not UTF-8; save the file as UTF-8",
        "a.txt:1000003: byte 0xfe at offset 5000014 is not UTF-8; save the file as UTF-8",
    ]


def test_a_text_file_takes_no_memory_of_its_own_size() -> None:
    with Path("a.txt").open("wb") as file:
        file.writelines(b"one line\n" * 100_000 for _ in range(60))
    tracemalloc.start()
    try:
        assert sum(len(str(row.value["text"])) for row in read_rows([Path("a.txt")])) == 54_000_000
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def test_a_large_source_file_is_judged_by_its_beginning() -> None:
    statement = "insert into t values ('this file was generated by hand');\n"
    Path("a.sql").write_text("-- SPDX-License-Identifier: MIT\n" + statement * 150_000, encoding="utf-8")
    rows, problems, passed_over = read("a.sql")
    assert len(rows) > 100 and not problems and not passed_over
    assert {row.value["licence"] for row in rows} == {"MIT"}
    Path("a.sql").write_text("-- Generated by a tool\n" + statement * 150_000, encoding="utf-8")
    assert read("a.sql") == ([], [], {"generated": 1})
