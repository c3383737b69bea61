"""Commits of hub repositories: the first run locks a source without a revision to the newest commit.

The locks lie in the run directory's hub.json, so that a repeated run reads the same data and the same weights.
"""

from __future__ import annotations

from typing import Literal

from llmpipe.artifact import read_json, write_json
from llmpipe.context import Context
from llmpipe.settings import HubSource


def revision_of(source: HubSource, ctx: Context, *, kind: Literal["model", "dataset"]) -> str | None:
    """Return the commit to read; None when the hub cannot be asked: only its local cache is read then."""
    if source.revision:
        return source.revision
    path, key = ctx.run_dir / "hub.json", f"{kind}:{source.hub}"
    locks = read_json(path) or {}
    if key not in locks:
        commit = _newest(source.hub, kind)
        if commit is None:
            return None
        locks[key] = commit
        ctx.say(f"{source.hub} is locked at commit {commit[:12]}; `revision:` in the recipe chooses another")
        if ctx.rank == 0:
            write_json(path, locks)
    return str(locks[key])


def _newest(repository: str, kind: Literal["model", "dataset"]) -> str | None:
    from huggingface_hub import HfApi

    try:
        return HfApi().repo_info(repository, repo_type=kind).sha
    except Exception:  # offline mode is an OSError, no route an httpx2 error, a refusal both: three libraries' classes
        return None
