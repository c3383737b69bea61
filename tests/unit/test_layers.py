"""The shape of the code: imports only go down, nothing heavy is imported early, files and functions stay short."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "llmpipe"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"cli"},
    {"rank_command"},
    {"stage_commands", "run_commands", "memory_commands", "talk_commands"},
    {"flags"},
    {"pipeline"},
    {"calibrate", "prefetch", "ranking", "talk"},
    {"moderation"},
    {"push", "inspection", "generate"},
    {"export"},
    {"report"},
    {"cards", "junit", "outlook"},
    {
        "packages",
        "preview",
        "runner",
        "summary",
        "vocabulary",
        "doctor",
        "recipe_edit",
        "diff",
        "logs",
        "clean",
        "status",
    },
    {"launch"},
    {"worker"},
    {"forecast"},
    {"plan"},
    {"changes", "estimate"},
    {"recipe"},
    {"wording", "functions", "redaction"},
    {"edges"},
    {"stages"},
    {"tools"},
    {"architectures", "curation", "data", "context", "gates"},
    {"tasks"},
    {"judging"},
    {"bounds"},
    {"lease"},
    {"settings", "passthrough", "artifact", "checkpoints", "yaml_tree"},
    {"server", "option"},
    {"errors", "console", "reading", "machine"},
]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "tokenizers", "safetensors", "gguf"}
HEAVY |= {"trafilatura", "lxml", "pypdf", "mcp", "ddgs"}


def imported(path: Path, *, everywhere: bool = False) -> set[str]:
    """Return what a module imports at its top level, or anywhere in it; blocks for type checkers do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(name: str) -> int | None:
    return next((number for number, names in enumerate(LAYERS) if name in names), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = layer(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "llmpipe" and len(parts) > 1 and own is not None and layer(parts[1]) is not None:
            assert layer(parts[1]) >= own, f"{path.name} imports {name} from above"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_folders(path: Path) -> None:
    where = path.relative_to(PACKAGE)
    if where.parts[0] not in ("training", "evaluation") and where != Path("talk", "local.py"):
        assert not {name.split(".")[0] for name in imported(path)} & HEAVY
        assert not any(name.startswith(("llmpipe.training", "llmpipe.evaluation")) for name in imported(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_files_are_opened_with_their_encoding(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            binary = ast.unparse(node.func) == "os.open" or any("b" in str(text) for text in texts)
            on_path = name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
            if on_path or (name == "open" and not binary):
                assert any(keyword.arg == "encoding" for keyword in node.keywords), f"line {node.lineno}"


@pytest.mark.parametrize(
    "arguments", [["plan", "quickstart"], ["--help"], ["options", "sft"], ["schema"], ["memory", "list"]]
)
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from llmpipe.cli import app\n"
        f"try: app({arguments!r})\nexcept SystemExit as end: assert not end.code, end.code\n"
        f"loaded = sorted({HEAVY!r} & set(sys.modules)); assert not loaded, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"LLMPIPE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr


def test_the_layers_are_all_there() -> None:
    for above, below in pairwise(LAYERS):
        assert not above & below
    for name in set.union(*LAYERS):
        assert (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name / "__init__.py").is_file(), name
