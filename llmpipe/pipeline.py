"""What the commands do: find a recipe and its run directory, plan, run, and show the result."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpipe import artifact, console, machine, recipe_edit, report, runner, stages, status, summary, yaml_tree
from llmpipe import recipe as recipes
from llmpipe.bounds import BoundError
from llmpipe.context import Context
from llmpipe.errors import LlmpipeError, Problem, UsageError
from llmpipe.plan import Selection, Step, make_plan
from llmpipe.recipe import Recipe
from llmpipe.recipe_edit import FromFlags

RLHF = {"reward": "reward", "ppo": "rlhf-ppo"}
"""The stages that `llmpipe rlhf` writes, with their kinds."""


@dataclass
class Request:
    """One command's wishes."""

    overrides: Sequence[str] = ()
    selection: Selection = field(default_factory=Selection)
    options: runner.Options = field(default_factory=runner.Options)
    dry_run: bool = False
    verify: bool = False
    json: bool = False
    junit: Path | None = None
    """Where to write the gates and bounds as JUnit XML."""


def run_dir_of(recipe: Recipe, run: Path | None) -> Path:
    """Return the run directory: --run, else the recipe's own folder when it lies in one, else runs/NAME."""
    if run is not None:
        return run
    inside = recipe.path.name == "recipe.yaml" and (
        (recipe.base / ".lock").exists() or any(recipe.base.glob("*/step.json"))
    )
    return Path(recipe.tree.file).parent if inside else Path("runs") / recipe.name


def run_recipe(name: str, run: Path | None, request: Request) -> None:
    """Run a recipe file, a shipped recipe, or a run directory's own recipe."""
    path = recipes.find(name)
    recipe = recipes.load(path, overrides=request.overrides)
    text = recipe_edit.text_as_used(recipe, request.overrides)
    _run(recipe, text, run_dir_of(recipe, run), request)


def run_kinds(
    kinds: Sequence[str], name: str, run: Path | None, request: Request, *, only: str | None = None, force: bool = False
) -> None:
    """Run the stages of some kinds of a recipe, or `only` one; nothing above them runs unasked.

    Overrides are relative to the stage where there is one kind only.
    """
    path = recipes.find(name)
    found = {stage: raw.get("kind") for stage, raw in _stages(path).items() if isinstance(raw, dict)}
    fitting = tuple(stage for stage, kind in found.items() if kind in kinds and only in (None, stage))
    if not fitting:
        listed = ", ".join(f"{stage} ({kind})" for stage, kind in found.items()) or "none"
        wanted = f"{' or '.join(kinds)} stage{f' {only}' if only else ''}"
        raise UsageError(f"{name} has no {wanted}", hint=f"its stages: {listed}")
    overrides = request.overrides
    if len(kinds) == 1:
        overrides = [f"{stage}.{override}" for stage in fitting for override in overrides]
    recipe = recipes.load(path, overrides=overrides)
    request.selection = Selection(only=fitting, force=fitting if force else ())
    _run(recipe, recipe_edit.text_as_used(recipe, overrides), run_dir_of(recipe, run), request)


def run_flags(
    kind: str, run: Path, name: str, flags: dict[str, list[str]], request: Request, *, force: bool = False
) -> None:
    """Write a stage made from flags into the run's recipe, and run it."""
    overrides = {override: f"--set {override}" for override in request.overrides}
    if_taken = f"give this one another name: --name {name}-2"
    stage = _from_flags(name, kind, flags, overrides, run=run, if_taken=if_taken)
    _run_written([stage], run, request, command=f"llmpipe {kind}", force=force)


def run_rlhf(run: Path, flags: dict[str, list[str]], request: Request, *, force: bool = False) -> None:
    """Write a reward stage, and a PPO stage that learns from it, into the run's recipe, and run both."""
    overrides: dict[str, dict[str, str]] = {name: {} for name in RLHF}
    for override in request.overrides:
        name, _, rest = override.partition(".")
        if name not in RLHF:
            raise UsageError(Problem("write reward.KEY=VALUE or ppo.KEY=VALUE", where=f"--set {override}"))
        overrides[name][rest] = f"--set {override}"
    reads = {"reward": ("model", "data"), "ppo": ("prompts",)}
    if_taken = "llmpipe rlhf needs this name; give the other stage another one in the recipe"
    made = [
        _from_flags(name, kind, {f: flags[f] for f in reads[name]}, overrides[name], run=run, if_taken=if_taken)
        for name, kind in RLHF.items()
    ]
    if "reward" not in (_stages_of(run).get("ppo") or {}):
        made[1].keys["reward"] = "reward"
    _run_written(made, run, request, command="llmpipe rlhf", force=force)


