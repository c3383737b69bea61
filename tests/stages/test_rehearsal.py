"""plan --calibrate: a few steps of each stage tell how often everything is done, and leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmpipe import calibrate, estimate, runner
from llmpipe import recipe as recipes
from llmpipe.artifact import read_manifest
from llmpipe.plan import make_plan
from llmpipe.training import rehearsal
from tests.stages.tiny import run_recipe

RECIPE = """\
name: x
seed: 1
stages:
  tok: {kind: tokenizer, data: {builtin: storyworld, rows: 200}, vocab_size: 300}
  base:
    kind: pretrain
    data: {builtin: storyworld, rows: 200}
    model: {arch: llama, config: {num_hidden_layers: 1, hidden_size: 16, intermediate_size: 32, num_attention_heads: 2}}
    context: 256
    batch_tokens: 2048
    micro_batch_tokens: 512
    trainer: {max_steps: 9, eval_steps: 4}
  judge:
    kind: reward
    model: base
    data: {builtin: storyworld, rows: 60}
    trainer: {per_device_train_batch_size: 8, num_train_epochs: 1, eval_steps: 3}
  ppo:
    kind: rlhf-ppo
    model: base
    reward: judge
    data: {builtin: storyworld, rows: 60}
    rollouts: 5
    evaluate_every: 2
    evaluate_answers: 4
    rollout: {samples: 8, max_new_tokens: 4}
"""
IN_PROCESS = runner.Options(in_process=True)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "ENOUGH_S", 0.0)


def measured(folder: Path, text: str = RECIPE) -> Path:
    """Calibrate a recipe; returns its run directory."""
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    calibrate.calibrate(recipes.load(path), folder / "run", IN_PROCESS)
    return folder / "run"


def test_the_counts_are_those_of_the_run(tmp_path: Path) -> None:
    run = measured(tmp_path)
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == {"estimate.json"}
    costs = estimate.read(run)
    assert not any("problem" in one for one in costs.values()), costs
    assert all(costs[name]["costs"]["seconds_pass"] > 0 for name in ("base", "judge", "ppo"))
    run_recipe(tmp_path, RECIPE)
    for name in ("base", "judge", "ppo"):
        manifest = read_manifest(run / name)
        assert manifest is not None
        steps, evaluations, saves = estimate.counts(manifest.settings, costs[name]["costs"])
        lines = [json.loads(line) for line in (run / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        assert steps == manifest.metrics["steps"]
        assert evaluations == 1 + sum("held_out_loss" in line for line in lines)
        assert saves == evaluations - 1
        expected = estimate.of_costs(manifest.settings, costs[name])
        assert expected.calibrated
        if name == "base":  # the others' rows differ in length
            assert expected.tokens == manifest.metrics["tokens"]
            assert expected.parameters == manifest.metrics["parameters"]
            files = [path for path in (run / name).rglob("*") if path.is_file()]
            assert expected.disk_bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.15)


def test_a_bound_is_not_for_a_model_that_was_hardly_trained(tmp_path: Path) -> None:
    scores = (
        "  scores: {kind: eval, models: [base], suites: [perplexity], fail_if: {perplexity: '> 1'}, max_tokens: 99}\n"
    )
    found = estimate.read(measured(tmp_path, RECIPE.partition("  judge:")[0] + scores))
    assert "problem" not in found["scores"], found["scores"]


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = RECIPE.partition("  judge:")[0]
    run = measured(tmp_path, text)
    ran: list[str] = []
    monkeypatch.setattr(runner, "run", lambda steps, *_: ran.extend(step.name for step in steps))
    measured(tmp_path, text.replace("max_steps: 9", "max_steps: 90, learning_rate: 1e-5"))
    assert ran == []
    monkeypatch.setattr(calibrate, "_rehearse", lambda step, *_: ran.append(step.name) or {})
    measured(tmp_path, text.replace("micro_batch_tokens: 512", "micro_batch_tokens: 1024"))
    assert ran == ["tok", "base"]  # which reads tok
    assert make_plan(recipes.load(tmp_path / "tiny.yaml"), run)[0].action == "run"  # nothing of it counts as done


def test_a_stage_that_fails_says_why(tmp_path: Path) -> None:
    found = estimate.read(
        measured(tmp_path, RECIPE.partition("  judge:")[0].replace("context: 256", "context: 256000"))
    )
    assert "problem" not in found["tok"]
    assert found["base"]["problem"].startswith("the text has ")
