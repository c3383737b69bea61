"""What is missing is said before anything runs."""

from types import SimpleNamespace
from typing import Any

import pytest

from llmpipe import packages
from llmpipe.errors import UsageError


def step(report_to: Any, action: str = "run") -> Any:
    return SimpleNamespace(name="base", action=action, record=SimpleNamespace(settings={"trainer": report_to}))


@pytest.mark.parametrize("asked", ["wandb", ["tensorboard", "wandb"]])
def test_a_tracker_that_is_missing(monkeypatch: pytest.MonkeyPatch, asked: Any) -> None:
    monkeypatch.setattr(packages, "is_there", lambda module: module != "wandb")
    with pytest.raises(UsageError, match="stage base reports to wandb, which is not installed") as failed:
        packages.refuse_without_trackers([step(None), step({"report_to": "none"}), step({"report_to": asked})])
    assert failed.value.hint == "pip install wandb"
    packages.refuse_without_trackers([step({"report_to": asked}, "skip"), step({"report_to": "tensorboard"})])
