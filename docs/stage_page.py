"""The page of a stage: what it reads, writes, understands, checks and may say, all from its code."""

from __future__ import annotations

import json
import re
import sys
import textwrap
import typing
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from markup import MADE, code, note, sentence, table
from said import FILLED, Key, Said, failures, files, find, reached, refusals

from llmpipe import lora, settings, stages, vocabulary
from llmpipe.artifact import OUTPUT_FOLDERS
from llmpipe.curation import steps
from llmpipe.gates import REASONS
from llmpipe.settings import TRAINER_RESERVED, Accepts, Passthrough

MOST = 7
"""Stages that have to share a message before it moves to the page that is about all of them."""
NO_STAGE_TAKES = {"trainer": TRAINER_RESERVED, "lora": lora.RESERVED_IN_SFT}
"""Options that are reserved in all stages."""
STEPS = typing.get_args(typing.get_args(steps.Options)[0])
"""The settings of the steps of `curate`."""


def stage_page(kind: str) -> str:
    """Write the page of a stage."""
    parts = [
        MADE,
        f"# {kind}",
        "[All stages](README.md) · [recipe](../recipe.md) · [data](../data.md) · [commands](../commands.md)",
        *about(kind),
        f"    llmpipe {kind} --run runs/mine {stages.STAGES[kind].example}\n"
        f"    llmpipe {kind} RECIPE    # the recipe's stages of this kind",
        "## Inputs",
        inputs(kind),
        "[The recipe](../recipe.md#inputs) says how sources are written.",
        "## Output",
        *outputs(kind),
        "## Settings",
        *own_settings(kind),
        *passed_on(kind),
        "## What is checked",
        *checked(kind),
        "## What goes wrong",
        *wrong(kind),
    ]
    return "\n\n".join(parts) + "\n"


