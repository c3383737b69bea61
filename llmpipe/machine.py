"""What this machine has, as far as can be told without importing torch, and where a user's own things are kept."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Return the folder for what belongs to a user and to no run: `$LLMPIPE_HOME`, or `~/.llmpipe`."""
    named = os.environ.get("LLMPIPE_HOME")
    return Path(named).expanduser() if named else Path.home() / ".llmpipe"


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_mb() -> float | None:
    """Return the memory, or what this container may have of it, in MB of 2**20 bytes; None where it cannot be told."""
    found = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
        found.append(int(text) / 2**20)
    return min(found, default=None)
