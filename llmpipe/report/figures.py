"""Curves as SVG, drawn by hand: they are text, sharp at any size, need no library, and follow the reader's theme."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 44, 24
MOST_POINTS = 120
"""Of a curve: more than there are pixels for in half the width of a telephone."""

LARGEST = 1.4
"""Times its own size: where a page is wide, a picture of few parts does not fill it."""

STYLE = """\
.figure { --ink: #1f1f1e; --quiet: #62615b; --line: #dedcd5; --ground: #ffffff; --first: #2a78d6; --second: #c4501b;
  background: var(--ground); font: 11px system-ui, sans-serif }
@media (prefers-color-scheme: dark) { .figure { --ink: #f1f0ec; --quiet: #a9a79d; --line: #3d3c38; --ground: #1b1b1a;
  --first: #4a96ec; --second: #ec7a45 } }
.figure text { fill: var(--quiet) }
.figure .title { fill: var(--ink); font-weight: 600; font-size: 12px }
.figure .grid { stroke: var(--line); stroke-width: 1 }
.figure .curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.figure .first { stroke: var(--first) } .figure .second { stroke: var(--second) }
.figure .dot { stroke-width: 0; fill: var(--second) }
.figure .node { fill: var(--ground); stroke: var(--first); stroke-width: 1.5 }
.figure .open { stroke: var(--quiet); stroke-dasharray: 4 3 }
.figure .edge { fill: none; stroke: var(--quiet); stroke-width: 1.2 }
.figure .head { fill: var(--quiet) }
"""


@dataclass(frozen=True)
class Series:
    """One curve: a name, and (step, value) in the order of the steps."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """What goes into one picture; a second series is what was measured on held-out data."""

    title: str
    series: Sequence[Series]

    @property
    def rows(self) -> list[tuple[float, ...]]:
        """The table of the picture: a row for each step; what a series lacks there is not a number."""
        steps = sorted({step for series in self.series for step, _ in series.points})
        known = [dict(series.points) for series in self.series]
        return [(step, *(values.get(step, math.nan) for values in known)) for step in steps]


PANELS = {
    "loss": (("loss", "training"), ("held_out_loss", "held out")),
    "reward": (("reward", "rollouts"), ("held_out_reward", "held out")),
    "KL, nats per answer": (("kl", "rollouts"), ("held_out_kl", "held out")),
    "accuracy": (("accuracy", "training"), ("held_out_accuracy", "held out")),
    "learning rate": (("learning_rate", ""),),
}
"""Which metrics share a picture. A picture is drawn where its first one is logged."""


def charts(logged: Sequence[dict[str, Any]]) -> list[Chart]:
    """Find the curves in the lines of a metrics.jsonl."""
    found = []
    for title, keys in PANELS.items():
        series = [Series(name, thinned(_points(logged, key))) for key, name in keys]
        if len(series[0].points) > 1:
            found.append(Chart(title, [one for one in series if one.points]))
    return found


def _points(logged: Sequence[dict[str, Any]], key: str) -> list[Point]:
    known = {entry["step"]: entry[key] for entry in logged if "step" in entry and key in entry}
    return [(step, value) for step, value in sorted(known.items()) if isinstance(value, int | float) and _real(value)]


def _real(value: float) -> bool:
    return math.isfinite(value)


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Thin a curve out to at most `most` points: its ends, and the lowest and the highest of each stretch between.

    Means would hide a spike, and every nth point might miss it.
    """
    if len(points) <= most:
        return list(points)
    kept = {0, len(points) - 1}
    size = math.ceil((len(points) - 2) / ((most - 2) // 2))
    for start in range(1, len(points) - 1, size):
        stretch = range(start, min(start + size, len(points) - 1))
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(kept)]


def ticks(low: float, high: float, *, about: int = 6) -> list[float]:
    """Choose round numbers within a range: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / about
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def draw(chart: Chart) -> str:
    """Draw a chart; the table of its numbers belongs beside it."""
    everything = [point for series in chart.series for point in series.points]
    steps, values = zip(*everything, strict=True)
    low, high = min(values), max(values)
    pad = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - point[1]) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [f'<text class="title" x="8" y="16">{escape(chart.title)}</text>', *_legend(chart)]
    for value in ticks(low, high):
        y = place((first, value))[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4}" text-anchor="end">{_short(value)}</text>')
    for step in (tick for tick in ticks(first, last) if tick == int(tick)):
        x = place((step, low))[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="middle">{step:.0f}</text>')
    for series, look in zip(chart.series, ("first", "second"), strict=False):
        parts += _curve([place(point) for point in series.points], look)
    return svg(parts, WIDTH, HEIGHT, said=f"{chart.title} by step")


def _short(value: float) -> str:
    """Write a number in three figures, small ones as recipes do: 3.2e-4."""
    text = f"{value:.3g}" if not 0 < abs(value) < 1e-3 else f"{value:.2e}"
    digits, _, power = text.partition("e")
    return f"{float(digits):g}e{int(power)}" if power else text


def _legend(chart: Chart) -> Iterator[str]:
    """Name each curve and where it ended; one curve without a name is what the title says."""
    x = 8
    for series, look in zip(chart.series, ("first", "second"), strict=False):
        text = f"{series.name} {_short(series.points[-1][1])}".strip()
        yield f'<line class="curve {look}" x1="{x}" x2="{x + 14}" y1="30" y2="30"/>'
        yield f'<text x="{x + 20}" y="34">{escape(text)}</text>'
        x += 34 + 6 * len(text)


def _curve(points: Sequence[Point], look: str) -> Iterator[str]:
    joined = " ".join(f"{x},{y}" for x, y in points)
    yield f'<polyline class="curve {look}" points="{joined}"/>'
    if look == "second" or len(points) == 1:  # told apart without colour, and seen where there is one alone
        yield from (f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>' for x, y in points)


def svg(parts: Sequence[str], width: float, height: float, *, said: str) -> str:
    """Put the parts of a picture together; `said` is what a reader hears who cannot see it."""
    inside = "\n".join(parts)
    return (
        f'<svg class="figure" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="max-width: {LARGEST * width:.0f}px" '
        f'role="img" aria-label="{escape(said)}">\n{inside}\n</svg>\n'
    )


def alone(picture: str) -> str:
    """Give a picture its style, so that it is a file of its own."""
    head, _, rest = picture.partition(">\n")
    return f"{head}>\n<style>\n{STYLE}</style>\n{rest}"
