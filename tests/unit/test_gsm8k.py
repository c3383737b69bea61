"""The rewards of the recipe grpo-gsm8k: what counts as the right number."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "recipes" / "gsm8k.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gsm8k", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gsm8k = load()


@pytest.mark.parametrize(
    ("answer", "reference", "worth"),
    [
        ("4 + 8 = 12\n#### 12", "#### 12", 1.0),
        ("#### 1,200", "so much\n#### 1200", 1.0),
        ("#### $12.00", "#### 12", 1.0),
        ("The answer is 12.", "#### 12", 1.0),
        ("#### -3", "#### -3", 1.0),
        ("#### 3", "#### -3", 0.0),
        ("12 of them\n#### 13", "#### 12", 0.0),
        ("It is 12, or 13", "#### 12", 0.0),
        ("####", "#### 12", 0.0),
        ("", "#### 12", 0.0),
        ("twelve", "#### 12", 0.0),
        ("#### 12", None, None),
    ],
)
def test_the_number_counts(answer: str, reference: str | None, worth: float | None) -> None:
    assert gsm8k.exact_match(["?"], [answer], [reference]) == [worth]


@pytest.mark.parametrize(
    ("answer", "worth"),
    [("so\n#### 12", 1.0), ("#### -1,200.5", 1.0), ("#### it is 12", 0.0), ("12", 0.0), ("#### 1 #### 2", 0.0)],
)
def test_one_result_is_worth_a_little(answer: str, worth: float) -> None:
    assert gsm8k.gives_a_result(["?"], [answer]) == [worth]
