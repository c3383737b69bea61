"""YAML 1.2 with a place for every value: what is read, what is refused, and where an error points."""

from __future__ import annotations

import pytest

from llmpipe import yaml_tree
from llmpipe.errors import RecipeError


def refused(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        yaml_tree.parse(text, shown_as="r.yaml")
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1e3", 1e3),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("12:30", "12:30"),
        ("0o17", 15),
        ("2020-01-01", "2020-01-01"),
        ("~", None),
        ('"5"', "5"),
        ("{a: [1, {b: c}]}", {"a": [1, {"b": "c"}]}),
        ("&x {a: 1}", {"a": 1}),
        ("[&x 1, *x]", [1, 1]),
        ("{1: a}", {"1": "a"}),
    ],
)
def test_values(text: str, value: object) -> None:
    found = yaml_tree.parse(text, shown_as="r.yaml").data
    assert found == value
    assert type(found) is type(value)


REFUSED = {
    "a: 1\na: 2\nb: {c: 1, c: 2}\n": [
        "r.yaml:2:1: a: is set twice; first in line 1",
        "r.yaml:3:11: b.c: is set twice; first in line 3",
    ],
    "a: !!int abc\n": ["r.yaml:1:4: a: 'abc' is not what its tag says"],
    "a: !!python/name:os.system x\nb: !mine {}\n": [
        "r.yaml:1:4: a: tag !!python/name:os.system is not allowed; a recipe holds plain values",
        "r.yaml:2:4: b: tag !mine is not allowed; a recipe holds plain values",
    ],
    "? [a, b]\n: 1\n": ["r.yaml:1:3: ?: a key must be a single word"],
    "a: &x {b: 1}\nc:\n  <<: *x\n": ["r.yaml:3:3: c.<<: merge keys are not supported; write the keys out"],
    "a: 1\n---\nb: 2\n": [
        "r.yaml:2:1: is not YAML: expected a single document in the stream but found another document"
    ],
    "a: b\n\tc: 1\n": [
        "r.yaml:2:1: is not YAML: while scanning for the next token found character '\\t' that cannot start any token"
    ],
    "a: &x [*x]\n": ["r.yaml:1:4: a: is nested or repeated (by aliases) beyond any real recipe"],
    "# nothing\n": ["r.yaml: is empty"],
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals(text: str) -> None:
    assert refused(text) == REFUSED[text]


def test_an_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (found,) = refused("\n".join(lines))
    assert found.endswith("is nested or repeated (by aliases) beyond any real recipe")


@pytest.mark.parametrize(
    ("path", "at_key", "where", "caret"),
    [
        (("a", "b"), False, "r.yaml:2:6", "     ^^"),
        (("a", "b"), True, "r.yaml:2:3", "  ^"),
        (("a", "empty"), False, "r.yaml:3:3", "  ^^^^^"),  # there is no value to point at
        (("a", "missing"), True, "r.yaml:1:1", "^"),
        (("l", 1), False, "r.yaml:4:8", "       ^^^"),
    ],
)
def test_places(path: tuple[str | int, ...], at_key: bool, where: str, caret: str) -> None:
    tree = yaml_tree.parse("a:\n  b: 12\n  empty:\nl: [1, two]\n", shown_as="r.yaml")
    problem = tree.problem(path, "x", at_key=at_key)
    assert problem.where == where
    assert problem.excerpt is not None
    assert problem.excerpt[1] == f"  | {caret}"


def test_an_override_is_named_instead_of_a_line() -> None:
    tree = yaml_tree.parse("a:\n  b: {c: 1}\n", shown_as="r.yaml")
    assert yaml_tree.assign(tree.data, ("a", "b"), {"d": 2}) is None
    tree.relabel(("a", "b"), "--set a.b=...")
    assert tree.data == {"a": {"b": {"d": 2}}}
    problem = tree.problem(("a", "b", "d"), "x")
    assert (str(problem), problem.excerpt) == ("--set a.b=...: a.b.d: x", None)


def test_assign_makes_what_is_missing_and_says_what_is_in_the_way() -> None:
    data = {"a": None, "l": [1]}
    assert yaml_tree.assign(data, ("a", "b", "c"), 1) is None
    assert data == {"a": {"b": {"c": 1}}, "l": [1]}
    message = "l is not a mapping, so 0 cannot be set in it; set it as a whole"
    assert yaml_tree.assign(data, ("l", "0"), 2) == message
