"""The vocabulary that all stages share: strict models, sources, counts, and what a field accepts.

A stage's `Settings` is built from these. Nothing here touches a disk or imports torch. Sources say where an input
comes from: `{stage: base}` (or the bare name `base`), `{path: "texts/*.txt"}`, `{hub: owner/name, revision: SHA}`,
`{gguf: FILE}`, `{builtin: storyworld}`; a list mixes data by `weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from llmpipe.reading import Columns, Noise, OnBadRows, RowFormat, Streaming, Style, Weight

Artifact = Literal[
    "dataset", "tokenizer", "causal-lm", "masked-lm", "seq2seq-lm", "classifier", "adapter", "reward-model", "scores"
]
"""What a stage hands on. An edge is valid when the consumer's field accepts the producer's artifact."""

STAGE_NAME = r"^[a-z][a-z0-9_-]{0,63}$"


class Strict(BaseModel):
    """A pydantic model that refuses unknown keys and does not turn one type into another."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Accepts:
    """Field metadata: the artifacts that a stage reference in this field may have.

    `fill`: an omitted field is filled with the earlier stage that fits, when there is exactly one.
    `same_as`: another field; where it holds exactly one stage, an omitted field is what that stage reads in the field
    of the same name.
    """

    artifacts: tuple[Artifact, ...]
    fill: bool = True
    same_as: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether a path in this field is a model or tokenizer folder rather than data files."""
        return "dataset" not in self.artifacts


@dataclass(frozen=True)
class Passthrough:
    """Field metadata: a mapping whose keys are options of a Hugging Face class, never renamed.

    `config_class` is checked from its source, without importing it. `reserved` maps each option that llmpipe sets
    itself to the reason, with what to type instead.
    """

    config_class: str
    reserved: dict[str, str]


class StageSource(Strict):
    """The output of another stage of the same recipe."""

    stage: str = Field(description="name of an earlier stage")
    weight: Weight = 1.0


class PathSource(Strict):
    """Files: a path or a glob, relative to the recipe."""

    path: str = Field(min_length=1, description="file, folder or glob; relative to the recipe file")
    format: RowFormat = None
    columns: Columns = None
    on_bad_rows: OnBadRows = "error"
    weight: Weight = 1.0


class HubSource(Strict):
    """A repository on the Hugging Face hub."""

    hub: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", description="repository id, such as HuggingFaceTB/SmolLM2-135M")
    revision: str | None = Field(None, description="commit; the first run locks the newest when left out")
    split: str = Field("train", description="split of a data set")
    name: str | None = Field(None, description="configuration of a data set")
    streaming: Streaming = False
    format: RowFormat = None
    columns: Columns = None
    on_bad_rows: OnBadRows = "error"
    weight: Weight = 1.0


class GgufSource(Strict):
    """A model in one GGUF file."""

    gguf: str = Field(pattern=r"(?i)^.+\.gguf$", description="a model's GGUF file; relative to the recipe file")
    weight: Weight = 1.0


class BuiltinSource(Strict):
    """A corpus that ships with llmpipe and is generated on the spot."""

    builtin: Literal["storyworld"] = Field(description="storyworld: children's stories from a small grammar")
    rows: int | None = Field(None, gt=0, description="stories or conversations to generate")
    style: Style = None
    noise: Noise = 0
    weight: Weight = 1.0


class FunctionSource(Strict):
    """A Python function, in a file beside the recipe; run only with --allow-code."""

    function: str = Field(pattern=r"^.+\.py:[A-Za-z_]\w*$", description="FILE.py:NAME, relative to the recipe file")
    weight: float = Field(1.0, description="what its score is multiplied by")


SOURCE_KEYS = ("stage", "path", "hub", "gguf", "builtin", "function", "size", "arch")


def source_key(value: Any) -> str | None:
    """Tell the kind of a source from the key that names it."""
    keys = value if isinstance(value, dict) else value.model_dump() if isinstance(value, BaseModel) else {}
    return next((key for key in SOURCE_KEYS if key in keys), None)


def _one_source(value: Any) -> Any:
    """Read a bare text as a stage's name; refuse what names no source or several (a discriminator may not)."""
    if isinstance(value, str):
        return {"stage": value}
    if source_key(value) is None:
        message = "say where it comes from: {stage: NAME}, {path: FILE}, {hub: ID}, or just a stage's name"
        raise PydanticCustomError("source", message)
    if isinstance(value, dict) and len(found := [key for key in SOURCE_KEYS if key in value]) > 1:
        raise PydanticCustomError("source", "name one source, not both {keys}", {"keys": " and ".join(found)})
    return value


bare_name = BeforeValidator(_one_source)
"""A bare text where a source is expected is a stage's name."""

