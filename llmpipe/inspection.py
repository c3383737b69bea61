"""inspect: shows what a model sees in a text: tokens, probabilities, and where each attention head looks.

    llmpipe inspect runs/quickstart:base "The cat sat on the mat" --html cat.html

In the terminal in short, with `--json` in full, with `--html` as one page that needs nothing from elsewhere.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpipe import console, yaml_tree
from llmpipe.artifact import StepRecord, read_manifest, write_text
from llmpipe.context import Context, Event
from llmpipe.errors import Problem, UsageError
from llmpipe.export import model_of
from llmpipe.settings import AnySource, GgufSource, HubSource, PathSource, StageSource
from llmpipe.summary import MAKE_MODELS

if TYPE_CHECKING:
    from llmpipe.evaluation.attention import Look

MOST_TOKENS = 64
"""As many as a page and a person can take in."""
HEADS = {"first": "f", "itself": "s", "before": "p", "after": "n"}
SHADES = " ░▒▓█"
WIDTH = 80


def inspect(model: str, text: str, *, target: str | None, html: Path | None, as_json: bool) -> None:
    """Look at a text through a model, and show what there is to see.

    Raises:
        LlmpipeError: there is no such model, it shows no attention, or there is no text.
    """
    if not text.strip():
        raise UsageError("there is no text to look at", hint=f'llmpipe inspect {model} "The cat sat on the mat"')
    if html is not None and not html.absolute().parent.is_dir():
        raise UsageError(Problem(f"{html.parent} is no folder", where=f"--html {html}"))
    said: list[str] = []
    with found(model, lambda event: said.append(event.get("text", ""))) as (source, ctx):
        from llmpipe.evaluation.attention import look  # torch: only once there is a model to load

        with redirect_stderr(io.StringIO()):  # transformers draws a bar for every file
            seen = look(source, ctx, text, target=target, most_tokens=MOST_TOKENS)
    content = {"model": model, "text": text, "target": target} | seen.content()
    for line in filter(None, said):
        console.say(f"  {line}")
    if html is not None:
        write_text(html, page(content))
    if as_json:
        console.as_json(content)
        return
    show(model, seen)
    if html is not None:
        console.say(f"\n  {html} is written; any browser opens it")


@contextmanager
def found(model: str, emit: Callable[[Event], None] = lambda _: None) -> Iterator[tuple[AnySource, Context]]:
    """Give the source that a model's name means, and a context to load it in, whose events go to `emit`.

    `RUN:STAGE` and `RUN/STAGE` are the model of a finished stage; else it is a folder, a GGUF file or `hub:OWNER/NAME`.

    Raises:
        LlmpipeError: it is none of these.
    """
    if stage := _stage(model):
        run, name = stage
        yield StageSource(stage=name, weight=1.0), Context(run_dir=run, step=model_of(run, name), emit=emit)
        return
    source = _elsewhere(model)
    with tempfile.TemporaryDirectory(prefix="llmpipe-inspect-") as folder:  # where a GGUF file is unpacked
        step = StepRecord(
            name="inspect", kind="inspect", stage_version=1, fingerprint="", seed=0, settings={}, inputs=[]
        )
        yield source, Context(run_dir=Path(folder), step=step, emit=emit)


def last_model(model: str) -> str:
    """Read the name of a run as that of its last stage that made a language model, and say which one that is.

    Raises:
        UsageError: the run has none yet.
    """
    run = Path(model)
    if not (run / "recipe.yaml").is_file():
        return model
    if not (done := models_of(run)):
        raise UsageError(f"{model} has no language model yet", hint=f"llmpipe run {model}")
    console.say(f"  {model}: its last model, {done[-1]}", style="dim")
    return f"{model}:{done[-1]}"


def models_of(run: Path) -> list[str]:
    """Return the stages of a run that made a language model, in the order of its recipe."""
    data = yaml_tree.read(run / "recipe.yaml").data
    stages = data.get("stages") if isinstance(data, dict) else None
    return [
        name
        for name in (stages if isinstance(stages, dict) else ())
        if (manifest := read_manifest(run / name)) and manifest.kind in MAKE_MODELS
    ]


def _stage(model: str) -> tuple[Path, str] | None:
    """Read a name as that of a run's stage; None where it is something else."""
    run, colon, stage = model.rpartition(":")
    if colon and run != "hub" and Path(run).is_dir():
        return Path(run), stage
    folder = Path(model)
    if (folder / "recipe.yaml").is_file():
        raise UsageError(f"{model} is a run; name one of its stages", hint=f"llmpipe inspect {model}:STAGE …")
    if (folder.parent / "recipe.yaml").is_file() and not (folder / "config.json").is_file():
        return folder.parent, folder.name
    return None


