"""The toxicity step with a classifier: what it drops, long texts, many at once, and what is said of wrong labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from llmpipe import edges, yaml_tree
from llmpipe import recipe as recipes
from llmpipe.curation import toxicity
from llmpipe.errors import DataError, RecipeError
from llmpipe.evaluation import classifier as classifiers
from llmpipe.evaluation.classifier import Classifier
from tests.stages.conftest import SMALL
from tests.unit.test_curate_stage import context, run, written

LABELS = ["fine", "rude", "hate"]


@pytest.fixture
def classifier(tokenizer: Any, tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = {**SMALL, "max_position_embeddings": 16, "vocab_size": 300, "pad_token_id": 0, "initializer_range": 0.5}
    model = BertForSequenceClassification(BertConfig(**config, id2label=dict(enumerate(LABELS))))
    tokenizer.model_max_length = 16
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_many_texts_are_judged_as_each_alone(classifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, texts = Classifier(classifier), [f"{'word ' * n}{n} and more" for n in range(12)]
    together = judge.worst(texts, ["hate"])
    monkeypatch.setattr(classifiers, "BATCH_TOKENS", 1)
    for text, found in zip(texts, together, strict=True):
        assert found == pytest.approx(judge.worst([text], ["hate"])[0], abs=1e-5)
        assert sum(found.values()) == pytest.approx(1)


def test_a_text_is_as_toxic_as_its_worst_window(classifier: str) -> None:
    judge = Classifier(classifier)
    text = " ".join(str(n) for n in range(60))
    ids = judge.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert len(ids) > 16 * 3
    whole, begin = judge.worst([text], ["hate"])[0], judge.tokenizer(text, truncation=True, max_length=16)["input_ids"]
    assert whole["hate"] > float(judge._probabilities([begin])[0, 2])


def test_texts_above_the_threshold_go(classifier: str, tmp_path: Path) -> None:
    texts = [f"text {n} says {n * n}" for n in range(40)]
    found = Classifier(classifier).worst(texts, ["rude", "hate"])
    sums = [one["rude"] + one["hate"] for one in found]
    threshold = sorted(sums)[20]
    ctx = context(tmp_path / "run")
    step = {"step": "toxicity", "labels": ["rude", "hate"], "threshold": threshold}
    run(ctx, texts, steps=[step], classifier={"path": classifier}, split={"validation": 0})
    assert written(ctx, "*.jsonl") == [text for text, share in zip(texts, sums, strict=True) if share < threshold]
    report = json.loads((ctx.dir / "curation.json").read_text("utf-8"))["steps"][0]
    assert report["dropped"] == 20 and sum(report["found"].values()) == 20


def test_a_label_that_the_classifier_does_not_have(classifier: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this classifier has no class 'hat', did you mean hate") as failed:
        toxicity.refuse_unknown(["hat"], classifier)
    assert failed.value.hint == "its classes are fine, rude, hate"
    with pytest.raises(DataError, match="is no folder of a classifier"):
        toxicity.refuse_unknown(["hate"], str(tmp_path))


RECIPE = """name: x
stages:
  mod: {kind: classify, model: {hub: a/b}, data: {builtin: storyworld}}
  corpus: {kind: curate, data: {builtin: storyworld}, steps: [STEP]CLASSIFIER}
"""


def checked(step: str, classifier: str) -> Any:
    text = RECIPE.replace("STEP", step).replace("CLASSIFIER", classifier)
    return recipes.check(yaml_tree.parse(text, shown_as="r.yaml"), Path(__file__).parent / "r.yaml")


def test_the_classifier_is_an_input_of_the_stage() -> None:
    found = checked("{step: toxicity, labels: [hate]}", ", classifier: mod").stages["corpus"]
    assert edges.upstream(found) == ["mod"]
    assert type(found).model_validate(found.model_dump(mode="json")) == found  # as a worker reads it


@pytest.mark.parametrize(
    ("step", "classifier", "message"),
    [
        (
            "{step: toxicity, labels: [hate]}",
            "",
            "toxicity with `labels:` needs what tells them: classifier: STAGE, or {path: FOLDER}",
        ),
        (
            "toxicity",
            ", classifier: mod",
            "no step reads `classifier:`; write {step: toxicity, labels: [...]}, or leave it out",
        ),
        (
            "{step: toxicity, threshold: 0.5}",
            "",
            "`threshold:` is for the classifier; say which of its classes are toxic: labels: [...]",
        ),
        (
            "{step: toxicity, labels: [a], share: 0.1}",
            ", classifier: mod",
            "with `labels:` the classifier decides, and `share:` is for the list of words",
        ),
    ],
)
def test_mistakes(step: str, classifier: str, message: str) -> None:
    with pytest.raises(RecipeError) as failed:
        checked(step, classifier)
    assert [problem.message for problem in failed.value.problems] == [message]
