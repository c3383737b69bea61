"""All that llmpipe prints: data to stdout, everything else to stderr.

Colour only where a terminal wants it (rich reads NO_COLOR and TERM); text of models and files is never read as
markup, and its control characters are dropped.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from llmpipe.errors import LlmpipeError, UsageError

SPARKS = "▁▂▃▄▅▆▇█"
ACTION_STYLES = {"skip": "dim", "wait": "dim", "resume": "cyan", "run": "green", "rerun": "yellow"}

C1 = frozenset(map(chr, range(0x7F, 0xA0)))
"""A terminal may take U+009B for the beginning of an escape."""


class _Lasting(Console):
    """What is said about the work: where nobody reads on, as in `2>&1 | head -1`, the work goes on in silence."""

    def on_broken_pipe(self) -> None:
        """Say no more; rich 15 would end the process."""
        mute(2)


def mute(*numbers: int) -> None:
    """Write what goes to stdout (1) or stderr (2) to nowhere from now on: nobody is there to read it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in numbers:
        os.dup2(nowhere, number)
    os.close(nowhere)


err = _Lasting(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True)


def clean(text: str) -> str:
    """Drop control characters (terminal escapes) from text that a model or a file wrote; keep line breaks."""
    return "".join(char for char in text if char in "\n\t" or (char.isprintable() and char != "\x7f"))


def say(text: str | Text, *, style: str = "") -> None:
    """Print a line for people to stderr."""
    err.print(Text(clean(text), style=style) if isinstance(text, str) else text)


def data(text: str) -> None:
    """Print a result to stdout, a line or several."""
    part(clean(text).removesuffix("\n") + "\n")


def part(text: str) -> None:
    """Print a part of a result to stdout, at once and as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def as_json(content: Any, *, indent: int | None = 2) -> None:
    """Print a result to stdout as one JSON document; control characters are escaped, those that JSON allows too."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    part("".join(f"\\u{ord(char):04x}" if char in C1 else char for char in text) + "\n")


def error(failure: LlmpipeError) -> None:
    """Show every problem of a failure, each with its line of the file, then the hint."""
    for problem in failure.problems:
        where = f"{problem.where}: " if problem.where else ""
        path = f"{problem.path}: " if problem.path else ""
        err.print(Text.assemble((clean(where), "bold"), clean(path), (clean(problem.message), "red")))
        for line in problem.excerpt or ():
            err.print(Text(f"  {clean(line)}", style="dim"))
    if len(failure.problems) > 1:
        before = ", nothing was run" if isinstance(failure, UsageError) else ""
        err.print(Text(f"{len(failure.problems)} problems{before}"))
    if failure.hint:
        err.print(Text.assemble("\n", ("hint: ", "cyan"), clean(failure.hint)))


def error_json(failure: LlmpipeError) -> dict[str, Any]:
    """Return a failure for `--json`."""
    problems = [{"where": p.where, "path": p.path, "message": p.message} for p in failure.problems]
    return {"error": {"exit_code": int(failure.code), "problems": problems, "hint": failure.hint}}


def table(rows: Iterable[Sequence[str | Text]], *, header: Sequence[str] = (), right: Sequence[int] = ()) -> Table:
    """Lay out rows in columns without lines, as wide as their content; columns in `right` are right-aligned."""
    grid = Table(box=None, show_header=bool(header), pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    rows = list(rows)
    for index in range(len(rows[0]) if rows else len(header)):
        title = header[index] if header else ""
        grid.add_column(title, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(clean(cell)) if isinstance(cell, str) else cell for cell in row))
    return grid


