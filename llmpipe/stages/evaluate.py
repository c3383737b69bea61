"""eval: measures models side by side. Reads models and held-out text; writes `scores.json`, one entry for each model.

    scores: {kind: eval, models: [base, chat], suites: [perplexity, samples], prompts: ["Once upon a time"]}
    exams: {kind: eval, models: [base, chat], tasks: [{choices: {path: piqa.jsonl}, prompt: "{query}\nAnswer:"}]}

Text that a pretrain stage held out is used when `data` is left out. Of models that do not guess the next token, the
perplexity suite gives how well they guess what pretrain hides: `pseudo_perplexity`, `denoising_loss`; their samples
fill in prompts with a gap, "The cat [MASK] on the mat". What each row of a benchmark task came to is in `tasks.jsonl`;
`llmpipe.judging` has what is judged, and what must hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from llmpipe import bounds
from llmpipe.context import Context, Result
from llmpipe.judging import METRICS, JudgingSettings
from llmpipe.settings import (
    Accepts,
    AnySource,
    Artifact,
    Count,
    DataSources,
    FolderSources,
    StageSource,
    source_key,
)
from llmpipe.tasks import AnyTask, repeated

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmpipe.evaluation.changes import Items
    from llmpipe.evaluation.tasks import Outcome

VERSION = 3

LANGUAGE_MODELS: tuple[Artifact, ...] = ("causal-lm", "masked-lm", "seq2seq-lm")

Suite = Literal["perplexity", "samples", "storyworld"]


class Settings(JudgingSettings):
    """What `kind: eval` understands."""

    kind: Literal["eval"] = Field("eval", description="which stage this is")
    models: Annotated[FolderSources | None, Accepts((*LANGUAGE_MODELS, "adapter"))] = Field(
        None, description="models to compare, in order"
    )
    data: Annotated[DataSources | None, Accepts(("dataset", *LANGUAGE_MODELS), fill=False)] = Field(
        None,
        description="text to measure; a pretrain or curate stage's name means the text it held out",
    )
    suites: list[Suite] = Field(
        default=["perplexity", "samples"], description="perplexity, samples and storyworld; none where there are tasks"
    )
    tasks: list[AnyTask] | None = Field(
        None,
        min_length=1,
        description="benchmark tasks: {choices: SOURCE}, {continuation: SOURCE}, {exact_match: SOURCE}, {text: SOURCE} "
        "or {lm_eval: NAME}, each with options",
        exclude_if=lambda tasks: tasks is None,
    )
    context: Count | None = Field(None, description="tokens in a window of text; the model's own limit when left out")
    max_tokens: Count = Field(1_000_000, description="no further text is begun once this many are measured")
    add_bos: bool = Field(True, description="begin each text with the model's begin token")
    prompts: list[str] = Field(default_factory=list, description="prompts for samples")
    chat: bool = Field(True, description="put prompts through the chat template, where the model has one")
    max_new_tokens: Count = Field(64, description="longest answer")
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token every time")
    stories: int = Field(200, gt=0, description="stories to judge in the storyworld suite, from pairs held out of sft")

    @model_validator(mode="before")
    @classmethod
    def _tasks_alone(cls, value: Any) -> Any:
        """Where there are tasks, no suite runs that was not asked for."""
        return {"suites": [], **value} if isinstance(value, dict) and value.get("tasks") else value

    @model_validator(mode="after")
    def _something_is_measured(self) -> Settings:
        if not self.suites and not self.tasks:
            raise ValueError("there is nothing to measure: `suites:` is empty, and there are no `tasks:`")
        if name := repeated(self.tasks or []):
            raise ValueError(f"two tasks are called {name}; give one of them another `name:`")
        return self

    def unused_inputs(self) -> frozenset[str]:
        """Text is looked for in the lineage of the models; see `held_out_text`."""
        return frozenset({"data"}) | super().unused_inputs()

    def lineage_problem(self, ancestors: set[str]) -> str | None:
        """Perplexity needs text: some that is named, or what a pretrain stage above held out."""
        if "perplexity" in self.suites and self.data is None and "pretrain" not in ancestors:
            return "perplexity needs text: name some with `data:`, or leave it out of `suites:`"
        names = labels(self.models or [])
        if problem := self.contest_problem(names, asks=bool(self.questions or self.prompts)):
            return problem
        if any(task.kind == "lm_eval" for task in self.tasks or []):
            return None  # only lm-eval knows its metrics; a bound on one that is none is told at the end
        return bounds.unknown(self.fail_if, [f"{name}.{key}" for name in names for key in self.metrics_of(name)])

    def metrics_of(self, name: str) -> list[str]:
        """Name all that may be measured of a model."""
        asked = [f"{task.title}.{figure}" for task in self.tasks or [] for figure in task.figures]
        return [*(key for suite in self.suites for key in METRICS[suite]), *asked, *self.judged_metrics_of(name)]


def produces(_settings: Settings) -> Artifact:
    """Say what comes out."""
    return "scores"


def run(settings: Settings, ctx: Context) -> Result:
    """Put every model through the suites."""
    import torch

    from llmpipe.artifact import write_json, write_text
    from llmpipe.evaluation import changes
    from llmpipe.evaluation.contests import ANSWERS, prepared
    from llmpipe.evaluation.generate import Sampling
    from llmpipe.evaluation.safety import Safety
    from llmpipe.training import models

    assert settings.models is not None
    names = labels(settings.models)
    ctx.explain(f"Evaluation puts {' and '.join(names)} through the same text and the same prompts, one by one.")
    sampling = Sampling(settings.max_new_tokens, settings.temperature, ctx.seed)
    contests = prepared(settings, ctx, sampling, settings.prompts) if settings.win_rate else None
    safety = Safety(settings, ctx, sampling)
    scores: dict[str, dict[str, Any]] = {}
    items: dict[str, dict[str, Items]] = {}
    rows: list[dict[str, Any]] = []
    for name, source in zip(names, settings.models, strict=True):
        model, tokenizer = models.load(source, ctx, kinds=tuple(models.CLASSES))
        model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        ctx.progress(doing=f"measuring {name}")
        items[name] = {}
        scores[name] = measure(settings, model, tokenizer, ctx, items[name])
        chat = settings.chat and tokenizer.chat_template is not None
        scores[name] |= safety.measure(name, model, tokenizer, items[name], chat=chat)
        if settings.tasks:
            outcome = examine(settings, model, tokenizer, ctx, name=name)
            scores[name] |= outcome.figures
            items[name] |= {metric: changes.share(right) for metric, right in outcome.shares().items()}
            rows += outcome.rows
        if contests is not None:
            contests.hear(name, model, tokenizer, chat=chat)
    flat = {
        f"{name}.{key}": value for name, entry in scores.items() for key, value in entry.items() if key != "samples"
    }
    found: dict[str, Any] = {"models": scores, "prompts": settings.prompts}
    found["changes"] = changes.table(scores, items, changes.steps(settings.models, names, ctx), seed=ctx.seed)
    if safety.details:
        found["safety"] = safety.details
    if settings.tasks:
        write_text(ctx.dir / "tasks.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if contests is not None:
        found["win_rates"] = contests.results()
        flat |= {f"{one['of']}.beats_{one['against']}_share": one["win_rate"] for one in found["win_rates"]}
    write_json(ctx.output("scores"), found)
    more = [*(["tasks.jsonl"] if settings.tasks else []), *([ANSWERS] if contests else [])]
    return Result(outputs=["scores.json", *more], metrics=flat)


def labels(sources: Sequence[AnySource]) -> list[str]:
    """Name the models in the table: a folder or file by its last part, or by its whole path where several have it."""
    kinds = [str(source_key(source)) for source in sources]
    long = [str(source.model_dump()[kind]) for source, kind in zip(sources, kinds, strict=True)]
    short = [Path(name).name if kind in ("path", "gguf") else name for name, kind in zip(long, kinds, strict=True)]
    return [name if short.count(name) == 1 else whole for name, whole in zip(short, long, strict=True)]


def measure(
    settings: Settings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ctx: Context,
    items: dict[str, Items],
) -> dict[str, Any]:
    """Return the metrics of one model, and its samples; `items` gets the metrics by text or by prompt."""
    from llmpipe.errors import StageError
    from llmpipe.evaluation import changes, fill, stories
    from llmpipe.evaluation.generate import answers
    from llmpipe.training.models import kind_of

    found: dict[str, Any] = {}
    kind = kind_of(model.config, ())
    chat = settings.chat and tokenizer.chat_template is not None
    if "perplexity" in settings.suites:
        found |= guess(settings, model, tokenizer, ctx, items, kind=kind)
    sampling: dict[str, Any] = {"chat": chat, "max_new_tokens": settings.max_new_tokens, "seed": ctx.seed}
    if "samples" in settings.suites and settings.prompts and kind == "masked-lm":
        found["samples"] = fill.filled(model, tokenizer, settings.prompts)
    elif "samples" in settings.suites and settings.prompts:
        found["samples"] = answers(model, tokenizer, settings.prompts, temperature=settings.temperature, **sampling)
    if "storyworld" in settings.suites:
        if kind == "masked-lm":
            message = "the storyworld suite asks for stories, and a masked model tells none"
            raise StageError(message, hint="suites: [perplexity, samples]")
        told = stories.verdicts(model, tokenizer, stories=settings.stories, **sampling)
        items |= {metric: changes.share(right) for metric, right in told.items()}
        found |= {metric: sum(right) / len(right) for metric, right in told.items()}
    return found


def guess(
    settings: Settings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ctx: Context,
    items: dict[str, Items],
    *,
    kind: Artifact,
) -> dict[str, Any]:
    """Measure how well a model guesses text: the next token, or what is hidden from it."""
    from llmpipe.errors import DataError
    from llmpipe.evaluation import changes
    from llmpipe.evaluation.fill import score_hidden
    from llmpipe.evaluation.perplexity import Score, score_texts
    from llmpipe.training.models import context_length, fitting_context

    window = fitting_context(model, settings.context or context_length(model))
    texts = held_out_text(settings, ctx)
    if kind != "causal-lm":
        nats, targets = score_hidden(model, tokenizer, texts, window=window, max_tokens=settings.max_tokens)
        if not targets:
            raise DataError("the text to measure is too short: nothing in it can be hidden")
        hidden = Score(nats=nats * targets, tokens=targets)
        metric = {"pseudo_perplexity": hidden.perplexity} if kind == "masked-lm" else {"denoising_loss": nats}
        return metric | {"hidden_tokens": targets}
    options: dict[str, Any] = {"max_tokens": settings.max_tokens, "add_bos": settings.add_bos}
    score = score_texts(model, tokenizer, texts, window=window, **options)
    if not score.tokens:
        raise DataError("the text to measure is too short: no token in it follows another")
    nats, tokens, sizes = zip(*((one.nats, one.tokens, one.bytes) for one in score.texts), strict=True)
    items |= {"perplexity": changes.perplexity(nats, tokens), "bits_per_byte": changes.bits_per_byte(nats, sizes)}
    return {
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "nats_per_character": score.nats_per_character,
        "tokens": score.tokens,
    }


def examine(
    settings: Settings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ctx: Context, *, name: str
) -> Outcome:
    """Put a model through the tasks; its figures are called TASK.FIGURE."""
    from llmpipe.evaluation.tasks import Subject, examined
    from llmpipe.training.models import context_length, fitting_context

    window = fitting_context(model, settings.context or context_length(model))
    return examined(settings.tasks or [], Subject(name, model, tokenizer, window, settings.add_bos), ctx)


def held_out_text(settings: Settings, ctx: Context) -> Iterator[str]:
    """Yield the text to measure."""
    from llmpipe.data.sources import read_texts

    sources = settings.data or [StageSource(stage=pretrained(settings, ctx), weight=1.0)]
    return read_texts(sources, ctx, part="validation")


def pretrained(settings: Settings, ctx: Context) -> str:
    """Find the pretrain stage that the models come from, nearest first, for the text it held out.

    Raises:
        DataError: none of them comes from one.
    """
    from llmpipe.errors import DataError

    waiting = [source.stage for source in settings.models or [] if isinstance(source, StageSource)]
    while waiting:
        name = waiting.pop(0)
        if (ctx.run_dir / name / "held_out.jsonl").is_file():
            return name
        waiting += [entry.source["stage"] for entry in ctx.manifest_of(name).inputs if "stage" in entry.source]
    raise DataError("there is no text to measure", hint="name some: data: {path: FILES}")
