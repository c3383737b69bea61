"""Reading files: every good row comes out, every bad one is named, in one pass."""

from __future__ import annotations

import gzip
import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmpipe.data import Problems
from llmpipe.data.rows import Row, expand, read_rows
from llmpipe.errors import DataError, ExitCode

GOOD = b'{"text": "a"}\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*names: str, limit: int = 20) -> tuple[list[Row], list[str]]:
    """Return the rows and the problems of files."""
    rows: list[Row] = []
    problems: list[str] = []
    noted = Problems(limit)
    try:
        for row in read_rows([Path(name) for name in names], problems=noted):
            rows.append(row)
        noted.raise_any()
    except DataError as error:
        assert error.code == ExitCode.DATA
        problems = [str(problem) for problem in error.problems]
    return rows, problems


FILES = {
    "a.txt": (b"one\r\ntwo\rthree\n", [Row("a.txt:1", {"text": "one\ntwo\nthree\n"})]),
    "a.md": (b"\xef\xbb\xbf# T", [Row("a.md:1", {"text": "# T"})]),
    "A.JSONL": (b'\xef\xbb\xbf{"n": NaN}\r\n\r\n{"b": [1]}', None),
    "a.ndjson": (GOOD, [Row("a.ndjson:1", {"text": "a"})]),
    "list.json": (b'[{"a": 1},\n {"a": 2}]', [Row(f"list.json: row {n}", {"a": n}) for n in (1, 2)]),
    "held.json": (b'{"v": "1", "data": [{"a": 1}]}', [Row("held.json: row 1", {"a": 1})]),
    "one.json": (
        b'{"messages": [{"role": "user"}]}',
        [Row("one.json: row 1", {"messages": [{"role": "user"}]})],
    ),
    "lines.json": (b'{"a": 1}\n{"a": 2}\n', [Row("lines.json:1", {"a": 1}), Row("lines.json:2", {"a": 2})]),
    "a.csv": (b'x,y\r\n1,"two\r\nlines"\r\n\r\n3,4\r\n', None),
    "a.tsv": (b"x\ty\n1\ta,b\n", [Row("a.tsv:2", {"x": "1", "y": "a,b"})]),
    "big.csv": (b"x\n" + b"a" * 200_000, [Row("big.csv:2", {"x": "a" * 200_000})]),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_formats(name: str, packed: bool) -> None:
    content, expected = FILES[name]
    full = name + ".gz" * packed
    Path(full).write_bytes(gzip.compress(content, mtime=0) if packed else content)
    rows, problems = read(full)
    assert not problems
    if name == "A.JSONL":
        assert [row.where for row in rows] == [f"{full}:1", f"{full}:3"]
        assert rows[0].value["n"] != rows[0].value["n"]
    elif name == "a.csv":
        assert rows == [
            Row(f"{full}:2", {"x": "1", "y": "two\r\nlines"}),
            Row(f"{full}:5", {"x": "3", "y": "4"}),
        ]
    else:
        assert rows == [Row(row.where.replace(name, full), row.value) for row in expected or []]


BAD = [
    ("f.jsonl", b'{"text": "a', ":1: the line ends inside a string; was the file cut off?"),
    ("f.jsonl", b'{"text": "a\r\n', ":1: the line ends inside a string; was the file cut off?"),
    ("f.jsonl", b'{"a": tr', ":1: the line ends before its last bracket is closed; was the file cut off?"),
    ("f.jsonl", b'{"a": [1', ":1: the line ends before its last bracket is closed; was the file cut off?"),
    ("f.jsonl", b"[1]", ':1: this row is a list; it must be an object such as {"text": "..."}'),
    ("f.jsonl", b"null", ':1: this row is null; it must be an object such as {"text": "..."}'),
    (
        "f.jsonl",
        GOOD.strip() * 2,
        ":1: more follows the first value at column 14; put one object on each line",
    ),
    (
        "f.jsonl",
        b'{"a": "x\ty"}',
        ":1: there is a bare tab or line break in the text at column 9; write \\t or \\n",
    ),
    (
        "f.jsonl",
        b"{'a': 1}",
        ":1: this is not JSON at column 2: expecting property name enclosed in double quotes",
    ),
    (
        "f.jsonl",
        b'{"a": ' + b"9" * 5000 + b"}",
        ":1: there is a number with thousands of digits; write it as a string",
    ),
    ("f.jsonl", b'{"a": {"k": 1, "k": 2}}', ":1: the key 'k' appears twice in one object; keep one"),
    ("f.jsonl", b'{"a": 1, "a": 1}', ":1: the key 'a' appears twice in one object; keep one"),
    ("f.jsonl", b'{"a": "\\u0000"}', ":1: there is a NUL character in the text; remove it"),
    ("f.jsonl", b'{"a": ["\\ud83d"]}', ":1: there is half of a character (\\ud83d) in the text; remove it"),
    ("f.jsonl", b'{"\\udc00": 1}', ":1: there is half of a character (\\udc00) in the text; remove it"),
    ("f.jsonl", b"[" * 100_000, ":1: the values are nested deeper than 100 levels"),
    (
        "f.jsonl",
        b'{"a":' + b"[" * 101 + b"]" * 101 + b"}",
        ":1: the values are nested deeper than 100 levels",
    ),
    ("f.jsonl", GOOD + b'{"a": "\xff"}', ":2: byte 0xff at offset 21 is not UTF-8; save the file as UTF-8"),
    ("f.jsonl", b"\xef\xbb\xbf\xe9", ":1: byte 0xe9 at offset 3 is not UTF-8; save the file as UTF-8"),
    ("f.jsonl", b"\xff\xfe{\0", ": the file is UTF-16; save it as UTF-8"),
    ("f.jsonl", gzip.compress(GOOD, mtime=0), ": the file is gzip-compressed; let its name end in .gz"),
    ("f.jsonl", b"", ": the file is empty"),
    ("f.jsonl", b" \n\n", ": the file holds no data"),
    ("f.txt", b" \n", ": the file holds no data"),
    ("f.txt", b"a\nb\0", ":2: there is a NUL character in the text; remove it"),
    ("f.txt", b"a\nb\xc3", ":2: byte 0xc3 at offset 3 is not UTF-8; save the file as UTF-8"),
    ("f.json", b"[]", ": the file holds no data"),
    ("f.json", b'[{"a": 1},\n{"a": "b', ":2: the file ends inside a string; was the file cut off?"),
    ("f.json", b'"a"', ": the file holds text; it must hold a list of objects"),
    ("f.json", b'[{"a": 1, "a": 2}]', ": row 1: the key 'a' appears twice in one object; keep one"),
    ("f.json", b'["a"]', ': row 1: this row is text; it must be an object such as {"text": "..."}'),
    (
        "f.json",
        b'{"train": [{"a": 1}], "test": [{"a": 1}]}',
        ": the object holds 2 lists of objects (train, test); put each into a file of its own",
    ),
    ("f.csv", b"a,b\n", ": the file holds no data"),
    ("f.csv", b"a,a\n1,2\n", ":1: the header names 'a' twice"),
    (
        "f.csv",
        b"a,b\n1\n",
        ":2: this row has 1 cells and the header 2; put quotes around cells that hold the separator or a line break",
    ),
    ("f.csv", b'a\n"b\nc\n', ":2: the quotes in this row do not match (unexpected end of data)"),
    ("f.csv", b"a\n\xff\n", ":2: byte 0xff at offset 2 is not UTF-8; save the file as UTF-8"),
    ("f.jsonl.gz", b"{}", ": this is not valid gzip data; pack the file again or drop .gz from its name"),
    ("f.jsonl.gz", gzip.compress(GOOD, mtime=0)[:-4], ": the gzip data ends too early; was the file cut off?"),
    ("f.parquet", b"", ": the file is empty"),
    (
        "f.docx",
        b"PK\3\4",
        ": files with the suffix '.docx' cannot be read; known are .txt, .md, .jsonl, .ndjson, .json, "
        ".csv, .tsv, .parquet, .html, .htm, .xhtml, .epub, .pdf, each also with .gz or .zst, and source code",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_file(name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    assert read(name)[1] == [name + message]


def test_all_problems_of_all_files_in_one_pass() -> None:
    Path("a.jsonl").write_bytes(b'{"text": "1"}\n{"text"\n{"text": "2"}\n7\n{"text": "3"}')
    Path("b.csv").write_bytes(b'text,n\nx,\xff\n4,1\n"a"b,2\n5\n6,1\n')
    Path("c.txt").write_bytes(b"\xff\n\xfe\n")
    Path("d.json").write_bytes(b'{"text": "7"}\n{"text": "8\n{"text": "\xff"}\n{"text": "9"}')
    Path("chat.jsonl").write_bytes(GOOD)
    rows, problems = read("a.jsonl", "b.csv", "c.txt", "caht.jsonl", "d.json")
    assert [row.value["text"] for row in rows] == [*"123", *"46", *"79"]
    assert [problem.split(": ")[0] for problem in problems] == [
        *("a.jsonl:2", "a.jsonl:4", "b.csv:2", "b.csv:4", "b.csv:5", "c.txt:1", "c.txt:2", "caht.jsonl"),
        *("d.json:2", "d.json:3"),
    ]
    assert problems[7] == "caht.jsonl: no such file, did you mean chat.jsonl?"


def test_only_the_first_problems_are_listed() -> None:
    Path("a.jsonl").write_bytes(b"1\n" * 30)
    _, problems = read("a.jsonl", limit=3)
    assert [problem.split(":")[1] for problem in problems[:3]] == ["1", "2", "3"]
    assert problems[3:] == ["... and 27 more"]
    with pytest.raises(DataError) as caught:
        list(read_rows([Path("a.jsonl")]))
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_directory_and_unreadable_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("d.jsonl").mkdir()
    assert read("d.jsonl") == ([], ["d.jsonl: this is a directory; name the files in it"])
    Path("a.jsonl").write_bytes(GOOD)

    def refuse(*_: object, **__: object) -> None:  # chmod would not stop root, which CI may be
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert read("a.jsonl") == ([], ["a.jsonl: the file cannot be read: permission denied"])


def test_absolute_paths_are_shown_below_the_working_directory(here: Path) -> None:
    Path("a.jsonl").write_bytes(GOOD)
    assert [row.where for row in read_rows([here / "a.jsonl"])] == ["a.jsonl:1"]


def test_parquet() -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    messages = [[{"role": "user", "content": "x"}], None, []]
    parquet.write_table(arrow.table({"text": ["a", "b\0", "c"], "messages": messages}), "a.parquet")
    Path("a.parquet.gz").write_bytes(gzip.compress(Path("a.parquet").read_bytes()))
    for name in ("a.parquet", "a.parquet.gz"):
        rows, problems = read(name)
        assert [row.where for row in rows] == [f"{name}: row 1", f"{name}: row 3"]
        assert rows[0].value == {"text": "a", "messages": messages[0]}
        assert problems == [f"{name}: row 2: there is a NUL character in the text; remove it"]
    Path("cut.parquet").write_bytes(Path("a.parquet").read_bytes()[:-9])
    assert read("cut.parquet")[1][0].startswith("cut.parquet: the parquet data cannot be read after row 0 (")
    parquet.write_table(arrow.table([arrow.array(["a"])] * 2, names=["x", "x"]), "twice.parquet")
    assert read("twice.parquet") == ([], ["twice.parquet: there are two columns 'x'; rename one"])


def test_jsonl_is_streamed() -> None:
    with Path("a.jsonl").open("wb") as file:
        file.writelines(b'{"text": "%s"}\n' % (b"x" * 1000) for _ in range(20_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows([Path("a.jsonl")])) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_reading_starts_before_the_end_is_known() -> None:
    Path("a.jsonl").write_bytes(GOOD + b"broken")
    rows: Iterator[Row] = read_rows([Path("a.jsonl")])
    assert next(rows).where == "a.jsonl:1"


EXPAND = {
    "chat.jsonl": ["chat.jsonl"],
    "*.jsonl": ["chat.jsonl", "chat[1].jsonl"],
    "chat[1].jsonl": ["chat[1].jsonl"],
    "sub": ["sub/a.txt", "sub/deep/b.csv.gz"],
    "**/*.txt": ["sub/a.txt"],
    "sub/*": ["sub/a.txt", "sub/x.docx"],
}


@pytest.fixture
def tree(here: Path) -> Path:
    base = here / "base [x]"  # brackets in the base are no pattern
    for name in (
        "chat.jsonl",
        "chat[1].jsonl",
        "sub/a.txt",
        "sub/deep/b.csv.gz",
        "sub/x.docx",
        "sub/.git/c.txt",
    ):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(GOOD)
    (base / "empty").mkdir()
    return base


@pytest.mark.parametrize("pattern", EXPAND)
def test_expand(tree: Path, pattern: str) -> None:
    assert [str(path.relative_to(tree)) for path in expand(pattern, base=tree)] == EXPAND[pattern]
    assert expand(str(tree / "chat.jsonl"), base=Path("elsewhere")) == [tree / "chat.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("chat.json", "chat.json: no such file, did you mean chat.jsonl?"),
        ("sbu/a.txt", "sbu/a.txt: no such file, did you mean sub?"),
        ("zzz", "zzz: no such file"),
        ("*.csv", "*.csv: no file matches this pattern"),
        (
            "empty",
            "empty: no file in this directory can be read; known are .txt, .md, .jsonl, .ndjson, .json, "
            ".csv, .tsv, .parquet, .html, .htm, .xhtml, .epub, .pdf, each also with .gz or .zst, and source code",
        ),
    ],
)
def test_expand_finds_nothing(tree: Path, pattern: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        expand(pattern, base=tree)
    assert str(caught.value) == f"{tree.name}/{message}"
