"""Make docs/gates.md from the gates' own reasons.

python docs/make_gates.py
"""

from __future__ import annotations

from pathlib import Path

from llmpipe.gates import REASONS, TRAINED, Reason

PAGE = Path(__file__).with_name("gates.md")
TOP = """\
# Gates

Before a stage counts as done, its output is checked: read again from the disk, asked what it was trained for, and
compared with what was in memory. A gate that fails fails the stage, and says why it is there and what to do; those that
passed are in `manifest.json` and in the report, with what was measured. There is no switch: what the gates took is
`gates_seconds` among a stage's metrics, and `python benchmarks/quickstart.py` checks that it stays below 5 % of a
stage's time.

`curate` has no gate, for it trains nothing: its output is counted, step by step, and hashed. `eval` writes only
figures.

| gate | stages | why it is there | where it fails | complaints |
|---|---|---|---|---|
"""


def page() -> str:
    """Return the page."""
    return TOP + "".join(f"| {' | '.join(row(name, reason))} |\n" for name, reason in REASONS.items())


def row(name: str, reason: Reason) -> tuple[str, ...]:
    """Return the cells of a gate's row."""
    stages = "all that train" if reason.stages == TRAINED else ", ".join(f"`{stage}`" for stage in reason.stages)
    links = ", ".join(f"[{thread}]({link(thread)})" for thread in reason.threads)
    return f"`{name}`", stages + (f" ({reason.only})" if reason.only else ""), reason.why, reason.remedy, links


def link(thread: str) -> str:
    """Return the address of a public thread."""
    repository, _, number = thread.partition("#")
    return f"https://github.com/{repository}/issues/{number}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
