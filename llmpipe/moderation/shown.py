"""moderate: shows what each layer of a policy finds in a text, and what would become of it.

    llmpipe moderate "Call me on +44 20 7946 0958." --policy policy.yaml --place output

Nothing of it is written to the log.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmpipe import console
from llmpipe.errors import UsageError
from llmpipe.moderation import LayerName, Place
from llmpipe.moderation import policy as policies
from llmpipe.moderation.log import Log
from llmpipe.moderation.moderator import Mark, Moderator
from llmpipe.moderation.opening import opened

EXCERPT_CHARS = 40


def show_example() -> None:
    """Print the default policy."""
    console.data(policies.DEFAULT.read_text(encoding="utf-8").rstrip("\n"))


def show(text: str | None, name: str, place: Place, *, as_json: bool) -> None:
    """Put a text through the layers, and show what they find.

    Raises:
        LlmpipeError: there is no text, or the policy is wrong.
    """
    said = sys.stdin.buffer.read().decode("utf-8", "replace") if text == "-" else text or ""
    if not said.strip():
        raise UsageError("there is no text to look at", hint='llmpipe moderate "TEXT", or - for stdin')
    policy, layers = opened(name)
    moderator = Moderator(policy, layers, Log(Path(os.devnull)))
    found = [one for layer in layers for one in _found(moderator, layer, said, place)]
    verdict = moderator.judge(said, place)
    passes = None if verdict.blocked else verdict.text
    if as_json:
        decisions = [asdict(one) for one in verdict.decisions]
        console.as_json({"place": place, "found": found, "decisions": decisions, "passes": passes})
        return
    rows = [
        (one["layer"], one["category"], f"{one['score']:.2f}", one["rule"] or "no rule", one["action"], one["excerpt"])
        for one in found
    ]
    if rows:
        header = ("layer", "found", "score", "rule", "action", "")
        console.show(console.table(rows, header=header, right=(2,)), to_stdout=True, indent=0)
    else:
        console.data("nothing is found")
    if verdict.blocked:
        console.data(f"\nblocked: {moderator.refusal(verdict.blocked)}")
    elif verdict.text != said:
        console.data(f"\npasses as: {console.clean(verdict.text)}")


def _found(moderator: Moderator, layer: LayerName, text: str, place: Place) -> list[dict[str, Any]]:
    """Return what a layer finds in the text as it was said, with rules or without."""
    marks = moderator.marks(layer, text, place)
    ruled = [_row(layer, mark, text) for mark in marks]
    if any(mark.rule.endswith("-unreachable") for mark in marks):
        return ruled
    by_rule = {(mark.find, mark.layer) for mark in marks}
    rest = [find for find in moderator.layers[layer].find(text) if (find, layer) not in by_rule]
    return ruled + [_row(layer, Mark(find, layer, "", "log"), text) for find in rest]


def _row(layer: LayerName, mark: Mark, text: str) -> dict[str, Any]:
    excerpt = console.clean(" ".join(text[mark.start : mark.end].split()))
    return {
        "layer": layer,
        "category": mark.find.category,
        "score": round(mark.find.score, 4),
        "rule": mark.rule or None,
        "action": mark.action if mark.rule else "passes",
        "excerpt": excerpt if len(excerpt) <= EXCERPT_CHARS else f"{excerpt[: EXCERPT_CHARS - 1]}…",
    }
