"""`fail_if:` of an eval stage: bounds on its metrics, and whether they are crossed.

Bounds are no part of what a stage makes: they are looked up in its manifest whenever a run passes the stage, so that
another bound costs no second measurement, and what failed fails again until something has changed.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from llmpipe.artifact import StepRecord, read_manifest
from llmpipe.errors import ExitCode, LlmpipeError, Problem, did_you_mean

WRITTEN = re.compile(r"\s*(<=|>=|==|!=|<|>)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")
COMPARES = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def _bound(value: str) -> str:
    if not WRITTEN.fullmatch(value):
        raise PydanticCustomError("bound", 'write a bound such as "> 20" or "<= 0.9"', {})
    return value.strip()


Bound = Annotated[str, AfterValidator(_bound), WithJsonSchema({"type": "string", "pattern": f"^{WRITTEN.pattern}$"})]
"""What a metric must not be: an operator and a number."""


class BoundError(LlmpipeError):
    """A bound that the recipe sets was crossed."""

    code = ExitCode.GATE


class UnknownMetricError(BoundError):
    """A bound names no metric of its stage."""

    code = ExitCode.USAGE


@dataclass(frozen=True)
class Check:
    """One metric beside one bound on it."""

    metric: str
    bound: str
    value: Any

    @property
    def is_crossed(self) -> bool:
        """Whether the bound holds; what is no number crosses every bound, for nothing can be said of it."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or math.isnan(self.value):
            return True
        found = WRITTEN.fullmatch(self.bound)
        assert found is not None
        return bool(COMPARES[found[1]](self.value, float(found[2])))

    def __str__(self) -> str:
        value = f"{self.value:.6g}" if isinstance(self.value, int | float) else "not a number"
        return f"{self.metric} is {value}"


def matching(name: str, metrics: Iterable[str]) -> list[str]:
    """Return the metrics that a name means: that of one model, or without a model's name those of all."""
    return [metric for metric in metrics if metric == name or metric.endswith(f".{name}")]


def unknown(names: Iterable[str], metrics: Iterable[str]) -> str | None:
    """Say which name is no metric, with the near one; None where all are."""
    known = list(metrics)
    short = dict.fromkeys(metric.partition(".")[2] for metric in known)
    for name in names:
        if not matching(name, known):
            near = did_you_mean(name, [*known, *short]) or f"; metrics here: {', '.join([*short])}"
            return f"fail_if: no metric is called '{name}'{near}"
    return None


def checks(fail_if: Mapping[str, str], metrics: Mapping[str, Any]) -> list[Check]:
    """Look up every bound; a name that is no metric has none."""
    return [Check(one, bound, metrics[one]) for name, bound in fail_if.items() for one in matching(name, metrics)]


def refuse(step: StepRecord, run_dir: Path) -> None:
    """Hold what a finished step measured against the bounds that the recipe sets now.

    Raises:
        BoundError: some are crossed, or a name is no metric; with all of them.
    """
    manifest = read_manifest(run_dir / step.name)
    if manifest is None or not (fail_if := step.settings.get("fail_if")):
        return
    if problem := unknown(fail_if, manifest.metrics):
        hint = "the stage is done; mend the name, and give the same command again"
        raise UnknownMetricError(Problem(problem, path=step.name), hint=hint)
    crossed = [check for check in checks(fail_if, manifest.metrics) if check.is_crossed]
    if crossed:
        problems = [Problem(f"{check}, and fail_if says {check.bound}", path=step.name) for check in crossed]
        raise BoundError(problems, hint="the stage is done, and its figures are kept; change the model, or the bound")
