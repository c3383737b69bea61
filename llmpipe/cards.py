"""Model cards: what the manifests of a run say of a model, as README.md for the Hugging Face hub.

No path of this machine gets into one: files are named by their last part and their sha256.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpipe import console, stages, summary
from llmpipe.artifact import Input, Manifest, StepRecord, read_json, read_manifest
from llmpipe.settings import Artifact, source_key

DIGITS = 12
"""Of a sha256 or a commit: enough to tell two files apart."""


@dataclass(frozen=True)
class Facts:
    """What a card says of the exported folder itself."""

    folder: str
    parameters: int
    merged: bool
    """Whether it was an adapter."""
    reward: bool
    """Whether it scores answers instead of giving them."""
    chat: bool
    """Whether it has a chat template."""
    gguf: str | None
    """Name of the GGUF file."""
    kind: Artifact = "causal-lm"
    """Which kind of language model it is, where it is one."""


def card(run: Path, stage: str, facts: Facts) -> str:
    """Write the card of a stage's model."""
    made_by = lineage(run, stage)
    return _whole(
        front_matter(made_by, "text-classification" if facts.reward else TAGS[facts.kind]),
        f"# {facts.folder}\n\nA {'reward' if facts.reward else 'language'} model of "
        f"{console.count(facts.parameters)} parameters, made by the stage `{stage}` ({made_by[-1].kind}) of an llmpipe "
        f"run.{MERGED if facts.merged else ''}",
        f"## Use\n\n{use(facts)}",
        *origins(run, made_by),
    )


def run_card(run: Path, stage: str) -> str:
    """Write the card of a stage's model for the report; that of an export shows how to load it."""
    made_by = lineage(run, stage)
    name = run.absolute().name
    module = stages.load(made_by[-1].kind)
    made = module.produces(module.Settings.model_validate(made_by[-1].settings))
    return _whole(
        front_matter(made_by, TAGS.get(made, "text-generation")),
        f"# {name}\n\nA language model, made by the stage `{stage}` ({made_by[-1].kind}) of the llmpipe run `{name}`.",
        f"## Use\n\n`llmpipe export {name} {stage} --to FOLDER` writes it as a plain Hugging Face folder.",
        *origins(run, made_by),
    )


def origins(run: Path, made_by: Sequence[Manifest]) -> list[str]:
    """Write the sections on where a model comes from, and what it is worth."""
    last = made_by[-1]
    return [
        f"## How it was made\n\n{stages_table(made_by)}\n\nSeed {last.seed}, on {last.device}; {versions(last)}.",
        f"## Data\n\n{data_table(run, made_by)}",
        figures(run, made_by),
        LICENCE,
    ]


def _whole(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


MERGED = " It was trained as an adapter, which is merged into its base."
LICENCE = (
    "## Licence\n\nNot chosen yet: set `license:` at the top of this file to one that the licences of the data and of "
    "the model it began from allow."
)


def lineage(run: Path, stage: str) -> list[Manifest]:
    """Return the manifests of a stage and of all that led to it, inputs first."""
    found: dict[str, Manifest] = {}

    def add(name: str) -> None:
        manifest = read_manifest(run / name)
        if manifest is None or name in found:
            return
        for entry in manifest.inputs:
            if "stage" in entry.source:
                add(entry.source["stage"])
        found[name] = manifest

    add(stage)
    return list(found.values())


def front_matter(made_by: Sequence[Manifest], tag: str) -> str:
    """Write what the hub sorts models by; JSON is YAML, and needs no rules for quotes."""
    hub = [entry for manifest in made_by for entry in manifest.inputs if "hub" in entry.source]
    keys: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": tag,
        "base_model": sorted({entry.source["hub"] for entry in hub if entry.field == "model"}),
        "datasets": sorted({entry.source["hub"] for entry in hub if entry.field in ("data", "prompts")}),
        "tags": ["llmpipe"],
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in keys.items() if value]
    return "\n".join(["---", *lines, "---"])


def use(facts: Facts) -> str:
    """Show how to load the folder from the one above it, as Python that runs."""
    kind = "AutoModelForSequenceClassification" if facts.reward else CLASSES[facts.kind]
    lines = [
        f"from transformers import {kind}, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(facts.folder)})",
        f"model = {kind}.from_pretrained({json.dumps(facts.folder)})",
    ]
    if not facts.reward:
        chat = SAY if facts.kind == "seq2seq-lm" else CHAT
        lines += FILL if facts.kind == "masked-lm" else chat if facts.chat else PLAIN
    shown = "\n".join(["```python", *lines, "```"])
    if facts.reward:
        shown += "\n\n`reward.json` says how answers have to be written, and what the outputs weigh."
    if facts.gguf:
        shown += f"\n\n`{facts.gguf}` is the same model for llama.cpp and what is built on it."
    return shown


