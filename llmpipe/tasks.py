"""What `tasks:` of `kind: eval` understands: benchmark tasks on files of one's own, and tasks of lm-eval.

    tasks:
      - {choices: {path: piqa.jsonl}, prompt: "{query}\\nAnswer:", limit: 50}
      - {continuation: {path: lambada.jsonl}}
      - {exact_match: {path: gsm8k_test.jsonl}, shots: 5, examples: {path: gsm8k_train.jsonl}}
      - {text: {path: wikitext.txt}}
      - {lm_eval: arc_easy, limit: 100}

Braces in `prompt` and `answer` name columns. Nothing here touches a disk or imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from llmpipe.settings import Accepts, DataSource, Strict, source_key

TASK_KEYS = ("choices", "continuation", "exact_match", "text", "lm_eval")
"""The key that says what kind of task it is, and what it is of."""


def columns_of(template: str) -> list[str]:
    """Name the columns that a template asks for, each once."""
    return list(dict.fromkeys(field for _, field, _, _ in Formatter().parse(template) if field is not None))


def _checked(template: str) -> str:
    """Refuse braces that name no column.

    Raises:
        ValueError: for pydantic to place in the recipe.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        raise ValueError("must have its braces in pairs, as in {query}; a brace itself is written twice") from None
    for _, field, how, conversion in parts:
        if field is not None and (not field.isidentifier() or how or conversion):
            raise ValueError("must have nothing but the name of a column in its braces, as in {query}")
    return template


Template = Annotated[str, AfterValidator(_checked)]
Rows = Annotated[DataSource, Accepts(("dataset",), fill=False)]
Name = Annotated[str, Field(pattern=r"^[\w-]+$")]


class Task(Strict):
    """What every task understands."""

    kind: ClassVar[str]
    figures: ClassVar[tuple[str, ...]] = ()
    """What it measures, beside errors and intervals, where that is known beforehand."""

    name: Name | None = Field(None, description="what its figures are called; after its file when left out")
    limit: int | None = Field(None, gt=0, description="take the first rows only")

    @property
    def title(self) -> str:
        """What its figures are called."""
        if self.name is not None:
            return self.name
        source = getattr(self, self.kind)
        if isinstance(source, str):
            return source
        named = str(source.model_dump()[str(source_key(source))])
        return Path(named).name.partition(".")[0] or named


class Prompted(Task):
    """A task that asks something: of each row, `prompt` is what the model sees and `answer` is what should follow."""

    prompt: Template
    answer: Template
    shots: int = Field(0, ge=0, description="how many examples with their answers stand before each prompt")
    examples: Annotated[DataSource | None, Accepts(("dataset",), fill=False)] = Field(
        None, description="rows to show as examples, the first ones; never those that are asked"
    )

    @model_validator(mode="after")
    def _shots_have_examples(self) -> Prompted:
        if self.shots and self.examples is None:
            raise ValueError("shots need rows to show: examples: {path: FILE}")
        if self.examples is not None and not self.shots:
            raise ValueError("examples are for shots: say how many with `shots:`")
        return self


class ChoicesTask(Prompted):
    """Multiple choice: the likeliest of the answers is taken. Rows have `choices`, and the right one in `gold`."""

    kind = "choices"
    figures = ("acc", "acc_norm")

    choices: Rows = Field(description="rows with choices and gold: the number of the right one, from 0, or its text")
    prompt: Template = Field("{query}", description="what is asked; braces name columns")
    answer: Template = Field(" {choice}", description="how a choice follows the prompt")


class ContinuationTask(Prompted):
    """How a text goes on, such as LAMBADA's last word: right when every token is the likeliest one."""

    kind = "continuation"
    figures = ("acc", "perplexity")

    continuation: Rows = Field(description="rows with a text and how it goes on")
    prompt: Template = Field("{context}", description="the text up to there; braces name columns")
    answer: Template = Field(" {continuation}", description="how it goes on")


class ExactMatchTask(Prompted):
    """Answers that the model writes, such as GSM8K's: right when the result in it is that of the row's answer."""

    kind = "exact_match"
    figures = ("exact_match",)

    exact_match: Rows = Field(description="rows with a question and its answer")
    prompt: Template = Field("Question: {question}\nAnswer:", description="what is asked; braces name columns")
    answer: Template = Field(" {answer}", description="the right answer, as examples show it")
    extract: Literal["number", "text"] = Field(
        "number", description="number compares what is behind the last ####, else the last number; text all of it"
    )
    until: list[str] = Field(default=["Question:"], description="an answer ends before any of these")
    max_new_tokens: int = Field(256, gt=0, description="longest answer, in tokens")
    chat: bool = Field(False, description="put prompts through the chat template, where the model has one")


class TextTask(Task):
    """Perplexity of texts, per token, word and byte; in windows that overlap only at the end."""

    kind = "text"
    figures = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")

    text: Rows = Field(description="texts to guess token by token")


class LmEvalTask(Task):
    """A task of lm-eval, by its name there; needs the extra `eval`, and the network for its data."""

    kind = "lm_eval"

    lm_eval: Annotated[str, Field(pattern=r"^[\w.,:+-]+$")] = Field(description="a task of lm-eval by its name there")
    shots: int | None = Field(None, ge=0, description="examples before each prompt; as the task says when left out")


def repeated(tasks: Sequence[Task]) -> str | None:
    """Return a name that two tasks have, if there is one."""
    names = [task.title for task in tasks]
    return next((name for name in names if names.count(name) > 1), None)


def tag_of(kind: str) -> str:
    """Return pydantic's tag of a kind of task: no key of a recipe, so that a message can tell the two apart."""
    return f"a task of {kind}"


def _tag(value: Any) -> str | None:
    """Tell the kind of a task from the key that names it."""
    return tag_of(next(key for key in TASK_KEYS if key in value) if isinstance(value, dict) else value.kind)


def _one_kind(value: Any) -> Any:
    """Refuse what names no task or several (a discriminator may not)."""
    if isinstance(value, dict) and len(found := [key for key in TASK_KEYS if key in value]) != 1:
        message = f"name one kind of task, not both {' and '.join(found)}" if found else "name its kind and its data"
        raise PydanticCustomError("task", f"{message}; kinds are {', '.join(TASK_KEYS)}", {})
    if not isinstance(value, dict | Task):
        raise PydanticCustomError("task", "a task is a mapping, such as {choices: {path: FILE}}", {})
    return value


AnyTask = Annotated[
    Annotated[ChoicesTask, Tag(tag_of("choices"))]
    | Annotated[ContinuationTask, Tag(tag_of("continuation"))]
    | Annotated[ExactMatchTask, Tag(tag_of("exact_match"))]
    | Annotated[TextTask, Tag(tag_of("text"))]
    | Annotated[LmEvalTask, Tag(tag_of("lm_eval"))],
    Discriminator(_tag),
    BeforeValidator(_one_kind),
]
