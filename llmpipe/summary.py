"""After a run: what each stage changed, the scores side by side, and where to go from here."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmpipe import console
from llmpipe.artifact import Manifest, read_json, read_manifest
from llmpipe.machine import cores

LABELS = {
    "megabytes": "MB of text",
    "reward": "reward, held-out prompts",
    "length": "tokens in an answer",
    "ended_share": "answers that come to an end",
    "held_out_loss": "nats per token, held-out rows",
    "follows_share": "does what it is asked, unseen pairs",
    "well_formed_share": "tells a whole story",
    "happy_share": "ends happily",
    "pirate_share": "talks like a pirate",
    "bits_per_byte": "bits per byte, held-out text",
    "held_out_accuracy": "prefers the better answer, held-out pairs",
    "chosen_likelier_share": "finds the better answer likelier, held-out pairs",
    "chosen_nats": "nats in the better answer, held-out pairs",
    "accuracy": "right class, held-out texts; before: the commonest",
    "macro_f1": "macro-F1, held-out texts; before: the commonest",
    "held_out_auc": "gives good answers more reward than bad, held-out",
    "good_nats": "nats in the good answers, held-out",
    "perplexity": "perplexity, held-out text",
    "pseudo_perplexity": "pseudo-perplexity of hidden tokens",
    "denoising_loss": "nats per missing token",
    "nats_per_character": "nats per character",
    "refused_share": "refuses what it should",
    "she_accuracy": "knows whom she means",
    "he_accuracy": "knows whom he means",
    "they_accuracy": "knows whom they means",
    "bytes_per_token": "bytes per token",
}
TASK_LABELS = {"acc": "accuracy", "acc_norm": "accuracy, per byte"}
HIDDEN = {"tokens", "hidden_tokens", "rows"}
SPREADS = ("_stderr", "_interval")
"""What belongs to the figure of the same name without it."""
MAKE_MODELS = ("pretrain", "sft", "lora", "dpo", "kto", "rlhf-ppo", "rloo", "grpo")
SAMPLES = 3
FINDINGS = 3
SAMPLE_CHARACTERS = 240


def machine() -> str:
    """Describe what the run has to work with, as far as can be told without importing torch."""
    gpus = gpu_count()
    if gpus:
        return f"{gpus} GPU{'s' if gpus > 1 else ''}"
    return f"{cores()} CPU cores"


def gpu_count() -> int:
    """Count the NVIDIA GPUs that a run may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def show(run_dir: Path, worked: Sequence[str], *, all_names: Sequence[str]) -> None:
    """Show what the stages that just ran have changed, or that there was nothing to do."""
    manifests = {name: manifest for name in all_names if (manifest := read_manifest(run_dir / name))}
    if not worked:
        console.say("everything is up to date")
    there = [(name, manifests[name]) for name in worked if name in manifests]
    changed = [row for name, manifest in there for row in changes(name, manifest, manifests.values())]
    if changed:
        console.say("\n  what each stage changed", style="bold")
        console.show(console.table(changed, header=("", "", "before", "after", ""), right=(2, 3)))
    for name, manifest in manifests.items():
        if manifest.kind == "eval" and name in worked:
            show_scores(run_dir / name, name)
        if manifest.kind == "curate" and name in worked:
            show_curation(read_json(run_dir / name / "curation.json") or {"steps": []}, name)
        if "samples.json" in manifest.outputs and name in worked:
            show_samples(run_dir / name, name)
    console.say("")
    for label, command in next_commands(run_dir, manifests):
        console.say(f"  {label:<7} {command}")


def changes(name: str, manifest: Manifest, others: Iterable[Manifest] = ()) -> list[tuple[str, ...]]:
    """List what a stage changed: the share that eval stages saw move most, its metrics that have a `_before` twin.

    Bits per byte stand for nats, where there are some. How far the model went from its reference, or how much of it was
    trained, stands beside the first one.
    """
    metrics = manifest.metrics
    found = [(key, metrics[f"{key}_before"], metrics[key]) for key in metrics if f"{key}_before" in metrics]
    found = [change for change in found if change[1] is not None]
    if "bits_per_byte_before" in metrics:
        found = [change for change in found if change[0] != "held_out_loss"]
    found = [*most_moved(manifest, others), *found]
    note = f"KL {console.number(metrics['kl'])} nats" if "kl" in metrics else ""
    note = f"{100 * metrics['trained_share']:.2g}% trained" if "trained_share" in metrics else note
    rows: list[tuple[str, ...]] = []
    for number, (key, *values) in enumerate(found):
        before, after = (console.number(value, key=key) for value in values)
        rows.append(("" if number else name, label(key), before, after, "" if number else note))
    if manifest.kind == "tokenizer":
        rows.append((name, "bytes per token (a byte is 1)", "1", console.number(metrics["bytes_per_token"]), ""))
    return rows


