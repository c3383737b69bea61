"""The tool `read_file`: what is said of each kind of file, and that no other file than those named can be read."""

from __future__ import annotations

import json
import os
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from llmpipe.errors import TalkError
from llmpipe.tools import docx, files
from tests.unit.books import pdf

TABLE = """name,price,sold,since,open
Ada,1.5,3,2024-05-01,yes
"Bob, the 2nd",0.25,,2023-01-31,no
Cy,10,12,2025-12-24,yes
"""
WORD = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>{}</w:body></w:document>'
LETTER = WORD.format(
    '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>The </w:t></w:r><w:r><w:t>Title</w:t></w:r></w:p>'
    "<w:p><w:r><w:t>Kept,</w:t><w:tab/><w:t>and</w:t></w:r><w:ins><w:r><w:t> new</w:t></w:r></w:ins>"
    "<w:del><w:r><w:delText> old</w:delText></w:r></w:del></w:p>"
    "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr>"
    "</w:tbl>"
)


def docx_file(xml: str | bytes = LETTER, name: str = docx.BODY) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, xml)
    return content.getvalue()


def read(path: Path | list[Path], **arguments: object) -> str:
    paths = path if isinstance(path, list) else [path]
    if arguments.get("name", "") == "":
        arguments["name"] = paths[0].name
    return files.tool(lambda: paths).call({key: value for key, value in arguments.items() if value is not None})


def made(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path, **arguments: object) -> str:
    with pytest.raises(TalkError) as error:
        read(path, **arguments)
    return str(error.value)


def test_a_text(tmp_path: Path) -> None:
    path = made(tmp_path, "a.txt", "\ufeffone\r\ntwo words\r\n\r\nfour\n")
    assert read(path) == "a.txt: 4 lines, 4 words, 20 characters\n\n[line 1 to 4 of 4]\none\ntwo words\n\nfour"
    assert read(path, first=2, last=3) == "[line 2 to 3 of 4; first: 4 goes on]\ntwo words\n"
    assert read(path, search="TWO  words") == "line 2: two words"
    assert read(path, search="three") == "three does not stand in it"
    assert refusal(path, first=9) == "there are 4 lines, and none has the number 9"
    assert refusal(path, first=3, last=2) == "first is 3 and last 2: that is none"


def test_a_long_text_is_read_to_its_end_part_by_part(tmp_path: Path) -> None:
    lines = [f"{number:04} " + "x" * (number % 90) for number in range(1, 400)]
    path = made(tmp_path, "a.txt", "\n".join([*lines, "y" * 5000]))
    seen, first = [], 1
    while first:
        heading, *shown = read(path, first=first).split("\n")
        seen += shown
        first = int(heading.partition("first: ")[2].partition(" ")[0] or 0)
    assert "".join(seen) == "".join(lines) + "y" * 5000
    assert all(len(read(path, first=first)) < 6_100 for first in (1, 100, 399))


def test_markdown_has_headings(tmp_path: Path) -> None:
    path = made(tmp_path, "a.md", "# One\n```\n# no heading\n```\n## Two\n#hashtag\n")
    assert read(path).startswith(
        "a.md: 6 lines, 10 words, 43 characters\nline 1: # One\nline 5: ## Two\n\n[line 1 to 6 of 6]"
    )


def test_a_table(tmp_path: Path) -> None:
    path = made(tmp_path, "a.csv", TABLE)
    assert read(path) == (
        "a.csv: 3 rows, 5 columns\n"
        "- name: text, Ada (1), Bob, the 2nd (1), Cy (1)\n"
        "- price: decimal numbers, 0.25 to 10, mean 3.91667\n"
        "- sold: whole numbers, 3 to 12, mean 7.5; 1 empty\n"
        "- since: dates, 2023-01-31 to 2025-12-24\n"
        "- open: yes or no, no (1), yes (2)\n\n"
        "[row 1 to 3 of 3]\nname,price,sold,since,open\n"
        'Ada,1.5,3,2024-05-01,yes\n"Bob, the 2nd",0.25,,2023-01-31,no\nCy,10,12,2025-12-24,yes'
    )
    assert read(path, first=3).endswith("[row 3 of 3]\nname,price,sold,since,open\nCy,10,12,2025-12-24,yes")
    assert read(path, search="bob") == 'row 2: "Bob, the 2nd",0.25,,2023-01-31,no'


def test_a_table_with_other_separators_and_uneven_rows(tmp_path: Path) -> None:
    assert read(made(tmp_path, "a.csv", '"a;b";c\n1;2\n3\n')).startswith(
        "a.csv: 2 rows, 2 columns; 1 rows have another number of cells\n- a;b: whole numbers, 1 to 3, mean 2\n"
        "- c: whole numbers, 2 to 2, mean 2; 1 empty\n"
    )
    assert refusal(made(tmp_path, "b.csv", 'a,b\n"never closed\n')) == "b.csv is no table: unexpected end of data"
    assert refusal(made(tmp_path, "c.csv", "")) == "c.csv is empty"


