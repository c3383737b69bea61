"""Settings of benchmark tasks: what they are called, when a run is up to date, and how their rows are told apart."""

from __future__ import annotations

import importlib.util
import json
import shutil
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmpipe import packages, preview
from llmpipe import recipe as recipes
from llmpipe.cli import app
from llmpipe.data.benchmarks import number_in
from llmpipe.errors import UsageError
from llmpipe.plan import Step, make_plan
from llmpipe.stages.evaluate import Settings

RECIPE = """\
name: exams
stages:
  scores:
    kind: eval
    models: [{hub: a/b}]
    tasks:
      - {choices: {path: piqa.test.jsonl}, prompt: "{query}\\nAnswer:", shots: 1, examples: {path: train.jsonl}}
      - {lm_eval: arc_easy, limit: 100}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
    for name in ("piqa.test.jsonl", "train.jsonl"):
        row = {"query": name, "choices": ["a", "b"], "gold": 0}
        (tmp_path / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    return tmp_path


def planned(place: Path, *overrides: str) -> Step:
    (step,) = make_plan(recipes.load(place / "r.yaml", overrides=overrides), place / "run")
    return step


def test_titles_and_suites() -> None:
    tasks = [{"choices": {"path": "a/piqa.test.jsonl.gz"}}, {"text": {"hub": "x/wikitext"}}, {"lm_eval": "arc_easy"}]
    settings = Settings.model_validate({"models": ["m"], "tasks": [*tasks, {"text": "base", "name": "own"}]})
    assert [task.title for task in settings.tasks or []] == ["piqa", "wikitext", "arc_easy", "own"]
    assert settings.suites == [] and Settings.model_validate({"models": ["m"]}).suites == ["perplexity", "samples"]
    both = {"models": ["m"], "tasks": tasks, "suites": ["samples"]}
    assert Settings.model_validate(Settings.model_validate(both).model_dump(mode="json")).suites == ["samples"]


def test_stages_without_tasks_are_what_they_were() -> None:
    """So that runs from before there were tasks stay up to date."""
    assert "tasks" not in Settings.model_validate({"models": ["m"]}).model_dump(mode="json")


def test_content_of_the_files_counts_and_where_they_lie_does_not(place: Path) -> None:
    before = planned(place)
    assert [entry.field for entry in before.record.inputs] == ["models", "tasks.0.examples", "tasks.0.choices"]
    assert before.record.settings["tasks"][0]["choices"]["path"] == str(place / "piqa.test.jsonl")
    moved = place.with_name(f"{place.name}-moved")
    shutil.copytree(place, moved)
    assert planned(moved).record.fingerprint == before.record.fingerprint
    assert planned(place, "scores.tasks=[{lm_eval: arc_easy}]").record.fingerprint != before.record.fingerprint
    for name in ("piqa.test.jsonl", "train.jsonl"):
        with (moved / name).open("a", encoding="utf-8") as file:
            file.write('{"query": "c", "choices": ["a", "b"], "gold": 1}\n')
        after = planned(moved).record.fingerprint
        assert after != before.record.fingerprint
        shutil.copy(place / name, moved / name)


def test_plan_looks_at_the_first_row(place: Path) -> None:
    seen = {one["file"]: (one["format"], one["problem"]) for one in preview.previews([planned(place)])}
    assert seen == {"piqa.test.jsonl": ("choices", None), "train.jsonl": ("choices", None)}
    (place / "train.jsonl").write_text('{"question": "a"}\n', encoding="utf-8")
    assert [one["problem"] for one in preview.previews([planned(place)])] == [
        "no format fits the columns question; one of these is needed:",
        None,
    ]


def test_from_flags_without_lm_eval(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place, place / "model", ignore=lambda *_: ["model"])
    (place / "model" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(packages, "is_there", lambda module: module != "lm_eval")
    tasks = f"tasks=[{{lm_eval: arc_easy}}, {{choices: {{path: {place}/train.jsonl}}}}]"
    ended = CliRunner().invoke(app, ["eval", "--run", "run", "--model", "model", "--set", tasks])
    assert ended.exit_code == 2
    assert "arc_easy: stage eval needs the package lm_eval to run it, which is not installed" in ended.stderr
    assert "hint: pip install 'llmpipe[eval]'" in ended.stderr
    ended = CliRunner().invoke(app, ["eval", "--run", "run", "--model", "model", "--set", tasks, "--dry-run", "--json"])
    assert ended.exit_code == 0 and json.loads(ended.stdout)["data"][0]["format"] == "choices"


def test_lm_eval_is_asked_for_only_where_it_would_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = planned(place)
    packages.refuse_without_lm_eval([Step(step.record, "skip", "unchanged", [])])
    monkeypatch.setattr(packages, "is_there", lambda module: False)
    packages.refuse_without_lm_eval([planned(place, "scores.tasks=[{text: {path: r.yaml}}]")])
    with pytest.raises(UsageError):
        packages.refuse_without_lm_eval([step])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 5, so 3 + 4 = 7.", "7"),
        ("1,000 ducks #### 1,234.50 or 9", "1234.5"),
        ("#### -3", "-3"),
        ("#### 8 #### 9", "9"),
        ("none", None),
        ("#### none 4", "4"),
    ],
)
def test_numbers_are_found_as_the_recipe_of_gsm8k_finds_them(text: str, number: str | None) -> None:
    spec = importlib.util.spec_from_file_location("gsm8k", Path(__file__).parents[2] / "recipes" / "gsm8k.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wanted = None if number is None else Decimal(number)
    assert number_in(text) == module.result(text) == wanted
