"""The commands of the stages: each takes a recipe, or flags on a run directory whose recipe then holds the stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperOption

from llmpipe.errors import UsageError
from llmpipe.flags import (
    AllowCode,
    Data,
    DryRun,
    Explain,
    InProcess,
    Json,
    Junit,
    Model,
    Processes,
    RunDir,
    Set,
    guarded,
    request_of,
)
from llmpipe.stages import STAGES

INPUT_OF = {name: name for name in ("data", "model", "tokenizer", "reward")} | {"allow_code": "reward"}
"""The flags that a stage refuses where it has no such input."""

Rewards = Annotated[
    list[str] | None, typer.Option("--reward", help="Stage, folder, hub:ID or FILE.py:NAME; several add up.")
]
Suite = Annotated[
    Literal["moderation"] | None, typer.Option("--suite", help="Measure a moderation policy; no run is needed.")
]
Policy = Annotated[
    str | None, typer.Option("--policy", metavar="POLICY", help="With --suite moderation: a policy file, or default.")
]
Harmful = Annotated[
    list[str] | None, typer.Option("--harmful", metavar="FILE", help="… texts that it is to find, with a category.")
]
Benign = Annotated[list[str] | None, typer.Option("--benign", metavar="FILE", help="… prompts that it is to let pass.")]
OF_EVAL = ("suite", "policy", "harmful", "benign")
"""The flags of `eval` alone."""
Forced = Annotated[bool, typer.Option("--force", help="Run even if nothing changed.")]


class StageCommand(TyperCommand):
    """The command of a stage; its help shows the flags that the stage takes."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Hide the flags that this stage refuses; its settings are not imported before somebody asks for help."""
        for parameter in self.params:
            if isinstance(parameter, TyperOption) and parameter.name in INPUT_OF:
                parameter.hidden = not _takes(str(self.name), INPUT_OF[parameter.name])
            elif isinstance(parameter, TyperOption) and parameter.name in OF_EVAL:
                parameter.hidden = self.name != "eval"
        super().format_help(ctx, formatter)


def add_to(app: typer.Typer) -> None:
    """Add a command for every stage, and `rlhf`, which runs two of them."""
    for kind in STAGES:
        app.command(kind, rich_help_panel="Stages", cls=StageCommand)(guarded(_stage_command(kind)))
        if kind == "rlhf-ppo":
            app.command("rlhf", rich_help_panel="Stages")(guarded(rlhf))


def _stage_command(kind: str) -> Callable[..., None]:
    """Make the command of a stage; it takes a recipe, or flags on a run directory."""

    def stage(
        recipe: Annotated[str | None, typer.Argument(help="Recipe whose stages of this kind to run.")] = None,
        run: RunDir = None,
        name: Annotated[str | None, typer.Option("--name", help="Name of the stage; its kind when left out.")] = None,
        data: Data = None,
        model: Model = None,
        tokenizer: Annotated[
            str | None, typer.Option("--tokenizer", help="Stage, folder, FILE.gguf or hub:ID.")
        ] = None,
        reward: Rewards = None,
        set_: Set = None,
        force: Forced = False,
        explain: Explain = False,
        dry_run: DryRun = False,
        in_process: InProcess = False,
        processes: Processes = None,
        allow_code: AllowCode = False,
        junit: Junit = None,
        suite: Suite = None,
        policy: Policy = None,
        harmful: Harmful = None,
        benign: Benign = None,
        json_output: Json = False,
    ) -> None:
        moderation = {"policy": [policy] if policy else [], "harmful": harmful or [], "benign": benign or []}
        if suite or any(moderation.values()):
            _measure_moderation(kind, suite, moderation, run=run or recipe, as_json=json_output)
            return
        from llmpipe.pipeline import run_flags, run_kinds

        request = request_of(
            set_,
            dry_run=dry_run,
            in_process=in_process,
            processes=processes,
            explain=explain,
            allow_code=allow_code,
            json_output=json_output,
            junit=junit,
        )
        one = [tokenizer] if tokenizer else []
        flags = {"data": data or [], "model": model or [], "tokenizer": one, "reward": reward or []}
        _one_way(kind, STAGES[kind].example, recipe, run, flags)
        if allow_code and not _takes(kind, "reward"):
            raise UsageError(f"a {kind} stage takes no --allow-code", hint="it runs none of your functions")
        if recipe is not None:
            run_kinds([kind], recipe, run, request, only=name, force=force)
        elif run is not None:
            run_flags(kind, run, name or kind, flags, request, force=force)

    stage.__doc__ = f"{STAGES[kind].help}."
    return stage