def about(kind: str) -> Iterator[str]:
    """Turn the docstring of a stage's module into Markdown: indented lines are YAML, names of pages are links."""
    for paragraph in sentence(str(stages.load(kind).__doc__).removeprefix(f"{kind}: ").strip()).split("\n\n"):
        if paragraph.startswith("    "):
            yield f"```yaml\n{textwrap.dedent(paragraph)}\n```"
        else:
            text = re.sub(r"\bdocs/([\w-]+\.md)\b", r"[docs/\1](../\1)", " ".join(paragraph.split()))
            yield re.sub(r"\barXiv:(\d{4}\.\d{4,5})\b", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


# ---- Inputs and output ------------------------------------------------------------------------


def accepting(kind: str) -> dict[str, Accepts]:
    """Return the inputs of a stage."""
    fields = stages.load(kind).Settings.model_fields
    return {name: extra for name, info in fields.items() for extra in info.metadata if isinstance(extra, Accepts)}


def inputs(kind: str) -> str:
    """List what a stage reads."""
    rows = []
    for name, accepts in accepting(kind).items():
        info = stages.load(kind).Settings.model_fields[name]
        makers = [page_link(other) for other in stages.STAGES if set(made_by(other)) & set(accepts.artifacts)]
        keys = [key for key in settings.SOURCE_KEYS if key in _keys(info.annotation) and key != "stage"]
        others = ", ".join(f"`{{{key}: …}}`" for key in keys)
        absent = "(needed)" if info.is_required() else _left_out(accepts)
        rows.append((f"`{name}`", note(info.description or ""), ", ".join(makers), others, absent))
    return table(("key", "what it is", "from a stage", "or", "when left out"), rows)


def _left_out(accepts: Accepts) -> str:
    fitting = "the one earlier stage that fits"
    if not accepts.fill:
        return "(optional)"
    return f"what the stage in `{accepts.same_as}` reads, else {fitting}" if accepts.same_as else fitting


def _keys(annotation: Any) -> set[str]:
    """Return the keys of all models that a type may be."""
    if isinstance(annotation, type):
        return set(getattr(annotation, "model_fields", ()))
    return {key for argument in typing.get_args(annotation) for key in _keys(argument)}


@cache
def made_by(kind: str) -> list[str]:
    """Return the artifacts that a stage can make: by each objective, with an adapter and without."""
    module = stages.load(kind)
    fields = module.Settings.model_fields
    objectives = typing.get_args(fields["objective"].annotation) if "objective" in fields else ()
    choices: list[dict[str, Any]] = [{}, *({"objective": objective} for objective in objectives)]
    choices += [{"lora": {}}] if "lora" in fields else []
    return list(dict.fromkeys(module.produces(module.Settings.model_construct(**choice)) for choice in choices))


def page_link(kind: str) -> str:
    """Link to the page of a stage, from another one."""
    return f"[{kind}]({kind}.md)"


def outputs(kind: str) -> Iterator[str]:
    """List what a stage writes, and who reads it."""
    rows = []
    for artifact in made_by(kind):
        readers: dict[str, list[str]] = {}
        for other in stages.STAGES:
            for name, accepts in accepting(other).items():
                if artifact in accepts.artifacts:
                    readers.setdefault(name, []).append(page_link(other))
        told = "; ".join(f"`{name}` of {', '.join(kinds)}" for name, kinds in readers.items())
        folder = OUTPUT_FOLDERS[artifact]
        rows.append((f"`{folder}`" if "." in folder else f"`{folder}/`", artifact, told))
    yield table(("in the stage’s folder", "is", "read as"), rows)
    more = [f"`{name}`" for name in files(_run(kind)) if name not in OUTPUT_FOLDERS.values()]
    beside = f"Beside it: {', '.join(more)}. " if more else ""
    every = "`manifest.json`, `metrics.jsonl` and `log.txt` lie in every stage's folder"
    yield f"{beside}{every} ([which is for what](../ci.md#read-the-numbers))."


# ---- Settings ---------------------------------------------------------------------------------


def own_settings(kind: str) -> Iterator[str]:
    """List the keys of a stage; its inputs have a table of their own, and so has each step of `steps:`."""
    rows = [row for row in vocabulary.own_rows(kind) if row["key"] not in {"kind", *accepting(kind)}]
    yield _settings_table([row for row in rows if not row["key"].startswith("steps.")])
    yield f"`llmpipe options {kind}` lists them in a terminal; `--set KEY=VALUE` changes one."
    for model in STEPS if any(row["key"].startswith("steps.") for row in rows) else ():
        step = model.model_fields["step"].default
        first = str(sys.modules[model.__module__].__doc__).partition("\n")[0]
        yield f"### Step `{step}`"
        yield sentence(first.removeprefix(f"{step}: "))
        prefix = f"steps.{step}."
        own = [row | {"key": row["key"].removeprefix(prefix)} for row in rows if row["key"].startswith(prefix)]
        if own:
            yield _settings_table(own)


def _settings_table(rows: Iterable[dict[str, str]]) -> str:
    cells = []
    for row in rows:
        default = "needed" if row["default"] == "(needed)" else code(row["default"]) if row["default"] else ""
        cells.append((f"`{row['key']}`", note(row["type"]), default, note(row["help"])))
    return table(("key", "type", "default", "meaning"), cells)


def passed_on(kind: str) -> Iterator[str]:
    """Say what a stage passes on to Hugging Face: its own defaults, and the options that are not the user's to set."""
    for name, info in stages.load(kind).Settings.model_fields.items():
        extra = next((extra for extra in info.metadata if isinstance(extra, Passthrough)), None)
        if extra is None:
            continue
        yield f"### `{name}:`"
        yield f"Takes the options of `{extra.config_class}` under their own names: `llmpipe options {kind} {name}`."
        if name == "trainer" and (defaults := _defaults(kind)):
            yield defaults
        shared = NO_STAGE_TAKES.get(name, {})
        own = {key: why for key, why in extra.reserved.items() if shared.get(key) != why}
        if own:
            yield table(("not to be set", "why, or what to write instead"), grouped(own))
        if len(own) < len(extra.reserved):
            yield f"{'Nor are' if own else 'Not to be set are'} {NOT_TAKEN}."


NOT_TAKEN = "[those that no stage takes](README.md#options-that-no-stage-takes)"


def _defaults(kind: str) -> str:
    """Show the defaults that a stage has in place of the library's, by the constants that its module keeps them in."""
    module = sys.modules[stages.load(kind).run.__module__]
    known = {name: value for name, value in vars(module).items() if re.fullmatch(r"([A-Z]+_)?DEFAULTS", name)}
    keys = dict.fromkeys(key for values in known.values() for key in values)
    heads = {"DEFAULTS": "default", "ADAPTER_DEFAULTS": "with `lora:`", "FRESH_DEFAULTS": "of a model made here"}
    rows = [(f"`{key}`", *(_value(values.get(key)) for values in known.values())) for key in keys]
    return table(("option", *(heads.get(name, name.lower()) for name in known)), rows) if rows else ""


def _value(value: Any) -> str:
    """Write a value as a recipe would: 2e-5."""
    return code(re.sub(r"e-0(\d)", r"e-\1", value if isinstance(value, str) else json.dumps(value)))


def grouped(reasons: dict[str, str]) -> list[tuple[str, str]]:
    """Put options that share a reason into one row."""
    by_reason: dict[str, list[str]] = {}
    for key, why in reasons.items():
        by_reason.setdefault(why, []).append(f"`{key}`")
    return [(", ".join(keys), note(why)) for why, keys in by_reason.items()]


# ---- What is checked, and what goes wrong -----------------------------------------------------


@cache
def _run(kind: str) -> tuple[Key, ...]:
    module = find(stages.STAGES[kind].module, "run")
    return tuple(reached([module])) if module else ()


@cache
def said_by_most() -> set[Said]:
    """Find what most stages may say."""
    counted = Counter(said for kind in stages.STAGES for said in failures(_run(kind)))
    return {said for said, number in counted.items() if number >= MOST}


@cache
def said_of_sources() -> set[Said]:
    """Find what may be said of any source and any count."""
    return refusals(reached([("llmpipe.settings", name) for name in ("AnySource", "bare_name", "Count")]))


def checked(kind: str) -> Iterator[str]:
    """List the gates of a stage, with the reason for each."""
    rows = [
        tuple(map(note, (f"`{name}`", one.why, one.remedy, one.only)))
        for name, one in REASONS.items()
        if kind in one.stages
    ]
    if rows:
        yield table(("gate", "why it is there", "what to do where it fails", "only for"), rows)
        yield "Those that apply are in the manifest and the report; a stage whose gate fails is not done."
    else:
        yield "That no input changed meanwhile; beyond that, its output has no gate of its own."


def wrong(kind: str) -> Iterator[str]:
    """List what a stage may say: before anything runs, and while it does."""
    refused = refusals(reached([(stages.STAGES[kind].module, "Settings")], annotations=True)) - said_of_sources()
    if refused:
        yield f"Before anything runs, at the line and column of the recipe (exit code 2; {FILLED} is filled in):"
        yield bullets(refused)
    if own := failures(_run(kind)) - said_by_most():
        yield "While it runs:"
        yield advice(own)
    yield "What any stage may say is on [the page about all of them](README.md#what-goes-wrong-in-any-stage)."


def bullets(found: Iterable[Said]) -> str:
    """List messages."""
    return "\n".join(f"- {note(said.message)}" for said in sorted(found))


def advice(found: Iterable[Said]) -> str:
    """List messages with what to do."""
    return table(("message", "what to do"), [(note(said.message), note(said.advice)) for said in sorted(found)])
