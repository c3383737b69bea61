"""The command line: thin commands over importable functions. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmpipe import memory_commands, rank_command, run_commands, stage_commands, talk_commands
from llmpipe.flags import (
    AllowCode,
    DryRun,
    Explain,
    Force,
    InProcess,
    Json,
    Junit,
    Processes,
    RunDir,
    Set,
    Verify,
    guarded,
    request_of,
)

app = typer.Typer(
    name="llmpipe",
    help="Raw text to an aligned chat model you can talk to: one recipe, one command.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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

    request = request_of(
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
    allow_code: AllowCode = False,
    junit: Junit = None,
    json_output: Json = False,
) -> None:
    """Run a recipe: what is done is skipped, what was interrupted goes on, what changed runs again."""
    from llmpipe.pipeline import run_recipe
    from llmpipe.plan import Selection

    selection = Selection(only=tuple(only or ()), first=from_, last=until, force=tuple(force or ()))
    request = request_of(
        set_,
        dry_run=dry_run,
        in_process=in_process,
        processes=processes,
        explain=explain,
        json_output=json_output,
        allow_code=allow_code,
        verify=verify,
        selection=selection,
        junit=junit,
    )
    run_recipe(recipe, run, request)


@app.command(rich_help_panel="Pipeline")
@guarded
def plan(
    recipe: Annotated[str, typer.Argument(help="Recipe file, run directory, or name of a shipped recipe.")],
    run: RunDir = None,
    set_: Set = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Run a few steps of each stage, to tell time and memory.")
    ] = False,
    prefetch: Annotated[bool, typer.Option("--prefetch", help="Fetch models and data from the hub now.")] = False,
    verify: Verify = False,
    allow_code: AllowCode = False,
    json_output: Json = False,
) -> None:
    """Check a recipe and show what a run would do, why, and what it will take."""
    from llmpipe import recipe as recipes
    from llmpipe.pipeline import Request, run_dir_of, show_plan
    from llmpipe.runner import Options

    request = Request(overrides=set_ or [], verify=verify, json=json_output)
    found = recipes.load(recipes.find(recipe), overrides=request.overrides)
    run_dir = run_dir_of(found, run)
    if prefetch:
        from llmpipe.prefetch import fetch

        fetch(found, run_dir)
    if calibrate:
        from llmpipe.calibrate import calibrate as measure

        measure(found, run_dir, Options(allow_code=allow_code))
    show_plan(found, run_dir, request)


@app.command(rich_help_panel="Pipeline")
@guarded
def status(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    why: Annotated[bool, typer.Option("--why", help="Say of each stage why it is done, or is not.")] = False,
    json_output: Json = False,
) -> None:
    """Show how far a run is."""
    from llmpipe.pipeline import show_status

    show_status(run, why=why, as_json=json_output)


run_commands.add_to(app)
stage_commands.add_to(app)
talk_commands.add_to(app)


@app.command(rich_help_panel="Talk")
@guarded
def generate(
    model: Annotated[str, typer.Argument(help="RUN (its last model), RUN:STAGE, a folder, FILE.gguf or hub:ID.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; the lines of stdin when left out.")] = None,
    file: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="File with prompts, such as JSON lines.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Answers to each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Keep the likeliest tokens of this share.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answers.")] = 42,
    plain: Annotated[bool, typer.Option("--plain", help="Continue the text; no chat template.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON line for each prompt.")] = False,
) -> None:
    """Have a model answer prompts."""
    from llmpipe.generate import generate as answer

    how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    answer(model, prompts or [], file, how, count=count, plain=plain, as_json=json_output)


rank_command.add_to(app)
memory_commands.add_to(app)


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


@app.command(rich_help_panel="Look")
@guarded
def inspect(
    model: Annotated[str, typer.Argument(help="RUN:STAGE, a folder, FILE.gguf or hub:OWNER/NAME.")],
    text: Annotated[str, typer.Argument(help="Text to look at.")],
    target: Annotated[
        str | None, typer.Option("--target", metavar="TEXT", help="What an encoder-decoder's decoder is to read.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with heat maps.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Show what a model sees in a text: tokens, probabilities, and attention by layer and head."""
    from llmpipe.inspection import inspect as look

    look(model, text, target=target, html=html, as_json=json_output)


@app.command(rich_help_panel="Look")
@guarded
def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    stage: Annotated[str, typer.Argument(help="Finished stage whose model to take out.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write.")],
    gguf: Annotated[
        Literal["F32", "F16", "Q8_0"] | None,
        typer.Option("--gguf", case_sensitive=False, help="Also write a GGUF file with these numbers."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a model that is there; other files stay.")] = False,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="OWNER/NAME", help="Then send it to the Hugging Face hub; asks first."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository of the hub public.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Send without asking.")] = False,
    json_output: Json = False,
) -> None:
    """Write a stage's model as a plain Hugging Face folder with a model card; an adapter is merged."""
    from llmpipe import console
    from llmpipe import push as hub
    from llmpipe.export import export as write

    to_hub = hub.destination(push, public=public, yes=yes)
    done = write(run, stage, to, force=force, gguf=gguf)
    if to_hub:
        done.push = hub.push(done, to_hub)
    if json_output:
        console.as_json(asdict(done))


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