def _from_flags(
    name: str, kind: str, flags: dict[str, list[str]], overrides: dict[str, str], *, run: Path, if_taken: str
) -> FromFlags:
    """Turn flags into a stage."""
    stage = FromFlags(name, kind, overrides=overrides, if_taken=if_taken)
    accepted = stages.load(kind).Settings.model_fields
    for flag, values in flags.items():
        if not values:
            continue
        key = next((key for key in keys_of(flag) if key in accepted), None)
        if key is None:
            raise UsageError(f"a {kind} stage takes no --{flag}", hint=f"llmpipe options {kind}")
        sources = [recipe_edit.source_from_flag(value, flag=flag, stages=list(_stages_of(run))) for value in values]
        stage.keys[key] = sources[0] if len(sources) == 1 else sources
        stage.flags[key] = f"--{flag}"
    return stage


def keys_of(flag: str) -> tuple[str, ...]:
    """Return the keys of a stage that a flag for an input may stand for."""
    return ("data",) if flag == "prompts" else (flag, f"{flag}s")


def _run_written(made: Sequence[FromFlags], run: Path, request: Request, *, command: str, force: bool) -> None:
    """Write stages made from flags into the run's recipe, and run them; problems name what was typed."""
    written, known = run / "recipe.yaml", _stages_of(run)
    text = recipe_edit.with_stages(run, made)
    tree = yaml_tree.parse(text, shown_as=str(written))
    for stage in made:
        if stage.name not in known:
            tree.relabel(("stages", stage.name), command)
        for key, flag in stage.flags.items():
            tree.relabel(("stages", stage.name, key), flag)
        for override, typed in stage.overrides.items():
            tree.relabel(("stages", stage.name, *override.partition("=")[0].split(".")), typed)
    recipe = recipes.check(tree, written.absolute())
    names = tuple(stage.name for stage in made)
    request.selection = Selection(only=names, force=names if force else ())
    _run(recipe, text, run, request)


def _stages_of(run: Path) -> dict[str, Any]:
    """Read the stages of a run's recipe as they are written; none where there is no recipe yet."""
    return _stages(run / "recipe.yaml") if (run / "recipe.yaml").exists() else {}


def _stages(path: Path) -> dict[str, Any]:
    """Read the stages of a recipe file as they are written; none where it is not a recipe."""
    data = yaml_tree.read(path).data
    found = data.get("stages") if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def _run(recipe: Recipe, text: str, run_dir: Path, request: Request) -> None:
    if request.dry_run:
        show_plan(recipe, run_dir, request)
        if request.selection.only:
            try_curation(recipe, run_dir, request)
        return
    from llmpipe import junit, packages  # not where a recipe is only looked at, which has to be quick

    junit.refuse_folder(request.junit)
    runner.open_run(run_dir)
    with runner.locked(run_dir):
        steps = make_plan(recipe, run_dir, selection=request.selection, verify=request.verify)
        runner.refuse_code(steps, request.options)
        packages.refuse_missing(steps)
        recipe_edit.keep(run_dir, text)
        header(recipe, run_dir)
        console.show(plan_table(steps))
        console.say("")
        crossed = None
        try:
            runner.run(steps, run_dir, request.options)
        except BoundError as error:
            crossed = error  # the stage is done, and is shown like any other
        except LlmpipeError as error:
            junit.write_if_asked(request.junit, run_dir, steps, failure=error)
            raise
        done = make_plan(recipe, run_dir)
    junit.write_if_asked(request.junit, run_dir, steps)
    if request.json and crossed is None:  # else the one document is that of the failure
        console.as_json({"run": str(run_dir), "seed": recipe.seed, "steps": status.rows(done, run_dir)})
    finished = {step.name for step in done if step.action == "skip"}
    worked = [step for step in steps if step.action not in ("skip", "wait") and step.name in finished]
    if worked or not (run_dir / "report.html").exists():
        report.write_after(run_dir)
    summary.show(run_dir, [step.name for step in worked], all_names=list(recipe.stages))
    if crossed is not None:
        raise crossed


