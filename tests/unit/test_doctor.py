"""doctor: limits, versions and settings that get into the way, each with what to do."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from llmpipe import doctor

FACTS = {"device": "CPU, 1 threads"}


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.13", "trl<2,>=1.16", "peft>=0.21", "gguf>=0.19; extra == 'gguf'", "missing>=1"]
    monkeypatch.setattr(doctor, "requires", lambda _: lines)
    has = {"torch": "2.13.0+cpu", "trl": "2.0.0", "peft": "0.20.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: has.get(name, "missing"))


def test_versions_that_do_not_go_together(needs: None) -> None:
    assert list(doctor._requirements()) == [
        "trl 2.0.0 is installed: pip install 'trl<2,>=1.16'",
        "peft 0.20.0 is installed: pip install 'peft>=0.21'",
        "missing is not installed: pip install 'missing>=1'",
    ]


def test_what_is_known_to_get_into_the_way(needs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "0.31.0" if name == "vllm" else "missing")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    first, second = doctor._environment()
    assert first.startswith("vllm 0.31.0 is installed: it pins torch and transformers; give it an environment")
    assert second == "ACCELERATE_MIXED_PRECISION is set: `precision:` of a stage decides; unset it"


def test_limits(needs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_NOFILE: 256, resource.RLIMIT_FSIZE: 10**6}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits.get(which, resource.RLIM_INFINITY), 0))
    facts: dict[str, Any] = FACTS | doctor._limits()
    assert facts == FACTS | {"limit of open files": "256", "limit of file size": "1,000,000"}
    monkeypatch.setattr(doctor, "_requirements", lambda: [])
    monkeypatch.setattr(doctor, "_environment", lambda: [])
    assert doctor._problems(facts, 10**12)[:2] == [
        "a process may open 256 files, and loading data takes more: ulimit -n 4096",
        "a file may have 1,000,000 bytes, and a checkpoint be larger: ulimit -f unlimited",
    ]
