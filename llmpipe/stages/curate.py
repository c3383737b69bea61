"""curate: makes better text of text, by a list of steps. Reads text; writes `data/`, split, and `curation.json`.

    corpus:
      kind: curate
      data: {path: "texts/*.jsonl"}
      steps: [repair, {step: language, keep: [en]}, quality, exact_duplicates, near_duplicates]

The steps are taken in the order of the recipe. `curation.json` says what each of them did, with examples. Stages that
read this one train on `data/train-*.jsonl` and measure on `data/validation.jsonl`. docs/curate.md says how well the
steps do, and docs/curate-people.md what those do that look at what a text says about people.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from llmpipe.context import Context, Result
from llmpipe.curation import Document, datatrove
from llmpipe.curation.steps import Step
from llmpipe.machine import cores
from llmpipe.settings import Accepts, Artifact, BuiltinSource, DataSources, FolderSource, StageSettings, Strict

if TYPE_CHECKING:
    from llmpipe.curation.engine import Account
    from llmpipe.curation.output import Size

VERSION = 1

SAMPLE_DOCUMENTS = 1_000


class Split(Strict):
    """Which texts are set aside."""

    validation: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="share of the texts, by their hash, that stages after this measure on",
    )


class Settings(StageSettings):
    """What `kind: curate` understands."""

    kind: Literal["curate"] = Field("curate", description="which stage this is")
    data: Annotated[DataSources | None, Accepts(("dataset",))] = Field(None, description="text to clean")
    steps: list[Step] = Field(
        min_length=1, description="what is done, in this order: a step's name, or {step: NAME, ...} with its options"
    )
    split: Split = Field(default_factory=Split, description="which texts are set aside")
    evaluation: Annotated[DataSources | None, Accepts(("dataset",), fill=False)] = Field(
        None, description="what models will be evaluated on, for the step decontaminate"
    )
    classifier: Annotated[FolderSource | None, Accepts(("classifier",), fill=False)] = Field(
        None,
        exclude_if=lambda source: source is None,
        description="tells toxic texts, for a step {step: toxicity, labels: [...]}; a stage, or {path: FOLDER}",
    )
    engine: datatrove.Engine | None = Field(
        None,
        exclude_if=lambda engine: engine is None,
        description="datatrove, or {name: datatrove, executor: slurm, tasks: 500, ...}; llmpipe's own when left out",
    )
    bias_report: bool = Field(False, description="count groups of people, and what goes with them, before and after")
    processes: int | None = Field(None, ge=1, description="processes at work; one for each core when left out")

    def unused_inputs(self) -> frozenset[str]:
        """Evaluation files and a classifier are for one step each."""
        return frozenset({"evaluation", "classifier"})

    @model_validator(mode="after")
    def _evaluation_is_used(self) -> Settings:
        wanted = any(step.step == "decontaminate" for step in self.steps)
        if wanted and self.evaluation is None:
            raise ValueError("decontaminate needs to know what to look for: evaluation: {path: FILES}")
        if self.evaluation is not None and not wanted:
            raise ValueError("no step reads `evaluation:`; add decontaminate to the steps, or leave it out")
        return self

    @model_validator(mode="after")
    def _classifier_is_used(self) -> Settings:
        wanted = any(step.step == "toxicity" and step.labels for step in self.steps)
        if wanted and self.classifier is None:
            raise ValueError("toxicity with `labels:` needs what tells them: classifier: STAGE, or {path: FOLDER}")
        if self.classifier is not None and not wanted:
            raise ValueError("no step reads `classifier:`; write {step: toxicity, labels: [...]}, or leave it out")
        return self

    @model_validator(mode="after")
    def _engine_can(self) -> Settings:
        if self.engine and (told := datatrove.problem(self.steps, self.data or [], bias_report=self.bias_report)):
            raise ValueError(told)
        return self


def produces(_settings: Settings) -> Artifact:
    """Say what comes out."""
    return "dataset"


def run(settings: Settings, ctx: Context) -> Result:
    """Take all documents through the steps, and write what is left."""
    from llmpipe.artifact import write_json, write_text
    from llmpipe.curation.bias_picture import picture
    from llmpipe.curation.datatrove import jobs
    from llmpipe.curation.engine import Account
    from llmpipe.curation.output import Size, write
    from llmpipe.data.split import sides

    if ctx.rank:
        return Result([], {})
    assert settings.data is not None
    account, before, after, folder = Account(), Size(), Size(), ctx.output("dataset")
    if settings.engine is None:
        cleaned = clean(settings, ctx, before.watch(documents(settings, ctx)), account, folder=ctx.dir / "work")
    else:
        cleaned = jobs.documents(settings, ctx, given_to_steps(settings, ctx), account, before)
    texts = (document.text for document in after.watch(cleaned))
    folder.mkdir(exist_ok=True)
    written = write(sides(texts, share=settings.split.validation), folder)
    refuse_nothing(after, account)
    facts = measures(before, after) | written | against_the_key(settings, ctx)
    told = report(account, facts)
    write_json(ctx.dir / "curation.json", told)
    outputs = ["data", "curation.json"]
    if "bias" in told:
        write_text(ctx.dir / "bias.svg", picture(told["bias"]))
        outputs.append("bias.svg")
    ctx.explain(
        f"Curation looks at every text before a model does: {after.documents:,} of {before.documents:,} documents "
        f"({before.bytes / 1e6:.1f} MB) are left; {written['validation_documents']:,} are set aside to measure on."
    )
    return Result(outputs=outputs, metrics=facts)


def sample(settings: Settings, ctx: Context, folder: Path) -> dict[str, Any]:
    """Try the steps on the first documents; returns what curation.json would say, and writes below `folder` only."""
    from llmpipe.curation.engine import Account
    from llmpipe.curation.output import Size

    assert settings.data is not None
    account, before, after = Account(), Size(), Size()
    first = before.watch(islice(documents(settings, ctx), SAMPLE_DOCUMENTS))
    for _ in after.watch(clean(settings, ctx, first, account, folder=folder)):
        pass
    return report(account, measures(before, after))


def documents(settings: Settings, ctx: Context) -> Iterator[Document]:
    """Yield the documents to clean, all of them where they are another stage's."""
    from llmpipe.data.sources import read_documents

    return (Document(text, row.where) for row, text in read_documents(settings.data or [], ctx, part="all"))