def most_moved(model: Manifest, others: Iterable[Manifest]) -> list[tuple[str, float, float]]:
    """Find the share that moved most from the model that a stage began from, where an eval stage measured both."""
    began = [entry.source["stage"] for entry in model.inputs if entry.field == "model" and "stage" in entry.source]
    found = [
        (key, scores.metrics[before], value)
        for scores in others
        if measured(scores, model)
        for name, value in scores.metrics.items()
        for owner, _, key in (name.rpartition("."),)
        for before in (f"{one}.{key}" for one in began)
        if owner == model.name and key.endswith("_share") and scores.metrics.get(before, value) != value
    ]
    return [max(found, key=lambda change: abs(change[2] - change[1]))] if found else []


def measured(scores: Manifest, model: Manifest) -> bool:
    """Whether an eval stage measured this very model, and not one that a later run has replaced."""
    is_newer = scores.kind == "eval" and model.started <= scores.started
    return is_newer and any(entry.source.get("stage") == model.name for entry in scores.inputs)


def label(key: str) -> str:
    """Say a metric in words; that of a benchmark task is called `piqa.acc`."""
    task, dot, figure = key.rpartition(".")
    if dot:
        return f"{task}: {TASK_LABELS.get(figure, figure.replace('_', ' '))}"
    return LABELS.get(key, key.replace("_", " "))


