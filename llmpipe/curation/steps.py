"""The steps that may stand in a recipe, and the one list of them: a new one takes its file, and two lines here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from llmpipe.curation import (
    decontaminate,
    exact_duplicates,
    language,
    near_duplicates,
    pii,
    quality,
    repair,
    reweight,
    swap,
    toxicity,
)
from llmpipe.errors import did_you_mean

Options = Annotated[
    repair.Settings
    | language.Settings
    | quality.Settings
    | exact_duplicates.Settings
    | near_duplicates.Settings
    | decontaminate.Settings
    | pii.Settings
    | toxicity.Settings
    | reweight.Settings
    | swap.Settings,
    Field(discriminator="step"),
]
Name = Literal[
    "repair",
    "language",
    "quality",
    "exact_duplicates",
    "near_duplicates",
    "decontaminate",
    "pii",
    "toxicity",
    "reweight",
    "swap",
]
NAMES: tuple[str, ...] = Name.__args__  # type: ignore[attr-defined]
NEEDED = {"language": "keep"}
"""What a step cannot do without."""


def _named(value: Any) -> Any:
    """Read a bare name as the step with its defaults; refuse what names no step."""
    named = {"step": value} if isinstance(value, str) else value
    if not isinstance(named, dict) or "step" not in named:
        raise PydanticCustomError("step", "write a step as its name, or as {step: NAME, ...}")
    if named["step"] not in NAMES:
        near = did_you_mean(str(named["step"]), NAMES) or f"; steps are {', '.join(NAMES)}"
        raise PydanticCustomError("step", "'{name}' is not a step{near}", {"name": str(named["step"]), "near": near})
    if isinstance(value, str) and (needed := NEEDED.get(value)):
        raise PydanticCustomError("step", "{told}", {"told": f"write {{step: {value}, {needed}: …}}"})
    return named


Step = Annotated[Options, BeforeValidator(_named, json_schema_input_type=Name | Options)]
