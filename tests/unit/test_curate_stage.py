"""The curate stage: its files, its split, which later stages keep to, what it refuses, and a try of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmpipe import console, summary, yaml_tree
from llmpipe import recipe as recipes
from llmpipe.artifact import StepRecord
from llmpipe.cli import app
from llmpipe.context import Context, Result
from llmpipe.curation import output
from llmpipe.data import noise, sources, storyworld
from llmpipe.data.split import is_held_out
from llmpipe.errors import DataError, RecipeError, StoppedError
from llmpipe.settings import BuiltinSource, PathSource, StageSource
from llmpipe.stages import curate

TEXTS = list(dict.fromkeys(storyworld.corpus(stories=200, seed=1)))


def context(run_dir: Path, name: str = "corpus", stop: Callable[[], Any] = lambda: None) -> Context:
    record = StepRecord(name=name, kind="curate", stage_version=1, fingerprint="f", seed=3, settings={}, inputs=[])
    (run_dir / name).mkdir(parents=True)
    return Context(run_dir=run_dir, step=record, emit=lambda _: None, stop_requested=stop)


def run(ctx: Context, texts: list[str], **settings: Any) -> Result:
    rows = ctx.run_dir / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    settings = {"data": {"path": str(rows)}, "steps": ["exact_duplicates"], "processes": 1, **settings}
    return curate.run(curate.Settings.model_validate(settings), ctx)


def written(ctx: Context, name: str) -> list[str]:
    lines = [line for path in sorted((ctx.dir / "data").glob(name)) for line in path.read_text("utf-8").splitlines()]
    return [json.loads(line)["text"] for line in lines]


def test_what_is_left_is_written_and_split_by_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.Shards.__init__, "__kwdefaults__", {"limit_bytes": 5000})
    ctx = context(tmp_path)
    result = run(ctx, [*TEXTS, *TEXTS[:50]], split={"validation": 0.2})
    train, validation = written(ctx, "train-*.jsonl"), written(ctx, "validation.jsonl")
    assert sorted(train + validation) == sorted(TEXTS)
    assert validation == [text for text in TEXTS if is_held_out(text, 0.2)]
    assert train == [text for text in TEXTS if text not in validation]
    shards = sorted(path.name for path in (ctx.dir / "data").glob("train-*"))
    assert shards[:2] == ["train-00000.jsonl", "train-00001.jsonl"]
    assert all(path.stat().st_size <= 5000 for path in (ctx.dir / "data").glob("train-*"))
    assert result.metrics["documents_before"] == len(TEXTS) + 50
    assert result.metrics["documents"] == result.metrics["train_documents"] + result.metrics["validation_documents"]
    report = json.loads((ctx.dir / "curation.json").read_text("utf-8"))
    assert [step["dropped"] for step in report["steps"]] == [50]
    assert sorted(path.name for path in ctx.dir.iterdir()) == ["curation.json", "data"]


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_few_texts_give_their_tails(tmp_path: Path, share: float) -> None:
    ctx = context(tmp_path)
    run(ctx, ["a" * 100, "b" * 50], split={"validation": share})
    assert written(ctx, "train-*.jsonl") == ["a" * round(100 - 100 * share), "b" * round(50 - 50 * share)]
    assert written(ctx, "validation.jsonl") == (["a" * 10, "b" * 5] if share else [])
    assert (ctx.dir / "data" / "validation.jsonl").exists() == bool(share)


def test_its_split_wins_over_that_of_a_later_stage(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    run(ctx, TEXTS, split={"validation": 0.3})
    corpus, later = StageSource(stage="corpus"), context(tmp_path, "base")
    train, held_out = sources.read_split([corpus], later, share=0.05)
    assert list(train) == written(ctx, "train-*.jsonl")
    assert held_out == written(ctx, "validation.jsonl")
    assert list(sources.read_texts([corpus], later)) == written(ctx, "train-*.jsonl")  # as a tokenizer reads
    assert list(sources.read_texts([corpus], later, part="validation")) == held_out
    assert [text for _, text in sources.read_documents([corpus], later, part="all")] == written(ctx, "*.jsonl")

    more = PathSource(path=str(tmp_path / "rows.jsonl"))
    train, held_out = sources.read_split([more, StageSource(stage="corpus", weight=2.0)], later, share=0.05)
    assert sorted(train) == sorted(
        [*written(ctx, "train-*.jsonl") * 2, *(text for text in TEXTS if not is_held_out(text, 0.05))]
    )
    assert sorted(held_out) == sorted(
        [*written(ctx, "validation.jsonl"), *(text for text in TEXTS if is_held_out(text, 0.05))]
    )


def test_a_curate_stage_without_validation_is_split_later(tmp_path: Path) -> None:
    run(context(tmp_path), TEXTS, split={"validation": 0})
    train, held_out = sources.read_split([StageSource(stage="corpus")], context(tmp_path, "base"), share=0.2)
    assert len(list(train)) + len(held_out) == len(TEXTS)
    assert held_out == [text for text in TEXTS if is_held_out(text, 0.2)]


def test_documents_have_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": " "}\n{"text": "three"}\n', encoding="utf-8")
    found = list(sources.read_documents([PathSource(path=str(tmp_path / "a.jsonl"))], context(tmp_path)))
    assert [(text, row.where) for row, text in found] == [
        ("one", f"{tmp_path}/a.jsonl:1"),
        ("three", f"{tmp_path}/a.jsonl:3"),
    ]
    stories = list(sources.read_documents([BuiltinSource(builtin="storyworld", rows=2)], context(tmp_path, "b")))
    assert [row.where for row, _ in stories] == ["storyworld: text 1", "storyworld: text 2"]


def test_texts_of_the_evaluation_are_taken_out(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text(
        json.dumps({"question": "What?", "choices": ["one two Three four, five SIX", "short"]}) + "\n", encoding="utf-8"
    )
    ctx = context(tmp_path)
    texts = ["So: one, two three four five six seven.", "one two three four five, then six", "short", "What?"]
    steps = [{"step": "decontaminate", "words": 6}]
    run(ctx, texts, steps=steps, evaluation={"path": str(tmp_path / "eval.jsonl")}, split={"validation": 0})
    assert written(ctx, "*.jsonl") == texts[1:]


def test_the_key_of_storyworld_is_measured_against(tmp_path: Path) -> None:
    source = {"builtin": "storyworld", "rows": 1200, "noise": 0.1}
    found = run(context(tmp_path), [], data=source, steps=["repair", "exact_duplicates"]).metrics
    assert found["planted_kinds"]["copy"][0] == found["planted_kinds"]["copy"][1] > 0
    assert found["planted_kinds"]["menu"][0] == 0
    assert found["planted_precision"] >= 0.99 > 0.5 > found["planted_recall"]


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text is left") as failed:
        run(context(tmp_path), ["short"] * 3, steps=["quality"])
    assert failed.value.hint == "quality dropped 3 documents (too few words); ask less of it"


def test_a_stop_is_heard_and_leaves_no_files_of_the_engine(tmp_path: Path) -> None:
    ctx = context(tmp_path, stop=lambda: "interrupt")
    with pytest.raises(StoppedError, match="stopped; nothing of this stage is kept"):
        run(ctx, TEXTS)
    assert not (ctx.dir / "work").exists()


def test_other_ranks_leave_the_work_to_the_first(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    ctx.rank = 1
    assert run(ctx, TEXTS).outputs == []
    assert not list(ctx.dir.iterdir())


RECIPE = "name: x\nstages:\n  corpus: {kind: curate, data: {builtin: storyworld}, steps: STEPS}\n"


def refused(steps: str) -> str:
    with pytest.raises(RecipeError) as failed:
        recipes.check(yaml_tree.parse(RECIPE.replace("STEPS", steps), shown_as="r.yaml"), Path("r.yaml").absolute())
    return "\n".join(f"{problem.path}: {problem.message}" for problem in failed.value.problems)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[repare]", "stages.corpus.steps.0: 'repare' is not a step, did you mean repair?"),
        ("[language]", "stages.corpus.steps.0: write {step: language, keep: …}"),
        ("[5]", "stages.corpus.steps.0: write a step as its name, or as {step: NAME, ...}"),
        ("[]", "stages.corpus.steps: is empty; write at least one"),
        ("[{step: quality, goper: null}]", "stages.corpus.steps.0.goper: unknown key, did you mean gopher?"),
        (
            "[{step: language, keep: [english]}]",
            "stages.corpus.steps.0.keep: 'english' is no code of a language; codes are en, de, zh, …",
        ),
        ("[decontaminate]", "stages.corpus: decontaminate needs to know what to look for: evaluation: {path: FILES}"),
        (
            "[repair], evaluation: {builtin: storyworld}",
            "stages.corpus: no step reads `evaluation:`; add decontaminate to the steps, or leave it out",
        ),
    ],
)
def test_mistakes_are_told_at_their_place(steps: str, message: str) -> None:
    assert refused(steps) == message


def test_stages_that_name_no_data_read_the_one_curate_stage() -> None:
    later = "  tok: {kind: tokenizer}\n  base: {kind: pretrain, model: {size: 1M}}\n"
    text = RECIPE.replace("STEPS", "[repair]") + later
    found = recipes.check(yaml_tree.parse(text, shown_as="r.yaml"), Path("r.yaml").absolute())
    assert [found.stages[name].data for name in ("tok", "base")] == [[StageSource(stage="corpus", weight=1.0)]] * 2  # type: ignore[attr-defined]


def test_options_list_those_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(CliRunner().invoke(app, ["options", "curate", "gopher.min_words", "--json"]).stdout)
    assert rows == [
        {"key": "steps.quality.gopher.min_words", "type": "whole number", "default": "50", "help": "fewest words"}
    ]


def test_a_try_shows_the_report_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "a"}\n' * 1200, encoding="utf-8")
    text = "name: x\nstages:\n  corpus: {kind: curate, data: {path: rows.jsonl}, steps: [exact_duplicates]}\n"
    Path("r.yaml").write_text(text, encoding="utf-8")
    done = CliRunner().invoke(app, ["curate", "r.yaml", "--dry-run"])
    assert done.exit_code == 0
    assert "corpus: the steps on the first 1,000 documents" in done.stderr
    assert "exact_duplicates      1,000      999           repeated text 999" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.yaml", "rows.jsonl"]


def test_the_report_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(console, "err", console.Console(stderr=True, highlight=False, soft_wrap=True, width=80))
    example = {"where": "a.txt:9", "like": "a.txt:2", "jaccard": 0.91, "dropped": "Once upon a time", "kept": "Once"}
    found = {"near duplicate": 1200, "a": 3, "b": 2, "c": 1}
    step = {"step": "near_duplicates", "documents_in": 21_625, "dropped": 1206, "changed": 0, "found": found}
    report = {
        "steps": [{**step, "examples": {"near duplicate": [example]}}],
        "planted": 1949,
        "planted_recall": 1.0,
        "planted_precision": 0.9987,
        "planted_kinds": {kind: [325, 325] for kind in noise.KINDS},
    }
    summary.show_curation(report, "corpus")
    assert (
        capsys.readouterr().err
        == """
  corpus           documents  dropped  changed  found
  near_duplicates     21,625    1,206           near duplicate 1,200, a 3, b 2,
                                                …

  1,949 faults were planted: recall 1.000, precision 0.999
  copy            325 of 325
  near copy       325 of 325
  menu            325 of 325
  other language  325 of 325
  personal data   325 of 325
  broken letters  325 of 325

  near_duplicates: near duplicate, a.txt:9, like a.txt:2 (0.91)
  dropped  Once upon a time
  kept     Once
"""
    )
