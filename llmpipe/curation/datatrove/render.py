"""Writes the pipeline: `pipeline.py`, which anybody can read and change, and a README with the commands.

Nothing here imports datatrove, so that a pipeline for a cluster can be written where datatrove is not.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from llmpipe.curation.datatrove import Datatrove
from llmpipe.curation.datatrove.layout import Block, Job

LINE = 100
EXECUTORS = {"local": "LocalPipelineExecutor", "slurm": "SlurmPipelineExecutor", "ray": "RayPipelineExecutor"}
PLACES = {"local": "this machine", "slurm": "Slurm", "ray": "Ray"}
FROM = {
    "datatrove.pipeline.dedup": (
        "MinhashConfig",
        "MinhashDedupBuckets",
        "MinhashDedupCluster",
        "MinhashDedupFilter",
        "MinhashDedupSignature",
    ),
    "datatrove.pipeline.dedup.exact_dedup": (
        "ExactDedupConfig",
        "ExactDedupFilter",
        "ExactDedupSignature",
        "ExactFindDedups",
    ),
    "datatrove.pipeline.filters": (
        "C4QualityFilter",
        "FineWebQualityFilter",
        "GopherQualityFilter",
        "GopherRepetitionFilter",
    ),
    "datatrove.pipeline.readers": ("JsonlReader", "ParquetReader"),
    "datatrove.pipeline.writers.jsonl": ("JsonlWriter",),
    "llmpipe.curation.datatrove.blocks": ("AS_OURS", "SHA1", "Size", "Spaces", "Step", "Words", "spaced_once"),
}
"""Where a name in a pipeline comes from."""


@dataclass(frozen=True)
class Target:
    """What a pipeline is written for: the stage by its name, its engine, and the tasks that may be at work at once."""

    stage: str
    engine: Datatrove
    at_once: int | None


def pipeline(jobs: list[Job], target: Target) -> str:
    """Return the text of pipeline.py."""
    executor = EXECUTORS[target.engine.executor]
    body = "\n".join(f"    last = {_job(job)}" for job in jobs)
    options = "".join(f"        {key}={value!r},\n" for key, value in _options(target).items())
    return f'''"""{target.stage}: the steps of its recipe as a datatrove pipeline for {PLACES[target.engine.executor]}.

Written by llmpipe; the README beside this file says how to run it.
"""

from pathlib import Path

{_imports(body, target.engine.executor)}

HERE = Path(__file__).resolve().parent
TASKS = {target.engine.tasks}


def here(name):
    return str(HERE / name)


def work(name):
    """What a job hands on to the next; `llmpipe clean` deletes it once the stage is done."""
    return str(HERE.parent / "checkpoints" / "checkpoint-0" / name)


def job(name, blocks, *, after, tasks=TASKS):
    return {executor}(
        blocks,
        tasks=tasks,
{options}        logging_dir=here("logs/" + name),
        depends=after,
    )


def pipeline():
    """Return the last job; it sees to it that those before it run first."""
{body}
    return last


if __name__ == "__main__":
    pipeline().run()
'''


def _options(target: Target) -> dict[str, Any]:
    """Return what the executor is told beside its tasks."""
    engine, at_once = target.engine, {"workers": target.at_once or -1}
    if engine.executor == "local":
        return at_once
    memory: dict[str, Any] = {**at_once, "mem_per_cpu_gb": engine.memory_gb}
    if engine.executor == "ray":
        return memory
    slurm = {"partition": engine.partition, "time": engine.time, "job_name": target.stage, "mail_type": "NONE"}
    return memory | slurm | ({"env_command": engine.environment} if engine.environment else {})


def _imports(body: str, executor: str) -> str:
    used = set(re.findall(r"\w+", body))
    lines = [f"from datatrove.executor.{executor} import {EXECUTORS[executor]}"]
    for module, names in FROM.items():
        if found := sorted(used.intersection(names)):
            line = f"from {module} import {', '.join(found)}"
            listed = "".join(f"    {name},\n" for name in found)
            lines.append(line if len(line) <= LINE else f"from {module} import (\n{listed})")
    ours = [line for line in lines if line.startswith("from llmpipe")]
    return "\n".join([line for line in lines if line not in ours] + ([""] if ours else []) + ours)


def _job(job: Job) -> str:
    after = "None" if job.name.startswith("1-") else "last"
    tasks = "" if job.tasks == "TASKS" else f"\n        tasks={job.tasks},"
    blocks = "".join(f"            {_call(block)},\n" for block in job.blocks)
    return f'job(\n        "{job.name}",\n        [\n{blocks}        ],\n        after={after},{tasks}\n    )'


def _call(block: Block) -> str:
    """Write a call, on several lines where one is too long."""
    parts = [*map(_literal, block.arguments), *(f"{key}={_literal(value)}" for key, value in block.options.items())]
    line = f"{block.name}({', '.join(parts)})"
    if len(line) <= LINE - 12:
        return line
    return f"{block.name}(\n" + "".join(f"                {part},\n" for part in parts) + "            )"


def _literal(value: Any) -> str:
    """Write a value as a person would: texts in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        inside = ", ".join(map(_literal, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(one)}" for key, one in value.items()) + "}"
    return repr(value)


def readme(jobs: list[Job], target: Target) -> str:
    """Return the text of README.md."""
    place, tasks = PLACES[target.engine.executor], target.engine.tasks
    listed = "\n".join(f"- `{job.name}`: {', '.join(dict.fromkeys(one.name for one in job.blocks))}" for job in jobs)
    return f"""# {target.stage}, by datatrove

`pipeline.py` is the list of steps of the recipe, as {len(jobs)} jobs of {tasks} tasks each for {place}.
{BEGIN[target.engine.executor]}

    python pipeline.py

The same command again runs what is left: a task that is done has a file in `logs/JOB/completions/`.

When all is done, give `llmpipe run` again: it reads what the last job wrote, splits it, and goes on with the stages
after this one. Jobs write to `../checkpoints/`, which `llmpipe clean` deletes once the stage is done.

{listed}
"""


BEGIN = {
    "local": "`llmpipe run` does this by itself; by hand it is",
    "slurm": "Give this on a machine that may call `sbatch`. It and the nodes have to see this folder and the data\n"
    "under the same paths, and need `pip install 'llmpipe[datatrove]'`.",
    "ray": "Give this where the Ray cluster is reached (`RAY_ADDRESS`). It and the nodes have to see this folder and\n"
    "the data under the same paths, and need `pip install 'llmpipe[datatrove]' 'ray[default]'`.",
}
"""How a pipeline is begun."""
