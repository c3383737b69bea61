"""The bias report to look at: a table for terminals and Markdown, and a picture, both of one `bias.report`."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from textwrap import shorten
from typing import Any

GROUPS_SHOWN = 8
"""Of a category, the most mentioned; the others are summed up in one row."""
WORDS_WIDTH = 78

Row = tuple[str, dict[str, Any], dict[str, Any]]  # name, before, after


def rows(groups: dict[str, Any]) -> list[Row]:
    """Return the groups of a category, the most mentioned first, with what is beyond eight in one."""
    found = [(name, sides["before"], sides["after"]) for name, sides in groups.items()]
    found.sort(key=lambda row: -max(row[1]["share"], row[2]["share"]))
    shown, rest = found[:GROUPS_SHOWN], found[GROUPS_SHOWN:]
    if len(rest) == 1:
        return found
    if rest:
        sums = [
            {"mentions": sum(s["mentions"] for s in side), "share": sum(s["share"] for s in side), "words": []}
            for side in zip(*((before, after) for _, before, after in rest), strict=True)
        ]
        shown.append((f"{len(rest)} others", sums[0], sums[1]))
    return shown


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown that reads as well unrendered, 80 columns wide."""
    documents = report["documents"]
    lines = [f"Groups of people in {documents['before']:,} documents before, {documents['after']:,} after."]
    for category, groups in report["groups"].items():
        if not groups:
            continue
        lines += ["", f"| {category:16.16} |   before |  share |    after |  share |"]
        lines.append(f"|{'-' * 18}|{'-' * 9}:|{'-' * 7}:|{'-' * 9}:|{'-' * 7}:|")
        for name, before, after in rows(groups):
            numbers = [f"{side['mentions']:8,} | {side['share']:6.1%}" for side in (before, after)]
            lines.append(f"| {name:16.16} | {' | '.join(numbers)} |")
        lines += _words(rows(groups))
    return "\n".join(lines) + "\n"


def _words(shown: list[Row]) -> Iterator[str]:
    """Say what each group goes together with; before the steps too, where that was otherwise."""
    said = [(name, before["words"], after["words"]) for name, before, after in shown]
    said = [(name, before, after) for name, before, after in said if before or after]
    if said:
        yield ""
    for name, before, after in said:
        yield shorten(f"- {name}: {', '.join(after) or '–'}", WORDS_WIDTH, placeholder=" …")
        if set(before) != set(after):
            yield "  " + shorten(f"- before: {', '.join(before) or '–'}", WORDS_WIDTH - 2, placeholder=" …")


WIDTH, LABELS, BAR, GAP = 640, 130, 11, 8
STYLE = """\
text { fill: #1f2328; font: 12px system-ui, sans-serif } .title { font-weight: 600 } .number { font-size: 10px }
.ground { fill: #fff } .before { fill: #9aa4b2 } .after { fill: #2f6fdb }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .ground { fill: #0d1117 } .before { fill: #6e7681 } .after { fill: #58a6ff }
}"""


def picture(report: dict[str, Any]) -> str:
    """Return the report as an SVG: a pair of bars for each group, its share of the category before and after."""
    drawn: list[str] = []
    y = 44
    for category, groups in report["groups"].items():
        if not groups:
            continue
        drawn.append(f'<text class="title" x="16" y="{y + 12}">{escape(category)}</text>')
        y += 24
        for name, before, after in rows(groups):
            drawn += _pair(name, before, after, y)
            y += 2 * BAR + GAP
        y += 12
    legend = (
        f'<rect class="ground" width="{WIDTH}" height="{y}"/>'
        f'<rect class="before" x="{LABELS}" y="14" width="12" height="{BAR}"/>'
        f'<text x="{LABELS + 18}" y="23">before</text>'
        f'<rect class="after" x="{LABELS + 80}" y="14" width="12" height="{BAR}"/>'
        f'<text x="{LABELS + 98}" y="23">after: share of the mentions in a category</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" role="img">\n'
        f"<title>Mentions of groups of people before and after curation</title>\n<style>{STYLE}</style>\n"
        + "\n".join([legend, *drawn])
        + "\n</svg>\n"
    )


def _pair(name: str, before: dict[str, Any], after: dict[str, Any], y: int) -> Iterator[str]:
    yield f'<text x="{LABELS - 8}" y="{y + BAR + 4}" text-anchor="end">{escape(name[:18])}</text>'
    for place, (side, numbers) in enumerate((("before", before), ("after", after))):
        top, width = y + place * BAR, max(1.0, numbers["share"] * (WIDTH - LABELS - 120))
        said = f"{numbers['share']:.1%} ({numbers['mentions']:,})"
        yield f'<rect class="{side}" x="{LABELS}" y="{top}" width="{width:.1f}" height="{BAR - 1}"/>'
        yield f'<text class="number" x="{LABELS + width + 5:.1f}" y="{top + BAR - 1}">{said}</text>'
