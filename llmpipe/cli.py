"""The command line: thin commands over importable functions. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmpipe.errors import ExitCode, LlmpipeError, Problem, UsageError
from llmpipe.stages import STAGES

if TYPE_CHECKING:
    from llmpipe.pipeline import Request

app = typer.Typer(
    name="llmpipe",
    help="Raw text to an aligned chat model you can talk to: one recipe, one command.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunDir = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Run directory; runs/NAME when left out.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")]
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
Data = Annotated[list[str] | None, typer.Option("--data", help="File, glob, stage, hub:ID or storyworld.")]
Model = Annotated[list[str] | None, typer.Option("--model", help="Stage, folder, hub:ID; for pretrain a size too.")]


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


def _request(
    set_: list[str] | None,
    *,
    dry_run: bool,
    in_process: bool,
    processes: int | None,
    explain: bool,
    json_output: bool,
    **more: Any,
) -> Request:
    """Gather the flags that running commands share."""
    from llmpipe.pipeline import Request
    from llmpipe.runner import Options
    from llmpipe.summary import gpu_count

    options = Options(in_process=in_process, processes=processes or max(1, gpu_count()), explain=explain)
    if in_process and options.processes > 1:
        raise UsageError(Problem("runs one process; leave out --processes", where="--in-process"))
    return Request(overrides=set_ or [], options=options, dry_run=dry_run, json=json_output, **more)


@app.command(rich_help_panel="Pipeline")
@guarded
def quickstart(
    run: RunDir = None,
    set_: Set = None,
    explain: Explain = False,
    dry_run: DryRun = False,
    in_process: InProcess = False,
    json_output: Json = False,
) -> None:
    """Train a small story-teller from nothing, on this machine, in a few minutes."""
    from llmpipe.pipeline import run_recipe

    request = _request(
        set_, dry_run=dry_run, in_process=in_process, processes=1, explain=explain, json_output=json_output
    )
    run_recipe("quickstart", run, request)


@app.command(rich_help_panel="Pipeline")
@guarded
def init(
    path: Annotated[Path, typer.Argument(help="Recipe file to write.")] = Path("recipe.yaml"),
    like: Annotated[str, typer.Option("--like", metavar="RECIPE", help="Shipped recipe to start from.")] = "quickstart",
    json_output: Json = False,
) -> None:
    """Write a recipe to start from."""
    from llmpipe.vocabulary import write_recipe

    write_recipe(path, like, as_json=json_output)


@app.command(rich_help_panel="Pipeline")
@guarded
def run(
    recipe: Annotated[str, typer.Argument(help="Recipe file, run directory, or name of a shipped recipe.")],
    run: RunDir = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="STAGE", help="Run just this stage.")] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Begin with this stage.")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="End with this stage.")] = None,
    force: Force = None,
    set_: Set = None,
    explain: Explain = False,
    dry_run: DryRun = False,
    verify: Verify = False,
    in_process: InProcess = False,
    processes: Processes = None,
    json_output: Json = False,
) -> None:
    """Run a recipe: what is done is skipped, what was interrupted goes on, what changed runs again."""
    from llmpipe.pipeline import run_recipe
    from llmpipe.plan import Selection

    selection = Selection(only=tuple(only or ()), first=from_, last=until, force=tuple(force or ()))
    request = _request(
        set_,
        dry_run=dry_run,
        in_process=in_process,
        processes=processes,
        explain=explain,
        json_output=json_output,
        verify=verify,
        selection=selection,
    )
    run_recipe(recipe, run, request)


@app.command(rich_help_panel="Pipeline")
@guarded
def plan(
    recipe: Annotated[str, typer.Argument(help="Recipe file, run directory, or name of a shipped recipe.")],
    run: RunDir = None,
    set_: Set = None,
    verify: Verify = False,
    json_output: Json = False,
) -> None:
    """Check a recipe and show what a run would do, and why."""
    from llmpipe import recipe as recipes
    from llmpipe.pipeline import Request, run_dir_of, show_plan

    request = Request(overrides=set_ or [], verify=verify, json=json_output)
    found = recipes.load(recipes.find(recipe), overrides=request.overrides)
    show_plan(found, run_dir_of(found, run), request)


@app.command(rich_help_panel="Pipeline")
@guarded
def status(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    json_output: Json = False,
) -> None:
    """Show how far a run is."""
    from llmpipe.pipeline import show_status

    show_status(run, as_json=json_output)


def _stage_command(kind: str) -> Callable[..., None]:
    """Make the command of a stage; it takes a recipe, or flags on a run directory."""

    def stage(
        recipe: Annotated[str | None, typer.Argument(help="Recipe whose stages of this kind to run.")] = None,
        run: RunDir = None,
        name: Annotated[str | None, typer.Option("--name", help="Name of the stage; its kind when left out.")] = None,
        data: Data = None,
        model: Model = None,
        tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Stage, folder or hub:ID.")] = None,
        set_: Set = None,
        force: Annotated[bool, typer.Option("--force", help="Run even if nothing changed.")] = False,
        explain: Explain = False,
        dry_run: DryRun = False,
        in_process: InProcess = False,
        processes: Processes = None,
        json_output: Json = False,
    ) -> None:
        from llmpipe.pipeline import run_flags, run_kind

        request = _request(
            set_, dry_run=dry_run, in_process=in_process, processes=processes, explain=explain, json_output=json_output
        )
        flags = {"data": data or [], "model": model or [], "tokenizer": [tokenizer] if tokenizer else []}
        _one_way(kind, recipe, run, used=[f"--{flag}" for flag, values in flags.items() if values])
        if recipe is not None:
            run_kind(kind, recipe, run, request, only=name, force=force)
        elif run is not None:
            run_flags(kind, run, name or kind, flags, request, force=force)

    stage.__doc__ = f"{STAGES[kind].help}."
    return stage


def _one_way(kind: str, recipe: str | None, run: Path | None, *, used: list[str]) -> None:
    """Refuse a stage command that names neither a recipe nor a run directory, or mixes the two ways."""
    if recipe is None and run is None:
        raise UsageError(
            f"llmpipe {kind} needs a recipe, or a run directory and flags",
            hint=f"llmpipe {kind} --run runs/mine {STAGES[kind].example}",
        )
    if recipe is not None and used:
        raise UsageError(
            f"{used[0]} goes with --run; in a recipe, inputs are written down",
            hint=f"llmpipe {kind} {recipe} --set {used[0][2:]}=...",
        )


for _kind in STAGES:
    app.command(_kind, rich_help_panel="Stages")(guarded(_stage_command(_kind)))


@app.command(rich_help_panel="Look")
@guarded
def options(
    stage: Annotated[str, typer.Argument(help="Kind of stage.")],
    word: Annotated[str | None, typer.Argument(help="Show only options with this in their name.")] = None,
    json_output: Json = False,
) -> None:
    """List what may be written in a stage of a recipe, with type, default and meaning."""
    from llmpipe.vocabulary import show_options

    show_options(stage, word, as_json=json_output)


@app.command(rich_help_panel="Look")
@guarded
def schema(json_output: Json = False) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from llmpipe.vocabulary import recipe_schema

    del json_output  # it is JSON either way
    from llmpipe import console

    console.as_json(recipe_schema())


@app.command(rich_help_panel="Look")
@guarded
def doctor(json_output: Json = False) -> None:
    """Check this machine: versions, device, number formats, memory, disk."""
    from llmpipe.doctor import examine

    examine(as_json=json_output)


def _version(wanted: bool) -> None:
    if wanted:
        from llmpipe import __version__

        sys.stdout.write(f"llmpipe {__version__}\n")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Raw text to an aligned chat model you can talk to: one recipe, one command."""