DataSource = Annotated[
    Annotated[StageSource, Tag("stage")]
    | Annotated[PathSource, Tag("path")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[BuiltinSource, Tag("builtin")],
    Discriminator(source_key),
    bare_name,
]
FolderSource = Annotated[
    Annotated[StageSource, Tag("stage")]
    | Annotated[PathSource, Tag("path")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[GgufSource, Tag("gguf")],
    Discriminator(source_key),
    bare_name,
]
"""A folder in the Hugging Face format, a model or a tokenizer; or a GGUF file, which becomes one."""

RewardSource = Annotated[
    Annotated[StageSource, Tag("stage")]
    | Annotated[PathSource, Tag("path")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[FunctionSource, Tag("function")],
    Discriminator(source_key),
    bare_name,
]
"""What scores an answer: a reward model, or a function."""

AnySource = StageSource | PathSource | HubSource | GgufSource | BuiltinSource | FunctionSource


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


DataSources = Annotated[list[DataSource], BeforeValidator(_as_list), Field(min_length=1)]
FolderSources = Annotated[list[FolderSource], BeforeValidator(_as_list), Field(min_length=1)]
RewardSources = Annotated[list[RewardSource], BeforeValidator(_as_list), Field(min_length=1)]

_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


def _count(value: Any) -> Any:
    """Read `64k`, `1.5M`, `3B` as integers (powers of ten); leave the rest to pydantic."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", value)
    if not match:
        raise PydanticCustomError("count", "write a count such as 512, 64k, 10M or 1.5B", {})
    return int(float(match[1]) * _SUFFIXES[match[2]])


Count = Annotated[
    int,
    BeforeValidator(_count),
    Field(gt=0),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^\d+(\.\d+)?[kMB]?$"}]}
    ),
]
"""A number of tokens or parameters; `64k`, `10M` and `1.5B` are powers of ten."""


def is_count(metadata: Iterable[Any]) -> bool:
    """Tell a `Count` by a field's metadata; pydantic keeps no name of it."""
    return any(isinstance(extra, BeforeValidator) and extra.func is _count for extra in metadata)


class StageSettings(Strict):
    """Base of all `Settings`; `kind` is narrowed by each stage."""

    kind: str = Field(description="which stage this is")

    def unused_inputs(self) -> frozenset[str]:
        """Name the inputs that these settings do without, so that leaving them out is no mistake."""
        return frozenset()

    def lineage_problem(self, ancestors: set[str]) -> str | None:
        """Say what these settings miss among the kinds of the stages that lead here, or None."""
        del ancestors
        return None


class HeldOut(Strict):
    """How many rows are kept from training to measure it.

    A document (or a conversation, by its prompt) is held out when its hash says so, so that the choice does not move
    when rows are added. A corpus of fewer than 20 documents gives the tail of each.
    """

    share: float = Field(default=0.05, ge=0, lt=1, description="share of the rows; 0 trains on everything")
    max_tokens: Count = Field(default=500_000, description="most held-out tokens to measure at each evaluation")


TRAINER_RESERVED = {
    "output_dir": "the run directory decides where a stage writes; use --run",
    "overwrite_output_dir": "llmpipe moves an older output to .history itself",
    "seed": "set `seed:` at the top of the recipe",
    "data_seed": "set `seed:` at the top of the recipe",
    "resume_from_checkpoint": "the same command resumes by itself",
    "do_train": "a stage always trains",
    "do_eval": "set `held_out:` of the stage",
    "do_predict": "use an eval stage",
    "load_best_model_at_end": "set `keep: best` or `keep: last` of the stage",
    "metric_for_best_model": "the held-out loss decides; see `keep:`",
    "greater_is_better": "the held-out loss decides; see `keep:`",
    "bf16": "set `precision:` of the stage",
    "fp16": "set `precision:` of the stage",
    "tf32": "set `precision:` of the stage",
    "remove_unused_columns": "llmpipe prepares the columns itself",
    "save_total_limit": "llmpipe keeps the newest complete checkpoint and the best one",
    "push_to_hub": "nothing is sent anywhere by a training stage",
    "use_cpu": "the device is found by itself; hide a GPU with CUDA_VISIBLE_DEVICES=''",
    "disable_tqdm": "llmpipe draws the progress itself; see --json",
    "logging_nan_inf_filter": "a non-finite loss always stops the run",
}
"""Options of TrainingArguments that are not the user's to set, with what to do instead."""

COSMETIC = frozenset(
    {"logging_steps", "logging_first_step", "log_level", "report_to", "run_name", "dataloader_num_workers"}
)
"""Options under `trainer:` that cannot change a stage's output, and so are left out of its fingerprint."""


class TrainingSettings(StageSettings):
    """What every training stage understands beside its own keys."""

    held_out: HeldOut = Field(default_factory=HeldOut, description="rows kept from training, to measure it")
    micro_batch_tokens: Count = Field(
        8192, description="most tokens per forward pass and process when batch_tokens is set; lower it to save memory"
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="set every dropout the architecture has")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto measures what the device does well"
    )
    early_stopping: int | None = Field(None, gt=0, description="stop after this many evaluations without a better one")
    keep: Literal["best", "last"] = Field("best", description="which checkpoint becomes the output, by held-out loss")


class SupervisedSettings(TrainingSettings):
    """What the stages that learn from rows understand: a batch may be said in tokens."""

    batch_tokens: Count | None = Field(
        None, description="tokens per optimizer step over all processes, such as 64k; sets micro-batch and accumulation"
    )

    def batch_said_once(self, trainer: dict[str, Any]) -> Self:
        """Refuse a batch that is set twice: by `batch_tokens` and by the trainer's own options.

        Raises:
            ValueError: for pydantic to place in the recipe.
        """
        said = [key for key in ("per_device_train_batch_size", "gradient_accumulation_steps") if key in trainer]
        if self.batch_tokens and said:
            raise ValueError(f"batch_tokens already sets trainer.{said[0]}; leave one of them out")
        return self
