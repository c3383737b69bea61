"""Running stages as the command does, or by themselves in a context, on models that train in a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llmpipe import pipeline, runner, stages
from llmpipe.artifact import Gate, StepRecord
from llmpipe.context import Context, Event, Result
from llmpipe.gates import REASONS


def context_for(run_dir: Path, *, stop: Callable[[], Any] = lambda: None) -> Context:
    """Make a context for the stage `x`; what it is told is kept in `ctx.events`."""
    events: list[Event] = []
    record = StepRecord(name="x", kind="sft", stage_version=1, fingerprint="f", seed=3, settings={}, inputs=[])
    (run_dir / "x").mkdir(parents=True, exist_ok=True)
    ctx = Context(run_dir=run_dir, step=record, emit=events.append, stop_requested=stop)
    ctx.events = events  # type: ignore[attr-defined]
    return ctx


def run_stage(kind: str, settings: dict[str, Any], ctx: Context) -> Result:
    """Run a stage's own `run`."""
    module = stages.load(kind)
    return module.run(module.Settings.model_validate({"kind": kind, **settings}), ctx)


def run_recipe(folder: Path, text: str) -> Path:
    """Write a recipe and run it in this process; returns the run directory."""
    recipe = folder / "tiny.yaml"
    recipe.write_text(text, encoding="utf-8")
    pipeline.run_recipe(
        str(recipe), folder / "run", pipeline.Request(options=runner.Options(in_process=True, allow_code=True))
    )
    return folder / "run"


def passed(gates: Iterable[Gate]) -> set[str]:
    """Name the gates of a stage, none of which may have failed."""
    found = list(gates)
    assert not [(gate.name, gate.measured) for gate in found if not gate.passed]
    assert len(found) == len({gate.name for gate in found})
    return {gate.name for gate in found}


def gates_of(kind: str, *conditional: str) -> set[str]:
    """Name the gates that a stage has, with these of those that it does not always have."""
    only = {name: reason.only for name, reason in REASONS.items() if kind in reason.stages}
    always = {name for name, of in only.items() if not of or (of.startswith("pretrain:") and kind != "pretrain")}
    assert not always & {*conditional} and only.keys() >= {*conditional}
    return always | {*conditional}


def stop_after(steps: int, how: str) -> Callable[[], str | None]:
    """Ask for a stop when that many steps are done."""
    asked = iter(range(1, 10**9))
    return lambda: how if next(asked) >= steps else None


def same(left: Path, right: Path) -> bool:
    """Whether the weights of two folders are equal to the bit."""
    one, two = (load_file(folder / "model.safetensors") for folder in (left, right))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@torch.no_grad()
def probed(model: Any, tokens: int = 150) -> torch.Tensor:
    """Return a model's logits of a few tokens."""
    logits: torch.Tensor = model.eval()(input_ids=torch.arange(300)[None, :tokens]).logits
    return logits
