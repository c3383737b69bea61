"""The policy: a YAML file, checked whole before any model is loaded, each problem with its line.

`default.yaml` shows what may be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from llmpipe import yaml_tree
from llmpipe.curation.spans import KINDS
from llmpipe.curation.toxicity import TOKEN, packaged_words
from llmpipe.errors import Problem, RecipeError, did_you_mean
from llmpipe.judging import JudgeServer
from llmpipe.moderation import Action, LayerName, Place
from llmpipe.moderation.guard import HAZARDS, UNSAFE
from llmpipe.settings import STAGE_NAME, Strict
from llmpipe.wording import message_of, yaml_path
from llmpipe.yaml_tree import Tree

DEFAULT = Path(__file__).with_name("default.yaml")
EXAMPLE = "llmpipe moderate --example > policy.yaml"


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Rule(Strict):
    """What is found, and what becomes of it in each place."""

    layer: LayerName = Field(description="words, personal, classifier or guard")
    category: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        description="what the layer finds: a list of words, a kind of personal data, a class, a hazard; or several"
    )
    score: float = Field(0.5, ge=0, le=1, description="from which score on; words and personal data have 1")
    input: Action | None = Field(None, description="what becomes of it where a person says it")
    output: Action | None = Field(None, description="… where the model answers it")
    tool: Action | None = Field(None, description="… where a tool brings it")

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not (self.input or self.output or self.tool):
            raise ValueError("does nothing: say what becomes of it, such as `input: block`")
        return self

    def action(self, place: Place) -> Action | None:
        """Return what becomes of a find in a place."""
        found: Action | None = getattr(self, place)
        return found


class ClassifierKeys(Strict):
    """Which model tells classes apart."""

    model: str = Field(min_length=1, description="RUN:STAGE of kind classify, or its folder; relative to the policy")


class GuardKeys(JudgeServer):
    """Which guard model is asked, and what happens while it is away."""

    timeout_s: float = Field(5.0, gt=0, description="longest wait for its answer")
    unreachable: Literal["block", "allow"] = Field("block", description="what becomes of texts that it cannot check")
    categories: dict[str, str] = Field(
        default_factory=lambda: dict(HAZARDS), min_length=1, description="what is unsafe, by code"
    )
    asks_itself: bool = Field(
        False, description="its chat template has the question (Llama Guard): send the text alone"
    )


class LogKeys(Strict):
    """Where decisions are written."""

    path: str | None = Field(
        None, min_length=1, description="relative to the policy; $LLMPIPE_HOME/moderation.jsonl when left out"
    )
    text: bool = Field(False, description="keep the text beside its hash")


class Policy(Strict):
    """What a policy file says."""

    refusal: str = Field(description="what is said in place of what is blocked; with {reference}, perhaps {rule}")
    rules: dict[Annotated[str, Field(pattern=STAGE_NAME)], Rule] = Field(min_length=1, description="rules by name")
    words: dict[str, list[str]] = Field(default_factory=dict, description="lists of words of your own, by category")
    classifier: ClassifierKeys | None = Field(None, description="for the layer classifier")
    guard: GuardKeys | None = Field(None, description="for the layer guard")
    log: LogKeys = Field(default=LogKeys(path=None, text=False), description="where decisions are written")

    @cached_property
    def lists(self) -> dict[str, list[str]]:
        """Lists of words by category: the package's mild, strong and severe, and the policy's."""
        return {str(severity): words for severity, words in packaged_words().items()} | self.words

    def of_layer(self, layer: LayerName) -> dict[str, Rule]:
        """Return the rules of a layer by name."""
        return {name: rule for name, rule in self.rules.items() if rule.layer == layer}

    def categories(self, layer: LayerName) -> list[str]:
        """Return what the rules of a layer look for, each once."""
        return list(dict.fromkeys(one for rule in self.of_layer(layer).values() for one in rule.category))

    def holds_back(self, layer: LayerName) -> bool:
        """Tell whether a layer may change what is shown of an answer."""
        return any(rule.output in ("block", "redact") for rule in self.of_layer(layer).values())


def load(path: Path) -> Policy:
    """Read and check a policy; the classes of its classifier are for who loads that.

    Raises:
        RecipeError: with every problem that was found.
    """
    hint = f"a policy to start from: {EXAMPLE}"
    if path.is_dir():
        raise RecipeError(Problem("is a folder, not a policy", where=str(path)), hint=hint)
    try:
        tree = yaml_tree.read(path)
    except RecipeError as error:
        raise RecipeError(error.problems, hint=hint) from None
    if not isinstance(tree.data, dict):
        raise RecipeError(tree.problem((), "a policy is a mapping with `refusal:` and `rules:`"), hint=hint)
    try:
        policy = Policy.model_validate(tree.data)
    except ValidationError as error:
        raise RecipeError(list(_wrong(error, tree))) from None
    if problems := list(_problems(policy, tree)):
        raise RecipeError(problems)
    return policy


def _wrong(error: ValidationError, tree: Tree) -> Iterator[Problem]:
    """Put pydantic's messages at their place in the file."""
    for details in error.errors(include_url=False):
        where = yaml_path(tree.data, details["loc"])
        at_key = details["type"] in ("extra_forbidden", "missing", "value_error") or details["loc"][-1:] == ("[key]",)
        yield tree.problem(where, message_of(Policy, details), at_key=at_key)


def _problems(policy: Policy, tree: Tree) -> Iterator[Problem]:
    """Find what no key shows alone: layers that are not there, categories that no layer finds."""
    if "{reference}" not in policy.refusal:
        yield tree.problem(("refusal",), "must have {reference}, by which people appeal")
    for category, words in policy.words.items():
        if not words or not all(TOKEN.search(word) for word in words):
            yield tree.problem(("words", category), "must be a list of words")
    known: dict[str, list[str]] = {"words": list(policy.lists), "personal": [*KINDS]}
    if policy.guard:
        known["guard"] = [UNSAFE, *policy.guard.categories]
    for name, rule in policy.rules.items():
        if getattr(policy, rule.layer, None) is None and rule.layer in ("classifier", "guard"):
            wanted = "{model: RUN:STAGE}" if rule.layer == "classifier" else "{url: ADDRESS, model: NAME}"
            message = f"needs `{rule.layer}: {wanted}` at the top of the policy"
            yield tree.problem(("rules", name, "layer"), message)
            continue
        for category in rule.category if rule.layer in known else ():
            if category not in known[rule.layer]:
                near = did_you_mean(category, known[rule.layer]) or f"; it finds {', '.join(known[rule.layer])}"
                message = f"the layer {rule.layer} finds no '{category}'{near}"
                yield tree.problem(("rules", name, "category"), message)
    for layer in ("classifier", "guard"):
        if getattr(policy, layer) and not any(rule.layer == layer for rule in policy.rules.values()):
            yield tree.problem((layer,), f"no rule has `layer: {layer}`", at_key=True)
