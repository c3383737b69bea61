"""Write the pages of docs/ that the code itself tells: one for each stage, the commands, tables of sources and formats.

    python docs/make_pages.py            # write them
    python docs/make_pages.py --check    # exit 1 with a diff where one is stale

They are made from docstrings, settings, help texts and error texts, and are never edited by hand. In the other pages,
what stands between `<!-- made: NAME -->` and `<!-- end -->` is made, too.
"""

from __future__ import annotations

import difflib
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from command_line import commands_page
from markup import MADE, note, sentence, table
from stage_page import (
    NO_STAGE_TAKES,
    accepting,
    advice,
    bullets,
    grouped,
    made_by,
    page_link,
    said_by_most,
    said_of_sources,
    stage_page,
)

from llmpipe import settings, stages
from llmpipe.preview import TABLES

DOCS = Path(__file__).parent
SOURCES: tuple[type[settings.Strict], ...] = typing.get_args(settings.AnySource)


def pages() -> dict[Path, str]:
    """Return the made pages with their text, and the others with their made parts renewed."""
    found = {DOCS / "stages" / f"{kind}.md": stage_page(kind) for kind in stages.STAGES}
    found |= {DOCS / "stages" / "README.md": overview(), DOCS / "commands.md": commands_page()}
    for path in sorted(set(DOCS.glob("*.md")) - found.keys()):
        found[path] = renewed(path.read_text(encoding="utf-8"))
    return found


def renewed(text: str) -> str:
    """Make the made parts of a page anew."""
    part = re.compile(r"(<!-- made: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
    return part.sub(lambda match: "\n".join([match[1], PARTS[match[2]](), "", ""]).replace("\n\n\n\n", "\n"), text)


def overview() -> str:
    """Write the page about all stages."""
    rows = [
        (page_link(kind), sentence(told.help), _columns(accepting(kind)), ", ".join(made_by(kind)))
        for kind, told in stages.STAGES.items()
    ]
    parts = [
        MADE,
        "# Stages",
        "A recipe names stages, each of one of these kinds. What one makes, later ones read by its name.",
        table(("kind", "what it is for", "reads", "makes"), rows),
        "## What goes wrong in any stage",
        advice(said_by_most()),
        "Of a source or a count, before anything runs:",
        bullets(said_of_sources()),
        "[docs/ci.md](../ci.md) has the exit codes, [docs/data.md](../data.md#bad-rows) what bad rows lead to.",
        "## Options that no stage takes",
    ]
    for name, reserved in NO_STAGE_TAKES.items():
        parts += [f"Under `{name}:`", table(("option", "why, or what to write instead"), grouped(reserved))]
    return "\n\n".join(parts) + "\n"


# ---- Parts of other pages ---------------------------------------------------------------------


def sources() -> str:
    """List the sources, with their keys."""
    rows = []
    for model in SOURCES:
        first, *others = model.model_fields
        said = note(model.model_fields[first].description or "")
        rows.append((f"`{first}:`", model.__doc__, said, _columns(others)))
    return table(("key", "what it names", "is written as", "and takes"), rows)


def source_keys() -> str:
    """List the keys that sources take beside the one that names them."""
    found: dict[str, str] = {}
    for model in SOURCES:
        for name in list(model.model_fields)[1:]:
            found.setdefault(name, note(model.model_fields[name].description or ""))
    return table(("key", "meaning"), [(f"`{name}`", meaning) for name, meaning in found.items()])


def formats() -> str:
    """List the row formats, and which stages read them."""
    found: dict[tuple[str, Sequence[str]], tuple[Any, list[str]]] = {}
    for kind, known in TABLES.items():
        for name, form in known.formats.items():
            found.setdefault((name, form.needs), (form, []))[1].append(kind)
    rows = [
        (f"`{name}`", _columns(form.needs), _columns(form.also), note(form.about), ", ".join(kinds))
        for (name, _), (form, kinds) in found.items()
    ]
    return table(("format", "columns it needs", "it also reads", "a row is", "read by"), rows)


def _columns(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def more() -> str:
    """Name the pages that the index does not tell of itself."""
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    told = index.partition("<!-- made: more -->")[0] + index.partition("<!-- end -->")[2]
    others = [path for path in sorted(DOCS.glob("*.md")) if f"({path.name})" not in told and path.name != "README.md"]
    texts = [path.read_text(encoding="utf-8") for path in others]
    links = [
        f"[{text.partition('# ')[2].splitlines()[0]}]({path.name})" for path, text in zip(others, texts, strict=True)
    ]
    return f"More: {' · '.join(links)}" if links else ""


PARTS: dict[str, Callable[[], str]] = {
    "sources": sources,
    "source_keys": source_keys,
    "formats": formats,
    "more": more,
}


# ---- Writing and checking ---------------------------------------------------------------------


def stale(made: dict[Path, str]) -> str:
    """Return a diff of all pages that are not what the code says; empty when none is."""
    diff: list[str] = []
    for path, text in made.items():
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        name = path.relative_to(DOCS.parent).as_posix()
        diff += difflib.unified_diff(old.splitlines(True), text.splitlines(True), name, f"{name}, as the code says")
    gone = sorted(set((DOCS / "stages").glob("*.md")) - made.keys())
    return "".join(diff) + "".join(f"{path.relative_to(DOCS.parent).as_posix()} is of no stage\n" for path in gone)


def main() -> None:
    """Write the pages, or check them."""
    made = pages()
    if "--check" in sys.argv[1:]:
        if diff := stale(made):
            sys.stdout.write(f"{diff}\nstale: python docs/make_pages.py\n")
            raise SystemExit(1)
        return
    (DOCS / "stages").mkdir(exist_ok=True)
    for path in set((DOCS / "stages").glob("*.md")) - made.keys():
        path.unlink()
    for path, text in made.items():
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
