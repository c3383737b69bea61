"""Files that mean harm: recipes and data may be anybody's. None reaches a canary, fills memory or hangs."""

from __future__ import annotations

import gzip
import io
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from llmpipe import recipe as recipes
from llmpipe import yaml_tree
from llmpipe.data import Problems, rows
from llmpipe.data.rows import read_rows
from llmpipe.errors import DataError, LlmpipeError, RecipeError
from tests.unit.books import CONTAINER, PACKAGE, epub

BEYOND = "is nested or repeated (by aliases) beyond any real recipe"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a canary beside it, which nothing may touch."""
    (tmp_path / "canary").write_text("alive", encoding="utf-8")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture(autouse=True)
def canary(here: Path) -> object:
    yield
    assert (here.parent / "canary").read_text(encoding="utf-8") == "alive"
    assert sorted(path.name for path in here.parent.iterdir()) == ["canary", "work"]


def refused(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        yaml_tree.parse(text, shown_as="r.yaml")
    return [problem.message for problem in caught.value.problems]


TAGS = [
    "!!python/object/apply:os.system ['echo dead > ../canary']",
    "!!python/object/new:subprocess.Popen [['sh', '-c', 'echo dead > ../canary']]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:llmpipe.recipe.Recipe {}",
    "!!binary aGVsbG8=",
    "!!set {a}",
    "!!omap [a: 1]",
]


@pytest.mark.parametrize("value", TAGS)
def test_tags_make_nothing(value: str) -> None:
    (message,) = refused(f"a: {value}")
    assert message.startswith("tag !!") and message.endswith("is not allowed; a recipe holds plain values")


BOMBS = {
    "aliases": "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]),
    "a list in itself": "a: &x [*x, *x]",
    "a mapping in itself": "a: &x {b: *x, c: *x}",
    "deep lists": "a: " + "[" * 100 + "]" * 100,
    "deep mappings": "".join(f"{' ' * n}a:\n" for n in range(100)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(name: str) -> None:
    begun = time.process_time()
    assert refused(BOMBS[name]) == [BEYOND]
    assert time.process_time() - begun < 2


def test_what_is_deeper_than_python_goes_is_no_yaml() -> None:
    (message,) = refused("{a: " * 20_000)
    assert message.startswith("is not YAML: ")


@pytest.mark.parametrize("name", ["large.yaml", "/dev/zero"])
def test_a_file_without_end_is_not_read_to_it(name: str) -> None:
    Path("large.yaml").write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(RecipeError) as caught:
        yaml_tree.read(Path(name))
    assert str(caught.value) == f"{name}: has more than 256 kB, which is beyond any real recipe"


@pytest.mark.parametrize("name", ["../canary", "a/../../canary", "/tmp/x", ".", "..", "a/b", "a\\b", "a\0", ""])
def test_no_name_leads_out_of_the_run_directory(name: str) -> None:
    text = f'name: x\nstages:\n  "{name}": {{kind: tokenizer, data: {{builtin: storyworld}}}}\n'
    text = text.replace("\\", "\\\\").replace("\0", "\\0")
    with pytest.raises(RecipeError):
        recipes.check(yaml_tree.parse(text, shown_as="r.yaml"), Path("r.yaml").absolute())
    top = f'name: "{name}"\nstages: {{a: {{kind: tokenizer, data: {{builtin: storyworld}}}}}}\n'
    top = top.replace("\\", "\\\\").replace("\0", "\\0")
    with pytest.raises(RecipeError):
        recipes.check(yaml_tree.parse(top, shown_as="r.yaml"), Path("r.yaml").absolute())


def problem(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    noted = Problems()
    assert not list(read_rows([Path(name)], problems=noted))
    assert len(noted.listed) == 1
    return noted.listed[0].message


def zipped(**parts: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return content.getvalue()


def tarred() -> bytes:
    """Return an archive with a path that leads out of it, and a link to one that does."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "../.."
        archive.addfile(link)
        for name in ("../../canary", "out/canary", "/tmp/canary"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"dead"))
    return content.getvalue()