@dataclass(frozen=True)
class _Trimmed:
    """A renderable, indented and without the spaces that rich fills lines up with."""

    content: Table
    indent: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        narrower = options.update_width(options.max_width - self.indent)
        for line in console.render_lines(self.content, narrower, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
                yield from (Segment(" " * self.indent), *line)
            yield Segment.line()


def show(content: Table, *, to_stdout: bool = False, indent: int = 2) -> None:
    """Print a table, indented."""
    (out if to_stdout else err).print(_Trimmed(content, indent), soft_wrap=False, end="")


def number(value: Any, *, key: str = "") -> str:
    """Write a metric for people: shares in percent, small numbers with three figures, large ones with separators."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if key.endswith(("_share", "_accuracy")):
        return f"{value:.0%}"
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def count(value: float) -> str:
    """Write a large count: 1.6 M, 19.1k."""
    for size, suffix in ((1e9, " B"), (1e6, " M"), (1e3, "k")):
        if value >= size * 0.99995:
            return f"{value / size:.1f}{suffix}"
    return f"{value:.0f}"


def seconds(value: float) -> str:
    """Write a duration: 8.2 s, 1:12, 2:03:04."""
    if round(value, 1) < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(values: Sequence[float], *, width: int = 8) -> str:
    """Draw a series as one line of blocks, averaged down to `width`; what is not finite is left out."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    size = math.ceil(len(values) / width)
    means = [sum(part) / len(part) for part in (values[i : i + size] for i in range(0, len(values), size))]
    low, high = min(means), max(means)
    return "".join(SPARKS[round((value - low) / (high - low or 1) * (len(SPARKS) - 1))] for value in means)


class _Numbers(ProgressColumn):
    """The measured part of the progress line: step, loss and its shape, speed, time left."""

    def render(self, task: Task) -> Text:
        return Text("  ".join(task.fields["numbers"]), style="default")


class _Bar(Progress):
    """A bar, and under it the lines of `detail`."""

    detail: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is drawn."""
        yield from super().get_renderables()
        for line in self.detail:
            yield Text(f"    {line}", style="dim", no_wrap=True, overflow="ellipsis")


class Live:
    """The progress of one step; a bar on a terminal, a plain line every ten seconds elsewhere."""

    PLAIN_EVERY_S = 10.0

    def __init__(self, name: str) -> None:
        self.name = name
        self.losses: list[float] = []
        self.rewards: dict[int, float] = {}
        self.known: dict[str, Any] = {}
        self.begun = self.shown_at = time.monotonic()
        self.bar = _Bar(
            TextColumn(f"  {name}"),
            BarColumn(bar_width=16),
            _Numbers(),
            console=err,
            transient=True,
            refresh_per_second=4,
        )
        self.task = self.bar.add_task("", total=None, numbers=["starting"])

    def __enter__(self) -> Live:
        if err.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if err.is_terminal:
            self.bar.stop()

    def update(self, numbers: dict[str, Any]) -> None:
        """Show `step`, `max_steps`, `loss`, `tokens_per_s` and `seconds_left`, or `documents` and `of`.

        A stage that samples says `rollout`, `rollouts`, `reward`, `kl` (nats per answer) and `length` (tokens), not
        all of them each time; what it said last stays.
        """
        if "loss" in numbers:
            self.losses.append(numbers["loss"])
        if "rollout" in self.known or "rollout" in numbers:
            self.known |= numbers
            if "reward" in numbers and numbers.get("doing") != "sampling":  # then it is that of the rollout before
                self.rewards[self.known["rollout"]] = numbers["reward"]
        parts = _rollout_parts(self.known, list(self.rewards.values())) if self.known else _parts(numbers, self.losses)
        if err.is_terminal:
            self.bar.detail = _rollout_details(self.known)
            done, total = numbers.get("step", numbers.get("documents")), numbers.get("max_steps", numbers.get("of"))
            self.bar.update(self.task, completed=done, total=total, numbers=parts)
        elif time.monotonic() - self.shown_at >= self.PLAIN_EVERY_S:
            self.shown_at = time.monotonic()
            more = [f"length {self.known['length']:.0f}"] if "length" in self.known else []
            more += [str(self.known["doing"])] if "doing" in self.known else []
            say(f"  {self.name}  {'  '.join(parts + more)}")

    def note(self, text: str, *, style: str = "") -> None:
        """Print a line above the bar."""
        err.print(Text(f"  {self.name}  {clean(text)}", style=style))


def _parts(numbers: dict[str, Any], losses: Sequence[float]) -> list[str]:
    parts = []
    if "step" in numbers:
        parts.append(f"{numbers['step']}/{numbers.get('max_steps', '?')}")
    if "documents" in numbers:
        parts.append(f"{numbers['documents']:,} documents")
    if losses:
        parts += [f"loss {losses[-1]:.2f}", sparkline(losses)]
    if "tokens_per_s" in numbers:
        parts.append(f"{count(numbers['tokens_per_s'])} tok/s")
    if "seconds_left" in numbers:
        parts.append(f"{seconds(numbers['seconds_left'])} left")
    if "doing" in numbers:
        parts.append(str(numbers["doing"]))
    return parts


def _rollout_parts(known: dict[str, Any], rewards: Sequence[float]) -> list[str]:
    parts = [f"{known['rollout']}/{known.get('rollouts', '?')} rollouts"]
    if rewards:
        parts += [f"reward {rewards[-1]:.2f}", sparkline(rewards)]
    if "kl" in known:
        parts.append(f"KL {known['kl']:.2f} nats")
    if "seconds_left" in known:
        parts.append(f"{seconds(known['seconds_left'])} left")
    return parts


PHASES = ("sampling", "scoring", "reading", "learning")
NO_COMPONENTS = ("reward_deviation", "reward_length_correlation")


def _rollout_details(known: dict[str, Any]) -> list[str]:
    """Lay out what else is known of a rollout: what was sampled, how the steps on it went, where the time goes."""
    components = [key for key in known if key.startswith("reward_") and key not in NO_COMPONENTS]
    shown = [(key.removeprefix("reward_"), known[key], "{:.2f}") for key in components]
    shown += [("length", known.get("length"), "{:.0f}"), ("ended", known.get("ended_share"), "{:.0%}")]
    shown += [("entropy", known.get("entropy"), "{:.2f}")]
    steps = [("clipped", known.get("clip_fraction"), "{:.1%}")]
    steps += [("values explain", known.get("explained_variance"), "{:.0%}")]
    steps += [(phase, known.get(f"seconds_{phase}"), "{:.1f} s") for phase in PHASES]
    lines = [
        "  ".join(f"{name} {form.format(value)}" for name, value, form in part if value is not None)
        for part in (shown, steps)
    ]
    return [line for line in lines if line]
