"""The stages, one file each, and the one list that names them.

A stage module has four names and no base class:

- `Settings`: pydantic, `kind: Literal[...]`; fields that take another stage's output carry `Accepts(...)`
- `produces(settings)`: the artifact that the stage hands on
- `VERSION`: raise it when equal settings would now give another output
- `run(settings, ctx)`: does the work; heavy imports are its first lines

Adding a stage takes its file, a line here, and a recipe with a test row.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:  # the command line lists the stages before anything heavy is imported
    from llmpipe.context import Context, Result
    from llmpipe.settings import Artifact, StageSettings


@dataclass(frozen=True)
class Stage:
    """Where a stage lives, what its command's help says, and an example of its flags."""

    module: str
    help: str
    example: str


STAGES = {
    "curate": Stage(
        "llmpipe.stages.curate",
        "Clean text for training: repair, filter, remove duplicates; every step counted",
        "--data 'texts/*.txt'",
    ),
    "tokenizer": Stage("llmpipe.stages.tokenizer", "Train a tokenizer on text", "--data 'texts/*.txt'"),
    "pretrain": Stage(
        "llmpipe.stages.pretrain",
        "Train a language model on text, from nothing or from another model",
        "--data 'texts/*.txt' --model 10M",
    ),
    "sft": Stage("llmpipe.stages.sft", "Teach a model to answer, from examples of conversations", "--data chat.jsonl"),
    "lora": Stage(
        "llmpipe.stages.lora",
        "Teach a model to answer with an adapter on it (LoRA), which leaves the model as it is",
        "--data chat.jsonl",
    ),
    "classify": Stage(
        "llmpipe.stages.classify",
        "Teach a model to tell classes of text apart, from labelled texts",
        "--data labelled.csv --model base",
    ),
    "reward": Stage(
        "llmpipe.stages.reward", "Learn to score answers, from pairs of which one was preferred", "--data pairs.jsonl"
    ),
    "dpo": Stage(
        "llmpipe.stages.dpo", "Teach a model which answers are preferred, from pairs alone (DPO)", "--data pairs.jsonl"
    ),
    "kto": Stage(
        "llmpipe.stages.kto",
        "Teach a model from answers that are labelled good or bad, one at a time (KTO)",
        "--data rated.jsonl",
    ),
    "rlhf-ppo": Stage(
        "llmpipe.stages.rlhf_ppo",
        "Teach a model to give answers that score high (PPO)",
        "--data prompts.jsonl --reward reward",
    ),
    "rloo": Stage(
        "llmpipe.stages.rloo",
        "Teach a model to give answers that score high, compared with its others (RLOO)",
        "--data prompts.jsonl --reward reward",
    ),
    "grpo": Stage(
        "llmpipe.stages.grpo",
        "Teach a model to give answers that score high, relative to its others (GRPO)",
        "--data prompts.jsonl --model sft --reward sums.py:exact_match --allow-code",
    ),
    "eval": Stage(
        "llmpipe.stages.evaluate", "Measure and compare models on held-out text and fixed prompts", "--model sft"
    ),
}


class StageModule(Protocol):
    """What a stage's file has to define."""

    VERSION: int
    Settings: type[StageSettings]

    def produces(self, settings: StageSettings) -> Artifact:
        """Name the artifact that these settings lead to."""
        ...

    def run(self, settings: StageSettings, ctx: Context) -> Result:
        """Do the work in `ctx.dir`."""
        ...


def load(kind: str) -> StageModule:
    """Import a stage's module; torch stays unimported until its `run`."""
    return cast(StageModule, import_module(STAGES[kind].module))
