"""export --push: sends an exported folder to a repository of the Hugging Face hub.

    llmpipe export runs/quickstart chat --to stories --push me/stories

The files are listed, and the user has agreed, before one of them is sent. The token goes to the hub and nowhere else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmpipe import __version__, console
from llmpipe.errors import Problem, StageError, UsageError
from llmpipe.export import LOADED, Exported

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

MEANINGS = {
    401: "the hub does not accept the token",
    403: "the token may not write there",
    404: "the hub has no such owner or repository",
    409: "the repository came about or changed meanwhile",
    412: "the repository changed meanwhile",
}
"""What the hub's refusals mean, by HTTP status."""
LOGIN = "hf auth login, or HF_TOKEN, with a token that may write"
AGAIN = "the same command with --force tries again"


@dataclass(frozen=True)
class Destination:
    """Where an exported folder is sent."""

    repo: str
    public: bool
    """What a repository becomes that is new; one that is there stays what it is."""
    yes: bool
    """Whether the user has agreed beforehand."""

    @property
    def where(self) -> str:
        """What was typed."""
        return f"--push {self.repo}"


def destination(repo: str | None, *, public: bool, yes: bool) -> Destination | None:
    """Check all that a push needs of this machine, before a model is loaded; None where nothing is to be sent.

    Raises:
        UsageError: the id is none, there is no token, or nobody to ask.
    """
    if repo is None:
        if public or yes:
            hint = "--push OWNER/NAME sends the folder to the Hugging Face hub"
            raise UsageError(f"{'--public' if public else '--yes'} goes with --push", hint=hint)
        return None
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the library is imported
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    to = Destination(repo, public, yes)
    try:
        validate_repo_id(repo)
        whole = "/" in repo
    except HFValidationError:
        whole = False
    if not whole:
        hint = f"OWNER/NAME, of letters, digits, - and _, such as me/{Path(repo).name or 'stories'}"
        raise UsageError(Problem("is no repository of the hub", where=to.where), hint=hint)
    if not get_token():
        raise UsageError(Problem("the hub asks for a token, and there is none", where=to.where), hint=LOGIN)
    if not yes and not sys.stdin.isatty():
        message = "asks before it sends anything, and there is no terminal to ask on"
        raise UsageError(Problem(message, where=to.where), hint="add --yes to send without a question")
    return to


def push(done: Exported, to: Destination) -> dict[str, Any] | None:
    """Send the files of an export in one commit; returns its `repo`, `url`, `commit` and whether it is `private`.

    None where the user does not agree; then nothing was sent.

    Raises:
        StageError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not console.err.is_terminal:
        disable_progress_bars()
    api = HfApi(library_name="llmpipe", library_version=__version__)
    with _refusals(to):
        found = _look(api, to.repo)
    stale = _describe(to, found, done)
    if not to.yes and not typer.confirm(f"  send {_size(done)} to {to.repo}?", err=True):
        console.say("  nothing was sent")
        return None
    files = [CommitOperationAdd(name, Path(done.to) / name) for name in done.files]
    with _refusals(to):
        if found is None:
            api.create_repo(to.repo, private=not to.public)
            found = api.model_info(to.repo)
        commit = api.create_commit(
            to.repo,
            [*files, *(CommitOperationDelete(name) for name in stale)],
            commit_message=f"Export of the stage {done.stage} by llmpipe {__version__}",
            parent_commit=found.sha,
        )
    sent = {"repo": to.repo, "url": f"{api.endpoint}/{to.repo}", "commit": commit.oid, "private": bool(found.private)}
    console.say(f"\n  sent to {sent['url']}, which is {_visibility(found.private)}")
    return sent


def _look(api: HfApi, repo: str) -> ModelInfo | None:
    """Return what the hub says of a repository; None where there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repo)
    except RepositoryNotFoundError:
        return None


def _describe(to: Destination, found: ModelInfo | None, done: Exported) -> list[str]:
    """Say what a push will do to a repository; returns its files that would be loaded beside the new ones."""
    if found is None:
        console.say(f"\n  {to.repo} will be made, and is going to be {_visibility(not to.public)}")
        return []
    there = [sibling.rfilename for sibling in found.siblings or []]
    stale = [name for name in there if name not in done.files and any(fnmatch(name, pattern) for pattern in LOADED)]
    changed = [name for name in there if name in done.files]
    gone = f", and {' and '.join(stale)} taken away, which would be loaded too" if stale else ""
    what = f"{len(changed)} of its {len(there)} files are replaced{gone}, in one commit" if there else "it has no files"
    console.say(f"\n  {to.repo} is there, and stays {_visibility(found.private)}: {what}")
    return stale


def _visibility(private: bool | None) -> str:
    return "private" if private else "public"


def _size(done: Exported) -> str:
    return f"{len(done.files)} files, {console.count(sum(done.files.values()))}B,"


@contextmanager
def _refusals(to: Destination) -> Iterator[None]:
    """Say in plain words what the hub refuses; the folder is written by then."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except Exception as error:  # no route, time-outs, offline mode, refusals, bad metadata: four libraries' classes
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error  # of one file's upload
        refused = cause if isinstance(cause, HfHubHTTPError) else None
        status = refused.response.status_code if refused else 0
        said = " ".join(str((refused and refused.server_message) or cause).split())
        said = said.replace(get_token() or "\0", "the token")
        message = f"{MEANINGS[status]} ({status})" if status in MEANINGS else f"the hub could not take it: {said}"
        hint = f"{LOGIN}; then {AGAIN}" if status in (401, 403) else f"the folder is written; {AGAIN}"
        raise StageError(Problem(message, where=to.where), hint=hint) from error
