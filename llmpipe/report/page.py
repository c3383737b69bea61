"""The page: what was collected, laid out in sections; the template only arranges them.

Everything in it that a user, a model or a file wrote is escaped by jinja2; the pictures escape their own texts.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llmpipe import bounds, cards, console, summary
from llmpipe.artifact import StepRecord
from llmpipe.changes import brief, flat, without
from llmpipe.report import figures, outcome
from llmpipe.report.collect import Run, Stage

PICTURE_BYTES = 200_000
"""Largest picture of a stage's own that goes into the page."""


@dataclass(frozen=True)
class Table:
    """A table: `numbers` are the columns that are right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class Answers:
    """A prompt, and what was answered: by whom, the reward where there is one, the text."""

    prompt: str
    answers: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Curation:
    """What a curate stage did: its steps, mentions of groups with their picture, texts before and after."""

    steps: Table
    groups: Table | None
    picture: str | None
    """As a data: address: an image runs no script and fetches nothing."""
    examples: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Tokens:
    """How a tokenizer cuts its text, beside others, and its most frequent pieces with their picture."""

    cut: Table
    pieces: Table
    picture: str | None
    unused: str


def render(run: Run, lineage: str, curves: dict[str, dict[str, tuple[figures.Chart, str]]]) -> str:
    """Write the page; `curves` are the charts by stage and by the name of their file, each with its picture."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja")
    return page.render(
        run=run,
        style=(folder / "page.css").read_text(encoding="utf-8") + figures.STYLE,
        facts=facts(run),
        changed=changed(run),
        scores=[found for stage in run.stages if stage.scores for found in scores(stage)],
        answers=[(stage.name, list(answers(stage))) for stage in run.stages],
        lineage=lineage,
        stages=stages(run),
        estimated=Table(outcome.HEADER, outcome.rows(run), numbers=range(1, 7)),
        curves={
            name: [(picture, points(chart)) for chart, picture in drawn.values()]
            for name, drawn in curves.items()
            if drawn
        },
        data=Table(cards.DATA_HEADER, cards.data_rows(run.folder, begun(run))),
        curation=[(stage.name, curation(stage)) for stage in run.stages if stage.curation],
        tokens=[(stage.name, tokens(stage)) for stage in run.stages if stage.tokens],
        gates=gates(run),
        details=[(stage, metrics(stage), settings(stage.step)) for stage in run.stages if stage.step],
        versions=versions(run),
    )


def begun(run: Run) -> list[StepRecord]:
    """Return what was asked of the stages that were begun."""
    return [stage.step for stage in run.stages if stage.step]


def facts(run: Run) -> list[tuple[str, str]]:
    """Say in a few words what the run was."""
    done = list(run.done.values())
    found = [("stages done", f"{len(done)} of {len(run.stages)}"), ("seed", str(begun(run)[0].seed))]
    if done:
        devices = dict.fromkeys(manifest.device for manifest in done)
        found += [
            ("time in stages", console.seconds(sum(manifest.seconds for manifest in done))),
            ("begun", min(manifest.started for manifest in done).replace("T", " ").replace("+00:00", " UTC")),
            ("device", ", ".join(devices)),
            ("llmpipe", ", ".join(dict.fromkeys(manifest.versions.get("llmpipe", "?") for manifest in done))),
        ]
    return found


def changed(run: Run) -> Table:
    """Show what each stage changed, as the end of the run did."""
    done = run.done
    rows = [row for name, manifest in done.items() for row in summary.changes(name, manifest, done.values())]
    return Table(("stage", "measure", "before", "after", ""), rows, numbers=(2, 3))


def scores(stage: Stage) -> Iterator[tuple[str, Table]]:
    """Yield the tables of an eval stage: the models side by side, from one to the next, and in contests."""
    models = stage.scores["models"]
    yield stage.name, Table(("measure", *models), summary.score_rows(models), numbers=range(1, len(models) + 1))
    if moved := summary.change_rows(stage.scores, only_clear=False):
        yield f"{stage.name}: from model to model", Table(summary.CHANGES, moved, numbers=range(2, 6))
    if won := summary.win_rows(stage.scores):
        yield f"{stage.name}: who answers better", Table(summary.WINS, won, numbers=range(1, 7))


def answers(stage: Stage) -> Iterator[Answers]:
    """Yield what the models of an eval stage answered, or a stage's model before and after it."""
    if stage.scores:
        for prompt, told in summary.answers(stage.scores):
            yield Answers(prompt, [(model, "", text) for model, text in told])
    for sample in stage.samples:
        before_after = [
            (f"{when} {stage.name}", "" if sample[key] is None else f"reward {sample[key]:.2f}", sample[when])
            for when, key in (("before", "reward_before"), ("after", "reward_after"))
        ]
        yield Answers(sample["prompt"], [(name, reward, " ".join(text.split())) for name, reward, text in before_after])


def stages(run: Run) -> Table:
    """List the stages: the table of the lineage picture."""
    rows = [
        (
            stage.name,
            stage.kind,
            ", ".join(stage.above),
            stage.state,
            console.seconds(stage.manifest.seconds) if stage.manifest else "",
        )
        for stage in run.stages
    ]
    return Table(("stage", "kind", "reads", "state", "took"), rows, numbers=(4,))


