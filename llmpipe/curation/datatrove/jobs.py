"""From the settings of a stage to the documents that a datatrove pipeline leaves: written, run, read.

A pipeline that runs elsewhere ends the stage with the command that submits it. The next `llmpipe run` finds the same
folder, since what the jobs hand on lies where a training stage has its checkpoints, and reads the output once it is
whole.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpipe.artifact import write_text
from llmpipe.checkpoints import is_complete, mark_complete
from llmpipe.context import Context
from llmpipe.curation import Document
from llmpipe.curation.datatrove import READABLE, layout, render
from llmpipe.curation.datatrove.layout import Block, Code, Job
from llmpipe.curation.tally import Tally
from llmpipe.data.rows import expand, shown
from llmpipe.errors import DataError, Problem, StageError, StoppedError
from llmpipe.machine import cores
from llmpipe.settings import PathSource, StageSource

if TYPE_CHECKING:
    from llmpipe.curation.engine import Account
    from llmpipe.curation.output import Size
    from llmpipe.stages.curate import Settings

PYTHON = sys.executable
LOOK_EVERY_S = 0.2
ERROR = re.compile(r"^\w+(?:Error|Exception): .*", re.MULTILINE)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline in the folder of a stage."""

    ctx: Context
    settings: Settings
    jobs: list[Job]

    @property
    def folder(self) -> Path:
        """Where it is written."""
        return self.ctx.dir / "datatrove"

    @property
    def work(self) -> Path:
        """What jobs hand on. Its marker has a plan go on with the stage, and `llmpipe clean` finds it."""
        return self.ctx.checkpoints / "checkpoint-0"

    def tasks(self, job: Job) -> int:
        """How many tasks a job has."""
        assert self.settings.engine is not None
        return self.settings.engine.tasks if job.tasks == "TASKS" else int(job.tasks)

    def done(self, job: Job) -> int:
        """How many of them are done."""
        return len(list((self.folder / "logs" / job.name / "completions").glob("*")))

    def unfinished(self) -> Job | None:
        """Return the first job that is not done."""
        return next((job for job in self.jobs if self.done(job) < self.tasks(job)), None)


