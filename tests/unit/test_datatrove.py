"""The datatrove engine without datatrove: the pipeline as it is written, where it waits, what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmpipe import packages, yaml_tree
from llmpipe import recipe as recipes
from llmpipe.curation.datatrove import jobs, layout
from llmpipe.errors import DataError, RecipeError, StageError, UsageError
from tests.unit.test_curate_stage import context, run

GOLDEN = Path(__file__).parent / "datatrove"
ALL = [
    "repair",
    {"step": "language", "keep": ["en"]},
    "exact_duplicates",
    {"step": "quality", "gopher": {"max_symbols": 0.0}},
    {"step": "near_duplicates", "threshold": 0.9},
    {"step": "decontaminate", "words": 6},
    "pii",
    {"step": "toxicity", "words": {"severe": ['a "word"']}},
    "swap",
]
SLURM = {"name": "datatrove", "executor": "slurm", "tasks": 500, "partition": "cpu", "time": "20:00:00"}
ENGINES = {
    "local": {"name": "datatrove", "tasks": 4},
    "slurm": {**SLURM, "environment": "source env/bin/activate"},
    "ray": {"name": "datatrove", "executor": "ray", "tasks": 64, "memory_gb": 8},
}


def waiting(folder: Path, engine: Any, steps: list[Any] = ALL, **settings: Any) -> tuple[Any, StageError]:
    """Write a pipeline for a cluster, where the stage ends."""
    ctx = context(folder)
    (folder / "eval.jsonl").write_text('{"text": "one two three four five six seven"}\n', encoding="utf-8")
    if any(isinstance(step, dict) and step["step"] == "decontaminate" for step in steps):
        settings["evaluation"] = {"path": str(folder / "eval.jsonl")}
    with pytest.raises(StageError) as stopped:
        run(ctx, ["a text"], engine=engine, steps=steps, **settings)
    return ctx, stopped.value


@pytest.mark.parametrize("executor", ENGINES)
def test_the_pipeline_as_it_is_written(tmp_path: Path, executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_run_here", lambda made: None)
    ctx, _ = waiting(tmp_path, ENGINES[executor])
    for name in ("pipeline.py", "README.md"):
        golden = GOLDEN / f"{executor}-{name}.txt"
        text = (ctx.dir / "datatrove" / name).read_text("utf-8")
        if os.environ.get("WRITE_GOLDEN"):
            golden.write_text(text, encoding="utf-8")
        assert text == golden.read_text("utf-8")
    assert (ctx.dir / "datatrove" / "files-1.txt").read_text("utf-8") == f"{(tmp_path / 'rows.jsonl').resolve()}\n"
    assert len((ctx.dir / "datatrove" / "step-5.hashes").read_bytes()) == 2 * 8


def test_a_cluster_is_waited_for_and_its_output_read(tmp_path: Path) -> None:
    steps = ["quality", "pii"]
    ctx, stopped = waiting(tmp_path, {**SLURM, "tasks": 2}, steps)
    pipeline = ctx.dir / "datatrove" / "pipeline.py"
    assert str(stopped) == "its pipeline is written, and is to be run on Slurm"
    assert stopped.hint == f"python {pipeline}, there; when its jobs are done, this command again goes on"

    logs, out = ctx.dir / "datatrove" / "logs" / "1-steps", ctx.checkpoints / "checkpoint-0" / "1-steps"
    for folder in (logs / "completions", logs / "stats", out):
        folder.mkdir(parents=True)
    blocks: list[dict[str, Any]] = [{}, {"total": 3, "bytes": {"total": 30, "n": 3}}, {"total": 3, "dropped": 1}]
    blocks += [{}, {"total": 2}, {}, {"total": {"total": 2}, "changed": {"total": 1}, "found email": {"total": 2}}, {}]
    blocks[2]["dropped_gopher_short_doc"] = 1
    for task in range(2):
        (logs / "stats" / f"{task:05}.json").write_text(json.dumps([{"stats": one} for one in blocks]), "utf-8")
        (out / f"{task:05}.jsonl").write_text(f'{{"text": "text of {task}", "id": "x"}}\n', encoding="utf-8")
        if not task:
            (logs / "completions" / "00000").touch()
            with pytest.raises(StageError, match="its pipeline is not done: 1 of 2 tasks of 1-steps"):
                again(ctx, {**SLURM, "tasks": 2}, steps)
    pipeline.write_text("# changed by hand\n", encoding="utf-8")
    (logs / "completions" / "00001").touch()
    found = again(ctx, {**SLURM, "tasks": 2}, steps).metrics
    assert (found["documents_before"], found["documents"]) == (6, 2)
    report = json.loads((ctx.dir / "curation.json").read_text("utf-8"))
    assert report["steps"][0]["found"] == {"gopher_short_doc": 2} and report["steps"][0]["documents_in"] == 6
    assert report["steps"][1]["found"] == {"email": 4} and report["steps"][1]["changed"] == 2
    assert pipeline.read_text("utf-8") == "# changed by hand\n"


def again(ctx: Any, engine: Any, steps: list[Any]) -> Any:
    return run(ctx, ["a text"], engine=engine, steps=steps, split={"validation": 0})


def test_files_that_datatrove_does_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>text</p>", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.html: datatrove does not read this") as failed:
        run(context(tmp_path), [], engine=SLURM, data={"path": str(tmp_path / "a.html")})
    assert failed.value.hint and failed.value.hint.startswith("it reads jsonl and parquet; a curate stage with")


RECIPE = "name: x\nstages:\n  corpus: {kind: curate, data: DATA, steps: [STEPS], engine: ENGINE}\n"


@pytest.mark.parametrize(
    ("engine", "steps", "data", "message"),
    [
        (
            "{name: datatrove, executor: slurm}",
            "pii",
            None,
            "slurm needs to know the partition and the time of its jobs",
        ),
        ("{name: datatrove, time: x}", "pii", None, "`time:` is for the executor slurm, and this one is local"),
        (
            "datatrove",
            "reweight",
            None,
            "datatrove looks at one text at a time, and reweight has to see all of them first; "
            "put it into a curate stage after this one",
        ),
        (
            "datatrove",
            "{step: exact_duplicates, of: paragraphs}",
            None,
            "datatrove compares spans of sentences, and no paragraphs of a least length; "
            "put {step: exact_duplicates, of: paragraphs} into a curate stage of its own",
        ),
        (
            "datatrove, bias_report: true",
            "pii",
            None,
            "the bias report is counted by llmpipe's own engine; leave out `engine:` or `bias_report:`",
        ),
        (
            "datatrove",
            "pii",
            "{builtin: storyworld}",
            "datatrove reads files, {path: FILES}, and what another stage has written; "
            "a curate stage with llmpipe's own engine before this one makes files of anything",
        ),
        (
            "datatrove",
            "pii",
            "{path: FILE, weight: 2}",
            "datatrove reads every document once; leave out `weight:`, which is for the stages after this one",
        ),
    ],
)
def test_what_it_cannot_do_is_said_before_anything_runs(
    engine: str, steps: str, data: str | None, message: str
) -> None:
    text = (
        RECIPE.replace("ENGINE", engine)
        .replace("STEPS", steps)
        .replace("DATA", data or "{path: FILE}")
        .replace("FILE", __file__)
    )
    with pytest.raises(RecipeError) as failed:
        recipes.check(yaml_tree.parse(text, shown_as="r.yaml"), Path("r.yaml").absolute())
    assert [problem.message for problem in failed.value.problems] == [message]


def test_a_missing_datatrove_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_there", lambda module: False)
    step: Callable[[str], Any] = lambda executor: SimpleNamespace(  # noqa: E731
        name="corpus", action="run", record=SimpleNamespace(kind="curate", settings={"engine": {"executor": executor}})
    )
    packages.refuse_without_datatrove([step("slurm")])
    with pytest.raises(UsageError, match="stage corpus needs the package datatrove, which is not installed") as failed:
        packages.refuse_without_datatrove([step("local")])
    assert failed.value.hint == "pip install 'llmpipe[datatrove]'"


def test_recipes_without_an_engine_keep_their_fingerprints() -> None:
    from llmpipe.stages import curate

    dumped = curate.Settings.model_validate({"steps": ["toxicity"]}).model_dump(mode="json")
    assert not {"engine", "classifier"} & dumped.keys()
    assert not {"labels", "threshold"} & dumped["steps"][0].keys()


def test_every_job_reads_what_an_earlier_one_writes() -> None:
    from llmpipe.curation import exact_duplicates, near_duplicates

    steps = [exact_duplicates.Settings(), near_duplicates.Settings(), exact_duplicates.Settings()]
    found = layout.jobs(steps, [], {})
    assert len({job.name for job in found}) == len(found) == 1 + 3 + 4 + 3
    seen: set[str] = set()
    for job in found:
        for block in job.blocks:
            if block.name == "JsonlReader":
                assert repr(block.arguments[0]) in seen
            seen |= {repr(part) for part in block.arguments if block.name == "JsonlWriter"}
