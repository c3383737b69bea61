"""A whole tiny run through the real way in: what each stage leaves behind, scores.json, and whose text it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmpipe.artifact import read_manifest
from llmpipe.bounds import BoundError
from llmpipe.errors import DataError, StageError
from llmpipe.settings import HubSource, PathSource, StageSource
from llmpipe.stages.evaluate import labels
from tests.stages.tiny import context_for, gates_of, passed, run_recipe, run_stage

RECIPE = """\
name: tiny
seed: 7
stages:
  tok: {kind: tokenizer, data: {builtin: storyworld, rows: 300}, vocab_size: 400}
  base:
    kind: pretrain
    data: {builtin: storyworld, rows: 400}
    model: {arch: llama, config: {num_hidden_layers: 2, hidden_size: 32, intermediate_size: 64, num_attention_heads: 2}}
    context: 160
    trainer: {per_device_train_batch_size: 8, max_steps: 30, learning_rate: 1e-2}
  chat:
    kind: sft
    model: base
    data: {builtin: storyworld, rows: 200}
    trainer: {per_device_train_batch_size: 8, max_steps: 6, learning_rate: 1e-3}
  scores:
    kind: eval
    models: [base, chat]
    suites: [perplexity, samples, storyworld]
    stories: 4
    max_new_tokens: 12
    prompts: [Tell me a story about a duck and a shoe.]
    win_rate: {of: chat, against: base}
    judge: {function: "longer.py:longer"}
    questions: {builtin: storyworld, rows: 12}
    refusals: {path: asked.jsonl}
    pronouns: {path: whom.jsonl}
    fail_if: {chat.perplexity: "< 1"}
"""
LONGER = """\
def longer(prompts, answers):
    return [len(answer) for answer in answers]
"""

PACKED = ("end-is-learned", "packed-documents-apart", "generation-stops", "checkpoint-replays")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run directory."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "longer.py").write_text(LONGER, encoding="utf-8")
    (folder / "asked.jsonl").write_text('{"category": "harm", "prompt": "How?"}\n', encoding="utf-8")
    question = {"query": "Whom does she mean? A:", "choices": ["the duck", "the wolf"], "gold": 0}
    (folder / "whom.jsonl").write_text(json.dumps(question), encoding="utf-8")
    return run_recipe(folder, RECIPE)


def test_the_run_is_whole(run: Path) -> None:
    for stage in ("tok", "base", "chat", "scores"):
        manifest = read_manifest(run / stage)
        assert manifest is not None
        assert (
            passed(manifest.gates)
            == {
                "tok": gates_of("tokenizer"),
                "base": gates_of("pretrain", *PACKED),
                "chat": gates_of("sft", "packed-documents-apart", "checkpoint-replays"),
                "scores": set(),
            }[stage]
        )
        assert manifest.metrics.get("gates_seconds", 0) < manifest.seconds
    chat = read_manifest(run / "chat")
    assert chat is not None
    assert chat.metrics["ends_learned_share"] == 1.0
    assert chat.metrics["held_out_loss"] < chat.metrics["held_out_loss_before"]


def test_scores(run: Path) -> None:
    scores = json.loads((run / "scores" / "scores.json").read_text(encoding="utf-8"))
    manifest = read_manifest(run / "scores")
    assert manifest is not None
    assert list(scores["models"]) == ["base", "chat"]
    for name, entry in scores["models"].items():
        assert set(entry) == {
            *("perplexity", "bits_per_byte", "nats_per_character", "tokens"),
            *("follows_share", "well_formed_share", "happy_share", "pirate_share", "samples"),
            *("refused_share", "she_accuracy"),
        }
        assert all(0 <= entry[f"{share}_share"] <= 1 for share in ("follows", "well_formed", "happy"))
        assert entry["pirate_share"] == 0
        assert len(entry["samples"]) == len(scores["prompts"]) == 1
        assert manifest.metrics[f"{name}.perplexity"] == entry["perplexity"]
        safety = scores["safety"][name]
        assert safety["refusals"]["harm"]["count"] == safety["pronouns"]["she"]["count"] == 1
        assert safety["pronouns"]["she"]["share"] == entry["she_accuracy"] in (0, 1)


def test_what_changed_from_base_to_chat(run: Path) -> None:
    scores = json.loads((run / "scores" / "scores.json").read_text(encoding="utf-8"))
    found = {row["metric"]: row for row in scores["changes"]}
    assert {(row["from"], row["to"]) for row in scores["changes"]} == {("base", "chat")}
    for key in ("perplexity", "bits_per_byte"):
        row, before, after = found[key], *(scores["models"][name][key] for name in ("base", "chat"))
        assert (row["before"], row["after"]) == pytest.approx((before, after), rel=1e-5)
        assert row["interval"][0] <= row["change"] <= row["interval"][1]
    assert found["happy_share"]["items"] == 4 and found["happy_share"]["interval"] is None


def test_a_win_rate_comes_with_what_was_judged(run: Path) -> None:
    (won,) = json.loads((run / "scores" / "scores.json").read_text(encoding="utf-8"))["win_rates"]
    lines = [json.loads(line) for line in (run / "scores" / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert won["wins"] + won["losses"] + won["ties"] == len(lines) == 12
    for line in lines:
        first, second = (len(answer) for answer in line["answers"])
        assert line["ranks"] == ([1, 1] if first == second else [1, 2] if first > second else [2, 1])
    manifest = read_manifest(run / "scores")
    assert manifest is not None and manifest.metrics["chat.beats_base_share"] == won["win_rate"]


def test_another_bound_measures_nothing_again_and_fails(run: Path) -> None:
    recipe = run.parent / "tiny.yaml"
    text = recipe.read_text(encoding="utf-8")
    before = (run / "scores" / "manifest.json").read_bytes()
    crossed = text.replace('chat.perplexity: "< 1"', 'perplexity: "> 1"')
    for _ in range(2):  # the verdict stays
        with pytest.raises(BoundError) as failed:
            run_recipe(run.parent, crossed)
        assert [problem.path for problem in failed.value.problems] == ["scores", "scores"]
        assert str(failed.value).startswith("scores: base.perplexity is ")
    assert (run / "scores" / "manifest.json").read_bytes() == before
    run_recipe(run.parent, text)


def test_held_out_text_is_that_of_the_pretrain_stage(run: Path) -> None:
    """chat is no pretrain stage: its base is found through the manifests, and gives the base's own figure."""
    scores = json.loads((run / "scores" / "scores.json").read_text(encoding="utf-8"))["models"]
    base = read_manifest(run / "base")
    assert base is not None
    assert scores["base"]["bits_per_byte"] == pytest.approx(base.metrics["bits_per_byte"], rel=1e-6)
    assert scores["chat"]["tokens"] == scores["base"]["tokens"] > 0


