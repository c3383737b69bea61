"""Flags that several commands share, what they ask for together, and how a command fails."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmpipe.errors import ExitCode, LlmpipeError, Problem, UsageError

if TYPE_CHECKING:
    from llmpipe.pipeline import Request

RunDir = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Run directory; runs/NAME when left out.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop; curate tries its steps.")]
InProcess = Annotated[bool, typer.Option("--in-process", help="Run stages in this process, for a debugger.")]
Processes = Annotated[
    int | None,
    typer.Option("--processes", min=1, metavar="N", help="Processes for a stage (torchrun); one per GPU by default."),
]
Explain = Annotated[bool, typer.Option("--explain", help="Say in a sentence what each stage is for.")]
Verify = Annotated[bool, typer.Option("--verify", help="Hash all input files again instead of trusting the cache.")]
Force = Annotated[
    list[str] | None, typer.Option("--force", metavar="STAGE", help="Run this stage even if nothing changed.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Let reward functions run that the recipe names; read them first.")
]
Junit = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write gates and fail_if bounds as JUnit XML, too.")
]
Data = Annotated[list[str] | None, typer.Option("--data", help="File, glob, stage, hub:ID or storyworld.")]
Model = Annotated[
    list[str] | None, typer.Option("--model", help="Stage, folder, FILE.gguf, hub:ID; for pretrain a size too.")
]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Show the errors that users can act on without a traceback, and exit with their code."""

    @functools.wraps(command)
    def shown(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except LlmpipeError as failure:
            from llmpipe import console

            if kwargs.get("json_output"):
                console.as_json(console.error_json(failure))
            console.error(failure)
            raise typer.Exit(int(failure.code)) from None
        except KeyboardInterrupt:
            raise typer.Exit(int(ExitCode.INTERRUPTED)) from None

    return shown


def request_of(
    set_: list[str] | None,
    *,
    dry_run: bool,
    in_process: bool,
    processes: int | None,
    explain: bool,
    json_output: bool,
    allow_code: bool = False,
    **more: Any,
) -> Request:
    """Gather the flags that running commands share."""
    from llmpipe.pipeline import Request
    from llmpipe.runner import Options
    from llmpipe.summary import gpu_count

    processes = processes or max(1, gpu_count())
    options = Options(in_process=in_process, processes=processes, explain=explain, allow_code=allow_code)
    if in_process and options.processes > 1:
        raise UsageError(Problem("runs one process; leave out --processes", where="--in-process"))
    return Request(overrides=set_ or [], options=options, dry_run=dry_run, json=json_output, **more)