ARCHIVES = {
    "b.txt": (zipped(**{"../canary": "dead"}), "the file is a zip archive; unpack it first"),
    "b.jsonl": (zipped(**{"../canary": "dead"}), "the file is a zip archive; unpack it first"),
    "b.docx": (zipped(**{"../canary": "dead"}), "files with the suffix '.docx' cannot be read"),
    "b.zip": (zipped(**{"../canary": "dead"}), "files with the suffix '.zip' cannot be read"),
    "b.tar.gz": (tarred(), "files with the suffix '.tar' cannot be read"),
    "b.jsonl.gz": (tarred(), "this is not JSON"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_not_unpacked(name: str) -> None:
    content, wanted = ARCHIVES[name]
    Path(name).write_bytes(content)
    noted = Problems()
    assert not list(read_rows([Path(name)], problems=noted))
    assert any(found.message.startswith(wanted) for found in noted.listed), noted.listed


@pytest.mark.parametrize("out", ["../../canary", "/etc/passwd", "../../../../../../../../etc/passwd", "//etc/passwd"])
@pytest.mark.parametrize("where", ["package", "chapter"])
def test_a_book_is_read_in_memory_and_names_no_file_outside(out: str, where: str) -> None:
    if where == "package":
        found = problem("b.epub", epub({"META-INF/container.xml": CONTAINER.replace("OEBPS/package.opf", out)}))
    else:
        found = problem("b.epub", epub({"OEBPS/package.opf": PACKAGE.replace("text/b.xhtml", out)}))
    assert found.endswith("is missing in the book")


@pytest.mark.parametrize("declared", ["<!ENTITY a SYSTEM 'file:///etc/passwd'>", "<!ENTITY a 'aaaa'>"])
def test_entities_of_a_book_are_not_looked_up(declared: str) -> None:
    package = PACKAGE.replace("<package", f"<!DOCTYPE package [{declared}]><package")
    assert problem("b.epub", epub({"OEBPS/package.opf": package})).endswith("defines entities of its own")


@pytest.mark.parametrize("name", ["b.txt.gz", "b.jsonl.gz", "b.json.gz", "b.html.gz", "b.csv.gz"])
def test_a_bomb_is_not_unpacked_to_its_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BOMB_BYTES", 2**20)
    found = problem(name, gzip.compress(b"\0" * (16 * 2**20)))
    assert found == "the file cannot be read: it unpacks to more than 500 times its size"


def test_what_is_only_packed_well_is_read() -> None:
    Path("a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "the same"}\n' * 50_000))
    assert sum(1 for _ in read_rows([Path("a.jsonl.gz")])) == 50_000


@pytest.mark.parametrize("pattern", ["/", "/**", "/**/*.txt", "/proc/**", "{up}/**/*.jsonl", "{up}"])
def test_nobody_looks_through_the_whole_machine(pattern: str, here: Path) -> None:
    """Fuzzing found a plan that did not end: /proc has links to the root."""
    pattern = pattern.format(up="/".join([".."] * len(here.parts)))
    with pytest.raises(DataError, match="this means all files of the machine; name a folder"):
        rows.expand(pattern, base=here)


SECRETS = ["hf_" + "aB3dE5gH" * 5, "sk-proj-" + "a1B2c3D4e5" * 3, "AKIA" + "ABCD1234EFGH5678"]
SECRETS += ["ghp_" + "a1B2c3D4e5" * 4, "http://me:hunter22@host/v1"]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_recipe_holds_no_secret(secret: str) -> None:
    """It is kept with its run, and shown in the report."""
    text = f"name: x\nstages:\n  s: {{kind: sft, model: {{path: m}}, trainer: {{hub_token: '{secret}'}}}}\n"
    with pytest.raises(LlmpipeError) as caught:
        recipes.check(yaml_tree.parse(text, shown_as="r.yaml"), Path("r.yaml").absolute())
    said = [found for found in caught.value.problems if "looks like a secret" in found.message]
    assert len(said) == 1
    assert said[0].where == "r.yaml:3:57" and said[0].path == "stages.s.trainer.hub_token" and said[0].excerpt is None
    assert secret[4:] not in str(said[0])
