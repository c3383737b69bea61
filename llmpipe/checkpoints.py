"""Which checkpoints can be trusted: a marker, written last, lists every file with its size.

transformers 5.23 resumes from a folder whose optimizer state is missing with a fresh optimizer and no word, and
stops with a traceback when other files are cut off; so llmpipe never asks it to find a checkpoint, and names one
whose marker holds.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from llmpipe.artifact import read_json, sync_folder, write_json

MARKER = "complete.json"


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
    sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
    write_json(path / MARKER, {**facts, "files": sizes})


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
    torn = [path for path in folder.glob("checkpoint-*") if path not in whole]
    for path in torn:
        shutil.rmtree(path)
    return [path.name for path in torn]
