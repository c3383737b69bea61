"""export: takes the model of a finished stage out of its run, as a folder that needs no llmpipe.

    llmpipe export runs/quickstart chat --to stories

Reads a run directory; writes safetensors, configuration, the tokenizer with its chat template, the generation config
and README.md, a model card; also a GGUF file where one is asked for. An adapter is merged into its base.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmpipe import cards, console, yaml_tree
from llmpipe.artifact import Manifest, cannot_write, is_out_of_room, missing_output, read_manifest, sync_folder
from llmpipe.context import Context
from llmpipe.errors import Problem, StageError, UsageError, did_you_mean
from llmpipe.settings import StageSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GGUF = Literal["F32", "F16", "Q8_0"]
LOADED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "reward.json",
)
"""What transformers or llmpipe would load of a model that was there before, if the new one has no such file."""


@dataclass
class Exported:
    """What was written, for `--json`."""

    run: str
    stage: str
    to: str
    parameters: int
    merged: bool
    """Whether it was an adapter."""
    gguf: dict[str, Any] | None = None
    """The file, its numbers, `largest_logit_shift` (a share of the largest logit), and `matrices_in_f16`."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes by name."""
    push: dict[str, Any] | None = None
    """The repository on the hub, its address, the commit, and whether it is private."""


def export(run: Path, stage: str, to: Path, *, force: bool, gguf: GGUF | None) -> Exported:
    """Write the model of a finished stage to a folder, and say what was written.

    Raises:
        LlmpipeError: there is no such model, the folder is not empty, or GGUF cannot hold the model.
    """
    manifest = model_of(run, stage)
    if to.exists() and not to.is_dir():
        raise UsageError(Problem("is a file, and a folder is needed", where=f"--to {to}"))
    if manifest.kind == "classify":
        plain = f"it is a plain folder already: {run / stage / 'model'}"
        raise UsageError(
            f"export writes models that answer or score answers, and {stage} tells classes apart", hint=plain
        )
    if not force and to.is_dir() and any(to.iterdir()):
        message = "the folder is not empty"
        raise UsageError(Problem(message, where=f"--to {to}"), hint="name another, or add --force to write over it")
    if gguf and find_spec("gguf") is None:
        raise UsageError("--gguf needs the package gguf, which is not installed", hint="pip install gguf")
    adapter = not (run / stage / "model").is_dir()
    done = Exported(run=str(run), stage=stage, to=str(to), parameters=0, merged=adapter)
    said: list[str] = []
    with _whole(to) as folder:
        with redirect_stderr(io.StringIO()):  # transformers draws a bar for every file
            card = _write(run, manifest, folder, done, said, gguf=gguf, name=to.resolve().name)
        (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        done.files = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    for text in said:
        console.say(f"  {text}")
    show(done)
    return done


def model_of(run: Path, stage: str) -> Manifest:
    """Return the manifest of a finished stage that made a model.

    Raises:
        LlmpipeError: there is no such run or stage, it is not finished, or what it made is no model.
    """
    recipe = run / "recipe.yaml"
    if not recipe.is_file():
        raise UsageError(f"{run} is no run directory: it has no recipe.yaml", hint="llmpipe run RECIPE makes one")
    data = yaml_tree.read(recipe).data
    found = data.get("stages") if isinstance(data, dict) else None
    stages = found if isinstance(found, dict) else {}
    made = [name for name in stages if _folder(run / name)]
    if stage not in stages:
        near = did_you_mean(stage, list(stages))
        raise UsageError(f"{run} has no stage {stage}{near}", hint=f"those with a model: {', '.join(made) or 'none'}")
    manifest = read_manifest(run / stage)
    if manifest is None:
        raise StageError(f"stage {stage} is not finished", hint=f"llmpipe run {recipe}")
    if _folder(run / stage) is None:
        message = f"stage {stage} makes no model: it is a {manifest.kind} stage"
        raise UsageError(message, hint=f"those with a model: {', '.join(made) or 'none'}")
    if gone := missing_output(run / stage, manifest):
        raise StageError(Problem("is no longer there", where=str(run / stage / gone)), hint=f"llmpipe run {recipe}")
    return manifest


def _folder(stage: Path) -> Path | None:
    """Return the folder of a finished stage's model; None where there is none."""
    inside = (stage / name for name in ("model", "adapter") if (stage / "manifest.json").is_file())
    return next((folder for folder in inside if folder.is_dir()), None)


def _write(
    run: Path, manifest: Manifest, folder: Path, done: Exported, said: list[str], *, gguf: GGUF | None, name: str
) -> str:
    """Load the model, write it to an empty folder, note what it is and what is to be said, and return its card."""
    from llmpipe.training import models, reward_model

    ctx = Context(run_dir=run, step=manifest, emit=lambda event: said.append(event["text"]))
    source = StageSource(stage=manifest.name, weight=1.0)
    if is_reward := any((run / manifest.name).glob(f"*/{reward_model.FORMAT_FILE}")):
        if gguf:
            message = f"--gguf writes models that answer, and {manifest.name} scores answers"
            raise UsageError(message, hint="leave out --gguf")
        reward = reward_model.load(source, ctx)
        model, tokenizer = reward.model, reward.tokenizer
    else:
        model, tokenizer = models.load(source, ctx, kinds=tuple(models.CLASSES))
    done.parameters = model.num_parameters()
    if gguf:
        done.gguf = _write_gguf(model, tokenizer, folder / "gguf" / f"{name}-{gguf}.gguf", gguf, name)
    if is_reward:
        reward_model.save(reward, folder)
    else:
        models.save(model, tokenizer, folder)
    facts = cards.Facts(
        folder=name,
        parameters=done.parameters,
        merged=done.merged,
        reward=is_reward,
        chat=bool(tokenizer.chat_template),
        gguf=done.gguf["file"] if done.gguf else None,
        kind="causal-lm" if is_reward else models.kind_of(model.config, ()),
    )
    return cards.card(run, manifest.name, facts)


def _write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, number: GGUF, name: str
) -> dict[str, Any]:
    """Write a GGUF file in a folder of its own: transformers 5.23 would take a tokenizer.json beside it instead."""
    from llmpipe.training import gguf

    path.parent.mkdir()
    written = gguf.write(model, tokenizer, path, number=number, name=name)
    shift = {"largest_logit_shift": written.largest_shift, "matrices_in_f16": written.wider}
    return {"file": f"gguf/{path.name}", "type": number, **shift}


