"""What people read: numbers, lines without escapes or trailing spaces, errors with their line and hint."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
from rich.console import Console

from llmpipe import console
from llmpipe.errors import DataError, LlmpipeError, Problem, RecipeError, StoppedError


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Catch stderr as a pipe of 80 columns gets it."""
    buffer = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=buffer, width=80, highlight=False, soft_wrap=True))
    return buffer


@pytest.mark.parametrize(
    ("value", "key", "wanted"),
    [
        (0.98, "follows_share", "98%"),
        (1234567, "", "1,234,567"),
        (999.7, "", "1,000"),
        (99.94, "", "99.9"),
        (1.23456, "", "1.23"),
        (0.00001234, "", "1.23e-05"),
        (True, "", "True"),
        ("text", "", "text"),
    ],
)
def test_number(value: object, key: str, wanted: str) -> None:
    assert console.number(value, key=key) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"), [(7, "7"), (999, "999"), (1000, "1.0k"), (19_100, "19.1k"), (999_990, "1.0 M"), (3e9, "3.0 B")]
)
def test_count(value: float, wanted: str) -> None:
    assert console.count(value) == wanted


@pytest.mark.parametrize(("value", "wanted"), [(8.21, "8.2 s"), (59.97, "1:00"), (72, "1:12"), (7384, "2:03:04")])
def test_seconds(value: float, wanted: str) -> None:
    assert console.seconds(value) == wanted


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], ""),
        ([float("nan")], ""),
        ([3.0, 3.0], "▁▁"),
        ([0.0, float("inf"), 7.0], "▁█"),
        (range(8), "▁▂▃▄▅▆▇█"),
        (range(15), "▁▂▃▄▅▆▇█"),  # the whole series, not its last eight
    ],
)
def test_sparkline(values: list[float], wanted: str) -> None:
    assert console.sparkline(values) == wanted


def test_control_characters_are_dropped() -> None:
    assert console.clean("a\x1b[31mb\x07\x9bc\n\td\x7f é 日") == "a[31mbc\n\td é 日"


def test_text_is_never_read_as_markup(shown: io.StringIO) -> None:
    console.say("[bold]x[/bold] \x1b[2J")
    console.show(console.table([("[red]a[/red]", "\x1b]0;t\x07b")]))
    assert shown.getvalue() == "[bold]x[/bold] [2J\n  [red]a[/red]  ]0;tb\n"


def test_tables_have_no_trailing_spaces(shown: io.StringIO) -> None:
    rows = [("a", "1", ""), ("long name", "22", "why")]
    console.show(console.table(rows, header=("stage", "took", ""), right=(1,)))
    assert shown.getvalue() == "  stage      took\n  a             1\n  long name    22  why\n"


def lines_of(monkeypatch: pytest.MonkeyPatch, shown: io.StringIO, *events: dict[str, Any]) -> list[str]:
    """Return what a pipe gets of a stage's progress when every event is shown."""
    monkeypatch.setattr(console.Live, "PLAIN_EVERY_S", 0.0)
    live = console.Live("ppo")
    for event in events:
        live.update(event)
    return shown.getvalue().splitlines()


def test_the_progress_of_a_stage_with_a_loss(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines_of(
        monkeypatch,
        shown,
        {"doing": "reading"},
        {"step": 1, "max_steps": 4, "loss": 2.0, "tokens_per_s": 1200.0, "seconds_left": 61.0, "kl": 3.0},
        {"step": 2, "max_steps": 4, "loss": 1.0},
    )
    assert found == ["  ppo  reading", "  ppo  1/4  loss 2.00  ▁  1.2k tok/s  1:01 left", "  ppo  2/4  loss 1.00  █▁"]


def test_the_progress_of_rollouts(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events bring a part of the numbers each; the reward of a rollout is known after sampling, and shown once."""
    where = {"step": 4, "max_steps": 64, "rollout": 1, "rollouts": 16}
    first = {**where, "reward": 0.5, "kl": 0.0, "entropy": 2.0, "length": 48.6, "ended_share": 1.0}
    second = first | {"step": 8, "rollout": 2, "reward": 1.52, "kl": 1.234}
    found = lines_of(
        monkeypatch,
        shown,
        {**where, "doing": "sampling"},
        {"doing": "scoring"},
        {**first, "doing": "learning"},
        {"step": 5, "max_steps": 64, "tokens_per_s": 9.0, "seconds_left": 12.0},
        {**first, "rollout": 2, "doing": "sampling"},
        {**second, "doing": "learning"},
        {key: value for key, value in second.items() if key != "rollouts"},
    )
    assert found == [
        "  ppo  1/16 rollouts  sampling",
        "  ppo  1/16 rollouts  scoring",
        "  ppo  1/16 rollouts  reward 0.50  ▁  KL 0.00 nats  length 49  learning",
        "  ppo  1/16 rollouts  reward 0.50  ▁  KL 0.00 nats  12.0 s left  length 49  learning",
        "  ppo  2/16 rollouts  reward 0.50  ▁  KL 0.00 nats  12.0 s left  length 49  sampling",
        *["  ppo  2/16 rollouts  reward 1.52  ▁█  KL 1.23 nats  12.0 s left  length 49  learning"] * 2,
    ]


def test_colour_is_the_terminals_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed() -> str:
        buffer = io.StringIO()
        Console(file=buffer, force_terminal=True, color_system="standard").print("x", style="red")
        return buffer.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[31m" in printed()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in printed()


def test_an_error_shows_its_place_its_line_and_the_hint(shown: io.StringIO) -> None:
    first = Problem("is \x1b[31mwrong", where="r.yaml:2:3", path="a.b", excerpt=("2 | b: 1", "  | ^"))
    console.error(RecipeError([first, Problem("too")], hint="llmpipe options sft"))
    assert shown.getvalue() == (
        "r.yaml:2:3: a.b: is [31mwrong\n  2 | b: 1\n    | ^\ntoo\n"
        "2 problems, nothing was run\n\nhint: llmpipe options sft\n"
    )


def test_only_a_mistake_found_beforehand_says_that_nothing_was_run(shown: io.StringIO) -> None:
    console.error(DataError([Problem("a"), Problem("b")]))
    assert shown.getvalue() == "a\nb\n2 problems\n"


@pytest.mark.parametrize("failure", [DataError("x", hint="h"), StoppedError("y", hint="h", interrupted=False)])
def test_errors_cross_from_a_worker_with_code_and_hint(failure: LlmpipeError) -> None:
    back = pickle.loads(pickle.dumps(failure))
    assert (type(back), back.code, back.hint, back.problems) == (type(failure), failure.code, "h", failure.problems)


def test_what_stands_under_the_bar_of_rollouts() -> None:
    known = {"reward": 1.0, "reward_judge": 2.345, "reward_deviation": 1.0, "reward_length_correlation": 0.1}
    known |= {"length": 44.4, "ended_share": 1.0, "entropy": 0.312, "clip_fraction": 0.0012, "explained_variance": None}
    known |= {"seconds_sampling": 0.31, "seconds_learning": 0.84, "kl": 1.0}
    assert console._rollout_details(known) == [
        "judge 2.35  length 44  ended 100%  entropy 0.31",
        "clipped 0.1%  sampling 0.3 s  learning 0.8 s",
    ]
    assert console._rollout_details({}) == []
