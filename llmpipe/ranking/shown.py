"""What came of ranking, for whoever asked for it: progress, agreement, gold questions, models; and the export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmpipe import console
from llmpipe.ranking.agreement import agreement, left_out, tried, wins
from llmpipe.ranking.export import Exported, Form
from llmpipe.ranking.export import export as write
from llmpipe.ranking.store import Store


def summary(store: Store, *, least_gold: float | None = None) -> dict[str, Any]:
    """Return what there is of all rounds, and of chat and page; agreement and wins without who saw less of the gold."""
    tasks = {task.id: task for task in store.tasks()}
    rankings, thumbs = store.rankings(), store.thumbs()
    gold = tried(tasks, rankings)
    names = sorted({one.annotator for one in rankings} | {one.annotator for one in thumbs})
    criteria = sorted({one.criterion for one in rankings})
    if least_gold is not None:
        careless = left_out(tasks, rankings, least_gold)
        counted = [one for one in rankings if one.annotator not in careless]
    else:
        counted = rankings
    return {
        "prompts": sum(task.source == "rank" for task in tasks.values()),
        "annotators": [
            {
                "name": name,
                "ranked": sum(one.annotator == name and tasks[one.task].gold is None for one in rankings),
                "thumbs": sum(one.annotator == name for one in thumbs),
                "gold_right": gold[name].right if name in gold else 0,
                "gold_asked": gold[name].asked if name in gold else 0,
                "gold_accuracy": gold[name].share if name in gold else None,
            }
            for name in names
        ],
        "criteria": [
            {
                "name": name,
                "alpha": agreement(tasks, counted, name),
                "wins": wins(tasks, [one for one in counted if one.criterion == name]),
            }
            for name in criteria
        ],
    }


def show(store: Store, *, least_gold: float | None, as_json: bool) -> None:
    """Show what there is: who ranked how much, how far they agree, how they did on gold, and whose answers won."""
    found = summary(store, least_gold=least_gold)
    if as_json:
        console.as_json(found)
        return
    if not found["annotators"]:
        console.say("  nobody has ranked anything yet")
        return
    rows = [
        (one["name"], str(one["ranked"]), str(one["thumbs"]), _gold(one["gold_right"], one["gold_asked"]))
        for one in found["annotators"]
    ]
    console.show(console.table(rows, header=("", "ranked", "thumbs", "gold"), right=(1, 2, 3)), to_stdout=True)
    for one in found["criteria"]:
        alpha = "nobody else ranked the same" if one["alpha"] is None else f"alpha {one['alpha']:.2f}"
        console.data(f"\n  {one['name']}: {alpha}")
        won = sorted(one["wins"].items(), key=lambda pair: -pair[1])
        if won:
            cells = [(name, f"{share:.0%}") for name, share in won]
            console.show(console.table(cells, header=("", "won"), right=(1,)), to_stdout=True, indent=4)
    console.say(
        "\n  alpha: Krippendorff's, of pairs; 1 agrees, 0 is chance. won: of pairs with another model", style="dim"
    )


def _gold(right: int, asked: int) -> str:
    return f"{right}/{asked}" if asked else ""


def export(
    store: Store, to: Path, form: Form, *, criteria: Sequence[str], least_gold: float | None, as_json: bool
) -> None:
    """Write the file, and say what is in it and what is not.

    Raises:
        UsageError: the file is no name for JSON lines, or there is nothing to write.
    """
    done = write(store, to, form, criteria=criteria, least_gold=least_gold)
    if as_json:
        console.as_json({"file": str(to)} | asdict(done))
        return
    _tell(done, to, form)


def _tell(done: Exported, to: Path, form: Form) -> None:
    for name, share in done.left_out.items():
        why = "was asked no gold questions" if share is None else f"saw {share:.0%} of the gold as it is known"
        console.say(f"  {name} is left out: {why}")
    console.say(f"  {to}: {done.rows} rows")
    if form == "kto":
        console.say(f"  llmpipe kto … --data {to} learns from it", style="dim")
        return
    rest = {"ties": done.ties, "rankings that found all bad": done.all_bad, "skipped": done.skipped}
    without = ", ".join(f"{count} {what}" for what, count in rest.items() if count)
    console.say(f"  {done.pairs} pairs of which one is better" + (f"; of no use here: {without}" if without else ""))
    console.say(f"  llmpipe reward … --data {to} learns from it", style="dim")
