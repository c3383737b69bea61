"""generate: answers from a model, one for each prompt or several.

    llmpipe generate runs/quickstart:ppo "Tell me a story about a duck and a shoe." -n 3 --temperature 0.8
    llmpipe generate runs/quickstart:ppo --prompts questions.jsonl --json > answers.jsonl

Prompts are arguments, the rows of a file in any format that has prompts, or the lines of stdin.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpipe import console
from llmpipe.data.preferences import Prompt
from llmpipe.data.sources import read_prompts
from llmpipe.errors import UsageError
from llmpipe.inspection import found, last_model
from llmpipe.settings import PathSource

if TYPE_CHECKING:
    from llmpipe.evaluation.generate import Told


def generate(
    model: str, texts: Sequence[str], file: Path | None, how: dict[str, Any], *, count: int, plain: bool, as_json: bool
) -> None:
    """Answer prompts; with `as_json` one JSON line for each prompt, else the texts, prompts above them if several.

    `how` are the fields of `Sampling`.

    Raises:
        LlmpipeError: there is no such model, no prompt, or the rows of the file hold none.
    """
    if count > 1 and how["temperature"] == 0:
        raise UsageError("greedy answers are all the same", hint="-n goes with --temperature, such as 0.8")
    if texts and file is not None:
        raise UsageError("prompts come from arguments or from a file; leave one of them out")
    said: list[str] = []
    with found(last_model(model), lambda event: said.append(event.get("text", ""))) as (source, ctx):
        asked: list[str | Prompt] = [*texts]
        if file is not None:
            asked = [prompt for _, prompt in read_prompts([PathSource(path=str(file))], ctx)]
        elif not texts:
            asked = [line.rstrip("\n") for line in _stdin(model) if line.strip()]
        if not asked:
            raise UsageError("there is no prompt", hint=f'llmpipe generate {model} "Once upon a time"')
        with redirect_stderr(io.StringIO()):  # transformers draws a bar for every file, and logs what is no matter
            from llmpipe.evaluation.generate import Sampling  # torch: only once there is something to ask
            from llmpipe.evaluation.talk import answered

            answers = answered(source, ctx, asked, Sampling(**how), count=count, plain=plain)
    for line in filter(None, said):
        console.say(f"  {line}")
    for prompt, told in zip(asked, answers, strict=True):
        show(prompt, told, as_json=as_json, is_alone=len(asked) == 1)


def _stdin(model: str) -> Sequence[str]:
    """Read prompts line by line; at a terminal nobody waits for a command that waits for them."""
    if sys.stdin.isatty():
        raise UsageError("there is no prompt", hint=f'llmpipe generate {model} "Once upon a time"')
    return sys.stdin.readlines()


def show(prompt: str | Prompt, told: Sequence[Told], *, as_json: bool, is_alone: bool) -> None:
    """Print the answers to one prompt."""
    if as_json:
        asked = prompt if isinstance(prompt, str) else _turns(prompt)
        answers = [{"text": answer.text, "finished": answer.finished} for answer in told]
        console.as_json({"prompt": asked, "answers": answers}, indent=None)
        return
    if not is_alone:
        last = prompt if isinstance(prompt, str) else prompt.asked
        console.say(f"\n{last}", style="bold")
    for answer in told:
        console.data(answer.text)


def _turns(prompt: Prompt) -> str | list[dict[str, str]]:
    if prompt.text is not None:
        return prompt.text
    return [{"role": turn["role"], "content": turn["content"]} for turn in prompt.messages]
