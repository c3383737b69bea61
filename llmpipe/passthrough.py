"""The options that a recipe passes to Hugging Face classes, checked before anything heavy is imported.

What: `trainer: {learning_rate: 2e-5}` and `lora: {r: 8}` go to TRL, PEFT and transformers as they are. This
module knows the name, type, default and help text of every such option, and checks values.

Why: importing `trl.SFTConfig` takes ten seconds, and the class then accepts `learning_rate="2e-5"` silently.

How: the source of the installed packages is parsed, never run, so no list of names is kept up to date here. A
class is found by following the imports from the package's `__init__.py`, else by searching its config files.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmpipe.errors import StageError, did_you_mean

_WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}
_WORDS |= {"dict": "a mapping", "list": "a list"}
_TYPES = {"bool": bool, "int": int, "float": int | float, "str": str, "dict": dict, "list": list}
_ALIASES = {"Dict": "dict", "Mapping": "dict", "List": "list", "Sequence": "list", "Iterable": "list"}
_ALIASES |= dict.fromkeys(("set", "Set", "frozenset", "tuple", "Tuple"), "list")  # YAML has lists only
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_TEXTUAL = {"int": re.compile(r"[-+]?\d+"), "float": re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")}
_Found = tuple[Path, ast.ClassDef]  # a class statement and the file it stands in


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


@cache
def options_of(config_class: str) -> dict[str, Option]:
    """Return the options of a class such as `trl.SFTConfig`, the inherited ones first; the subclass wins."""
    package, *inner, name = config_class.split(".")
    root = _package(package)
    if not root:
        raise StageError(f"The package {package} is not installed.", hint=f"pip install {package}")
    found = _class_at(root.joinpath(*inner), name)
    options = _collect(found) if found else {}
    if not options:
        hint = f"Check the name, and the version: pip show {package}"
        raise StageError(f"The installed {package} has no class {name} that declares options.", hint=hint)
    return options


def option_problems(config_class: str, values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return `(key, message)` for every unknown name and every wrong type, in the order of `values`."""
    options = options_of(config_class)
    owner = config_class.split(".")[-1]
    problems = []
    for key, value in values.items():
        if key not in options:
            problems.append((key, f"not an option of {owner}{did_you_mean(key, list(options))}"))
        elif problem := type_problem(options[key], value):
            problems.append((key, problem))
    return problems


def type_problem(option: Option, value: object) -> str | None:
    """Return None if `value`, as YAML gives it, fits the declared type; else what it must be.

    What the source does not decide (a class of the package, `Any`, the members of a mapping) is accepted.
    """
    kinds = _kinds(option.type)
    if option.choices:
        # The enum's name would accept anything, and the `str` beside it means the enum's values only.
        kinds = [kind for kind in kinds if _head(kind) in {*_TYPES, "None"} - {"str"}]
        kinds += [ast.Constant(text) for text in option.choices]
    if (value is None and option.default == "None") or any(_fits(kind, value) for kind in kinds):
        return None
    texts = _texts(kind.value for kind in kinds if isinstance(kind, ast.Constant))
    near = get_close_matches(str(value), texts, n=5, cutoff=0.4) or texts[:5]
    listed = ", ".join(texts if len(texts) <= 16 else [*near, "..."])  # a longer list hides the one meant
    if texts and isinstance(value, str):
        return f"{value!r} is not one of {listed}{did_you_mean(value, texts).replace(',', ';')}"
    heads = [_head(kind) for kind in kinds]
    words = [_WORDS[head] for head in heads if head in _WORDS and not (head == "int" and "float" in heads)]
    wanted = " or ".join([*words, f"one of {listed}"] if texts else words) or "as declared"
    declared = "" if texts else f" ({option.type})"
    hint = _hint(option, kinds, value)
    return f"must be {wanted}{declared}, not {_shown(value)}{hint and '; ' + hint}"


