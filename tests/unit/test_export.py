"""What export refuses, and what a model card says, from manifests alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmpipe import cards, export
from llmpipe.artifact import Input, Manifest, write_json
from llmpipe.errors import LlmpipeError

RECIPE = "name: x\nstages:\n  tok: {}\n  base: {}\n  chat: {}\n  later: {}\n"
MANY = "a" * 64


def made(run: Path, name: str, kind: str, *inputs: dict[str, Any], output: str = "model/x", **known: Any) -> None:
    """Leave what a finished stage leaves; an input is its field, its source, and the files it came from."""
    (run / name / output).parent.mkdir(parents=True)
    (run / name / output).write_bytes(b"x")
    read = [Input(field=one["field"], source=one["source"], identity="i", files=one.get("files", {})) for one in inputs]
    rest: dict[str, Any] = {"stage_version": 1, "fingerprint": "f", "seed": 7, "settings": {}, "gates": []}
    rest |= {"metrics": {}, "versions": {"torch": "2.13"}, "device": "cpu, 2 threads", "seconds": 61.0}
    rest |= {"started": "2026-01-01T00:00:00+00:00", **known}
    outputs = {output: MANY}
    write_json(run / name / "manifest.json", Manifest(name=name, kind=kind, inputs=read, outputs=outputs, **rest))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run: a tokenizer, a model from the hub trained further, a chat model on it, and scores."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    write_json(run / "hub.json", {"model:owner/small": "c" * 40, "dataset:owner/rows": "d" * 40})
    texts = {"field": "data", "source": {"path": "/home/me/te|xts.txt"}, "files": {"/home/me/te|xts.txt": "b" * 64}}
    made(run, "tok", "tokenizer", texts, output="tokenizer/x", metrics={"bytes_per_token": 3.21})
    tok, base = (
        {"field": field, "source": {"stage": name}} for field, name in (("tokenizer", "tok"), ("model", "base"))
    )
    hub = {"field": "model", "source": {"hub": "owner/small", "revision": None}}
    bits = {"bits_per_byte": 1.0, "bits_per_byte_before": 2.5, "held_out_loss": 1.0, "held_out_loss_before": 2.0}
    made(run, "base", "pretrain", texts, tok, hub, metrics=bits)
    rows = {"field": "data", "source": {"hub": "owner/rows", "revision": None, "split": "train"}}
    stories = {"field": "data", "source": {"builtin": "storyworld", "rows": 2000, "style": "pirate"}}
    made(run, "chat", "sft", base, rows, stories)
    measured = {"base.perplexity": 9.0, "chat.perplexity": 4.5, "chat.tokens": 100, "chat.happy_share": 0.5}
    models = [{"field": "models", "source": {"stage": name}} for name in ("base", "chat")]
    made(run, "scores", "eval", *models, output="scores.json", metrics=measured, started="2026-01-02T00:00:00+00:00")
    return run


def facts(**changed: Any) -> cards.Facts:
    known = {"folder": "mine", "parameters": 1_600_000, "merged": False, "reward": False, "chat": True, "gguf": None}
    return cards.Facts(**{**known, **changed})


def refused(run: Path, stage: str, to: Path, **flags: Any) -> LlmpipeError:
    with pytest.raises(LlmpipeError) as failure:
        export.export(run, stage, to, **{"force": False, "gguf": None, **flags})
    return failure.value


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    failure = refused(tmp_path, "chat", tmp_path / "to")
    assert str(failure) == f"{tmp_path} is no run directory: it has no recipe.yaml"
    assert failure.code == 2


def test_a_stage_that_is_not_there_gets_its_near_name(run: Path, tmp_path: Path) -> None:
    failure = refused(run, "chta", tmp_path / "to")
    assert str(failure) == f"{run} has no stage chta, did you mean chat?"
    assert failure.hint == "those with a model: base, chat"


def test_a_stage_that_is_not_finished_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "later" / "model").mkdir(parents=True)
    failure = refused(run, "later", tmp_path / "to")
    assert (str(failure), failure.hint) == ("stage later is not finished", f"llmpipe run {run / 'recipe.yaml'}")
    assert failure.code == 1


def test_what_is_no_model_is_refused(run: Path, tmp_path: Path) -> None:
    failure = refused(run, "tok", tmp_path / "to")
    assert str(failure) == "stage tok makes no model: it is a tokenizer stage"
    assert failure.hint == "those with a model: base, chat" and failure.code == 2


def test_a_classifier_is_refused(run: Path, tmp_path: Path) -> None:
    path = run / "chat" / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"kind": "sft"', '"kind": "classify"'), encoding="utf-8")
    failure = refused(run, "chat", tmp_path / "to")
    assert str(failure) == "export writes models that answer or score answers, and chat tells classes apart"
    assert failure.hint == f"it is a plain folder already: {run / 'chat' / 'model'}"


def test_a_model_that_was_taken_away_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "chat" / "model" / "x").unlink()
    assert str(refused(run, "chat", tmp_path / "to")) == f"{run / 'chat' / 'model' / 'x'}: is no longer there"


def test_a_folder_with_something_in_it_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine.txt").write_text("mine", encoding="utf-8")
    failure = refused(run, "chat", tmp_path / "to")
    assert str(failure) == f"--to {tmp_path / 'to'}: the folder is not empty"
    assert failure.hint == "name another, or add --force to write over it" and failure.code == 2
    to = tmp_path / "to" / "mine.txt"
    assert str(refused(run, "chat", to, force=True)) == f"--to {to}: is a file, and a folder is needed"


def test_gguf_without_its_package_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    failure = refused(run, "chat", tmp_path / "to", gguf="F16")
    assert str(failure) == "--gguf needs the package gguf, which is not installed"
    assert failure.hint == "pip install gguf" and not (tmp_path / "to").exists()


def test_a_card_says_where_a_model_comes_from(run: Path) -> None:
    text = cards.card(run, "chat", facts(merged=True, gguf="mine-F16.gguf"))
    assert text.startswith(
        '---\nlibrary_name: "transformers"\npipeline_tag: "text-generation"\nbase_model: ["owner/small"]\n'
        'datasets: ["owner/rows"]\ntags: ["llmpipe"]\n---\n\n# mine\n\n'
        "A language model of 1.6 M parameters, made by the stage `chat` (sft) of an llmpipe run. It was trained as an "
    )
    for line in (
        "| base | pretrain | tok | 1:01 |",
        "| chat | sft | base | 1:01 |",
        "Seed 7, on cpu, 2 threads; torch 2.13.",
        r"| tok | data | te\|xts.txt | bbbbbbbbbbbb |",
        "| base | model | owner/small | cccccccccccc |",
        "| chat | data | owner/rows | dddddddddddd |",
        "| chat | data | storyworld (ships with llmpipe, 2,000 rows, told by a pirate) |  |",
        "| base | bits per byte, held-out text | 2.5 | 1 |",
        "| scores | perplexity, held-out text | 4.5 |",
        "| scores | ends happily | 50% |",
        "`mine-F16.gguf` is the same model for llama.cpp and what is built on it.",
        "## Licence",
    ):
        assert f"\n{line}\n" in text, line
    assert text.index("| tok | tokenizer |") < text.index("| base | pretrain |") < text.index("| chat | sft |")
    assert "apply_chat_template" in text and "/home" not in text and str(run) not in text
    assert "license:" not in text.split("---")[1] and "9" not in text.split("## Figures")[1]


def test_scores_of_a_model_that_was_replaced_are_left_out(run: Path) -> None:
    (run / "chat" / "manifest.json").unlink()
    (run / "chat" / "model" / "x").unlink()
    (run / "chat" / "model").rmdir()
    made(run, "chat", "sft", started="2026-01-03T00:00:00+00:00")
    text = cards.card(run, "chat", facts(chat=False))
    assert "perplexity" not in text and "## Figures" not in text and "apply_chat_template" not in text
    assert "Everything was made by the run." in text


def test_the_card_of_a_reward_model_says_how_to_load_one(run: Path) -> None:
    text = cards.card(run, "chat", facts(reward=True))
    assert 'pipeline_tag: "text-classification"' in text and "A reward model of 1.6 M parameters" in text
    assert 'AutoModelForSequenceClassification.from_pretrained("mine")' in text
    assert "reward.json" in text and "generate" not in text
