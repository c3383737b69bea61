"""From a model's name to what answers for it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from llmpipe import console
from llmpipe.errors import StageError, TalkError, UsageError
from llmpipe.inspection import found, last_model
from llmpipe.talk.engine import Engine

ADDRESS = ("http://", "https://")


@contextmanager
def opened(name: str, *, key_variable: str | None = None) -> Iterator[Engine]:
    """Give what answers for a model, and close it in the end.

    `name` is a run (its last model), RUN:STAGE, a folder, a GGUF file, `hub:ID`, or the address of a server that
    speaks OpenAI's API, `http(s)://HOST/v1#MODEL`, whose key is in the environment variable `key_variable`.

    Raises:
        LlmpipeError: there is no such model, it cannot talk, or the server or its key is not there.
    """
    if name.startswith(ADDRESS):
        engine = _remote(name, key_variable)
        try:
            yield engine
        finally:
            engine.close()
        return
    if key_variable is not None:
        raise UsageError("only a server wants a key", hint="http(s)://HOST/v1#MODEL names one")
    resolved = last_model(name)
    with found(resolved, _say) as (source, ctx):
        from llmpipe.talk.local import LocalEngine  # torch: only once there is a model to load

        try:
            with redirect_stderr(io.StringIO()):  # transformers draws a bar for every file
                engine = LocalEngine.load(source, ctx, name=resolved)
        except StageError as error:
            raise TalkError(error.problems, hint=_hint(error, name)) from error
        try:
            yield engine
        finally:
            engine.close()


def _say(event: dict[str, object]) -> None:
    if text := event.get("text"):
        console.say(f"  {text}")


def _hint(error: StageError, name: str) -> str | None:
    """What is wrong with a model is said as to a stage that would train it; here it would only talk."""
    said = str(error)
    if "is needed" in said:
        return f'masked models and encoder-decoders answer no conversations: llmpipe generate {name} "…"'
    if "guesses no tokens" in said:
        return "name a stage that makes a language model, such as pretrain, sft or dpo"
    return error.hint


def _remote(address: str, key_variable: str | None) -> Engine:
    from llmpipe.talk.remote import RemoteEngine

    url, _, model = address.partition("#")
    key = None
    if key_variable is not None and not (key := os.environ.get(key_variable)):
        raise UsageError(f"the environment variable {key_variable} is not set", hint=f"export {key_variable}=KEY")
    return RemoteEngine(url, model or None, key=key)