def _hint(option: Option, kinds: Sequence[ast.expr], value: object) -> str:
    """Return what to write instead, where that is plain to see."""
    heads = {_head(kind) for kind in kinds}
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
    return f"write [{text}]" if any(_head(kind) == "list" and _fits(kind, [value]) for kind in kinds) else ""


def _shown(value: object) -> str:
    return f"the text {value!r}" if isinstance(value, str) else json.dumps(value, default=str)


def _fits(kind: ast.expr, value: object) -> bool:
    head = _head(kind)
    match kind:
        case ast.Constant(value=str(text)) if "[" in text:  # PEFT has "pissa_niter_[number of iters]"
            return isinstance(value, str) and value.startswith(text.partition("[")[0])
        case ast.Constant(value=known):
            return known == value and isinstance(value, type(known))
        case ast.Subscript(slice=inner) if head == "list" and isinstance(value, list):
            return all(any(_fits(member, item) for member in _kinds(inner)) for item in value)
    if isinstance(value, bool):  # for Python a number; in a recipe a mistake
        return head == "bool" or head not in _TYPES
    return head not in _TYPES or isinstance(value, _TYPES[head])


def _kinds(annotation: str | ast.expr) -> list[ast.expr]:
    """Return the alternatives of a type: `Optional[Literal["a", "b"]]` has the constants a, b and None."""
    node = ast.parse(annotation, mode="eval").body if isinstance(annotation, str) else annotation
    head = _head(node)
    match node:
        case ast.Constant(value=str(quoted)):
            return _kinds(quoted)
        case ast.BinOp(left=left, right=right):
            return _kinds(left) + _kinds(right)
        case ast.Subscript(slice=inner) if head in ("Union", "Optional", "Literal"):
            members = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if head == "Literal":
                return members
            kinds = [kind for member in members for kind in _kinds(member)]
            return [*kinds, ast.Constant(None)] if head == "Optional" else kinds
    return [node]


def _head(node: ast.expr) -> str:
    """Return `list` for `list[str]` and for `Sequence`, `Literal` for `typing.Literal["a"]`."""
    name = ast.unparse(node).partition("[")[0].rpartition(".")[2]
    return _ALIASES.get(name, name)


@cache
def _package(name: str) -> Path | None:
    # A top-level name only: for a dotted one, find_spec imports the parent.
    spec = None if name in sys.stdlib_module_names else find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


@cache
def _parsed(path: Path) -> tuple[list[ast.stmt], list[bytes]]:
    source = path.read_bytes()
    return list(_statements(ast.parse(source).body)), source.splitlines()


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield all statements, also those inside of `if` and `try`, which ask for type checking or a version."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements([*statement.body, *statement.orelse])


@cache
def _declared(path: Path, name: str) -> _Found | None:
    """Find the class that `name` means in the file at `path`: written there or imported there."""
    for statement in _parsed(path)[0]:
        match statement:
            case ast.ClassDef(name=declared) if declared == name:
                return path, statement
            case ast.ImportFrom(module=module, names=names, level=level):
                parts = (module or "").split(".")
                originals = [alias.name for alias in names if name == (alias.asname or alias.name)]
                root = path.parents[level - 1] if level else _package(parts.pop(0))
                if originals and root and (found := _class_at(root.joinpath(*parts), originals[0])):
                    return found
    return None


def _class_at(place: Path, name: str) -> _Found | None:
    """Find a class in the module or the package at `place`, which has no suffix yet."""
    files = (file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file())
    return next((_declared(file, name) for file in files), None) or _search(place, name)


def _search(folder: Path, name: str) -> _Found | None:
    """Find a class by its text in the config files, those with its name first, then those near the top."""
    statement = re.compile(rf"^class {re.escape(name)}\b".encode(), re.MULTILINE)
    stem = re.sub("config$", "", name.lower())
    files = sorted(folder.rglob("*config*.py"), key=lambda f: (stem not in f.stem, len(f.parts), f))
    return next((_declared(file, name) for file in files if statement.search(file.read_bytes())), None)


