"""How well a policy tells harmful texts from benign ones: by layer and category, and what it takes.

    llmpipe eval --suite moderation --policy policy.yaml --harmful refusals.jsonl --benign prompts.json

A text is found where a rule of the policy holds, whatever becomes of it there. Each layer is given the texts as they
are, whatever the others say. Precision is over both sets, so it moves with their sizes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from llmpipe import console
from llmpipe.data import Cells
from llmpipe.data.prompts import prompts
from llmpipe.data.rows import expand, read_rows
from llmpipe.data.safety import REFUSALS, Refusable
from llmpipe.data.tables import Format, Table, converted
from llmpipe.errors import UsageError
from llmpipe.moderation import Place
from llmpipe.moderation.log import Log
from llmpipe.moderation.moderator import Mark, Moderator
from llmpipe.moderation.opening import opened


def _labelled(cells: Cells) -> Refusable:
    return Refusable(str(cells.value.get("label")), cells.text("text"))


HARMFUL = Table(
    {
        **REFUSALS.formats,
        "text-label": Format(("text",), ("label",), "a harmful text, and what kind of harm it does", _labelled),
    }
)


@dataclass
class Found:
    """How many texts a layer or a category found."""

    harmful: int = 0
    benign: int = 0
    blocked: int = 0
    """Of the benign ones."""

    def as_json(self, harmful: int, benign: int) -> dict[str, Any]:
        """Return the shares; a precision of nothing is None."""
        found = self.harmful + self.benign
        return {
            "found_harmful": self.harmful,
            "found_benign": self.benign,
            "precision": self.harmful / found if found else None,
            "recall": self.harmful / harmful,
            "over_blocked": self.blocked / benign,
        }


@dataclass
class LayerFound:
    """What a layer found: in all, by category of its rules, and by kind of harm."""

    all: Found = field(default_factory=Found)
    categories: dict[str, Found] = field(default_factory=dict)
    harms: dict[str, int] = field(default_factory=dict)
    took_ms: list[float] = field(default_factory=list)

    def take(self, marks: Sequence[Mark], harm: str | None) -> None:
        """Count a text; `harm` is None for a benign one."""
        names = dict.fromkeys(mark.find.category for mark in marks)
        for found in [self.all, *(self.categories.setdefault(name, Found()) for name in names)] if marks else ():
            found.harmful += harm is not None
            found.benign += harm is None
        if harm is not None:
            self.harms[harm] = self.harms.get(harm, 0) + bool(marks)
            return
        blocked = dict.fromkeys(mark.find.category for mark in marks if mark.action == "block")
        for found in [self.all, *(self.categories[name] for name in blocked)] if blocked else ():
            found.blocked += 1


def measured(
    moderator: Moderator, harmful: Sequence[Refusable], benign: Sequence[str], *, place: Place = "input"
) -> dict[str, Any]:
    """Put texts through each layer, one at a time.

    Returns for `all` of the policy and for each of its `layers` precision, recall and the share of the benign ones
    that is blocked; by category of the rules, recall by kind of harm, and milliseconds for a text.
    """
    layers = {name: LayerFound() for name in moderator.layers}
    together = LayerFound()
    for text, harm in [*((one.prompt, one.category) for one in harmful), *((one, None) for one in benign)]:
        marks: list[Mark] = []
        took_ms = 0.0
        for name, found in layers.items():
            begun = time.perf_counter()
            own = moderator.marks(name, text, place)
            found.took_ms.append(1e3 * (time.perf_counter() - begun))
            found.take(own, harm)
            marks += own
            took_ms += found.took_ms[-1]
        together.take(marks, harm)
        together.took_ms.append(took_ms)
    harms: dict[str, int] = {}
    for one in harmful:
        harms[one.category] = harms.get(one.category, 0) + 1

    def told(found: LayerFound) -> dict[str, Any]:
        counts = (len(harmful), len(benign))
        times = sorted(found.took_ms)
        return found.all.as_json(*counts) | {
            "categories": {name: one.as_json(*counts) for name, one in sorted(found.categories.items())},
            "recall_by_harm": {harm: found.harms.get(harm, 0) / count for harm, count in harms.items()},
            "median_ms": median(times),
            "p95_ms": times[int(0.95 * (len(times) - 1))],
        }

    return {
        "harmful": len(harmful),
        "benign": len(benign),
        "all": told(together),
        "layers": {name: told(found) for name, found in layers.items()},
    }


def evaluate(policy: str, harmful: Sequence[str], benign: Sequence[str], *, as_json: bool) -> None:
    """Measure a policy on files, and show the table. Nothing is written to its log.

    Raises:
        LlmpipeError: the policy or a file is wrong, or one of the sets is not named.
    """
    if not harmful or not benign:
        hint = "llmpipe eval --suite moderation --policy default --harmful refusals.jsonl --benign prompts.json"
        raise UsageError("the moderation suite needs harmful texts and benign ones", hint=hint)
    texts = [one for name in harmful for one in _harmful(name)]
    others = [prompt.asked for name in benign for _, prompt in prompts(read_rows(expand(name, base=Path())))]
    rules, layers = opened(policy)
    moderator = Moderator(rules, layers, Log(Path(os.devnull)))
    if layers:
        measured(moderator, texts[:1], others[:1])  # the first text pays for what is imported then
    found = measured(moderator, texts, others)
    if as_json:
        console.as_json({"policy": policy} | found)
    else:
        show(found)


def _harmful(name: str) -> list[Refusable]:
    rows = converted(read_rows(expand(name, base=Path())), HARMFUL, columns=None, format=None)
    return [one for _, one in rows]


def show(found: dict[str, Any]) -> None:
    """Show what was measured: a row for each layer and category, then recall by kind of harm."""
    console.data(f"{found['harmful']:,} harmful texts, {found['benign']:,} benign ones\n")
    rows = []
    for name, layer in [*found["layers"].items(), ("all", found["all"])]:
        rows.append((name, "", *_cells(layer), f"{layer['median_ms']:.2f}", f"{layer['p95_ms']:.2f}"))
        if name != "all":
            rows += [("", category, *_cells(one), "", "") for category, one in layer["categories"].items()]
    header = ("layer", "category", "precision", "recall", "over-blocked", "ms", "p95")
    console.show(console.table(rows, header=header, right=(2, 3, 4, 5, 6)), to_stdout=True, indent=0)
    layers = list(found["layers"])
    console.data("")
    by_harm = [
        (harm, *(_percent(found["layers"][name]["recall_by_harm"][harm]) for name in layers), _percent(share))
        for harm, share in found["all"]["recall_by_harm"].items()
    ]
    header = ("recall of", *layers, "all")
    console.show(console.table(by_harm, header=header, right=tuple(range(1, len(header)))), to_stdout=True, indent=0)


def _cells(one: dict[str, Any]) -> tuple[str, str, str]:
    precision = "" if one["precision"] is None else _percent(one["precision"])
    return precision, _percent(one["recall"]), _percent(one["over_blocked"])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