def _measure_moderation(
    kind: str, suite: str | None, flags: dict[str, list[str]], *, run: Path | str | None, as_json: bool
) -> None:
    """Measure a policy in place of models."""
    hint = "llmpipe eval --suite moderation --policy default --harmful FILE --benign FILE"
    if suite is None:
        used = next(flag for flag, values in flags.items() if values)
        raise UsageError(f"--{used} goes with --suite moderation", hint=hint)
    if kind != "eval" or run is not None:
        raise UsageError("--suite moderation measures a policy, without recipe or run", hint=hint)
    from llmpipe.moderation.measures import evaluate

    policy = flags["policy"][0] if flags["policy"] else "default"
    evaluate(policy, flags["harmful"], flags["benign"], as_json=as_json)


def rlhf(
    recipe: Annotated[str | None, typer.Argument(help="Recipe whose reward and rlhf-ppo stages to run.")] = None,
    run: RunDir = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Where both begin: stage, folder, FILE.gguf or hub:ID.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Preferences: file, glob, stage, hub:ID or storyworld.")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompts", help="Prompts; those of the preferences when left out.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override reward.KEY or ppo.KEY.")
    ] = None,
    force: Forced = False,
    explain: Explain = False,
    dry_run: DryRun = False,
    in_process: InProcess = False,
    processes: Processes = None,
    allow_code: AllowCode = False,
    json_output: Json = False,
) -> None:
    """Learn to score answers from preferences, then to give answers that score high: reward, then rlhf-ppo."""
    from llmpipe.pipeline import RLHF, run_kinds, run_rlhf

    request = request_of(
        set_,
        dry_run=dry_run,
        in_process=in_process,
        processes=processes,
        explain=explain,
        allow_code=allow_code,
        json_output=json_output,
    )
    flags = {"model": model or [], "data": data or [], "prompts": prompts or []}
    _one_way("rlhf", "--model sft --data pairs.jsonl", recipe, run, flags)
    if recipe is not None:
        run_kinds(list(RLHF.values()), recipe, run, request, force=force)
    elif run is not None:
        run_rlhf(run, flags, request, force=force)


def _takes(kind: str, flag: str) -> bool:
    """Tell whether a stage has the input that a flag stands for."""
    from llmpipe import stages
    from llmpipe.pipeline import keys_of

    accepted = stages.load(kind).Settings.model_fields
    return any(key in accepted for key in keys_of(flag))


def _one_way(command: str, example: str, recipe: str | None, run: Path | None, flags: dict[str, list[str]]) -> None:
    """Refuse a command that names neither a recipe nor a run directory, or mixes the two ways."""
    if recipe is None and run is None:
        raise UsageError(
            f"llmpipe {command} needs a recipe, or a run directory and flags",
            hint=f"llmpipe {command} --run runs/mine {example}",
        )
    used = [flag for flag, values in flags.items() if values]
    if recipe is not None and used:
        key = used[0] if command in STAGES else f"STAGE.{'data' if used[0] == 'prompts' else used[0]}"
        raise UsageError(
            f"--{used[0]} goes with --run; in a recipe, inputs are written down",
            hint=f"llmpipe {command} {recipe} --set {key}=...",
        )