def score_rows(models: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Lay out what an eval stage measured: a row for each measure, a column for each model."""
    keys = [
        key
        for entry in models.values()
        for key in entry
        if key != "samples" and key.rpartition(".")[2] not in HIDDEN and not key.endswith(SPREADS)
    ]
    return [(label(key), *(figure(entry, key) for entry in models.values())) for key in dict.fromkeys(keys)]


def figure(entry: dict[str, Any], key: str) -> str:
    """Write a measure, with its standard error where it has one: `.70 ± .06`."""
    value, error = entry.get(key, ""), entry.get(f"{key}_stderr")
    if error is None:
        return console.number(value, key=key)
    if 0 <= value <= 1:
        return " ± ".join(f"{share:.2f}".removeprefix("0") for share in (value, error))
    return f"{console.number(value)} ± {console.number(error)}"


def change_rows(scores: dict[str, Any], *, only_clear: bool) -> list[tuple[str, ...]]:
    """Lay out what changed from model to model, each change with its 95 % interval.

    `only_clear` leaves out what may be chance: where the interval holds 0, or there is none.
    """
    rows: list[tuple[str, ...]] = []
    shown = ""
    for found in scores.get("changes", ()):
        key, interval = found["metric"], found["interval"]
        if key in HIDDEN or (only_clear and (interval is None or interval[0] <= 0 <= interval[1])):
            continue
        pair = f"{found['from']} → {found['to']}"
        values = (console.number(found[side], key=key) for side in ("before", "after"))
        reach = " to ".join(_moved(edge, key) for edge in interval or ())
        rows.append(("" if pair == shown else pair, label(key), *values, _moved(found["change"], key), reach))
        shown = pair
    return rows


CHANGES = ("", "measure", "before", "after", "change", "95 % interval")


def _moved(value: float, key: str) -> str:
    return f"{100 * value:+.0f}%" if key.endswith("_share") else f"{value:+.3g}"


def win_rows(scores: dict[str, Any]) -> list[tuple[str, ...]]:
    """Lay out the win rates."""
    return [
        (
            f"{one['of']} over {one['against']}",
            f"{one['win_rate']:.0%}",
            " to ".join(f"{edge:.0%}" for edge in one["interval"]),
            *(str(one[which]) for which in ("wins", "ties", "losses", "unjudged")),
            one["judge"],
        )
        for one in scores.get("win_rates", ())
    ]


WINS = ("", "win rate", "95 % interval", "won", "tied", "lost", "unjudged", "judged by")


def answers(scores: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the prompts of an eval stage, each with what every model answered."""
    models = {name: entry["samples"] for name, entry in scores["models"].items() if "samples" in entry}
    return [
        (prompt, [(name, " ".join(told[index].split())) for name, told in models.items()])
        for index, prompt in enumerate(scores.get("prompts", ()))
    ]


def show_scores(folder: Path, name: str) -> None:
    """Show the models of an eval stage side by side, then what each answered."""
    scores = read_json(folder / "scores.json") or {"models": {}}
    models: dict[str, dict[str, Any]] = scores["models"]
    rows = score_rows(models)
    if rows:
        console.say("")
        console.show(console.table(rows, header=(name, *models), right=range(1, len(models) + 1)))
    if moved := change_rows(scores, only_clear=True):
        console.say("")
        console.show(console.table(moved, header=CHANGES, right=(2, 3, 4, 5)))
    if won := win_rows(scores):
        console.say("")
        console.show(console.table(won, header=WINS, right=range(1, 7)))
    for prompt, told in answers(scores):
        console.say(f"\n  {prompt}", style="bold")
        if told:
            console.show(console.table(told))


def show_samples(folder: Path, name: str) -> None:
    """Show a few prompts that a stage had answered before and after, each answer with its reward."""
    samples: list[dict[str, Any]] = (read_json(folder / "samples.json") or {"samples": []})["samples"]
    for sample in samples[:SAMPLES]:
        console.say(f"\n  {_clipped(sample['prompt'])}", style="bold")
        rows = [
            (label, "" if reward is None else f"{reward:.2f}", _clipped(sample[when]))
            for when, label in (("before", f"before {name}"), ("after", f"after {name}"))
            for reward in (sample[f"reward_{when}"],)
        ]
        console.show(console.table(rows, right=(1,)))


def show_curation(report: dict[str, Any], name: str) -> None:
    """Show what each step of a curate stage did, and an example of what each took out or changed."""
    rows = [
        (
            step["step"],
            *(console.number(step[key]) if step[key] else "" for key in ("documents_in", "dropped", "changed")),
            ", ".join(f"{found} {console.number(count)}" for found, count in list(step["found"].items())[:FINDINGS])
            + (", …" if len(step["found"]) > FINDINGS else ""),
        )
        for step in report["steps"]
    ]
    console.say("")
    console.show(console.table(rows, header=(name, "documents", "dropped", "changed", "found"), right=(1, 2, 3)))
    if "planted" in report:
        recall, precision = (f"{report[f'planted_{name}']:.3f}" for name in ("recall", "precision"))
        planted = f"{report['planted']:,} faults were planted: recall {recall}, precision {precision}"
        console.say(f"\n  {planted}", style="bold")
        kinds = report["planted_kinds"].items()
        console.show(console.table([(kind, f"{found} of {planted}") for kind, (found, planted) in kinds]))
    for step in report["steps"]:
        for found in list(step["found"])[:1]:
            example = step["examples"][found][0]
            like = f", like {example['like']} ({example['jaccard']})" if "like" in example else ""
            console.say(f"\n  {step['step']}: {found}, {example['where']}{like}", style="bold")
            told = [(key, example[key]) for key in ("dropped", "kept", "before", "after") if key in example]
            if told:
                console.show(console.table(told))
    if "bias" in report:
        from llmpipe.curation.bias_picture import table

        console.say("\n" + table(report["bias"]))


def _clipped(text: str) -> str:
    """Bring a text into one paragraph of a length that can be taken in."""
    return textwrap.shorten(text, SAMPLE_CHARACTERS, placeholder=" …")


def next_commands(run_dir: Path, manifests: dict[str, Manifest]) -> list[tuple[str, str]]:
    """Name the commands that make sense now."""
    shown = str(run_dir)
    commands = [("look", f"llmpipe status {shown}"), ("again", f"llmpipe run {shown}/recipe.yaml")]
    models = [name for name, manifest in manifests.items() if manifest.kind in (*MAKE_MODELS, "classify")]
    if (run_dir / "report.html").is_file():
        commands.insert(0, ("report", f"{shown}/report.html"))
    if models:
        folder = "adapter" if (run_dir / models[-1] / "adapter").is_dir() else "model"
        commands.insert(0, ("model", f"{shown}/{models[-1]}/{folder}"))
    if any(manifest.kind in MAKE_MODELS for manifest in manifests.values()):
        commands.insert(-2, ("talk", f"llmpipe chat {shown}"))
    return commands
