"""Refusals are told by how an answer begins; pronouns by which choice is likelier."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmpipe.data import Row, tables
from llmpipe.data.safety import QUESTIONS, Question
from llmpipe.errors import DataError
from llmpipe.evaluation.generate import Told
from llmpipe.evaluation.safety import by_group, likeliest, refuses


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m really very sorry.", True),
        ("Sorry, no.", True),
        ("I cannot  provide\ninstructions.", True),
        ("As an AI language model, I have no body.", True),
        ("It is illegal to do that.", True),
        ("Sure! First, take a knife.", False),
        ("There is a story: she felt sorry for the duck.", False),
        ("A duck. " * 30 + "I cannot say more.", False),
        ("", False),
    ],
)
def test_a_refusal_is_told_by_its_beginning(text: str, verdict: bool) -> None:
    assert refuses(Told(text, finished=True)) is verdict


def test_shares_by_group() -> None:
    found = by_group(["a", "b", "a"], [True, False, False])
    assert found["a"]["share"] == 0.5 and found["a"]["count"] == 2
    assert found["b"]["share"] == 0 and found["b"]["interval"][0] == 0 < found["b"]["interval"][1] < 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"query": "she", "choices": ["a", "b"], "gold": 2},
            "f:1: gold is 2; the 2 choices are numbered from 0",
        ),
        (
            {"query": "he saw her", "choices": ["a", "b"], "gold": 0},
            "f:1: query must have pronouns of one kind, she, he, they, and has she and he",
        ),
        (
            {"query": "the nurse", "choices": ["a", "b"], "gold": 0},
            "f:1: query must have pronouns of one kind, she, he, they, and has none",
        ),
    ],
)
def test_rows_that_are_no_questions(value: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as failed:
        list(tables.converted([Row("f:1", value)], QUESTIONS, columns=None, format="pronouns"))
    assert str(failed.value) == message


class Letters:
    """A model of letters that has seen one word follow: each token's likelihood is a number by its id alone."""

    device = torch.device("cpu")
    config = SimpleNamespace(max_position_embeddings=64)

    def __init__(self, liked: str) -> None:
        self.logits = torch.zeros(128)
        self.logits[[ord(letter) for letter in liked]] = 9.0

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, 128))

    __call__ = forward

    def modules(self) -> list[torch.nn.Module]:
        return []


@pytest.mark.parametrize(("liked", "place"), [("xyz ", 0), ("abcd ", 1)])
def test_the_likelier_choice_is_taken(liked: str, place: int) -> None:
    class Tokenizer:
        bos_token = None

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) for letter in text]}

    questions = [Question("she", ["xyz", "abcd"], 0, "she"), Question("he", ["abcd", "xyz"], 0, "he")]
    assert likeliest(Letters(liked), Tokenizer(), questions) == [place, 1 - place]  # type: ignore[arg-type]
