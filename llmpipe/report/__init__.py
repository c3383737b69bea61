"""The report of a run: one page that needs nothing but itself, its pictures as files, and a model card."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llmpipe import cards, console, summary
from llmpipe.artifact import cannot_write, write_text
from llmpipe.errors import LlmpipeError
from llmpipe.report import figures, lineage
from llmpipe.report.collect import Run, collect


@dataclass(frozen=True)
class Written:
    """What a report consists of."""

    page: Path
    pictures: list[Path]
    card: Path | None
    """The model card; None where no stage that is done makes a model."""


def write(run_dir: Path) -> Written:
    """Write `report.html` into a run directory, and the pictures and the model card into a folder beside it.

    Raises:
        UsageError: the folder is no run directory, or nothing was begun in it.
        StageError: there is no room, or no right to write.
    """
    from llmpipe.report import page  # jinja2 takes its time

    run = collect(run_dir)
    beside = run_dir / folder_name(run)
    curves: dict[str, dict[str, tuple[figures.Chart, str]]] = {
        stage.name: {
            f"{stage.name}-{page.name_of(chart)}.svg": (chart, figures.draw(chart))
            for chart in figures.charts(stage.logged)
        }
        for stage in run.stages
    }
    drawn = {"lineage.svg": lineage.draw(run.stages)}
    drawn |= {name: picture for found in curves.values() for name, (_, picture) in found.items()}
    text = page.render(run, drawn["lineage.svg"], curves)
    try:
        beside.mkdir(exist_ok=True)
        for old in beside.glob("*.svg"):
            old.unlink()  # a stage that is gone leaves none behind
        for name, picture in drawn.items():
            (beside / name).write_text(figures.alone(picture), encoding="utf-8", newline="\n")
        card = _write_card(run, beside)
    except OSError as error:
        raise cannot_write(error, beside) from error
    write_text(run_dir / "report.html", text)
    return Written(run_dir / "report.html", [beside / name for name in drawn], card)


def folder_name(run: Run) -> str:
    """Name the folder beside the page; a stage may be called `report`, but has no dot in its name."""
    return "report.files" if any(stage.name == "report" for stage in run.stages) else "report"


def _write_card(run: Run, beside: Path) -> Path | None:
    models = [name for name, manifest in run.done.items() if manifest.kind in summary.MAKE_MODELS]
    card = beside / "model-card.md"
    if not models:
        card.unlink(missing_ok=True)
        return None
    card.write_text(cards.run_card(run.folder, models[-1]), encoding="utf-8", newline="\n")
    return card


def write_after(run_dir: Path) -> None:
    """Write the report at the end of a run, which its failure must not fail."""
    try:
        write(run_dir)
    except Exception as error:  # whatever it is: hours of training are done and safe
        said = str(error) if isinstance(error, LlmpipeError) else f"{type(error).__name__}: {error}"
        again = f"llmpipe report {run_dir} tries again"
        console.say(f"  the report could not be written: {' '.join(said.split())}; {again}", style="yellow")


def show(run_dir: Path, *, as_json: bool) -> None:
    """Write the report and say where it is."""
    written = write(run_dir)
    if as_json:
        console.as_json(
            {
                "report": str(written.page),
                "bytes": written.page.stat().st_size,
                "pictures": [str(path) for path in written.pictures],
                "card": str(written.card) if written.card else None,
            }
        )
        return
    console.data(os.fspath(written.page))
