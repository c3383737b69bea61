"""The stages of a run and what flows between them, as a picture: rows from top to bottom, which a telephone is too.

An edge that passes rows takes a lane of its own through each of them, so that it never crosses a box (Sugiyama's way
of drawing, with lanes for his dummy vertices and one pass of barycentres).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from llmpipe.report.collect import Stage
from llmpipe.report.figures import svg

BOX, LANE, GAP = 128, 18, 10
ROW, HIGH, MARGIN = 76, 42, 12
MOST_CHARACTERS = 17


@dataclass(eq=False)
class _Spot:
    """A box, or the lane of an edge, in one row."""

    stage: Stage | None
    above: list[_Spot] = field(default_factory=list)
    x: float = 0.0
    """Of its middle."""

    @property
    def width(self) -> int:
        return BOX if self.stage else LANE


def draw(stages: Sequence[Stage]) -> str:
    """Draw the stages of a run, each below all that it reads."""
    rows = _rows(stages)
    width = max(sum(spot.width + GAP for spot in row) - GAP for row in rows) + 2 * MARGIN
    for row in rows:
        row.sort(key=lambda spot: sum(one.x for one in spot.above) / len(spot.above) if spot.above else 0)
        x = (width - sum(spot.width + GAP for spot in row) + GAP) / 2
        for spot in row:
            spot.x = x + spot.width / 2
            x += spot.width + GAP
    edges, boxes = [], []
    for number, row in enumerate(rows):
        top = MARGIN + number * ROW
        for spot in row:
            edges += [_edge(one, spot, top) for one in spot.above]
            if spot.stage:
                boxes += _box(spot.stage, spot.x, top)
            else:
                edges.append(f'<path class="edge" d="M{spot.x:.1f} {top}V{top + HIGH}"/>')
    said = "; ".join(f"{' and '.join(stage.above)} to {stage.name}" for stage in stages if stage.above)
    return svg([*edges, *boxes], width, 2 * MARGIN + (len(rows) - 1) * ROW + HIGH, said=f"stages: {said}")


def _rows(stages: Sequence[Stage]) -> list[list[_Spot]]:
    """Put every stage one row below the lowest that it reads, with lanes where an edge passes rows."""
    depth: dict[str, int] = {}
    for stage in stages:  # a recipe lists what is read before what reads it
        depth[stage.name] = max((depth[name] + 1 for name in stage.above if name in depth), default=0)
    rows: list[list[_Spot]] = [[] for _ in range(max(depth.values()) + 1)]
    boxes = {stage.name: _Spot(stage) for stage in stages}
    for stage in stages:
        rows[depth[stage.name]].append(boxes[stage.name])
        for name in stage.above:
            if name not in boxes:
                continue
            last = boxes[name]
            for number in range(depth[name] + 1, depth[stage.name]):
                lane = _Spot(None, [last])
                rows[number].append(lane)
                last = lane
            boxes[stage.name].above.append(last)
    return rows


def _edge(above: _Spot, below: _Spot, top: float) -> str:
    """Draw the part of an edge between two rows, with a head where it reaches a box."""
    start, end = top - ROW + HIGH, top - (6 if below.stage else 0)
    middle = (start + end) / 2
    curve = f"M{above.x:.1f} {start}C{above.x:.1f} {middle} {below.x:.1f} {middle} {below.x:.1f} {end}"
    head = f'<path class="head" d="M{below.x - 4:.1f} {end}h8l-4 6z"/>' if below.stage else ""
    return f'<path class="edge" d="{curve}"/>{head}'


def _box(stage: Stage, x: float, top: float) -> list[str]:
    look = "node" if stage.manifest else "node open"
    below = stage.kind if stage.manifest else f"{stage.kind}, {stage.state}"
    return [
        f'<rect class="{look}" x="{x - BOX / 2:.1f}" y="{top}" width="{BOX}" height="{HIGH}" rx="6"/>',
        f'<text class="title" x="{x:.1f}" y="{top + 18}" text-anchor="middle">{escape(_short(stage.name))}</text>',
        f'<text x="{x:.1f}" y="{top + 33}" text-anchor="middle">{escape(below)}</text>',
    ]


def _short(name: str) -> str:
    return name if len(name) <= MOST_CHARACTERS else f"{name[: MOST_CHARACTERS - 1]}…"