def clean(
    settings: Settings, ctx: Context, found: Iterable[Document], account: Account, *, folder: Path
) -> Iterator[Document]:
    """Yield what the steps leave of the documents; files of the engine come into `folder`, which goes again."""
    from llmpipe.curation.crew import Crew
    from llmpipe.curation.engine import Engine
    from llmpipe.errors import StoppedError

    def progress(**numbers: Any) -> None:
        ctx.progress(**numbers)
        if how := ctx.stop_requested():
            hint = "the same command begins this stage again"
            raise StoppedError("stopped; nothing of this stage is kept", hint=hint, interrupted=how == "interrupt")

    given = given_to_steps(settings, ctx)
    folder.mkdir(exist_ok=True)
    try:
        with Crew(settings.processes or cores()) as crew:
            engine = Engine(folder, crew, progress, given, settings.bias_report)
            yield from engine.run(found, settings.steps, account)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def given_to_steps(settings: Settings, ctx: Context) -> dict[int, Any]:
    """Return what steps are given beside their settings, by their place: hashes of the evaluation, a model's folder."""
    from llmpipe.curation.decontaminate import hashes_of
    from llmpipe.curation.toxicity import refuse_unknown
    from llmpipe.data.sources import rows_of

    given: dict[int, Any] = {}
    for number, step in enumerate(settings.steps):
        if step.step == "decontaminate":
            given[number] = hashes_of((row.value for row in rows_of(settings.evaluation or [], ctx)), step)
        elif step.step == "toxicity" and step.labels:
            assert settings.classifier is not None
            given[number] = ctx.folder_of(settings.classifier)
            refuse_unknown(step.labels, given[number])
    return given


def refuse_nothing(after: Size, account: Account) -> None:
    """Refuse steps that leave no text, naming the one that dropped most."""
    from llmpipe.errors import DataError

    if not after.documents:
        most = max(account.tallies, key=lambda tally: tally.dropped)
        why = ", ".join(name for name, _ in most.found.most_common(3))
        hint = f"{most.step} dropped {most.dropped:,} documents ({why}); ask less of it"
        raise DataError("no text is left", hint=hint)


def against_the_key(settings: Settings, ctx: Context) -> dict[str, Any]:
    """Compare what was written with what was planted, where all of the text is storyworld with faults."""
    from llmpipe.artifact import read_lines
    from llmpipe.data.noise import score
    from llmpipe.data.sources import planted_stories

    sources = settings.data or []
    if len(sources) != 1 or not isinstance(sources[0], BuiltinSource) or not sources[0].noise:
        return {}
    written = (row["text"] for path in sorted(ctx.output("dataset").iterdir()) for row in read_lines(path))
    return score(written, planted_stories(sources[0], seed=ctx.seed))


def measures(before: Size, after: Size) -> dict[str, Any]:
    """Return the metrics of a run: documents and text, with their twins from before."""
    return {
        "documents": after.documents,
        "documents_before": before.documents,
        "megabytes": round(after.bytes / 1e6, 3),
        "megabytes_before": round(before.bytes / 1e6, 3),
    }


def report(account: Account, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what curation.json says."""
    from llmpipe.curation import bias

    people = {"bias": bias.report(account.before, account.after)} if account.before else {}
    return {**facts, "steps": [tally.as_json() for tally in account.tallies], **people}
