"""`llmpipe plan --prefetch`: fetches what a recipe names on the hub, for a run on a machine without network.

Commits are locked in the run directory's hub.json as the first run would lock them; the files go to Hugging Face's own
cache (HF_HOME). The run then works with HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmpipe import console, edges, runner
from llmpipe.context import Context
from llmpipe.data.hub import revision_of
from llmpipe.errors import Problem, StageError
from llmpipe.outlook import memory
from llmpipe.plan import MODEL_FILES, make_plan
from llmpipe.recipe import Recipe
from llmpipe.settings import Accepts, HubSource

UNREACHABLE = "is the id right, and can the hub be reached?"


def fetch(recipe: Recipe, run_dir: Path) -> None:
    """Fetch every model, tokenizer and data set that the recipe names by `{hub: ...}`.

    Raises:
        StageError: one of them is not there, or the hub cannot be reached.
    """
    named = list(dict.fromkeys(_named(recipe)))
    if not named:
        console.say("nothing to fetch: the recipe names nothing on the hub\n")
        return
    runner.open_run(run_dir)
    with runner.locked(run_dir):
        record = make_plan(recipe, run_dir)[0].record
        ctx = Context(run_dir, record, emit=lambda event: console.say(f"  {event['text']}"))
        for source, kind in named:
            console.say(f"  {source.hub}  {_data(source, ctx) if kind == 'dataset' else _model(source, ctx, kind)}")
    console.say("")


def _named(recipe: Recipe) -> Iterator[tuple[HubSource, str]]:
    """Yield the sources on the hub, each with what it is: model, tokenizer or dataset."""
    for settings in recipe.stages.values():
        for field, accepts in edges.input_fields(settings):
            for source in edges.sources_of(settings, field):
                if isinstance(source, HubSource):
                    yield source, _kind(accepts)


def _kind(accepts: Accepts) -> str:
    if not accepts.is_folder:
        return "dataset"
    return "tokenizer" if accepts.artifacts == ("tokenizer",) else "model"


def _model(source: HubSource, ctx: Context, kind: str) -> str:
    """Fetch the files that a model is loaded from, and say how much they are; a tokenizer has no weights."""
    from huggingface_hub import snapshot_download

    wanted = [pattern for pattern in MODEL_FILES if kind == "model" or pattern != "*.safetensors"]
    commit = _commit(source, ctx, "model")
    try:
        folder = Path(snapshot_download(source.hub, revision=commit, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # no route, no such commit, gated, offline mode: classes of three libraries
        raise _failed(source, error) from error
    size = sum(path.stat().st_size for pattern in wanted for path in folder.glob(pattern))
    return f"{kind} at commit {commit[:12]}, {memory(size / 2**20)}"


def _data(source: HubSource, ctx: Context) -> str:
    """Fetch a data set as the stages read it, and say how many rows it has."""
    import datasets

    if source.streaming:
        message = f"{source.hub} is streamed, so that it is never on this disk"
        raise StageError(message, hint="leave out `streaming: true`, or run it where there is a network")
    commit = _commit(source, ctx, "dataset")
    try:
        rows = datasets.load_dataset(source.hub, source.name, split=source.split, revision=commit)
    except Exception as error:  # as in data/sources.py
        raise _failed(source, error) from error
    return f"{source.split} at commit {commit[:12]}, {len(rows):,} rows"


def _commit(source: HubSource, ctx: Context, kind: str) -> str:
    commit = revision_of(source, ctx, kind="dataset" if kind == "dataset" else "model")
    if commit is None:
        raise StageError(Problem("cannot be found on the hub", where=source.hub), hint=UNREACHABLE)
    return commit


def _failed(source: HubSource, error: Exception) -> StageError:
    return StageError(Problem(str(error).splitlines()[0], where=source.hub), hint=UNREACHABLE)
