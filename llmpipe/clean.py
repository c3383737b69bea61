"""What a run no longer needs: replaced outputs, checkpoints of stages that are done, GGUF files unpacked for none.

Models, data, metrics and logs stay.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.table import Table

from llmpipe import artifact, console, runner
from llmpipe.errors import UsageError


@dataclass(frozen=True)
class Waste:
    """A folder that can go, why, and its size."""

    folder: Path
    why: str
    bytes: int


def waste(run_dir: Path) -> list[Waste]:
    """Find the folders that a run no longer needs; what is a link belongs to somebody else, and stays."""
    found = [(path, "replaced by a later run") for path in sorted((run_dir / ".history").glob("*"))]
    done = [path.parent for path in sorted(run_dir.glob("*/manifest.json")) if artifact.read_manifest(path.parent)]
    found += [(folder / "checkpoints", f"{folder.name} is done") for folder in done]
    used = set(_bases_in_use(run_dir))
    found += [(path, "no stage begins from it") for path in sorted((run_dir / ".bases").glob("*")) if path not in used]
    return [Waste(path, why, _size(path)) for path, why in found if path.is_dir() and not path.is_symlink()]


def _bases_in_use(run_dir: Path) -> Iterator[Path]:
    for path in run_dir.glob("*/step.json"):
        step = artifact.read_step(path.parent)
        for entry in step.inputs if step else ():
            if "gguf" in entry.source:
                file = entry.source["gguf"]
                yield artifact.base_folder(run_dir, file, entry.files.get(file, ""))


def _size(folder: Path) -> int:
    """Add up the bytes of a folder's files, a file with two names in it once."""
    stats = [path.lstat() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())


def clean(run_dir: Path, *, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Delete what a run no longer needs, after saying what and asking.

    Raises:
        UsageError: the folder is no run directory, or there is nobody to ask.
        LockedError: a command works in the run directory.
    """
    if not (run_dir / "recipe.yaml").is_file():
        raise UsageError(f"{run_dir} is no run directory: it has no recipe.yaml", hint="llmpipe clean RUN")
    if dry_run:
        _tell(run_dir, waste(run_dir), deleted=False, as_json=as_json)
        return
    with runner.locked(run_dir):
        found = waste(run_dir)
        deleted = bool(found) and (yes or _agreed(found, run_dir))
        for one in found if deleted else ():
            try:
                shutil.rmtree(one.folder)
            except OSError as error:
                raise artifact.cannot_write(error, one.folder) from error
    _tell(run_dir, found, deleted=deleted, as_json=as_json)


def _agreed(found: list[Waste], run_dir: Path) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint=f"llmpipe clean {run_dir} --dry-run, then --yes")
    console.show(_table(found))
    return typer.confirm(f"  delete {len(found)} folders, {console.count(_total(found))}B?", err=True)


def _tell(run_dir: Path, found: list[Waste], *, deleted: bool, as_json: bool) -> None:
    """Say what was deleted, or would be."""
    if as_json:
        folders = [{"folder": str(one.folder), "why": one.why, "bytes": one.bytes} for one in found]
        console.as_json({"run": str(run_dir), "deleted": deleted, "bytes": _total(found), "folders": folders})
        return
    if not found:
        console.say(f"nothing in {run_dir} can go")
        return
    if not deleted:
        console.show(_table(found))
    console.say(f"{console.count(_total(found))}B {'are freed' if deleted else 'would be freed; nothing was deleted'}")


def _table(found: list[Waste]) -> Table:
    rows = [(f"{console.count(one.bytes)}B", str(one.folder), one.why) for one in found]
    return console.table(rows, right=(0,))


def _total(found: list[Waste]) -> int:
    return sum(one.bytes for one in found)
