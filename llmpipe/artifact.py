"""The run directory: where a stage's files lie, what is written about it, and how a write stays whole.

runs/stories/
  recipe.yaml                as used; `llmpipe run runs/stories/recipe.yaml` repeats the run
  .lock  .worker.lock        who works here
  .history/                  outputs that a changed stage left behind
  estimate.json              what `plan --calibrate` measured
  .bases/                    GGUF files that stages begin from, as folders
  report.html  report/       what came of it, to look at
  chat/
    step.json                written first: resolved settings, inputs, fingerprint
    checkpoints/  metrics.jsonl  log.txt
    model/                   the output
    manifest.json            written last; its presence means that the stage is done
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmpipe.errors import LockedError, Problem, StageError

OUTPUT_FOLDERS = {
    "tokenizer": "tokenizer",
    "causal-lm": "model",
    "masked-lm": "model",
    "seq2seq-lm": "model",
    "classifier": "model",
    "adapter": "adapter",
    "reward-model": "model",
    "dataset": "data",
    "scores": "scores.json",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHORT_WRITE = r"\d+ requested and \d+ written|inline_container.*unexpected pos|PytorchStreamWriter failed writing"


class _Record(BaseModel):
    """JSON on disk; unknown keys of a newer version are kept out, not refused."""

    model_config = ConfigDict(populate_by_name=True, extra="ignore")

    schema_version: int = Field(default=1, alias="schema")


class Input(BaseModel):
    """One input of a step as it was resolved: where it came from, and what identifies its content."""

    field: str
    source: dict[str, Any]
    identity: str
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 by file name, for data that the user owns."""


class StepRecord(_Record):
    """step.json: all that a worker needs to run a step."""

    name: str
    kind: str
    stage_version: int
    fingerprint: str
    seed: int
    settings: dict[str, Any]
    inputs: list[Input]


class Gate(BaseModel):
    """A check of a stage's output, and the reason why it exists."""

    name: str
    passed: bool
    why: str
    measured: str | None = None
    """What was found, such as `off by 3e-07`, where that is more than yes or no."""


class Manifest(StepRecord):
    """manifest.json: what a finished stage is made of. Its keys are public."""

    outputs: dict[str, str]
    """sha256 by path relative to the stage's folder."""
    metrics: dict[str, Any]
    gates: list[Gate]
    versions: dict[str, str]
    device: str
    started: str
    seconds: float


Record = TypeVar("Record", bound=StepRecord)


def read_json(path: Path) -> Any | None:
    """Read a JSON file; None when it is missing or was cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the objects of a JSON lines file that llmpipe wrote."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl of a stage's folder as far as it is written; nothing where the stage logs nothing."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_step(folder: Path) -> StepRecord | None:
    """Read step.json of a stage's folder; None when there is no valid one."""
    return _validated(StepRecord, folder / "step.json")


def read_manifest(folder: Path) -> Manifest | None:
    """Read manifest.json of a stage's folder; None means that the stage is not done."""
    return _validated(Manifest, folder / "manifest.json")


def _validated(cls: type[Record], path: Path) -> Record | None:
    found = read_json(path)
    try:
        return None if found is None else cls.model_validate(found)
    except ValidationError:
        return None  # written by something else, or by hand: the stage counts as not done


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part (also after a power cut)."""
    if isinstance(content, BaseModel):
        content = content.model_dump(mode="json", by_alias=True)
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically: a temporary file beside it, synced, then renamed over it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(error, path) from error
    sync_folder(path.parent)


def cannot_write(error: Exception, path: Path) -> StageError:
    """Say why something cannot be written; where room has run out, how much is left."""
    if not is_out_of_room(error):
        reason = error.strerror if isinstance(error, OSError) else error
        return StageError(Problem(f"cannot be written: {reason}", where=str(path)))
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    free_mb = shutil.disk_usage(folder).free / 1e6
    return StageError(
        Problem(f"there is no room to write: {free_mb:,.0f} MB are free on its disk", where=str(path)),
        hint="make room (or see `ulimit -f`) and give the same command again; nothing that was complete is lost",
    )


def is_out_of_room(error: BaseException) -> bool:
    """Tell whether a write failed because a disk, a quota or a file-size limit was full.

    Only Python's own files say so by number: safetensors 0.8 puts it into its text, numpy 2 counts what is missing,
    and torch 2.13 finds its archive shorter than it should be.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(os.strerror(number) in str(error) for number in FULL) or bool(re.search(SHORT_WRITE, str(error)))


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder last through a power cut; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256_of(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashCache:
    """sha256 of the user's files, kept by path, size, mtime and inode so that a rerun need not read gigabytes.

    The cache only saves time: `verify=True` reads every file again.
    """

    def __init__(self, path: Path, *, verify: bool = False) -> None:
        self.path, self.verify = path, verify
        found = read_json(path)
        self.known: dict[str, Any] = found if isinstance(found, dict) else {}

    def sha256(self, file: Path) -> str:
        """Return the sha256 of a file, from the cache when the file looks unchanged."""
        stat = file.stat()
        key = str(file)
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        entry = self.known.get(key)
        if self.verify or entry is None or entry[:3] != stamp:
            self.known[key] = entry = [*stamp, sha256_of(file)]
        return str(entry[3])

    def save(self) -> None:
        """Keep the hashes for the next plan of this run."""
        if self.known and os.access(self.path.parent, os.W_OK):  # `plan` may look at a run that it cannot write to
            write_json(self.path, self.known)


def base_folder(run_dir: Path, gguf: str, digest: str) -> Path:
    """Where a GGUF file lies unpacked; `digest` is the file's sha256, of which a part tells two files apart."""
    return run_dir / ".bases" / f"{Path(gguf).stem}-{digest[:12]}"


def output_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hash every output file below the given names (files or folders), keyed by relative posix path."""
    files: list[Path] = []
    for name in names:
        path = folder / name
        files += sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


def missing_output(folder: Path, manifest: Manifest) -> str | None:
    """Name the first output of a manifest that is no longer there."""
    return next((name for name in manifest.outputs if not (folder / name).is_file()), None)


def lock(run_dir: Path, name: str = ".lock", *, wait_s: float = 0) -> FileLock:
    """Take a lock file of the run directory.

    Raises:
        LockedError: another process holds it.
    """
    path = run_dir / name
    holder = FileLock(str(path), timeout=wait_s)
    try:
        holder.acquire()
    except Timeout:
        who = read_json(path.with_name(f"{name}.json")) or {}
        by = f" (process {who['pid']} on {who['host']})" if "pid" in who else ""
        raise LockedError(
            f"{run_dir} is in use by another llmpipe{by}", hint="wait for it, or give this run a folder: --run DIR"
        ) from None
    except OSError as error:
        raise cannot_write(error, run_dir) from error
    try:
        write_json(path.with_name(f"{name}.json"), {"pid": os.getpid(), "host": socket.gethostname()})
    except StageError:
        holder.release()
        raise
    return holder


def is_locked(run_dir: Path) -> bool:
    """Tell whether a command works in a run directory right now."""
    holder = FileLock(str(run_dir / ".lock"), timeout=0)
    try:
        holder.acquire()
    except Timeout:
        return True
    except OSError:
        return False  # a folder that cannot be written to is not worked in
    holder.release()
    return False
