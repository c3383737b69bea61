"""The options that a recipe passes to Hugging Face classes, checked before anything heavy is imported.

What: `trainer: {learning_rate: 2e-5}` and `lora: {r: 8}` go to TRL, PEFT and transformers as they are. This
module knows the name, type, default and help text of every such option, and checks values.

Why: importing `trl.SFTConfig` takes ten seconds, and the class then accepts `learning_rate="2e-5"` silently.

How: the source of the installed packages is parsed, never run, so no list of names is kept up to date here. A
class is found by following the imports from the package's `__init__.py`, else by searching its config files.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmpipe.errors import StageError, did_you_mean
from llmpipe.option import Option, head_of, kinds_of, texts_of, type_problem

_Found = tuple[Path, ast.ClassDef]  # a class statement and the file it stands in
_Declaration = tuple[_Found, str, ast.expr | None, ast.expr | None]  # an option's class, name, type and default


@cache
def options_of(config_class: str) -> dict[str, Option]:
    """Return the options of a class such as `trl.SFTConfig`, the inherited ones first; the subclass wins."""
    return {name: _option(*declared) for name, declared in _declarations(config_class).items()}


@cache
def _declarations(config_class: str) -> dict[str, _Declaration]:
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
    declared = _declarations(config_class)  # few of them are made options: there are hundreds, at each look at a recipe
    owner = config_class.split(".")[-1]
    problems = []
    for key, value in values.items():
        if key not in declared:
            problems.append((key, f"not an option of {owner}{did_you_mean(key, list(declared))}"))
        elif problem := type_problem(_option(*declared[key]), value):
            problems.append((key, problem))
    return problems


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


def _collect(found: _Found) -> dict[str, _Declaration]:
    path, declaration = found
    options: dict[str, _Declaration] = {}
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
                    options[name] = (found, name, note, value)
            case ast.FunctionDef(name="__init__", args=args):
                options = options if args.kwarg else {}
                named = args.args[1:]
                values = [*[None] * (len(named) - len(args.defaults)), *args.defaults, *args.kw_defaults]
                for argument, value in zip([*named, *args.kwonlyargs], values, strict=True):
                    options[argument.arg] = (found, argument.arg, argument.annotation, value)
    return options


def _option(found: _Found, name: str, note: ast.expr | None, value: ast.expr | None) -> Option:
    quoted = _literal(note)
    annotation = quoted if isinstance(quoted, str) else ast.unparse(note) if note else "Any"
    settings = _settings(value)
    about = _literal(settings.get("metadata")) or {}
    text = str(about.get("help", "")).replace("%%", "%") or _documented(*found).get(name, "")  # argparse doubles %
    choices = texts_of(about.get("choices", ())) or _enum_texts(found[0], annotation)
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
        if head_of(value.func) == "field" or keywords.keys() & {"default", "default_factory"}:
            return keywords
    return {"default": value} if value else {}


def _default(found: _Found, settings: Mapping[str, ast.expr]) -> str:
    factory = settings.get("default_factory")
    value = factory.body if isinstance(factory, ast.Lambda) else settings.get("default")
    if factory and not value:
        return {"dict": "{}", "list": "[]"}.get(head_of(factory), f"{ast.unparse(factory)}()")
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


def _enum_texts(path: Path, annotation: str) -> tuple[str, ...]:
    for kind in kinds_of(annotation):
        found = _declared(path, head_of(kind)) if isinstance(kind, ast.Name) else None
        if found and any("Enum" in ast.unparse(base) for base in found[1].bases):
            return texts_of(_literal(node.value) for node in found[1].body if isinstance(node, ast.Assign))
    return ()
