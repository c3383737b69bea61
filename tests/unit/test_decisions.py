"""Whether a step runs, is skipped or resumed, and why: decided from files alone, without torch."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from llmpipe import recipe as recipes
from llmpipe.artifact import Manifest, write_json
from llmpipe.checkpoints import MARKER, complete_checkpoints, drop_incomplete, mark_complete, rotate
from llmpipe.errors import UsageError
from llmpipe.plan import Selection, Step, make_plan
from llmpipe.runner import prepare

RECIPE = """\
name: x
stages:
  tok: {kind: tokenizer, data: {path: "texts/*.txt"}, vocab_size: 300}
  base:
    {kind: pretrain, data: {path: "texts/*.txt"}, model: {size: 1M}, trainer: {learning_rate: 1e-3, logging_steps: 5}}
  chat: {kind: sft, data: {builtin: storyworld}}
  scores: {kind: eval, models: [base, chat]}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "texts" / "b.txt").write_text("two", encoding="utf-8")
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "run").mkdir()
    return tmp_path


def plan(place: Path, *overrides: str, **selection: object) -> dict[str, Step]:
    recipe = recipes.load(place / "r.yaml", overrides=overrides)
    return {step.name: step for step in make_plan(recipe, place / "run", selection=Selection(**selection))}


def finish(place: Path, *names: str) -> None:
    """Write what a finished stage leaves behind."""
    for name, step in plan(place).items():
        if name in names:
            folder = place / "run" / name
            (folder / "model").mkdir(parents=True, exist_ok=True)
            (folder / "model" / "weights").write_text("w", encoding="utf-8")
            write_json(folder / "step.json", step.record)
            rest = {"metrics": {}, "gates": [], "versions": {}, "device": "", "started": "", "seconds": 1.0}
            record = step.record.model_dump(exclude={"schema_version"})
            write_json(folder / "manifest.json", Manifest(**record, outputs={"model/weights": "x"}, **rest))


def actions(steps: dict[str, Step]) -> dict[str, str]:
    return {name: step.action for name, step in steps.items()}


ALL = ("tok", "base", "chat", "scores")


def test_first_time_and_up_to_date(place: Path) -> None:
    assert set(actions(plan(place)).values()) == {"run"}
    finish(place, *ALL)
    assert set(actions(plan(place)).values()) == {"skip"}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("base.trainer.learning_rate=1e-4", "trainer.learning_rate 0.001 → 0.0001"),
        ("base.dropout=0.1", "dropout unset → 0.1"),
        ("base.model.size=2M", "model.size 1000000 → 2000000"),
        ("base.trainer.max_steps=7", "trainer.max_steps unset → 7"),
        ("base.held_out.share=0.1", "held_out.share 0.05 → 0.1"),
    ],
)
def test_a_changed_key_reruns_its_stage_and_what_follows(place: Path, override: str, reason: str) -> None:
    finish(place, *ALL)
    steps = plan(place, override)
    assert actions(steps) == {"tok": "skip", "base": "rerun", "chat": "rerun", "scores": "rerun"}
    assert steps["base"].reason == reason
    assert steps["chat"].reason == "base changed"


@pytest.mark.parametrize("override", ["base.trainer.logging_steps=1", "base.trainer.report_to=tensorboard"])
def test_cosmetic_keys_rerun_nothing(place: Path, override: str) -> None:
    finish(place, *ALL)
    assert set(actions(plan(place, override)).values()) == {"skip"}


def test_every_other_key_of_every_stage_counts(place: Path) -> None:
    """Changing any key of Settings changes the fingerprint, unless it is named as cosmetic."""
    changed = {
        "tok": {"algorithm": "unigram", "vocab_size": "301", "special_tokens": "[a]", "chat_template": "x"},
        "base": {"context": "9", "batch_tokens": "9k", "micro_batch_tokens": "9", "precision": "fp32", "keep": "last"}
        | {"early_stopping": "2", "dropout": "0.2", "held_out": "{share: 0.2}", "trainer.optim": "sgd"},
        "chat": {"packing": "false", "too_long": "truncate", "chat_template": "y", "context": "9", "data.rows": "5"}
        | {"data.style": "pirate"},
        "scores": {"suites": "[samples]", "prompts": "[a]", "temperature": "0.5", "stories": "7", "add_bos": "false"},
    }
    before = plan(place)
    for name, keys in changed.items():
        for key, value in keys.items():
            after = plan(place, f"{name}.{key}={value}")[name]
            assert after.record.fingerprint != before[name].record.fingerprint, f"{name}.{key}"


def test_plain_stories_are_what_they_were_before_there_was_a_style(place: Path) -> None:
    """So that runs from that time stay up to date."""
    assert plan(place)["chat"].record.inputs[-1].source == {"builtin": "storyworld", "rows": None, "weight": 1.0}


def test_the_seed_counts_for_all(place: Path) -> None:
    finish(place, *ALL)
    steps = plan(place, "seed=7")
    assert set(actions(steps).values()) == {"rerun"}
    assert steps["tok"].reason == "seed 42 → 7"


