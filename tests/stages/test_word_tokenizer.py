"""algorithm: word keeps words whole, and says where that will not do; lower_case reads capitals as small letters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, pipeline

from llmpipe.stages import pretrain
from tests.stages.conftest import SMALL
from tests.stages.test_classify import LEARNS, LETTERS, TRAINER, write_rows
from tests.stages.tiny import context_for, passed, run_stage

TEXT = 'A duck, a DUCK and "another"... Was it \ufb01ne, Nora? It wasn\'t!!!'
SHAPES = {"causal": SMALL, "masked": SMALL, "denoising": {"num_layers": 1, "d_model": 32, "d_kv": 16, "num_heads": 2}}
Learn = Callable[..., Any]


@pytest.fixture
def learn(tmp_path: Path, ctx: Any) -> Learn:
    """Run the stage on a text, and load what it wrote."""

    def learned(text: str = TEXT, **settings: Any) -> Any:
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        settings = {"algorithm": "word", "data": {"path": str(tmp_path / "text.txt")}} | settings
        run_stage("tokenizer", settings, ctx)
        return AutoTokenizer.from_pretrained(ctx.dir / "tokenizer")

    return learned


def cut(tokenizer: Any, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_words_and_runs_of_punctuation_are_whole(learn: Learn) -> None:
    tokenizer = learn()
    assert cut(tokenizer, 'a "another"... wasn\'t!!!') == ["a", '"', "another", '"...', "wasn", "'", "t", "!!!"]
    assert cut(tokenizer, "a goose") == ["a", tokenizer.unk_token]
    assert tokenizer.unk_token_id not in tokenizer(TEXT)["input_ids"], "a word that came once has its token"


def test_the_commonest_words_stay_where_there_is_no_room_for_all(learn: Learn) -> None:
    tokenizer = learn("duck duck duck shoe shoe hat", vocab_size=16, special_tokens=[f"<{n}>" for n in range(6)])
    assert len(tokenizer) == 16
    assert cut(tokenizer, "duck shoe hat") == ["duck", "shoe", tokenizer.unk_token]


@pytest.mark.parametrize("algorithm", ["bpe", "byte", "char", "unigram", "wordpiece", "word"])
def test_lower_case_reads_capitals_and_ligatures_as_small_letters(algorithm: str, learn: Learn) -> None:
    tokenizer = learn(TEXT * 20, algorithm=algorithm, lower_case=True, vocab_size=400)
    one, other = (tokenizer(f"<|user|>{text}")["input_ids"] for text in ("\ufb01ne DUCK", "fine duck"))
    assert one == other
    assert tokenizer.unk_token_id not in one
    shown = tokenizer.decode(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    assert shown == shown.lower()
    assert cut(tokenizer, "<|user|>")[0] == "<|user|>"


CAN_WRITE = (
    "the tokenizer knows {:,} words whole: the model can write no other, and reads each other as <|unk|>; algorithm: "
    "bpe can write everything"
)


@pytest.mark.parametrize(
    ("algorithm", "objective", "warned"),
    [("word", "causal", True), ("word", "denoising", True), ("word", "masked", False), ("char", "causal", False)],
)
def test_a_model_that_is_to_write_is_told_that_it_lacks_words(
    algorithm: str, objective: str, warned: bool, learn: Learn, ctx: Any
) -> None:
    tokenizer = learn(TEXT, algorithm=algorithm)
    ctx.events.clear()
    model = {"arch": {"causal": "llama", "denoising": "t5", "masked": "bert"}[objective], "config": SHAPES[objective]}
    settings = {
        "objective": objective,
        "model": model,
        "tokenizer": {"path": str(ctx.dir / "tokenizer")},
        "context": 16,
    }
    pretrain.make_model(pretrain.Settings.model_validate({"kind": "pretrain", **settings}), ctx)
    said = [event["text"] for event in ctx.events if "can write" in event.get("text", "")]
    assert said == [CAN_WRITE.format(len(tokenizer))] * warned


def test_a_masked_model_of_words_becomes_a_classifier(tmp_path: Path, learn: Learn, ctx: Any) -> None:
    rows = [(f"{LETTERS[name]} {n % 8}", name) for n in range(160) for name in LETTERS]
    learn("\n".join(text for text, _ in rows))
    data = write_rows(tmp_path, rows)
    reader = {
        "objective": "masked",
        "model": {"arch": "bert", "config": SMALL | {"initializer_range": 0.1}},
        "tokenizer": {"path": str(ctx.dir / "tokenizer")},
        "data": data,
        "context": 16,
        "held_out": {"share": 0},
        "trainer": TRAINER,
    }
    run_stage("pretrain", reader, ctx)
    moderator = context_for(tmp_path / "moderator")
    model = {"path": str(ctx.dir / "model")}
    settings = {"model": model, "data": data, "context": 16, "held_out": {"share": 0}, "trainer": LEARNS}
    passed(run_stage("classify", settings, moderator).gates)
    tell = pipeline("text-classification", str(moderator.dir / "model"))
    assert [tell(f"{letter} 3")[0]["label"] for letter in LETTERS.values()] == list(LETTERS)
