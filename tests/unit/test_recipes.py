"""The recipes that ship: all of them valid, in the wheel, and found by name."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from llmpipe import recipe as recipes
from llmpipe.artifact import StepRecord
from llmpipe.context import Context
from llmpipe.stages import curate

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").rglob("*.yaml"))
STUBS = {
    "human-feedback": ["rankings.jsonl"],
    "shakespeare-cpu": ["tinyshakespeare.txt"],
    "curate-web": ["pages.jsonl", "eval.jsonl"],
    "moderation-cpu": ["labelled.csv"],
    "bert-cpu": ["text.txt"],
    "t5-cpu": ["text.txt", "pairs.jsonl"],
}
"""Files that a recipe's first lines tell the user to fetch."""
FOLDERS = {"human-feedback": "runs/quickstart/chat/model"}
"""Models of a run that a recipe's first lines tell the user to do before."""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(path, tmp_path))
    for name in STUBS.get(path.stem, []):
        (tmp_path / name).write_text("To be\n" * 10, encoding="utf-8")
        assert name in path.read_text(encoding="utf-8").partition("name:")[0]  # how to get it is said above
    if folder := FOLDERS.get(path.stem):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    for file in path.parent.glob("*.py"):  # reward functions
        shutil.copy(file, tmp_path)
    recipe = recipes.load(copy)
    assert recipe.stages


def test_the_quickstart_finds_what_was_planted(tmp_path: Path) -> None:
    settings = recipes.load(recipes.find("quickstart")).stages["corpus"]
    assert isinstance(settings, curate.Settings)
    source = settings.data[0].model_copy(update={"rows": 2500})
    record = StepRecord(name="corpus", kind="curate", stage_version=1, fingerprint="", seed=42, settings={}, inputs=[])
    (tmp_path / "corpus").mkdir()
    ctx = Context(tmp_path, record, emit=lambda _: None)
    found = curate.run(settings.model_copy(update={"data": [source], "processes": 1}), ctx).metrics
    assert found["planted"] > 150
    assert found["planted_recall"] >= 0.99
    assert found["planted_precision"] >= 0.99
    assert 2490 <= found["documents"] <= 2500


def test_every_recipe_ships_and_is_found_by_name() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"]["recipes"] == "llmpipe/recipes"
    assert sorted(recipes.shipped_recipes().values()) == SHIPPED
    for path in SHIPPED:
        assert recipes.find(path.stem) == path


def test_every_recipe_is_in_the_list_for_readers() -> None:
    table = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    for path in SHIPPED:
        assert path.stem in table