def header(recipe: Recipe, run_dir: Path) -> None:
    """Say what is run, and where."""
    console.say(f"{run_dir} · seed {recipe.seed} · {summary.machine()}\n")


def show_plan(recipe: Recipe, run_dir: Path, request: Request) -> None:
    """Show what a run would do."""
    from llmpipe import estimate, outlook, preview

    steps = make_plan(recipe, run_dir, selection=request.selection, verify=request.verify)
    data, expected = list(preview.previews(steps)), outlook.estimates(steps, run_dir)
    if request.json:
        found = {"steps": status.rows(steps, run_dir), "data": data, "estimates": estimate.as_json(expected)}
        console.as_json({"run": str(run_dir), "seed": recipe.seed, **found, "memory_mb": machine.memory_mb()})
        return
    header(recipe, run_dir)
    console.show(plan_table(steps))
    if data:
        console.say("")
        console.show(console.table(preview.rows_of(data), header=("", "data file", "read as", "columns")))
    outlook.show(expected, recipe.called)


def try_curation(recipe: Recipe, run_dir: Path, request: Request) -> None:
    """Try the steps of the curate stages that were asked for on their first documents; nothing is kept."""
    for step in make_plan(recipe, run_dir, selection=request.selection):
        if step.record.kind == "curate" and step.action not in ("skip", "wait"):
            from llmpipe.stages import curate

            settings = curate.Settings.model_validate(step.record.settings)
            ctx = Context(
                run_dir, step.record, emit=lambda _: None, rank=1
            )  # which writes nothing to the run directory
            with tempfile.TemporaryDirectory() as folder:
                report = curate.sample(settings, ctx, Path(folder))
            console.say(f"\n{step.name}: the steps on the first {report['documents_before']:,} documents")
            summary.show_curation(report, step.name)


def plan_table(steps: Sequence[Step]) -> Any:
    """Lay out the steps: name, kind, what happens, why, and every edge."""
    from rich.text import Text

    rows = [
        (
            step.name,
            step.record.kind,
            Text(step.action, style=console.ACTION_STYLES[step.action]),
            step.reason,
            f"{', '.join(step.inputs)} → {step.name}" if step.inputs else "",
        )
        for step in steps
    ]
    return console.table(rows)


def show_status(run_dir: Path, *, why: bool, as_json: bool) -> None:
    """Show how far a run directory is; with `why` also what keeps each stage from being done, or makes it so."""
    path = run_dir / "recipe.yaml"
    if not path.is_file():
        raise UsageError(f"{run_dir} is no run directory: it has no recipe.yaml", hint="llmpipe run RECIPE makes one")
    recipe = recipes.load(path)
    steps = make_plan(recipe, run_dir)
    rows, told = status.rows(steps, run_dir), status.reasons(steps, run_dir) if why else {}
    rows = [row | ({"why": told[row["name"]]} if why else {}) for row in rows]
    running = (run_dir / ".lock").exists() and artifact.is_locked(run_dir)  # a look leaves no lock file behind
    if as_json:
        console.as_json({"run": str(run_dir), "seed": recipe.seed, "running": running, "steps": rows})
        return
    if running:
        console.out.print(f"{run_dir} is being worked on")
    cells = [
        (
            row["name"],
            row["kind"],
            row["state"],
            "" if row["seconds"] is None else console.seconds(row["seconds"]),
            "" if row["state"] == "done" else row["reason"],
        )
        for row in rows
    ]
    table = console.table(cells, header=("stage", "kind", "state", "took", ""), right=(3,))
    console.show(table, to_stdout=True, indent=0)
    for name, lines in told.items():
        console.data("\n".join([f"\n{name}", *(f"  {line}" for line in lines)]))
