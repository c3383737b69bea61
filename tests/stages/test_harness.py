"""lm-eval, where it is installed (`pip install 'llmpipe[eval]'`): the same figures on the same rows, no code run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from llmpipe.context import Context
from llmpipe.errors import StageError, UsageError
from llmpipe.evaluation.tasks import Subject
from tests.stages.test_tasks import came_to, exact, subject, told, written  # noqa: F401

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'llmpipe[eval]'")

from llmpipe.evaluation import harness

STRIPPED = [
    {
        "name": "none",
        "filter": [{"function": "regex", "regex_pattern": r"(?s)^\s*(.*?)\s*$"}, {"function": "take_first"}],
    }
]


def lm_eval(model: Subject, source: dict[str, Any], **config: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Have lm-eval read the same rows: its figures, and its own records of them."""
    read = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": source["path"]}}, "test_split": "test"}
    config = {"task": "same", **read, "metadata": {"version": 1}, **config}
    config["metric_list"] = [{"metric": name} for name in config["metric_list"]]
    loaded = harness.manager().load([config])["tasks"]
    found = harness.evaluated(list(loaded.values()), model, shots=0, limit=None, log_samples=True)
    return harness.figures(found, "same"), sorted(found["samples"]["same"], key=lambda row: row["doc_id"])


def test_choices(subject: Subject, ctx: Context, tmp_path: Path) -> None:  # noqa: F811
    source = written(tmp_path, "choices")
    ours = came_to(subject, ctx, {"choices": source, "prompt": "{query}\nAnswer:"})
    figures, rows = lm_eval(
        subject,
        source,
        output_type="multiple_choice",
        doc_to_text="{{query}}\nAnswer:",
        doc_to_choice="{{choices}}",
        doc_to_target="gold",
        metric_list=["acc", "acc_bytes"],
    )
    assert {f"choices.{key}".replace("bytes", "norm"): value for key, value in figures.items()} == {
        key: value for key, value in ours.figures.items() if "interval" not in key
    }
    for row, one in zip(rows, ours.rows, strict=True):
        assert [resp[0][0] for resp in row["resps"]] == pytest.approx(one["log_likelihoods"], abs=1e-4)


def test_continuation(subject: Subject, ctx: Context, tmp_path: Path) -> None:  # noqa: F811
    source = written(tmp_path, "continuation")
    ours = came_to(subject, ctx, {"continuation": source})
    figures, rows = lm_eval(
        subject,
        source,
        output_type="loglikelihood",
        doc_to_text="{{context}}",
        doc_to_target=" {{continuation}}",
        target_delimiter="",
        metric_list=["acc", "perplexity"],
    )
    assert figures["acc"] == ours.figures["continuation.acc"]
    assert figures["acc_stderr"] == ours.figures["continuation.acc_stderr"]
    assert figures["perplexity"] == pytest.approx(ours.figures["continuation.perplexity"], rel=1e-4)
    for row, one in zip(rows, ours.rows, strict=True):
        assert row["resps"][0][0][0] == pytest.approx(one["log_likelihood"], abs=1e-4)


def test_exact_match(subject: Subject, ctx: Context, tmp_path: Path) -> None:  # noqa: F811
    rows = told(subject, ctx, tmp_path, until=["e"])
    ours = came_to(subject, ctx, exact(tmp_path, rows, until=["e"]))
    figures, rows = lm_eval(
        subject,
        written(tmp_path, "exact_match", rows),
        output_type="generate_until",
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["e"], "max_gen_toks": 8, "do_sample": False},
        filter_list=STRIPPED,
        metric_list=["exact_match"],
    )
    assert figures["exact_match"] == ours.figures["exact_match.exact_match"] == 0.5
    assert figures["exact_match_stderr"] == ours.figures["exact_match.exact_match_stderr"]
    assert [row["filtered_resps"] for row in rows] == [[one["answer"]] for one in ours.rows]


def test_text(subject: Subject, ctx: Context, tmp_path: Path) -> None:  # noqa: F811
    """lm-eval would guess a begin token of the tokenizer's own from another one; ours is guessed by nobody."""
    source = written(tmp_path, "text")
    ours = came_to(subject, ctx, {"text": source})
    subject.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    figures, rows = lm_eval(
        subject,
        source,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=["word_perplexity", "byte_perplexity", "bits_per_byte"],
    )
    for key in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert figures[key] == pytest.approx(ours.figures[f"text.{key}"], rel=1e-5)
    for row, one in zip(rows, ours.rows, strict=True):
        assert row["resps"][0][0] == pytest.approx(one["log_likelihood"], rel=1e-6)


def test_figures_of_groups_and_filters() -> None:
    results = {
        "arc": {"alias": "arc"},
        "arc_easy": {"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 4},
        "gsm8k": {"exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A"},
    }
    counts = {"arc_easy": {"original": 9, "effective": 4}}
    assert harness.figures({"results": results, "n-samples": counts}, "arc") == {
        "arc_easy.acc": 0.5,
        "arc_easy.acc_stderr": 0.1,
        "gsm8k.exact_match_strict_match": 0.25,
        "rows": 4,
    }
    assert harness.figures({"results": results, "n-samples": counts}, "arc_easy")["acc"] == 0.5


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "humaneval_64"])
def test_a_task_that_runs_code_is_refused(subject: Subject, ctx: Context, name: str) -> None:  # noqa: F811
    """Before its own code is imported, which would run some."""
    with pytest.raises(UsageError) as error:
        came_to(subject, ctx, {"lm_eval": name})
    assert str(error.value) == f"{name} runs code that the model wrote, which llmpipe never does"
    assert error.value.hint == "run it with lm-eval itself, in a sandbox"


def test_nothing_confirms_code(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    seen: dict[str, Any] = {}
    monkeypatch.setattr(harness, "simple_evaluate", lambda model, **options: seen.update(options) or {})
    harness.evaluated([], subject, shots=None, limit=None)
    assert seen["confirm_run_unsafe_code"] is False


def test_an_unknown_task(subject: Subject, ctx: Context) -> None:  # noqa: F811
    with pytest.raises(UsageError) as error:
        came_to(subject, ctx, {"lm_eval": "arc_esay"})
    assert str(error.value) == "lm-eval has no task 'arc_esay', did you mean arc_easy?"


def test_without_a_network(subject: Subject, ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StageError) as error:
        came_to(subject, ctx, {"lm_eval": "arc_easy"})
    assert str(error.value).startswith("arc_easy cannot be loaded: ")
    assert error.value.hint == harness.HINT