def _collect(found: _Found) -> dict[str, Option]:
    path, declaration = found
    options: dict[str, Option] = {}
    for base in reversed(declaration.bases):
        if isinstance(base, ast.Name) and (parent := _declared(path, base.id)):
            options |= _collect(parent)
    decorators = " ".join(map(ast.unparse, declaration.decorator_list))
    # PreTrainedConfig makes dataclasses of its subclasses; the annotations of a plain mixin are no options.
    is_dataclass = bool(options) or "dataclass" in decorators or "strict" in decorators
    for node in declaration.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=note, value=value) if is_dataclass:
                if _literal(_settings(value).get("init")) is not False and "ClassVar" not in ast.unparse(note):
                    options[name] = _option(found, name, note, value)
            case ast.FunctionDef(name="__init__", args=args):
                options = options if args.kwarg else {}
                named = args.args[1:]
                values = [*[None] * (len(named) - len(args.defaults)), *args.defaults, *args.kw_defaults]
                for argument, value in zip([*named, *args.kwonlyargs], values, strict=True):
                    options[argument.arg] = _option(found, argument.arg, argument.annotation, value)
    return options


def _option(found: _Found, name: str, note: ast.expr | None, value: ast.expr | None) -> Option:
    quoted = _literal(note)
    annotation = quoted if isinstance(quoted, str) else ast.unparse(note) if note else "Any"
    settings = _settings(value)
    about = _literal(settings.get("metadata")) or {}
    text = str(about.get("help", "")).replace("%%", "%") or _documented(*found).get(name, "")  # argparse doubles %
    choices = _texts(about.get("choices", ())) or _enum_texts(found[0], annotation)
    return Option(name, annotation, _default(found, settings), " ".join(text.split()), found[1].name, choices)


@cache
def _documented(_path: Path, declaration: ast.ClassDef) -> dict[str, str]:
    """Return the first paragraph of each entry `name (type): ...` of a docstring; of two entries the first counts."""
    entry = r"^([ \t]*)(\w+)[ \t]*(?:\(.*\):?|:)[ \t]*\n(?=\s*?((?:^\1[ \t]+\S.*\n?)+))"
    found = list(re.finditer(entry, ast.get_docstring(declaration) or "", re.MULTILINE))
    return {match[2]: match[3] for match in reversed(found)}


def _settings(value: ast.expr | None) -> dict[str, ast.expr]:
    """Return the keywords of `field(...)` or of a call like it, `interval(min=0)(default=1)`."""
    if isinstance(value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
        if _head(value.func) == "field" or keywords.keys() & {"default", "default_factory"}:
            return keywords
    return {"default": value} if value else {}


def _default(found: _Found, settings: Mapping[str, ast.expr]) -> str:
    factory = settings.get("default_factory")
    value = factory.body if isinstance(factory, ast.Lambda) else settings.get("default")
    if factory and not value:
        return {"dict": "{}", "list": "[]"}.get(_head(factory), f"{ast.unparse(factory)}()")
    statements, lines = _parsed(found[0])
    if isinstance(value, ast.Name):
        # A constant. Of several assignments the last counts: those before it are for older versions of torch.
        assigned = [n for n in [*statements, *_statements(found[1].body)] if isinstance(n, ast.Assign)]
        value = {ast.unparse(n.targets[0]): n.value for n in assigned}.get(value.id, value)
    if value and value.lineno == value.end_lineno:  # as it is written: ast.unparse makes 2e-05 of 2e-5
        return lines[value.lineno - 1][value.col_offset : value.end_col_offset].decode()
    return ast.unparse(value) if value else ""


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node else None
    except ValueError:  # computed, as an f-string is
        return None


def _texts(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str))


def _enum_texts(path: Path, annotation: str) -> tuple[str, ...]:
    for kind in _kinds(annotation):
        found = _declared(path, _head(kind)) if isinstance(kind, ast.Name) else None
        if found and any("Enum" in ast.unparse(base) for base in found[1].bases):
            return _texts(_literal(node.value) for node in found[1].body if isinstance(node, ast.Assign))
    return ()
