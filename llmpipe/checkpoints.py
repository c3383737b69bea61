"""Which checkpoints can be trusted: a marker, written last, lists every file with its size and hash.

transformers 5.23 resumes from a folder whose optimizer state is missing with a fresh optimizer and no word, and
stops with a traceback when other files are cut off; so llmpipe never asks it to find a checkpoint, and names one
whose marker holds.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import xxhash

from llmpipe.artifact import read_json, sync_folder, write_json

MARKER = "complete.json"
ASIDE = ".bad-"


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return the complete checkpoints of a stage as (step, folder), oldest first.

    Ordered by step: a clock that was set back must not make an old checkpoint the newest.
    """
    found = []
    for path in folder.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if step.isdigit() and is_complete(path):
            found.append((int(step), path))
    return sorted(found)


def is_complete(path: Path) -> bool:
    """Tell whether a folder has a marker, and every file that it lists at its size."""
    marker = read_json(path / MARKER)
    return isinstance(marker, dict) and _holds(path, marker.get("files", {}))


def _holds(path: Path, files: dict[str, int]) -> bool:
    return bool(files) and all(
        (path / name).is_file() and (path / name).stat().st_size == size for name, size in files.items()
    )


def mark_complete(path: Path, **facts: Any) -> None:
    """Write the marker of a folder, with what is to be known of it, after all its files are on the disk."""
    files = sorted(child for child in path.rglob("*") if child.is_file() and child.name != MARKER)
    for file in files:
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    sync_folder(path)
    names = {file.relative_to(path).as_posix(): file for file in files}
    sizes = {name: file.stat().st_size for name, file in names.items()}
    write_json(path / MARKER, {**facts, "files": sizes, "xxh3": {name: _xxh3(file) for name, file in names.items()}})


def _xxh3(path: Path) -> str:
    """Hash a file by XXH3, as fast as a disk reads; it is to notice accidents, and no forger."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def spoilt(path: Path) -> str | None:
    """Name a file of a complete folder that is gone, or holds other bytes than were written; None where all hold.

    Reads every file. A marker of llmpipe 0.1, without hashes, tells of sizes alone.
    """
    marker = read_json(path / MARKER)
    if not isinstance(marker, dict):
        return MARKER
    hashes = marker.get("xxh3", {})
    for name, size in marker.get("files", {}).items():
        file = path / name
        if not _holds(path, {name: size}) or (name in hashes and hashes[name] != _xxh3(file)):
            return str(name)
    return None


def set_aside(path: Path) -> Path:
    """Move a checkpoint out of the way and keep it, for someone may want to look at it; returns where it is."""
    free = (path.with_name(f"{path.name}{ASIDE}{number}") for number in range(1, 10**6))
    return path.rename(next(place for place in free if not place.exists()))


def rotate(folder: Path, *, keep: set[int]) -> None:
    """Delete all complete checkpoints but the given steps and the newest two, one of which a disk may spoil.

    The marker goes first, so that no half of one looks whole.
    """
    for step, path in complete_checkpoints(folder)[:-2]:
        if step not in keep:
            (path / MARKER).unlink()
            shutil.rmtree(path)


def drop_incomplete(folder: Path) -> list[str]:
    """Delete what an interrupted save left behind; returns the names."""
    whole = {path for _, path in complete_checkpoints(folder)}
    torn = [path for path in folder.glob("checkpoint-*") if path not in whole and ASIDE not in path.name]
    for path in torn:
        shutil.rmtree(path)
    return [path.name for path in torn]