@contextmanager
def _whole(to: Path) -> Iterator[Path]:
    """Give an empty folder to write in, and bring its files to `to` at the end: nothing half-done gets there."""
    work = None
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".llmpipe-export-", dir=to.parent))
        yield work
        to.mkdir(exist_ok=True)
        for stale in {file for pattern in LOADED for file in to.glob(pattern)}:
            stale.unlink()
        for file in [file for file in work.rglob("*") if file.is_file()]:
            target = to / file.relative_to(work)
            target.parent.mkdir(exist_ok=True)
            file.replace(target)
        sync_folder(to)
    except Exception as error:
        if isinstance(error, OSError) or is_out_of_room(error):
            raise cannot_write(error, to) from error
        raise
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def show(done: Exported) -> None:
    """Say what was written, for people."""
    merged = ", the adapter merged into its base" if done.merged else ""
    console.say(f"{done.to} · {console.count(done.parameters)} parameters{merged}\n")
    console.show(console.table([(name, console.count(size) + "B") for name, size in done.files.items()], right=(1,)))
    if done.gguf:
        exact = "logits are equal" if not done.gguf["largest_logit_shift"] else "logits are off by at most "
        shift = f"{done.gguf['largest_logit_shift']:.2g} of the largest one" if done.gguf["largest_logit_shift"] else ""
        console.say(f"\n  {done.gguf['file']}: read back, {exact}{shift}")
        if done.gguf["matrices_in_f16"]:
            console.say(f"  {done.gguf['matrices_in_f16']} matrices are in F16: their rows are no multiple of 32")
    console.say("\n  the licence is yours to choose: `license:` at the top of README.md")
