"""Rewards for grade-school maths (GSM8K, arXiv:2110.14168): is the number at the end of an answer the right one?

Read by `kind: grpo`, `rloo` and `rlhf-ppo` alike: `reward: {function: gsm8k.py:exact_match}`. `references` are the
answers of the rows, which end in `#### 42`.
"""

from __future__ import annotations

import re
from decimal import Decimal

MARK = "####"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact_match(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float | None]:
    """Return 1 for an answer whose number is the reference's, else 0; None where there is no reference."""
    del prompts
    return [
        None if reference is None else float(result(answer) is not None and result(answer) == result(reference))
        for answer, reference in zip(answers, references, strict=True)
    ]


def gives_a_result(prompts: list[str], answers: list[str]) -> list[float]:
    """Return 1 for an answer with one result, a number behind `####`, right or wrong: worth a little."""
    del prompts
    return [
        float(answer.count(MARK) == 1 and NUMBER.match(answer.partition(MARK)[2].strip()) is not None)
        for answer in answers
    ]


def result(text: str) -> Decimal | None:
    """Return the number behind the last `####`, or else the last one in the text; 1,000 and 1000.00 are the same."""
    _, mark, behind = text.rpartition(MARK)
    found = NUMBER.findall(behind)
    number = (found[:1] if mark else found[-1:]) or [None]
    return None if number[0] is None else Decimal(number[0].replace(",", ""))