TAGS = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "seq2seq-lm": "text2text-generation",
    "classifier": "text-classification",
    "reward-model": "text-classification",
}
"""The hub's word for what a model does; an adapter's is that of the causal models that it is made for."""
CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
}
FILL = [
    'ids = tokenizer(f"The cat{tokenizer.mask_token} on the mat", return_tensors="pt")["input_ids"]',
    "guess = model(input_ids=ids).logits[ids == tokenizer.mask_token_id].argmax(-1)",
    "print(tokenizer.decode(guess))",
]
CHAT = [
    'turns = [{"role": "user", "content": "Hello!"}]',
    'ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")',
    'answer = model.generate(**ids, max_new_tokens=100)[0, ids["input_ids"].shape[1] :]',
    "print(tokenizer.decode(answer, skip_special_tokens=True))",
]
SAY = [*CHAT[:2], "answer = model.generate(**ids, max_new_tokens=100)[0]", CHAT[3]]
PLAIN = [
    'ids = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)',
    "print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0], skip_special_tokens=True))",
]


def stages_table(made_by: Sequence[Manifest]) -> str:
    """List the stages: what each one read, and how long it took."""
    rows = []
    for manifest in made_by:
        read = dict.fromkeys(str(entry.source.get("stage", "")) for entry in manifest.inputs)
        above = ", ".join(name for name in read if name)
        rows.append((manifest.name, manifest.kind, above, console.seconds(manifest.seconds)))
    return table(("stage", "kind", "on", "took"), rows)


def versions(manifest: Manifest) -> str:
    """Name the versions that made a stage's output."""
    shown = ("llmpipe", "torch", "transformers", "trl", "peft")
    return ", ".join(f"{name} {manifest.versions[name]}" for name in shown if name in manifest.versions)


def data_table(run: Path, made_by: Sequence[Manifest]) -> str:
    """List what came from outside of the run, in Markdown."""
    rows = data_rows(run, made_by)
    return table(DATA_HEADER, rows) if rows else "Everything was made by the run."


DATA_HEADER = ("stage", "input", "what", "sha256 or commit")


def data_rows(run: Path, made_by: Iterable[StepRecord]) -> list[tuple[str, str, str, str]]:
    """Name what came from outside of the run: stage, input, file or id, and the first digits of what identifies it."""
    return [
        (step.name, entry.field, name, identity)
        for step in made_by
        for entry in step.inputs
        for name, identity in _described(run, entry)
    ]


def _described(run: Path, entry: Input) -> Iterator[tuple[str, str]]:
    """Yield the parts of an input, each with what identifies its content; none where another stage made it."""
    source, key = entry.source, source_key(entry.source)
    if key == "hub":
        locks = read_json(run / "hub.json") or {}
        kind = "dataset" if entry.field in ("data", "prompts") else "model"
        commit = source.get("revision") or locks.get(f"{kind}:{source['hub']}") or ""
        yield source["hub"], str(commit)[:DIGITS]
    elif key == "builtin":
        rows = f", {source['rows']:,} rows" if source.get("rows") else ""
        told = f", told by a {source['style']}" if source.get("style") else ""
        yield f"{source['builtin']} (ships with llmpipe{rows}{told})", ""
    elif key in ("path", "gguf", "function"):
        for file, digest in entry.files.items():
            yield Path(file).name, digest[:DIGITS]


def figures(run: Path, made_by: Sequence[Manifest]) -> str:
    """Show what each stage changed, and what the run's eval stages measured of this model."""
    shown = []
    changed = [row[:4] for manifest in made_by for row in summary.changes(manifest.name, manifest)]
    if changed:
        shown.append(table(("stage", "", "before", "after"), changed))
    stage = made_by[-1].name
    found = [read_manifest(path.parent) for path in sorted(run.glob("*/manifest.json"))]
    measured = [
        (manifest.name, summary.label(key), console.number(value, key=key))
        for manifest in found
        if manifest and summary.measured(manifest, made_by[-1])
        for name, value in manifest.metrics.items()
        for owner, _, key in (name.rpartition("."),)
        if owner == stage and key not in summary.HIDDEN
    ]
    if measured:
        shown.append(table(("eval stage", "", stage), measured))
    return "## Figures\n\n" + "\n\n".join(shown) if shown else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in cells)


def _cell(text: str) -> str:
    """Write a text so that it stays in its cell and is no HTML."""
    return console.clean(text).replace("|", r"\|").replace("<", "&lt;")
