"""The layer that asks a classifier: one that a `classify` stage would write, and one of several labels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from llmpipe.evaluation.classifier import Classifier
from llmpipe.moderation.opening import moderator
from llmpipe.talk.engine import Sampling
from llmpipe.talk.moderated import Moderated
from tests.stages.conftest import SMALL
from tests.unit.moderating import TOP, logged
from tests.unit.scripted import ScriptedEngine

LABELS = ["fine", "rude", "hate"]
TEXTS = [f"text {number} says {number * number} and more of it" for number in range(12)]


def saved(tokenizer: Any, folder: Path, **config: Any) -> Path:
    torch.manual_seed(0)
    small = {**SMALL, "max_position_embeddings": 16, "vocab_size": 300, "pad_token_id": 0, "initializer_range": 0.5}
    model = BertForSequenceClassification(BertConfig(**small, id2label=dict(enumerate(LABELS)), **config))
    tokenizer.model_max_length = 16
    for one in (model, tokenizer):
        one.save_pretrained(folder)
    return folder


def policy(folder: Path, rules: str) -> Path:
    path = folder / "policy.yaml"
    text = f"{TOP}\nclassifier: {{model: model}}\nlog: {{path: log.jsonl}}\nrules:\n{rules}"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_classifier_blocks_from_its_threshold_on(tokenizer: Any, tmp_path: Path) -> None:
    judge = Classifier(str(saved(tokenizer, tmp_path / "model")))
    scores = {text: judge.worst([text], ["hate"])[0]["hate"] for text in TEXTS}
    middle = sorted(scores.values())[6]
    own = moderator(
        str(policy(tmp_path, f"  hate: {{layer: classifier, category: hate, score: {middle}, input: block}}\n"))
    )
    assert own is not None
    with ThreadPoolExecutor(4) as threads:  # a tokenizer that two threads use at once may refuse
        verdicts = list(threads.map(lambda text: own.judge(text, "input"), TEXTS))
    assert [one.blocked is not None for one in verdicts] == [scores[text] >= middle for text in TEXTS]
    assert sorted(line["score"] for line in logged(tmp_path)) == pytest.approx(sorted(scores.values())[6:], abs=1e-3)


def test_an_answer_is_judged_sentence_by_sentence(tokenizer: Any, tmp_path: Path) -> None:
    judge = Classifier(str(saved(tokenizer, tmp_path / "model")))
    first, second = sorted(TEXTS, key=lambda text: judge.worst([f"{text}."], ["hate"])[0]["hate"])[:: len(TEXTS) - 1]
    high = judge.worst([f"{second}."], ["hate"])[0]["hate"] - 1e-4
    own = moderator(
        str(policy(tmp_path, f"  hate: {{layer: classifier, category: hate, score: {high}, output: redact}}\n"))
    )
    assert own is not None
    engine = Moderated(ScriptedEngine([f"{first}. {second}. {first}."]), own)
    answer = "".join(piece.text for piece in engine.chat([{"role": "user", "content": "Go on."}], Sampling()))
    assert answer == f"{first}. [removed] {first}."


def test_a_model_of_several_labels_gives_each_its_own_probability(tokenizer: Any, tmp_path: Path) -> None:
    folder = saved(tokenizer, tmp_path / "model", problem_type="multi_label_classification")
    found = Classifier(str(folder)).worst(["Go on."], ["rude"])[0]
    ids = tokenizer("Go on.", return_tensors="pt")
    with torch.inference_mode():
        logits = BertForSequenceClassification.from_pretrained(folder)(ids["input_ids"], ids["attention_mask"]).logits
    assert found["hate"] == pytest.approx(float(logits.sigmoid()[0, 2]), abs=1e-5)
