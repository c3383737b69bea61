"""An option of a Hugging Face class, as its declaration says, and whether a recipe's value fits its type."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from llmpipe.errors import did_you_mean

_WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}
_WORDS |= {"dict": "a mapping", "list": "a list"}
_TYPES = {"bool": bool, "int": int, "float": int | float, "str": str, "dict": dict, "list": list}
_ALIASES = {"Dict": "dict", "Mapping": "dict", "List": "list", "Sequence": "list", "Iterable": "list"}
_ALIASES |= dict.fromkeys(("set", "Set", "frozenset", "tuple", "Tuple"), "list")  # YAML has lists only
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_TEXTUAL = {"int": re.compile(r"[-+]?\d+"), "float": re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")}


@dataclass(frozen=True)
class Option:
    """One option of a config class, as its declaration in the installed source says.

    `type` and `default` are source text (`default` is empty for a required option); `owner` is the class that
    declares it; `choices` are all the texts it may be, where its declaration lists them or names an enum.
    """

    name: str
    type: str
    default: str
    help: str
    owner: str
    choices: tuple[str, ...] = ()


def type_problem(option: Option, value: object) -> str | None:
    """Return None if `value`, as YAML gives it, fits the declared type; else what it must be.

    What the source does not decide (a class of the package, `Any`, the members of a mapping) is accepted.
    """
    kinds = kinds_of(option.type)
    if option.choices:
        # The enum's name would accept anything, and the `str` beside it means the enum's values only.
        kinds = [kind for kind in kinds if head_of(kind) in {*_TYPES, "None"} - {"str"}]
        kinds += [ast.Constant(text) for text in option.choices]
    if (value is None and option.default == "None") or any(_fits(kind, value) for kind in kinds):
        return None
    texts = texts_of(kind.value for kind in kinds if isinstance(kind, ast.Constant))
    near = get_close_matches(str(value), texts, n=5, cutoff=0.4) or texts[:5]
    listed = ", ".join(texts if len(texts) <= 16 else [*near, "..."])  # a longer list hides the one meant
    if texts and isinstance(value, str):
        return f"{value!r} is not one of {listed}{did_you_mean(value, texts).replace(',', ';')}"
    heads = [head_of(kind) for kind in kinds]
    words = [_WORDS[head] for head in heads if head in _WORDS and not (head == "int" and "float" in heads)]
    wanted = " or ".join([*words, f"one of {listed}"] if texts else words) or "as declared"
    declared = "" if texts else f" ({option.type})"
    hint = _hint(option, kinds, value)
    return f"must be {wanted}{declared}, not {_shown(value)}{hint and '; ' + hint}"


def _hint(option: Option, kinds: Sequence[ast.expr], value: object) -> str:
    """Return what to write instead, where that is plain to see."""
    heads = {head_of(kind) for kind in kinds}
    text = value.strip() if isinstance(value, str) else _shown(value)
    if value is None:
        return f"leave the line out for the default {option.default}" if option.default else ""
    if value is False and "no" in option.choices:
        return 'write "no" in quotes'  # which YAML reads as false without
    if "bool" in heads and text.lower() in _YES + _NO:
        return f"write {_shown(text.lower() in _YES)}"
    if isinstance(value, str) and any(_TEXTUAL[head].fullmatch(text) for head in heads & _TEXTUAL.keys()):
        return f"write {text} without quotes"
    if isinstance(value, float) and value.is_integer() and "int" in heads:
        return f"write {int(value)}"
    if isinstance(value, int | float) and "str" in heads:
        return f'write "{text}" in quotes'
    return f"write [{text}]" if any(head_of(kind) == "list" and _fits(kind, [value]) for kind in kinds) else ""


def _shown(value: object) -> str:
    return f"the text {value!r}" if isinstance(value, str) else json.dumps(value, default=str)


def _fits(kind: ast.expr, value: object) -> bool:
    head = head_of(kind)
    match kind:
        case ast.Constant(value=str(text)) if "[" in text:  # PEFT has "pissa_niter_[number of iters]"
            return isinstance(value, str) and value.startswith(text.partition("[")[0])
        case ast.Constant(value=known):
            return known == value and isinstance(value, type(known))
        case ast.Subscript(slice=inner) if head == "list" and isinstance(value, list):
            return all(any(_fits(member, item) for member in kinds_of(inner)) for item in value)
    if isinstance(value, bool):  # for Python a number; in a recipe a mistake
        return head == "bool" or head not in _TYPES
    return head not in _TYPES or isinstance(value, _TYPES[head])


def kinds_of(annotation: str | ast.expr) -> list[ast.expr]:
    """Return the alternatives of a type: `Optional[Literal["a", "b"]]` has the constants a, b and None."""
    node = ast.parse(annotation, mode="eval").body if isinstance(annotation, str) else annotation
    head = head_of(node)
    match node:
        case ast.Constant(value=str(quoted)):
            return kinds_of(quoted)
        case ast.BinOp(left=left, right=right):
            return kinds_of(left) + kinds_of(right)
        case ast.Subscript(slice=inner) if head in ("Union", "Optional", "Literal"):
            members = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if head == "Literal":
                return members
            kinds = [kind for member in members for kind in kinds_of(member)]
            return [*kinds, ast.Constant(None)] if head == "Optional" else kinds
    return [node]


def head_of(node: ast.expr) -> str:
    """Return `list` for `list[str]` and for `Sequence`, `Literal` for `typing.Literal["a"]`."""
    name = ast.unparse(node).partition("[")[0].rpartition(".")[2]
    return _ALIASES.get(name, name)


def texts_of(values: Iterable[object]) -> tuple[str, ...]:
    """Return those of some values that are texts."""
    return tuple(value for value in values if isinstance(value, str))
