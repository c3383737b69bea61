"""Drives the installed command: each test gives it what a user would, and looks at exit code, output and files.

One finished run is shared by the whole tier and copied by the tests that change it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmpipe.cli import app
from llmpipe.stages import STAGES
from tests.e2e import warm

LLMPIPE = shutil.which("llmpipe", path=str(Path(sys.executable).parent)) or "llmpipe is not installed"

SMALL = """{arch: llama, config: {num_hidden_layers: 2, hidden_size: 32, intermediate_size: 64,
      num_attention_heads: 2, num_key_value_heads: 2, tie_word_embeddings: true}}"""

RECIPE = f"""\
name: tiny
seed: 1
stages:
  tok: {{kind: tokenizer, data: {{builtin: storyworld, rows: 400}}, vocab_size: 300}}
  base:
    kind: pretrain
    data: {{builtin: storyworld, rows: 400}}
    model: {SMALL}
    context: 64
    trainer: {{per_device_train_batch_size: 4, max_steps: 6, logging_steps: 2, eval_steps: 3}}
  chat:
    kind: sft
    data: {{builtin: storyworld, rows: 60}}
    too_long: truncate
    trainer: {{per_device_train_batch_size: 4, max_steps: 4}}
  scores:
    kind: eval
    models: [base, chat]
    prompts: [Tell me a story about a duck and a shoe.]
    max_new_tokens: 4
    max_tokens: 1000
"""


IMPORTS = "import pydantic, rich.console, ruamel.yaml, typer"
IMPORTS_S = 0.35
"""What IMPORTS take, Python's own start included, on the machine that limits in seconds are for."""


SECRETS = {
    "HF_TOKEN": "hf_" + "cAnArY12" * 5,
    "OPENAI_API_KEY": "sk-proj-" + "cAnArY34" * 5,
    "AWS_SECRET_ACCESS_KEY": "cAnArY56" * 5,
    "WANDB_API_KEY": "canary of weights and biases",
    "MY_PASSWORD": "canary-of-mine",
}
"""What the shared run has in its environment, and must leave nowhere."""


def pickles(folder: Path) -> list[Path]:
    """Return the files that hold a pickle, alone or as torch writes it."""
    found = []
    for path in filter(Path.is_file, folder.rglob("*")):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith(".pkl") for name in archive.namelist()):
                    found.append(path)
        elif re.match(rb"\x80[\x02-\x05]", path.read_bytes()[:2], re.DOTALL):
            found.append(path)
    return found


def slowness() -> float:
    """Return how many times slower this machine is, at this moment, than the one that limits are for; 1 or more."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return max(1.0, (time.monotonic() - begun) / IMPORTS_S)


def processor_s() -> float:
    """Return the processor's seconds of all commands that have ended; those of a busy machine are hardly more."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def environment(**more: str) -> dict[str, str]:
    """Return what the command runs in: one thread, no GPU, no colour, modules compiled only once."""
    wide = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1", "COLUMNS": "200"}
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **wide, **more}


def begins(*arguments: str | Path) -> list[str]:
    """Return how the command begins: one that starts workers forks them from a server that has torch already."""
    trains = arguments[0] in {"run", *STAGES} and not {"--dry-run", "--in-process"} & {*map(str, arguments)}
    return warm.command(environment()) if trains and warm.IS_POSSIBLE else [LLMPIPE]


@dataclasses.dataclass
class Shell:
    """Runs the command in a folder of its own."""

    folder: Path

    def __call__(self, *arguments: str | Path, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command to its end, and check its exit code; with options of the process, just as a user does."""
        is_cold = bool({"env", "preexec_fn"} & options.keys()) or code == 2  # what is typed wrongly starts no worker
        command = [LLMPIPE] if is_cold else begins(*arguments)
        options = {"env": environment(), "cwd": self.folder, "timeout": 120, **options}
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, **options)
        assert done.returncode == code, f"exit {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
        return done

    def here(self, *arguments: str | Path, code: int = 0) -> Result:
        """Run the command within the tests' own process, where torch is loaded once for all of them."""
        with contextlib.chdir(self.folder):
            done = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(
                app, [*map(str, arguments), "--in-process"]
            )
        assert done.exit_code == code, f"exit {done.exit_code}, not {code}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *arguments: str | Path, cold: bool = False) -> subprocess.Popen[str]:
        """Start the command in a session of its own, so that signals reach it and not the tests."""
        pipe = subprocess.PIPE
        command = [*([LLMPIPE] if cold else begins(*arguments)), *map(str, arguments)]
        return subprocess.Popen(
            command, env=environment(), cwd=self.folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def write(self, name: str, text: str | bytes) -> Path:
        """Write a file into the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path


@pytest.fixture
def llmpipe(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path)
    shell.write("tiny.yaml", RECIPE)
    return shell


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run the tiny recipe once; returns its run directory, not to be changed, and what the command said."""
    shell = Shell(tmp_path_factory.mktemp("finished"))
    shell.write("tiny.yaml", RECIPE)
    done = shell("run", "tiny.yaml", "--json", env=environment(**SECRETS))
    return shell.folder / "runs" / "tiny", done


@pytest.fixture
def run_dir(llmpipe: Shell, finished: tuple[Path, Any]) -> Path:
    """Return a copy of the finished run, at runs/tiny of the test's folder."""
    return Path(shutil.copytree(finished[0], llmpipe.folder / "runs" / "tiny"))


def actions(shell: Shell, *arguments: str | Path) -> dict[str, str]:
    """Return what a plan would do with each stage."""
    plan = json.loads(shell("plan", *arguments, "--json").stdout)
    return {step["name"]: step["action"] for step in plan["steps"]}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Read a stage's metrics.jsonl, as far as it is written."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_until(condition: Callable[[], Any], *, seconds: float = 60) -> Any:
    """Wait for something to become true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "this took too long"
        time.sleep(0.02)
    return found


def weights(folder: Path) -> str:
    """Return the sha256 of the weights that a stage made, by its manifest."""
    found: str = json.loads((folder / "manifest.json").read_text())["outputs"]["model/model.safetensors"]
    return found


def processes_in(run_dir: Path) -> Iterator[int]:
    """Yield the processes that still have a file of a run directory open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()).startswith(f"{run_dir}/"):
                yield int(link.parts[2])
        except OSError:
            continue
