"""classify: teaches a model to tell classes of text apart. Reads a model or a tokenizer, and labelled texts.

    mod: {kind: classify, model: base, data: {path: tweets.csv, columns: {text: tweet, label: class}}}

The model is an encoder or a decoder, one to go on from or one that is made here; it gets a head with an output for
each class. Writes `model/`, which `pipeline("text-classification")` of transformers reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llmpipe.architectures import architectures
from llmpipe.context import Context, Result
from llmpipe.settings import (
    TRAINER_RESERVED,
    Accepts,
    Artifact,
    Count,
    DataSources,
    FolderSource,
    Passthrough,
    SupervisedSettings,
)
from llmpipe.stages.pretrain import BuiltModel, Model, SizedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmpipe.training.classifier import Encoded

VERSION = 1

DEFAULTS = {
    "learning_rate": 5e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.06,
    "num_train_epochs": 3,
    "weight_decay": 0.01,
    "train_sampling_strategy": "group_by_length",
}

FRESH_DEFAULTS = DEFAULTS | {"learning_rate": 1e-3, "num_train_epochs": 8, "weight_decay": 0.1}
"""A model that knows nothing yet has further to go."""


class Settings(SupervisedSettings):
    """What `kind: classify` understands."""

    kind: Literal["classify"] = Field("classify", description="which stage this is")
    data: Annotated[DataSources | None, Accepts(("dataset",))] = Field(
        None, description="texts with a label; columns: {text: YOURS, label: YOURS} says which columns they are"
    )
    model: Annotated[Model | None, Accepts(("masked-lm", "causal-lm", "adapter"))] = Field(
        None, description="the model to begin from, or {size: 1M}, or {arch: bert, config: {...}}"
    )
    tokenizer: Annotated[FolderSource | None, Accepts(("tokenizer",))] = Field(
        None, description="cuts the text; a model that is there already brings its own"
    )
    labels: dict[str | int, str] | None = Field(
        None, description="a name for each label of the data, {0: hate, 1: fine}; those of one name become one class"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: the rows of a rare class weigh as much as those of a common one"
    )
    context: Count = Field(128, description="tokens the model sees of a text; the rest is cut off")
    trainer: Annotated[dict[str, Any], Passthrough("transformers.TrainingArguments", TRAINER_RESERVED)] = Field(
        default_factory=dict, description="options of transformers.TrainingArguments, as they are"
    )

    def unused_inputs(self) -> frozenset[str]:
        """A model that is there already has a tokenizer."""
        made = isinstance(self.model, SizedModel | BuiltModel)
        return frozenset() if made else frozenset({"tokenizer"})

    @field_validator("model")
    @classmethod
    def _can_classify(cls, model: Model) -> Model:
        if isinstance(model, BuiltModel) and not {*architectures("masked"), *architectures("causal")} & {model.arch}:
            problem = f"{model.arch} is an encoder-decoder; bert, modernbert and llama are none"
            raise PydanticCustomError("arch", "{problem}", {"problem": problem})
        return model

    @model_validator(mode="after")
    def _batch_is_said_once(self) -> Settings:
        return self.batch_said_once(self.trainer)


def produces(_settings: Settings) -> Artifact:
    """Say what comes out."""
    return "classifier"


def run(settings: Settings, ctx: Context) -> Result:
    """Write the texts as tokens, train, measure on held-out texts, save."""
    from transformers import TrainingArguments, set_seed

    from llmpipe.training import arguments, class_trainer, flow, models

    set_seed(ctx.seed)
    texts, classes, facts = read_data(settings, ctx)
    model, tokenizer = make_model(settings, classes, ctx)
    train, held_out, cut = encode(settings, texts, tokenizer, ctx)
    args = arguments.build(
        TrainingArguments,
        ctx,
        settings,
        options=settings.trainer,
        stage_defaults=FRESH_DEFAULTS if isinstance(settings.model, SizedModel | BuiltModel) else DEFAULTS,
        rows=len(train),
        row_tokens=max(row.tokens for row in train),
        measured=len(held_out) > 0,
        width=model.config.hidden_size,
    )
    ctx.explain(
        f"A classifier learns to tell {len(classes)} classes apart from {len(train):,} texts; {len(held_out):,} are "
        "held out to see how often it is right about texts that it never saw."
    )
    weights = None
    if settings.class_weights == "balanced":
        weights = class_trainer.balanced([row.label for row in train], len(classes))
    trainer = class_trainer.ClassTrainer(model, tokenizer, args=args, train=train, held_out=held_out, weights=weights)
    metrics = flow.fit(trainer, ctx, settings) | facts | cut | measures(trainer, ctx)
    if ctx.rank:
        return Result(outputs=["model"], metrics={})
    folder = ctx.output("classifier")
    models.save(trainer.model, tokenizer, folder)
    probes = [text for text, _ in texts[1] or texts[0]]
    with ctx.checking():
        checks = class_trainer.gates(trainer, folder, probes, train, context=settings.context)
    return Result(outputs=["model"], metrics=metrics, gates=checks)


Texts = list[tuple[str, int]]


def read_data(settings: Settings, ctx: Context) -> tuple[tuple[Texts, Texts], list[str], dict[str, Any]]:
    """Return the texts to train on and those held out, each with its class; the classes' names; and counts."""
    from llmpipe.data.classes import classes_of
    from llmpipe.data.sources import read_classed
    from llmpipe.data.split import split_by_prompt

    assert settings.data is not None
    ctx.progress(doing="reading texts")
    found = list(read_classed(settings.data, ctx))
    names = None if settings.labels is None else {str(label): name for label, name in settings.labels.items()}
    index_of, classes = classes_of([one for _, one in found], names)
    train, held_out = (
        [(one.text, index_of[one.label]) for _, one in side]
        for side in split_by_prompt(found, share=settings.held_out.share)
    )
    counts = {name: sum(label == index for _, label in train) for index, name in enumerate(classes)}
    ctx.say(f"{len(classes)} classes: {', '.join(f'{name} ({count:,})' for name, count in counts.items())}")
    return (train, held_out), classes, {"rows": len(train), "held_out_rows": len(held_out), "rows_by_class": counts}