def test_content_counts_and_file_times_do_not(place: Path) -> None:
    finish(place, *ALL)
    os.utime(place / "texts" / "a.txt", (1, 1))
    assert set(actions(plan(place)).values()) == {"skip"}
    (place / "texts" / "a.txt").write_text("another", encoding="utf-8")
    steps = plan(place)
    assert actions(steps)["tok"] == "rerun"
    assert steps["tok"].reason == "a.txt changed"


def test_a_moved_recipe_is_the_same_recipe(place: Path) -> None:
    finish(place, *ALL)
    moved = place.with_name("moved")
    shutil.move(place, moved)
    assert set(actions(plan(moved)).values()) == {"skip"}


def test_a_missing_output_is_made_again(place: Path) -> None:
    finish(place, *ALL)
    (place / "run" / "base" / "model" / "weights").unlink()
    steps = plan(place)
    assert steps["base"].reason == "its output model/weights is gone"
    assert actions(steps)["chat"] == "rerun"


def test_interrupted_with_and_without_a_checkpoint(place: Path) -> None:
    finish(place, *ALL)
    (place / "run" / "base" / "manifest.json").unlink()
    assert plan(place)["base"].reason == "was not finished"
    checkpoint(place / "run" / "base" / "checkpoints", 40)
    step = plan(place)["base"]
    assert (step.action, step.reason, step.resume_from) == ("resume", "from step 40", 40)


def test_a_manifest_that_was_cut_off_does_not_count(place: Path) -> None:
    finish(place, *ALL)
    manifest = place / "run" / "chat" / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert plan(place)["chat"].action == "rerun"


def test_selection(place: Path) -> None:
    finish(place, "tok")
    assert actions(plan(place, last="base")) == {"tok": "skip", "base": "run", "chat": "wait", "scores": "wait"}
    assert actions(plan(place, only=("base",)))["chat"] == "wait"
    with pytest.raises(UsageError, match="chat needs base, which is not finished") as caught:
        plan(place, first="chat")
    assert "--until base" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no stage is called 'bse', did you mean base"):
        plan(place, only=("bse",))
    finish(place, *ALL)
    forced = plan(place, force=("base",))
    assert forced["base"].reason == "asked for with --force"
    assert actions(forced)["scores"] == "rerun"


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        (path / name).write_text(f"{name} {step}", encoding="utf-8")
    mark_complete(path, step=step)
    return path


def test_the_newest_checkpoint_is_by_step_not_by_time(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        os.utime(checkpoint(tmp_path, step), (1, 1) if step == 100 else None)
    assert [step for step, _ in complete_checkpoints(tmp_path)] == [9, 20, 100]


@pytest.mark.parametrize("damage", ["truncate", "remove", "no marker", "torn marker"])
def test_a_damaged_checkpoint_is_not_taken(tmp_path: Path, damage: str) -> None:
    checkpoint(tmp_path, 1)
    path = checkpoint(tmp_path, 2)
    match damage:
        case "truncate":
            (path / "optimizer.pt").write_text("o", encoding="utf-8")
        case "remove":
            (path / "optimizer.pt").unlink()
        case "no marker":
            (path / MARKER).unlink()
        case "torn marker":
            (path / MARKER).write_text('{"step": 2, "fil', encoding="utf-8")
    assert [step for step, _ in complete_checkpoints(tmp_path)] == [1]
    drop_incomplete(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-1"]


def test_rotation_keeps_what_is_asked_for_and_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        checkpoint(tmp_path, step)
    rotate(tmp_path, keep={2, 5})
    assert [step for step, _ in complete_checkpoints(tmp_path)] == [2, 4, 5]
    assert json.loads((tmp_path / "checkpoint-5" / MARKER).read_text(encoding="utf-8"))["step"] == 5


def test_only_its_own_worthless_attempts_are_deleted(place: Path) -> None:
    step = plan(place)["chat"]
    run = place / "run"
    prepare(step, run)
    (run / "chat" / "log.txt").write_text("half of something", encoding="utf-8")
    prepare(step, run)
    assert [path.name for path in (run / "chat").iterdir()] == ["step.json"]
    assert not (run / ".history").exists()
    (run / "chat" / "step.json").unlink()
    (run / "chat" / "thesis.tex").write_text("mine", encoding="utf-8")
    prepare(step, run)
    assert (run / ".history" / "chat-unknown" / "thesis.tex").read_text(encoding="utf-8") == "mine"
    finish(place, "chat")
    prepare(step, run)
    assert (run / ".history" / f"chat-{step.record.fingerprint[:8]}" / "manifest.json").is_file()


def test_a_damaged_cache_of_hashes_is_only_a_cache(place: Path) -> None:
    finish(place, *ALL)
    (place / "run" / ".hashes.json").write_text("[1]", encoding="utf-8")
    assert set(actions(plan(place)).values()) == {"skip"}
