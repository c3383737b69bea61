"""Breaks PPO one line at a time, and runs the tests that must notice.

    python tests/mutations/ppo.py [NAME or ITEM ...]

Copies the package and its tests to a temporary folder, puts one mutation of `ppo_table.py` into the copy, runs the
tests that it names, which pass without it, and prints a line for each: killed, or SURVIVED. A mutation whose old
text is not found exactly once is an error, so that the table keeps up with the code. Needs a system with fork: torch
is imported once.
"""

# ruff: noqa: T201 -- a script
from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutation:
    """One wrong line."""

    item: str
    """What it breaks: an item of the list in `ppo_table.py`, or the world that must notice."""
    name: str
    file: str
    old: str
    new: str
    tests: str
    """What must fail: paths below tests/, parted by spaces, with -k EXPRESSION if need be."""


def run_tests(folder: Path, tests: str) -> bool:
    """Run tests on the copy in a fork of this process; returns whether all passed."""
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        silence = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        import pytest

        paths, _, chosen = tests.partition(" -k ")
        options = ["-q", "-x", "-p", "no:cacheprovider", *(["-k", chosen] if chosen else [])]
        os._exit(int(pytest.main([*options, *(f"tests/{path}" for path in paths.split())])))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, 1):
        raise SystemExit(
            (folder / "said.txt").read_text()[-3000:] + f"\n{tests}: exit {code}, neither passed nor failed"
        )
    return code == 0


def check(mutations: list[Mutation]) -> None:
    """Stop unless each mutation's old text is in its file once."""
    for mutation in mutations:
        found = (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old)
        if found != 1:
            raise SystemExit(f"{mutation.name}: found {found} times in {mutation.file}: {mutation.old!r}")


def is_killed(mutation: Mutation, folder: Path) -> bool:
    """Put a mutation into the copy, run its tests, and take it out again."""
    path = folder / mutation.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return not run_tests(folder, mutation.tests)
    finally:
        path.write_text(source, encoding="utf-8")


def main(names: list[str]) -> None:
    """Try the mutations of these names or items, or all."""
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, str(Path(__file__).parent))
    import peft  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama
    import trl  # noqa: F401
    from ppo_table import TABLE

    torch.set_num_threads(1)
    assert transformers.Trainer
    chosen = [mutation for mutation in TABLE if not names or {mutation.name, mutation.item} & set(names)]
    check(chosen)
    survived = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part in ("llmpipe", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for tests in dict.fromkeys(mutation.tests for mutation in chosen):
            if not run_tests(folder, tests):
                raise SystemExit((folder / "said.txt").read_text() + f"\n{tests}: fails without any mutation")
        for mutation in chosen:
            begun = time.perf_counter()
            killed = is_killed(mutation, folder)
            survived += [] if killed else [mutation.name]
            took = time.perf_counter() - begun
            print(
                f"{'killed  ' if killed else 'SURVIVED'}  {mutation.item:>6}  {mutation.name}  ({took:.0f} s)",
                flush=True,
            )
    print(f"{len(chosen) - len(survived)} of {len(chosen)} killed")
    sys.exit(len(survived) > 0)


if __name__ == "__main__":
    sys.modules["ppo"] = sys.modules["__main__"]
    main(sys.argv[1:])