def make_model(settings: Settings, classes: list[str], ctx: Context) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Build the classifier that the settings describe, or put a head on the model to begin from."""
    from llmpipe.training import classifier, models

    if isinstance(settings.model, SizedModel | BuiltModel):
        assert settings.tokenizer is not None
        tokenizer = models.load_tokenizer(settings.tokenizer, ctx)
        arch, config = described(settings.model, vocab_size=len(tokenizer))
        model = classifier.build(arch, config, classes, tokenizer=tokenizer, context=settings.context)
    else:
        assert settings.model is not None
        model, tokenizer = classifier.load(settings.model, ctx, classes)
        models.fitting_context(model, settings.context)
    models.mend_pad(model, tokenizer, ctx)
    if settings.dropout is not None:
        models.set_dropout(model, settings.dropout, ctx)
    classifier.mark(tokenizer)
    tokenizer.model_max_length = settings.context
    return model, tokenizer


def described(model: SizedModel | BuiltModel, *, vocab_size: int) -> tuple[str, dict[str, Any]]:
    """Return the architecture that the settings name, and its configuration; a size is that of an encoder."""
    from llmpipe.training import shapes

    if isinstance(model, BuiltModel):
        return model.arch, model.config
    shape = shapes.dial(model.size, vocab_size=vocab_size, objective="masked")
    # the mean of all tokens: nobody has taught the first one to sum up
    return shapes.FAMILIES["masked"], shape | {"classifier_pooling": "mean"}


def encode(
    settings: Settings, texts: tuple[Texts, Texts], tokenizer: PreTrainedTokenizerBase, ctx: Context
) -> tuple[list[Encoded], list[Encoded], dict[str, int]]:
    """Return the rows to train on, those to measure, and how many texts were cut off."""
    from llmpipe.training import classifier
    from llmpipe.training.pairs import measurable

    sides, cut = [], 0
    for side in texts:
        ids = classifier.write([text for text, _ in side], tokenizer, context=settings.context) if side else []
        rows = [classifier.Encoded(own, label) for own, (_, label) in zip(ids, side, strict=True)]
        cut += classifier.too_long([text for text, _ in side], rows, tokenizer, context=settings.context)
        sides.append(rows)
    if cut:
        count = sum(map(len, sides))
        ctx.say(f"{cut:,} of {count:,} texts ({cut / count:.0%}) are longer than {settings.context} tokens: cut off")
    return sides[0], measurable(sides[1], max_tokens=settings.held_out.max_tokens), {"cut_rows": cut}


def measures(trainer: Any, ctx: Context) -> dict[str, Any]:
    """Measure the kept model on the held-out texts, beside what naming the commonest class would come to."""
    from llmpipe.evaluation.classes import measure

    if not trainer.eval_dataset:
        return {}
    found: dict[str, Any] = trainer.measured()[1]
    names, rows = list(found["by_class"]), [own["rows"] for own in found["by_class"].values()]
    commonest = rows.index(max(rows))
    guess = measure([[count * (column == commonest) for column in range(len(rows))] for count in rows], names)
    ctx.say(
        f"right about {found['accuracy']:.1%} of {sum(rows):,} held-out texts, macro-F1 {found['macro_f1']:.3f}; "
        f"{names[commonest]!r} every time would be {guess['accuracy']:.1%} and {guess['macro_f1']:.3f}"
    )
    return found | {f"{key}_before": guess[key] for key in ("accuracy", "macro_f1")}