def test_no_text(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        run_stage("eval", {"models": [{"path": str(run / "base" / "model")}]}, context_for(tmp_path))
    assert str(error.value) == "there is no text to measure"
    assert error.value.hint == "name some: data: {path: FILES}"


def test_too_little_text(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    model, data = {"path": str(run / "base" / "model")}, {"path": str(tmp_path / "a.txt")}
    settings = {"models": [model], "data": data, "add_bos": False}
    with pytest.raises(DataError) as error:
        run_stage("eval", settings, context_for(tmp_path))
    assert str(error.value) == "the text to measure is too short: no token in it follows another"


def test_a_window_wider_than_the_model(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a duck " * 200, encoding="utf-8")
    model, data = {"path": str(run / "base" / "model")}, {"path": str(tmp_path / "a.txt")}
    with pytest.raises(StageError) as error:
        run_stage("eval", {"models": [model], "data": data, "context": 161}, context_for(tmp_path))
    assert str(error.value) == "context is 161 tokens, but the model sees 160 at most"
    assert error.value.hint == "context: 160"


def test_labels_are_unique() -> None:
    sources = [PathSource(path="a/model"), PathSource(path="b/model"), PathSource(path="c"), StageSource(stage="base")]
    assert labels([*sources, HubSource(hub="x/y")]) == ["a/model", "b/model", "c", "base", "x/y"]


def test_two_folders_of_one_name_are_two_models(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A duck found a shoe. " * 30, encoding="utf-8")
    recipe = f"""\
name: two
stages:
  scores:
    kind: eval
    models: [{{path: {run / "base" / "model"}}}, {{path: {run / "chat" / "model"}}}]
    suites: [perplexity]
    data: {{path: {tmp_path / "a.txt"}}}
"""
    found = run_recipe(tmp_path, recipe)
    assert len(json.loads((found / "scores" / "scores.json").read_text(encoding="utf-8"))["models"]) == 2
