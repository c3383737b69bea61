"""The page about the commands, from what Typer was told about them."""

from __future__ import annotations

import inspect
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markup import MADE, note, sentence, table
from typer.models import ArgumentInfo, CommandInfo, OptionInfo

from llmpipe.cli import app
from llmpipe.stages import STAGES

PANELS = {
    "Pipeline": "Recipes and runs",
    "Stages": "Stages",
    "Look": "Looking, and taking models out",
}
"""The titles of the panels of `llmpipe --help`; others keep their own."""
MANY = 3
"""Commands that have a flag in common before it is told once for all of them."""


def commands_page() -> str:
    """Write the page."""
    parts = [
        MADE,
        "# Commands",
        "`llmpipe COMMAND --help` says the same in a terminal. Data goes to stdout and everything else to stderr; "
        "every command takes `--json`. Exit codes are in [docs/ci.md](ci.md).",
    ]
    panels: dict[str, list[CommandInfo]] = {}
    shared = _shared()
    parts += ["## Flags that many commands take", table(("flag", "meaning"), sorted(shared))]
    for command in commands():
        panels.setdefault(str(command.rich_help_panel or "More"), []).append(command)
    for panel, shown in panels.items():
        parts.append(f"## {PANELS.get(panel, panel)}")
        of_stages = [command for command in shown if name_of(command) in STAGES]
        if of_stages:
            parts += [*_stages(), *_parameters(of_stages[0], shared)]
        for command in shown:
            if command not in of_stages:
                parts += [f"### {name_of(command)}", _told(command), *_parameters(command, shared)]
    return "\n\n".join(parts) + "\n"


def commands() -> list[CommandInfo]:
    """Return all commands; those of a group have its name before theirs, and its panel."""
    found = list(app.registered_commands)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            named = CommandInfo(f"{group.name} {name_of(command)}", callback=command.callback, help=command.help)
            named.rich_help_panel = str(group.rich_help_panel)
            found.append(named)
    return found


def name_of(command: CommandInfo) -> str:
    """Return what is typed for a command."""
    assert command.callback is not None
    return command.name or command.callback.__name__.replace("_", "-")


def _told(command: CommandInfo) -> str:
    return " ".join((command.help or inspect.getdoc(command.callback) or "").split())


def _stages() -> Iterator[str]:
    """Say what the commands of all stages have in common."""
    yield (
        "Every stage is a command, in two ways. With a recipe it runs that recipe's stages of its kind. With a run "
        "directory and flags it writes the stage into `RUN/recipe.yaml` and runs it; `llmpipe run RUN` then repeats it."
    )
    rows = [(f"[{kind}](stages/{kind}.md)", sentence(told.help)) for kind, told in STAGES.items()]
    yield table(("command", "what it does"), rows)
    yield "They share their flags; a stage refuses those of the inputs that it does not read."


def _shared() -> set[tuple[str, str]]:
    """Find the flags that several commands have in common, to tell them once; those of all stages count as one's."""
    named = {"a stage" if (name := name_of(command)) in STAGES else name: command for command in commands()}
    counted = Counter(row for command in named.values() for row in _rows(command) if row[0].startswith("`-"))
    return {row for row, number in counted.items() if number >= MANY}


def _parameters(command: CommandInfo, shared: set[tuple[str, str]]) -> Iterator[str]:
    """List arguments and options of a command; those that many have are only named."""
    rows = list(_rows(command))
    if own := [row for row in rows if row not in shared]:
        yield table(("argument", "meaning"), own)
    names = [flag.strip("`").partition(" ")[0] for flag, meaning in rows if (flag, meaning) in shared]
    if names:
        yield f"{'Also' if own else 'Takes'} {', '.join(f'`{name}`' for name in names)}."


def _rows(command: CommandInfo) -> Iterator[tuple[str, str]]:
    assert command.callback is not None
    hints = typing.get_type_hints(command.callback, include_extras=True)
    for name, parameter in inspect.signature(command.callback).parameters.items():
        kind, info = typing.get_args(hints[name])
        needed = parameter.default is inspect.Parameter.empty
        default = (
            "" if parameter.default in (None, False, inspect.Parameter.empty) else f" (default: {parameter.default})"
        )
        yield f"`{_written(name, kind, info, needed=needed)}`", f"{note(str(info.help or ''))}{default}"


def _written(name: str, kind: Any, info: ArgumentInfo | OptionInfo, *, needed: bool) -> str:
    """Write a parameter as it is typed: RECIPE, [WORD], --set KEY=VALUE …"""
    if isinstance(info, ArgumentInfo):
        shown = name.strip("_").upper()
        return shown if needed else f"[{shown}]"
    named = [] if info.default is ... else [str(info.default)]  # typer takes the first one for a default until it runs
    flags = [*named, *(info.param_decls or ())] or [f"--{name.strip('_').replace('_', '-')}"]
    value = info.metavar or _value(kind)
    return f"{', '.join(flags)} {value}".strip() + (" …" if "list[" in str(kind) else "")


def _value(kind: Any) -> str:
    """Name what a flag takes."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return "\\|".join(map(str, arguments))
    named = [_value(argument) for argument in arguments if argument is not type(None)]
    return named[0] if named else {bool: "", str: "TEXT", Path: "PATH"}.get(kind, "N")