def _elsewhere(model: str) -> AnySource:
    if model.startswith("hub:"):
        return HubSource.model_validate({"hub": model.removeprefix("hub:")})
    path = Path(model)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return GgufSource.model_validate({"gguf": str(path)})
    if path.is_dir():
        return PathSource.model_validate({"path": str(path)})
    raise UsageError(
        Problem("no such run, stage, folder or GGUF file", where=model),
        hint="a stage is written RUN:STAGE, a hub repository hub:OWNER/NAME",
    )


def page(content: dict[str, Any]) -> str:
    """Return the page for a browser: the template beside this file with the content in it."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return template.replace("{{content}}", data)


def show(model: str, seen: Look) -> None:
    """Show the tokens, the probabilities and what each head mostly does."""
    console.data(f"{model} · {seen.model_type}, {seen.family} · {console.count(seen.parameters)} parameters")
    for note in seen.notes:
        console.say(f"  {note}")
    for name, side in seen.sides.items():
        guesses = {guess.position: guess for guess in seen.guesses if guess.side == name}
        header = ("", name, "id", "probability" if seen.family == "encoder" else "of next", "likeliest")
        rows = []
        for position, (token, number) in enumerate(zip(side.tokens, side.ids, strict=True)):
            guess = guesses.get(position)
            own = "" if guess is None or guess.probability is None else f"{guess.probability:.3f}"
            best = "" if guess is None else "  ".join(f"{shown(piece)} {share:.2f}" for piece, share in guess.top[:3])
            rows.append((str(position), shown(token), str(number), own, best))
        console.data("")
        cells = len(header) if guesses else 3
        table = console.table([row[:cells] for row in rows], header=header[:cells], right=(0, 2, 3))
        console.show(table, to_stdout=True)
    for attention in seen.attentions:
        console.data(f"\n  attention {attention.name}: a row for each layer, a cell for each head")
        heads = [
            (str(layer), "  ".join(_cell(*habit) for habit in habits))
            for layer, habits in zip(attention.layers, attention.habits(), strict=True)
        ]
        console.show(console.table(heads, right=(0,)), to_stdout=True)
        _show_map(seen, attention)
    console.say("\n  f first token, s itself, p the one before, n the one after: percent of the attention there;")
    console.say("  ~ none of these has half of it: how many tokens it spreads over; the last map is of all heads")


def _cell(habit: str, value: float) -> str:
    return f"~{value:<3.0f}" if habit == "spread" else f"{HEADS[habit]}{100 * value:<3.0f}"


def _show_map(seen: Look, attention: Any) -> None:
    """Draw the mean over all layers and heads: a row for each token that looks, a column for each looked at."""
    rows, columns = (seen.sides[name] for name in (attention.rows, attention.columns))
    wide = 2 if 2 * len(columns.tokens) <= WIDTH - 16 else 1
    console.data("")
    for position, (token, shares) in enumerate(zip(rows.tokens, attention.mean(), strict=True)):
        cells = "".join(SHADES[min(4, round(4 * share**0.5))] * wide for share in shares)
        console.data(f"  {position:>3} {shown(token, 8):<8} {cells}".rstrip())


def shown(token: str, most: int = 14) -> str:
    """Write a token so that spaces and line breaks can be seen."""
    text = console.clean(token).replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")
    return text if len(text) <= most else f"{text[: most - 1]}…"
