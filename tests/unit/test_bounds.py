"""`fail_if:`: what a bound says, which metrics it means, and what a run does where it is crossed; as JUnit XML, too."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llmpipe import bounds, gates, junit, recipe, runner
from llmpipe.artifact import Gate, Manifest, StepRecord, write_json
from llmpipe.bounds import BoundError, Check, UnknownMetricError
from llmpipe.errors import ExitCode, Problem, RecipeError, StageError, UsageError
from llmpipe.plan import Step

METRICS = {"base.perplexity": 25.0, "ppo.perplexity": 18.0, "ppo.happy_share": 0.95}


@pytest.mark.parametrize(
    ("bound", "value", "is_crossed"),
    [
        ("> 20", 20.1, True),
        ("> 20", 20, False),
        (">= 20", 20, True),
        ("< .9", 0.95, False),
        ("<.9", 0.89, True),
        ("<= -1e-3", -0.001, True),
        ("== 0", 0, True),
        ("!= 0", 0, False),
        ("> 20", math.inf, True),
        ("> 20", math.nan, True),
        ("< 20", None, True),
    ],
)
def test_a_bound_is_what_a_metric_must_not_be(bound: str, value: float | None, is_crossed: bool) -> None:
    assert Check("m", bound, value).is_crossed is is_crossed


def test_a_name_without_a_model_means_that_of_all_models() -> None:
    found = bounds.checks({"perplexity": "> 20", "ppo.happy_share": "< .9"}, METRICS)
    assert [(check.metric, check.is_crossed) for check in found] == [
        ("base.perplexity", True),
        ("ppo.perplexity", False),
        ("ppo.happy_share", False),
    ]


def test_a_name_is_not_a_part_of_a_name() -> None:
    assert bounds.matching("share", METRICS) == []


def step_of(run: Path, *, fail_if: dict[str, str], is_chosen: bool = True, gates: tuple[Gate, ...] = ()) -> Step:
    """Make a finished eval stage."""
    record = StepRecord(
        name="scores", kind="eval", stage_version=1, fingerprint="f", seed=1, settings={"fail_if": fail_if}, inputs=[]
    )
    rest = {"outputs": {}, "metrics": METRICS, "versions": {}, "device": "", "started": "", "seconds": 1.5}
    (run / "scores").mkdir(parents=True, exist_ok=True)
    stale = record.model_copy(update={"settings": {}})
    write_json(run / "scores" / "manifest.json", Manifest(**dict(stale), gates=list(gates), **rest))
    return Step(record, "skip", "unchanged", [], is_chosen=is_chosen)


def test_a_run_ends_with_code_3_also_where_the_stage_was_done_before(tmp_path: Path) -> None:
    step = step_of(tmp_path, fail_if={"perplexity": "> 20", "happy_share": "<= .95"})
    with pytest.raises(BoundError) as failed:
        runner.run([step], tmp_path, runner.Options())
    assert failed.value.code == ExitCode.GATE == 3
    assert str(failed.value).splitlines() == [
        "scores: base.perplexity is 25, and fail_if says > 20",
        "scores: ppo.happy_share is 0.95, and fail_if says <= .95",
    ]


def test_a_stage_that_was_not_asked_for_fails_nothing(tmp_path: Path) -> None:
    step = step_of(tmp_path, fail_if={"perplexity": "> 20"}, is_chosen=False)
    runner.run([step], tmp_path, runner.Options())


def test_a_name_that_is_no_metric(tmp_path: Path) -> None:
    with pytest.raises(UnknownMetricError) as failed:
        runner.run([step_of(tmp_path, fail_if={"ppo.happy_shar": "< 1"})], tmp_path, runner.Options())
    assert str(failed.value) == "scores: fail_if: no metric is called 'ppo.happy_shar', did you mean ppo.happy_share?"
    assert failed.value.code == ExitCode.USAGE


RECIPE = """\
name: x
stages:
  tok: {kind: tokenizer, data: {builtin: storyworld}}
  base: {kind: pretrain, data: {builtin: storyworld}, model: {size: 500k}, trainer: {max_steps: 1}}
  scores: {kind: eval, suites: [perplexity], SETTINGS}
