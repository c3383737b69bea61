"""The commands that look at a run and tidy it up: report, diff, logs, clean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmpipe.flags import Json, guarded

Run = Annotated[Path, typer.Argument(help="Run directory.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (report, diff, logs, clean):
        app.command(rich_help_panel="Pipeline")(guarded(command))


def report(run: Run, json_output: Json = False) -> None:
    """Write RUN/report.html: what each stage did and changed, on one page that needs nothing else."""
    from llmpipe.report import show

    show(run, as_json=json_output)


def diff(
    before: Annotated[str, typer.Argument(help="Run directory, or the recipe of one.")],
    after: Annotated[str, typer.Argument(help="Another one.")],
    json_output: Json = False,
) -> None:
    """Show the settings in which two runs differ, and the metrics."""
    from llmpipe.diff import show

    show(_run_dir(before), _run_dir(after), as_json=json_output)


def _run_dir(named: str) -> Path:
    """Turn what names a run into its directory."""
    from llmpipe import recipe as recipes
    from llmpipe.pipeline import run_dir_of

    folder = Path(named)
    return folder if folder.is_dir() else run_dir_of(recipes.load(recipes.find(named)), None)


def logs(
    run: Run,
    stage: Annotated[str | None, typer.Argument(help="Just this stage.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stage, or the run, ends.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Show what the libraries printed: log.txt of the stage.")] = False,
    json_output: Json = False,
) -> None:
    """Show what the stages logged, line by line."""
    from llmpipe.logs import show

    show(run, stage, follow=follow, raw=raw, as_json=json_output)


def clean(
    run: Run,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and stop.")] = False,
    json_output: Json = False,
) -> None:
    """Delete replaced outputs and the checkpoints of finished stages; says how much that frees, and asks."""
    from llmpipe.clean import clean as tidy

    tidy(run, yes=yes, dry_run=dry_run, as_json=json_output)
