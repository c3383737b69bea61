"""The steps of a curate stage as a datatrove pipeline, for corpora that are too much for one machine.

    corpus:
      kind: curate
      data: {path: "crawl/*.jsonl.gz"}
      engine: {name: datatrove, executor: slurm, tasks: 500, partition: cpu, time: "20:00:00"}
      steps: [quality, near_duplicates, pii]

`render` writes the pipeline, plain Python that may be read and changed; it needs no datatrove. `blocks` is what the
pipeline takes from llmpipe. `jobs` runs it here, or says how to, and reads what came out.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from llmpipe.settings import BuiltinSource, HubSource, Strict

READABLE = re.compile(r"\.(jsonl(\.gz|\.zst)?|parquet)$")


class Datatrove(Strict):
    """Where the pipeline runs, and in how many parts."""

    name: Literal["datatrove"] = Field(description="which engine this is")
    executor: Literal["local", "slurm", "ray"] = Field(
        "local", description="local runs the pipeline here; for the others it is written, and you submit it"
    )
    tasks: int = Field(8, ge=1, description="parts that the work is cut into; a file of the data is in one of them")
    memory_gb: int = Field(4, ge=1, description="slurm and ray: memory of a task")
    partition: str | None = Field(None, description="slurm: the partition")
    time: str | None = Field(None, description='slurm: the most time of a task, such as "20:00:00"')
    environment: str | None = Field(
        None, description="slurm: a shell command that brings up the Python environment on a node"
    )

    @model_validator(mode="after")
    def _cluster_is_described(self) -> Self:
        slurm = {"partition": self.partition, "time": self.time}
        if self.executor == "slurm" and (missing := [key for key, value in slurm.items() if value is None]):
            told = f"slurm needs to know the {' and the '.join(missing)} of its jobs"
            raise PydanticCustomError("step", "{told}", {"told": told})
        said = [key for key, value in (slurm | {"environment": self.environment}).items() if value is not None]
        if self.executor != "slurm" and said:
            told = f"`{said[0]}:` is for the executor slurm, and this one is {self.executor}"
            raise PydanticCustomError("step", "{told}", {"told": told})
        return self


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Engine = Annotated[Datatrove, BeforeValidator(_named, json_schema_input_type=Literal["datatrove"] | Datatrove)]
"""What takes documents through the steps in place of llmpipe's own engine: a bare name, or {name: NAME, ...}."""


def problem(steps: list[Any], data: list[Any], *, bias_report: bool) -> str | None:
    """Say what of a stage datatrove cannot do, with what to do instead; None where it can do all."""
    for step in steps:
        if step.step == "reweight":
            return (
                "datatrove looks at one text at a time, and reweight has to see all of them first; "
                "put it into a curate stage after this one"
            )
        if step.step == "exact_duplicates" and step.of == "paragraphs":
            return (
                "datatrove compares spans of sentences, and no paragraphs of a least length; "
                "put {step: exact_duplicates, of: paragraphs} into a curate stage of its own"
            )
    if bias_report:
        return "the bias report is counted by llmpipe's own engine; leave out `engine:` or `bias_report:`"
    for source in data:
        if isinstance(source, HubSource | BuiltinSource):
            return (
                "datatrove reads files, {path: FILES}, and what another stage has written; "
                "a curate stage with llmpipe's own engine before this one makes files of anything"
            )
        if source.weight != 1:
            return "datatrove reads every document once; leave out `weight:`, which is for the stages after this one"
    return None