def documents(
    settings: Settings, ctx: Context, given: dict[int, Any], account: Account, before: Size
) -> Iterator[Document]:
    """Yield what the pipeline leaves, once it has run; `account` and `before` are what its jobs counted.

    Raises:
        StageError: it has to be run elsewhere, or it failed here.
        DataError: a file of the data is one that datatrove does not read.
    """
    made = written(settings, ctx, given)
    assert settings.engine is not None
    if made.unfinished() is not None and settings.engine.executor == "local":
        _run_here(made)
    if (job := made.unfinished()) is not None:
        _refuse(made, job)
    statistics = {job.name: list(zip(job.blocks, _statistics(made.folder, job), strict=True)) for job in made.jobs}
    size = statistics[made.jobs[0].name][made.jobs[0].blocks.index(layout.SIZE)][1]
    before.documents, before.bytes = size.get("total", 0), size.get("bytes", 0)
    account.tallies = list(tallies(settings.steps, [pair for name in statistics for pair in statistics[name]]))
    for path in sorted((made.work / made.jobs[-1].name).glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                yield Document(row["text"], str(row["id"]))


def written(settings: Settings, ctx: Context, given: dict[int, Any]) -> Pipeline:
    """Write the pipeline, or find the one that was written before: what its tasks did is theirs to tell."""
    engine = settings.engine
    assert engine is not None
    hashes = {number: what for number, what in given.items() if isinstance(what, frozenset)}
    files = {number: Code(f'here("step-{number}.hashes")') for number in hashes}
    sources = _files(settings.data or [], ctx)
    made = Pipeline(ctx, settings, layout.jobs(settings.steps, [block for block, _ in sources.values()], given | files))
    if is_complete(made.work):
        return made
    at_once = settings.processes or (cores() if engine.executor == "local" else None)
    target = render.Target(ctx.step.name, engine, at_once)
    made.folder.mkdir(exist_ok=True)
    made.work.mkdir(parents=True, exist_ok=True)
    for name, (_, listed) in sources.items():
        write_text(made.folder / name, "".join(f"{path}\n" for path in listed))
    for number, found in hashes.items():
        packed = b"".join(one.to_bytes(8, "little") for one in sorted(found))
        (made.folder / f"step-{number}.hashes").write_bytes(packed)
    write_text(made.folder / "README.md", render.readme(made.jobs, target))
    write_text(made.folder / "pipeline.py", render.pipeline(made.jobs, target))
    write_text(made.work / "begun", f"{made.folder / 'pipeline.py'}\n")
    mark_complete(made.work)
    return made


def _files(sources: Iterable[Any], ctx: Context) -> dict[str, tuple[Block, list[Path]]]:
    """Return a reader for each kind of file and column, with its files, by the name of their list.

    Raises:
        DataError: a file is one that datatrove does not read.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    problems = []
    for source in sources:
        if isinstance(source, StageSource):
            files, column = sorted((ctx.run_dir / source.stage / "data").glob("*.jsonl")), "text"
        else:
            assert isinstance(source, PathSource)
            files = expand(source.path, base=Path(), format=source.format)
            column = (source.columns or {}).get("text", "text")
        for file in files:
            if not (match := READABLE.search(file.name)):
                problems.append(Problem("datatrove does not read this", where=shown(file)))
                continue
            reader = "ParquetReader" if match[1] == "parquet" else "JsonlReader"
            found.setdefault((reader, column), []).append(file.resolve())
    if problems:
        hint = "it reads jsonl and parquet; a curate stage with llmpipe's own engine before this one makes such files"
        raise DataError(problems, hint=hint)
    lists = {}
    for number, ((reader, column), listed) in enumerate(found.items(), 1):
        name = f"files-{number}.txt"
        options = {"paths_file": Code(f'here("{name}")'), "text_key": column}
        lists[name] = Block(reader, ("/",), options), listed
    return lists


def _run_here(made: Pipeline) -> None:
    """Run the pipeline in a process of its own and wait for it; tasks that are done stay done.

    Raises:
        StoppedError: the run is to stop.
        StageError: a task failed.
    """
    log = made.folder / "log.txt"
    # The process ends with this one, however it ends: its standard input is a pipe that closes then.
    command = [PYTHON, "-m", "llmpipe.curation.datatrove.here", str(made.folder / "pipeline.py")]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True)
    try:
        while process.poll() is None:
            if job := made.unfinished():
                made.ctx.progress(doing=f"{job.name}: {made.done(job)} of {made.tasks(job)} tasks")
            if how := made.ctx.stop_requested():
                hint = "the same command goes on with the tasks that are left"
                raise StoppedError("stopped", hint=hint, interrupted=how == "interrupt")
            time.sleep(LOOK_EVERY_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        said = ERROR.findall(log.read_text(encoding="utf-8", errors="replace"))
        raise StageError(f"datatrove failed: {said[-1] if said else process.returncode}", hint=f"the rest is in {log}")


def _refuse(made: Pipeline, job: Job) -> None:
    assert made.settings.engine is not None
    place = render.PLACES[made.settings.engine.executor]
    if not any(map(made.done, made.jobs)):
        message = f"its pipeline is written, and is to be run on {place}"
    else:
        message = f"its pipeline is not done: {made.done(job)} of {made.tasks(job)} tasks of {job.name}"
    command = f"python {made.folder / 'pipeline.py'}"
    raise StageError(message, hint=f"{command}, there; when its jobs are done, this command again goes on")


def _statistics(folder: Path, job: Job) -> list[dict[str, int]]:
    """Add up what the blocks of a job counted in all its tasks, by block."""
    totals: list[dict[str, int]] = [{} for _ in job.blocks]
    for path in sorted((folder / "logs" / job.name / "stats").glob("*.json")):
        for total, block in zip(totals, json.loads(path.read_text(encoding="utf-8")), strict=True):
            for name, value in block["stats"].items():
                total[name] = total.get(name, 0) + (value["total"] if isinstance(value, dict) else value)
    return totals


def tallies(steps: list[Any], counted: list[tuple[Block, dict[str, int]]]) -> Iterator[Tally]:
    """Yield the account of each step, from what its blocks counted; datatrove keeps no examples."""
    for number, step in enumerate(steps):
        own = [counts for block, counts in counted if block.step == number and block.name in COUNTING]
        tally = Tally(step.step, documents_in=own[0].get("total", 0) if own else 0)
        for counts in own:
            tally.dropped += counts.get("dropped", 0)
            tally.changed += counts.get("changed", 0)
            tally.added += counts.get("added", 0)
            for name, count in counts.items():
                if name.startswith(("found ", "dropped_")):
                    tally.found[name.removeprefix("found ").removeprefix("dropped_")] += count
        if own and tally.dropped and not tally.found:
            tally.found["near duplicate" if step.step == "near_duplicates" else "repeated text"] = tally.dropped
        yield tally


COUNTING = {"Step", "ExactDedupFilter", "MinhashDedupFilter", "C4QualityFilter", "FineWebQualityFilter"}
COUNTING |= {"GopherQualityFilter", "GopherRepetitionFilter"}
"""Blocks whose statistics say what a step did; of the others in a comparison, some see each text as well."""