def test_json_has_a_shape(tmp_path: Path) -> None:
    value = {"users": [{"name": "Ada", "age": 36}, {"name": "Bob", "tags": []}], "on": True, "none": None}
    text = read(made(tmp_path, "a.json", json.dumps(value)))
    assert text.startswith(
        "a.json: JSON, 94 characters, 14 lines when written out\n"
        "- users: a list\n"
        "  - a list of 2, each an object\n"
        "    - name: text, such as Ada\n"
        "    - age: a number, 36; in 1 of 2\n"
        "    - tags: a list; in 1 of 2\n"
        "      - a list of 0, each nothing\n"
        "- on: true or false\n"
        "- none: null\n\n[line 1 to 14 of 14]\n{\n"
    )
    assert refusal(made(tmp_path, "b.json", "{")).startswith("b.json is no JSON: Expecting property name")
    assert refusal(made(tmp_path, "c.json", "[" * 100_000)).startswith("c.json is no JSON: maximum recursion")


def test_a_pdf_is_read_by_page(tmp_path: Path) -> None:
    path = made(tmp_path, "a.pdf", pdf("The first page", "A second page", title="Pages"))
    assert read(path).startswith("a.pdf: 2 pages, Pages\n\n[page 1 to 2 of 2]\nThe first page")
    assert read(path, first=2) == "[page 2 of 2]\nA second page"
    assert read(path, search="second") == "page 2: A second page"
    assert refusal(made(tmp_path, "b.pdf", b"%PDF-1.4 broken")).startswith("b.pdf is no PDF that can be read")


def test_a_document_of_word(tmp_path: Path) -> None:
    assert read(made(tmp_path, "a.docx", docx_file())) == (
        "a.docx: 3 lines, 8 words, 1 tables\nline 1: The Title\n\n[line 1 to 3 of 3]\nThe Title\nKept,\tand new\na | b"
    )


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"no zip", "a.docx is no .docx that can be read: File is not a zip file"),
        (docx_file(name="other.xml"), "a.docx is no .docx: there is no word/document.xml in it"),
        (docx_file("<w:document"), "a.docx is no .docx that can be read: unclosed token"),
        (docx_file('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), "a.docx declares entities, which Word does not write"),
        (
            docx_file('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'.encode("utf-16")),
            "a.docx declares entities, which Word does not write",
        ),
    ],
)
def test_a_document_that_is_none_or_reaches_out_is_refused(tmp_path: Path, content: bytes, wrong: str) -> None:
    assert refusal(made(tmp_path, "a.docx", content)).startswith(wrong)


def test_a_document_does_not_unpack_to_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docx, "MOST_BYTES", 2**20)
    path = made(tmp_path, "a.docx", docx_file(WORD.format(" " * 2**21)))
    assert path.stat().st_size < 10_000
    assert refusal(path) == "a.docx is larger than 1,048,576 bytes when unpacked, the most that is read"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    folder.mkdir()
    return made(folder, "secret.txt", "the secret")


def test_only_what_the_user_named_is_read(tmp_path: Path, secret: Path) -> None:
    path = made(tmp_path, "a.txt", "mine")
    tricks = ["secret.txt", str(secret), "other/secret.txt", "./a.txt", "a.txt/../other/secret.txt", "", "a.txt\0", "~"]
    tricks += ["..", f"file://{secret}", "%2e%2e/secret.txt", "/etc/passwd", "a.txt/", "A.TXT"]
    tool = files.tool(lambda: [path])
    for name in tricks:
        with pytest.raises(TalkError, match=r"^there is no file"):
            tool.call({"name": name})
    assert tool.call({}) == "a.txt"
    assert refusal(path, name="b.txt") == "there is no file b.txt, did you mean a.txt?"


def test_links_pipes_and_folders_are_not_followed(tmp_path: Path, secret: Path) -> None:
    path = made(tmp_path, "a.txt", "mine")
    tool = files.tool(lambda: [path])
    assert "mine" in tool.call({"name": "a.txt"})
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(TalkError, match=r"^a.txt cannot be read: it is a link$"):
        tool.call({"name": "a.txt"})
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TalkError, match=r"^a.txt is no file$"):
        tool.call({"name": "a.txt"})
    path.unlink()
    with pytest.raises(TalkError, match=r"^a.txt cannot be read: No such file or directory$"):
        tool.call({"name": "a.txt"})
    (tmp_path / "b.txt").mkdir()
    assert refusal(tmp_path / "b.txt") == "b.txt cannot be read: Is a directory"


def test_a_file_that_changed_is_read_anew_and_new_ones_are_seen(tmp_path: Path) -> None:
    paths = [made(tmp_path, "a.txt", "before")]
    tool = files.tool(lambda: paths)
    assert "before" in tool.call({"name": "a.txt"})
    made(tmp_path, "a.txt", "afterwards")
    assert "afterwards" in tool.call({"name": "a.txt"})
    (tmp_path / "more").mkdir()
    paths.append(made(tmp_path / "more", "a.txt", "the other"))
    assert tool.call({}) == "a.txt\na.txt (2)"
    assert "the other" in tool.call({"name": "a.txt (2)"})


def test_files_that_are_too_large_or_no_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        refusal(made(tmp_path, "a.exe", "x"))
        == "a.exe is none of the kinds that are read: .txt, .md, .csv, .json, .pdf, .docx"
    )
    assert refusal(made(tmp_path, "a.txt", b"\xff\xfe\xfd")) == "a.txt is no text in UTF-8"
    assert refusal(made(tmp_path, "b.txt", b"a\0b")) == "b.txt is no text: there are NUL characters in it"
    monkeypatch.setattr(files, "MOST_BYTES", 10)
    assert refusal(made(tmp_path, "c.txt", "x" * 11)) == "c.txt is larger than 10 bytes, the most that is read"