"""


def problem_of(folder: Path, settings: str) -> str:
    (folder / "x.yaml").write_text(RECIPE.replace("SETTINGS", settings), encoding="utf-8")
    with pytest.raises(RecipeError) as failed:
        recipe.load(folder / "x.yaml")
    return failed.value.problems[0].message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("fail_if: {perplexty: '> 20'}", "fail_if: no metric is called 'perplexty', did you mean perplexity?"),
        ("fail_if: {chat.tokens: '> 20'}", "fail_if: no metric is called 'chat.tokens', did you mean base.tokens?"),
        ("fail_if: {perplexity: 20}", "must be a text, not 20"),
        ("fail_if: {perplexity: 'above 20'}", """write a bound such as "> 20" or "<= 0.9", not 'above 20'"""),
        ("win_rate: {of: bas, against: base}", "win_rate: no model here is called 'bas', did you mean base?"),
        ("win_rate: {of: base, against: base}", "win_rate: base is compared with itself"),
        ("judge: {hub: a/b}", "a judge needs two models to compare: `win_rate: {of: NAME, against: NAME}`"),
        ("judge: base", "stage 'base' makes a causal-lm, a reward-model is needed"),
        (
            "judge: {url: 'localhost:80', model: m}",
            "write an address such as http://localhost:8000/v1, not 'localhost:80'",
        ),
    ],
)
def test_mistakes_are_found_in_the_plan(tmp_path: Path, settings: str, message: str) -> None:
    assert problem_of(tmp_path, settings) == message


def cases(path: Path) -> list[tuple[str, str, dict[str, str]]]:
    root = ElementTree.parse(path).getroot()
    assert int(root.get("tests", "")) == len(list(root.iter("testcase")))
    return [
        (case.get("classname", ""), case.get("name", ""), {wrong.tag: wrong.get("message", "") for wrong in case})
        for case in root.iter("testcase")
    ]


def test_junit_has_a_case_for_each_gate_and_each_bound(tmp_path: Path) -> None:
    gate = Gate(name="pad-is-not-end", passed=True, why="a \x1b<reason>")
    step = step_of(tmp_path / "run", fail_if={"perplexity": "> 20"}, gates=(gate,))
    junit.write(tmp_path / "found.xml", tmp_path / "run", [step])
    assert cases(tmp_path / "found.xml") == [
        ("scores", "gate pad-is-not-end", {}),
        ("scores", "fail_if base.perplexity > 20", {"failure": "base.perplexity is 25"}),
        ("scores", "fail_if ppo.perplexity > 20", {}),
    ]
    root = ElementTree.parse(tmp_path / "found.xml").getroot()
    assert (root.get("failures"), root.get("errors"), root[0].get("time")) == ("1", "0", "1.50")


def test_junit_says_what_ended_the_run(tmp_path: Path) -> None:
    failure = StageError([Problem("gate 'end-is-learned' failed: it never \x1bstops", path="chat"), Problem("no room")])
    junit.write(tmp_path / "found.xml", tmp_path, [], failure=failure)
    assert cases(tmp_path / "found.xml") == [
        ("chat", "gate end-is-learned", {"failure": "it never \N{REPLACEMENT CHARACTER}stops"}),
        ("chat", "run", {"error": "no room"}),
    ]


def test_junit_reads_the_gates_as_they_fail(tmp_path: Path) -> None:
    failed = [gates.something_learned(0), gates.pad_is_not_end(0, 0)]
    junit.write(tmp_path / "found.xml", tmp_path, [], failure=gates.failure(failed))
    assert cases(tmp_path / "found.xml") == [("run", f"gate {one.name}", {"failure": one.why}) for one in failed]


def test_junit_needs_a_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is no folder"):
        junit.refuse_folder(tmp_path / "nowhere" / "found.xml")
    with pytest.raises(UsageError, match="is a folder, and a file is needed"):
        junit.refuse_folder(tmp_path)
