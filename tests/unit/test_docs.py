"""The documentation: made pages are what the code says, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmpipe import stages
from llmpipe.cli import app
from tests.unit.test_layers import HEAVY

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path for folder in (".", "docs", "docs/stages", "recipes", "benchmarks") for path in (ROOT / folder).glob("*.md")
)


@pytest.fixture(scope="module")
def docs_path() -> Iterator[None]:
    """Import the scripts as they are run: with their own folder first."""
    sys.path.insert(0, str(DOCS))
    yield
    sys.path.remove(str(DOCS))


def test_the_pages_are_what_the_code_says() -> None:
    """As CI calls it; nothing heavy is imported for it."""
    code = (
        f"import sys; sys.path.insert(0, {str(DOCS)!r}); sys.argv += ['--check']\n"
        f"import make_pages; make_pages.main()\nassert not {HEAVY!r} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_page_that_drifted_is_shown(docs_path: None) -> None:
    import make_pages

    path = DOCS / "stages" / "tokenizer.md"
    made = {one: one.read_text(encoding="utf-8") for one in [*DOCS.glob("stages/*.md"), *DOCS.glob("*.md")]}
    assert make_pages.stale(made) == ""
    diff = make_pages.stale(made | {path: made[path].replace("`8192`", "`4096`")})
    assert diff.startswith("--- docs/stages/tokenizer.md\n+++ docs/stages/tokenizer.md, as the code says\n")
    assert [line[0] for line in diff.splitlines() if "vocab_size`" in line and line[0] in "+-"] == ["-", "+"]
    rest = {one: text for one, text in made.items() if one != path}
    assert make_pages.stale(rest) == "docs/stages/tokenizer.md is of no stage\n"


@pytest.mark.parametrize("kind", stages.STAGES)
def test_the_page_of_a_stage_has_all_that_may_be_written(kind: str) -> None:
    text = (DOCS / "stages" / f"{kind}.md").read_text(encoding="utf-8")
    for name in stages.load(kind).Settings.model_fields:
        assert name == "kind" or re.search(rf"^\| `{name}[`.]", text, re.MULTILINE), name
    for section in ("Inputs", "Output", "Settings", "What is checked", "What goes wrong"):
        assert f"\n## {section}\n\n" in text


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("tokenizer", "Beside it: `pieces.svg`, `report.json`."),
        (
            "tokenizer",
            "| vocab_size … has no room for every letter of the text and … special tokens | raise vocab_size,",
        ),
        ("sft", "| no conversation fits into … tokens | use a model with a longer context"),
        ("pretrain", "| packing: false |"),
        ("rlhf-ppo", "- rollout.samples (…) is not a multiple of minibatches"),
        ("rlhf-ppo", "| no answer of a rollout could be scored | a reward is a number for each answer |"),
        ("kto", "| `learning_rate` | `1e-6` | `1e-5` |"),
        ("lora", "| `adapter/` | adapter | `model` of [sft](sft.md)"),
        ("grpo", "| `top_p`, `top_k`, `min_p`, `repetition_penalty`, `generation_kwargs` |"),
    ],
)
def test_a_page_tells(kind: str, told: str) -> None:
    assert told in (DOCS / "stages" / f"{kind}.md").read_text(encoding="utf-8")


def test_messages_are_followed_through_imports_and_classes(docs_path: None) -> None:
    """Those of a helper two modules away are found, and none of what a stage does not come to."""
    import said

    kinds = ("tokenizer", "dpo", "reward", "grpo", "rlhf-ppo")
    starts = {kind: said.reached([(stages.STAGES[kind].module, "run")]) for kind in kinds}
    found = {kind: {one.message for one in said.failures(keys)} for kind, keys in starts.items()}
    assert "no pair fits into … tokens, or no pair differs in its tokens" in found["dpo"] & found["reward"]
    assert [any("the server at" in message for message in found[kind]) for kind in kinds] == [False] * 4 + [True]
    assert not any("adapter" in message for message in found["tokenizer"])


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("raise DataError(f'no row in {path}', hint='add rows')", ("no row in …", "add rows")),
        (
            "message = f'{count:,} rows are bad'\n    raise DataError(message, hint=HINT)",
            ("… rows are bad", "mend them all"),
        ),
        (
            "raise DataError(Problem('it is too short', where=x), hint=f'add {n} rows')",
            ("it is too short", "add … rows"),
        ),
        (
            "raise DataError(f'there is no column {n}{did_you_mean(n, k)}', hint='see the docs')",
            ("there is no column …", "see the docs"),
        ),
        (
            "raise DataError('it is cut' if x else 'it is gone', hint='mend them all')",
            ("it is cut, or it is gone", "mend them all"),
        ),
        ("raise DataError(f'{error}', hint='mend them all')", None),
        ("raise DataError('it is too short')", None),
    ],
)
def test_a_message_is_read_as_it_is_written(
    source: str, wanted: Any, docs_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ast

    import said

    module = said._module(ast.parse(f"HINT = 'mend them all'\ndef run(x):\n    {source}\n"))
    monkeypatch.setitem(said.modules(), source, module)
    assert said.failures([(source, "run")]) == ({said.Said(*wanted)} if wanted else set())


# ---- Links ------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    return re.sub(r"^```(?s:.*?)^```$|^    .*$", "", text, flags=re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page; one that comes again gets a number."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(anchor if not seen[anchor] else f"{anchor}-{seen[anchor]}")
        seen[anchor] += 1
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", without_code(path.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        leads_to = (path.parent / name).resolve() if name else path
        assert leads_to.is_relative_to(ROOT) and leads_to.exists(), target
        assert not anchor or anchor in anchors(leads_to), target


# ---- Commands ---------------------------------------------------------------------------------


def shown(path: Path) -> list[str]:
    """Return the command lines of llmpipe that a page shows."""
    text = path.read_text(encoding="utf-8")
    lines = re.findall(r"^(?:    |- run: |.*?&& |\$ )?(llmpipe [^\n]*)$", text, re.MULTILINE)
    return [
        line.partition("  #")[0].partition(" | ")[0].partition(" > ")[0]
        for line in lines + re.findall(r"`(llmpipe [a-z][^`\n]*)`", text)
    ]


FLAGS = {
    (command.name or command.callback.__name__): command.callback
    for command in app.registered_commands
    if command.callback
} | {
    f"{group.name} {command.name}": command.callback
    for group in app.registered_groups
    if group.typer_instance
    for command in group.typer_instance.registered_commands
    if command.callback
}
GROUPS = {group.name for group in app.registered_groups}


def flags_of(name: str) -> set[str]:
    import typing

    hints = typing.get_type_hints(FLAGS[name], include_extras=True)
    infos = {name: typing.get_args(hint)[1] for name, hint in hints.items() if typing.get_args(hint)}
    declared = [[info.default, *(info.param_decls or [f"--{name.replace('_', '-')}"])] for name, info in infos.items()]
    return {str(flag) for flags in declared for flag in flags if str(flag).startswith("-")} | {"--help"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_that_are_shown_exist_with_their_flags(path: Path) -> None:
    for line in shown(path):
        _, *words = shlex.split(line)
        name = " ".join(words[: 2 if words[:1] and words[0] in GROUPS else 1])
        if name.isupper() or name.startswith("-"):
            continue  # `llmpipe STAGE --help`
        if name in GROUPS:
            continue  # its help
        assert name in FLAGS, line
        flags = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert flags <= flags_of(name), line


def test_the_readme_shows_commands() -> None:
    """The test above would pass on a page of which it finds nothing."""
    assert {"quickstart", "init", "run", "rlhf", "export"} <= {line.split()[1] for line in shown(ROOT / "README.md")}


def test_the_tests_that_show_what_faults_do_are_there() -> None:
    """docs/reliability.md: a line for each fault and threat, with tests by name."""
    text = (DOCS / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line.rpartition(" | ")[2]]
    named = {name for row in rows for name in re.findall(r"`([\w/]+\.py::\w+)`", row)}
    assert len([row for row in rows if re.match(r"\| \d+ \|", row)]) == 26
    assert all("::test_" in row for row in rows) and len(named) > 60
    for name in named:
        path, _, function = name.partition("::")
        assert re.search(rf"^def {function}\(", (ROOT / "tests" / path).read_text(encoding="utf-8"), re.MULTILINE), name