def points(chart: figures.Chart) -> Table:
    """Show the points of a chart."""
    rows = [
        [f"{row[0]:.0f}", *("" if math.isnan(value) else f"{value:.4g}" for value in row[1:])] for row in chart.rows
    ]
    names = [series.name or chart.title for series in chart.series]
    return Table(("step", *names), rows, numbers=range(len(names) + 1))


def gates(run: Run) -> Table:
    """List the checks of each stage's output, with the reason for each, and the bounds that the recipe sets."""
    rows = [
        (name, gate.name, _state(gate.passed), gate.measured or "", gate.why)
        for name, manifest in run.done.items()
        for gate in manifest.gates
    ]
    because = "the recipe sets this bound"
    rows += [
        (stage.name, f"fail_if {check.metric} {check.bound}", _state(not check.is_crossed), str(check), because)
        for stage in run.stages
        if stage.manifest
        for check in bounds.checks(stage.fail_if, stage.manifest.metrics)
    ]
    return Table(("stage", "gate", "", "measured", "why it is there"), rows)


def _state(passed: bool) -> str:
    return "passed" if passed else "failed"


def metrics(stage: Stage) -> Table:
    """List all that a stage measured."""
    found = stage.manifest.metrics if stage.manifest else {}
    return Table(
        ("metric", "value"), [(key, console.number(value, key=key)) for key, value in found.items()], numbers=(1,)
    )


def settings(step: StepRecord) -> Table:
    """List every setting of a stage with its value, defaults too; its inputs stand under data and in the lineage."""
    found = flat(without(step.settings, {entry.field for entry in step.inputs}, cosmetic=True))
    return Table(("setting", "value"), [(key, brief(value)) for key, value in found.items() if value is not None])


def versions(run: Run) -> Table:
    """List the versions of the packages; where stages were made by different ones, by which."""
    found: dict[str, dict[str, list[str]]] = {}
    for stage, manifest in run.done.items():
        for package, version in manifest.versions.items():
            found.setdefault(package, {}).setdefault(version, []).append(stage)
    rows = [
        (package, next(iter(made)) if len(made) == 1 else "; ".join(f"{v} ({', '.join(by)})" for v, by in made.items()))
        for package, made in found.items()
    ]
    return Table(("package", "version"), rows)


def curation(stage: Stage) -> Curation:
    """Show what the steps of a curate stage did, and how often groups of people are mentioned before and after."""
    steps = stage.curation.get("steps", [])
    counted = ("documents_in", "dropped", "changed", "added")
    rows = [
        (
            step["step"],
            *(f"{step.get(key, 0):,}" for key in counted),
            ", ".join(f"{name} {number:,}" for name, number in step.get("found", {}).items()),
        )
        for step in steps
    ]
    groups = [
        (category, name, *(f"{sides[side]['share']:.1%} ({sides[side]['mentions']:,})" for side in ("before", "after")))
        for category, names in stage.curation.get("bias", {}).get("groups", {}).items()
        for name, sides in names.items()
    ]
    examples = [
        (f"{step['step']}: {name}", str(one.get("before", one.get("dropped", ""))), str(one.get("after", "")))
        for step in steps
        for name, found in step.get("examples", {}).items()
        for one in found[:1]
    ]
    header = ("category", "group", "mentions before", "after")
    return Curation(
        steps=Table(("step", "texts in", "dropped", "changed", "added", "found"), rows, numbers=range(1, 5)),
        groups=Table(header, groups, numbers=(2, 3)) if groups else None,
        picture=_image(stage.picture),
        examples=examples,
    )


def tokens(stage: Stage) -> Tokens:
    """Show bytes per token by language or file, of the stage's tokenizer and of those it was compared with."""
    found = stage.tokens
    known = {stage.name: found, **found["compared"]}
    rows = [
        (Path(group).name, *(f"{one['groups'][group]['bytes_per_token']:.2f}" for one in known.values()))
        for group in found["groups"]
    ]
    rows += [("all of it", *(f"{one['bytes_per_token']:.2f}" for one in known.values()))]
    rows += [("tokens in the vocabulary", *(f"{one['vocab_size']:,}" for one in known.values()))]
    rows += [("unknown", *(f"{one['unknown_share']:.1%}" for one in known.values()))]
    pieces = [(one["piece"], f"{one['count']:,}", f"{one['count'] / found['tokens']:.2%}") for one in found["pieces"]]
    return Tokens(
        cut=Table(("bytes per token", *known), rows, numbers=range(1, len(known) + 1)),
        pieces=Table(("piece", "count", "share"), pieces, numbers=(1, 2)),
        picture=_image(stage.picture),
        unused=f"{found['unused_tokens']:,} of {found['vocab_size']:,} tokens ({found['unused_share']:.0%})",
    )


def _image(path: Path | None) -> str | None:
    if path is None or path.stat().st_size > PICTURE_BYTES:
        return None
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"


def name_of(chart: figures.Chart) -> str:
    """Return the part of a file's name that a chart has: learning-rate, kl."""
    return chart.title.partition(",")[0].lower().replace(" ", "-")
