"""How well the layers of moderation tell harmful texts from benign ones, and what they take; on held-out texts.

    python benchmarks/moderation.py path/to/data --work DIR

`data` has safety/do_not_answer.jsonl, safety/davidson_train.csv, sft/alpaca_en_demo.json, and more benign prompts in
sft/v1_sft_demo.jsonl and preference/dpo_en_demo.json, for the thresholds alone. Two classifiers are trained by the
recipe moderation-cpu, once, into DIR: `posts` on the posts alone, and `requests`, which is also shown half of the
prompts that a model should not answer and half of alpaca's. Of what they never saw, one half picks the thresholds: for
each class the lowest one, from 0.5 on, at which all classes together find at most 1 % of the benign prompts. The other
half is scored.

Exits 1 when more than 2 % of the benign prompts are blocked, or a turn takes more than 10 ms for the rules or 50 ms for
the classifier (medians, one thread): a benign prompt, and its answer as it streams word by word.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from classify import NAMES, RECIPE, Rows
from classify import read as read_posts

from llmpipe.data.prompts import prompts
from llmpipe.data.rows import read_rows
from llmpipe.data.safety import Refusable
from llmpipe.data.split import is_held_out
from llmpipe.moderation.classifier import ClassifierLayer
from llmpipe.moderation.log import Log
from llmpipe.moderation.measures import measured
from llmpipe.moderation.moderator import Moderator
from llmpipe.moderation.opening import layers_of
from llmpipe.moderation.policy import DEFAULT, Policy, load
from llmpipe.moderation.policy import Rule as Written
from llmpipe.moderation.stream import Blocked, Stream

MOST_BLOCKED, MOST_RULES_MS, MOST_CLASSIFIER_MS = 0.02, 10.0, 50.0
REQUEST = len(NAMES)
"""The label of a request that a model should not answer."""
MORE_BENIGN = ("sft/v1_sft_demo.jsonl", "preference/dpo_en_demo.json")
FOUND_BENIGN = 0.01
"""What the thresholds aim at."""

Turn = tuple[str, str]
"""A prompt, and an answer to it."""


@dataclass
class Texts:
    """What nobody was trained on."""

    posts: list[Refusable]
    neither: list[str]
    requests: list[Refusable]
    benign: list[str]
    answers: dict[str, str]
    """To the benign prompts."""
    more_benign: list[str]
    """Of other sets, for the thresholds: of few prompts, one in a hundred says little."""

    def half(self, second: bool) -> Texts:
        """Return one of two halves, by hash."""

        def own(text: str) -> bool:
            return is_held_out(f"thresholds: {text}", 0.5) != second

        return Texts(
            [one for one in self.posts if own(one.prompt)],
            [one for one in self.neither if own(one)],
            [one for one in self.requests if own(one.prompt)],
            [one for one in self.benign if own(one)],
            self.answers,
            self.more_benign,
        )


def read(data: Path) -> tuple[dict[str, Rows], Texts]:
    """Return labelled rows to train on, by classifier, and the texts that are left."""
    train, held_out = read_posts(data / "safety" / "davidson_train.csv")
    posts = list(train)
    with (data / "safety" / "do_not_answer.jsonl").open(encoding="utf-8") as file:
        asked = [Refusable(row["category"], row["prompt"]) for row in map(json.loads, file)]
    rows = json.loads((data / "sft" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    answers = {"\n\n".join(filter(None, (row["instruction"], row["input"]))): row["output"] for row in rows}

    def is_kept(text: str) -> bool:
        return is_held_out(f"benchmark: {text}", 0.5)

    shown = [(one.prompt, REQUEST) for one in asked if not is_kept(one.prompt)]
    shown += [(text, NAMES.index("neither")) for text in answers if not is_kept(text)]
    left = Texts(
        [Refusable(NAMES[label], text) for text, label in held_out if NAMES[label] != "neither"],
        [text for text, label in held_out if NAMES[label] == "neither"],
        [one for one in asked if is_kept(one.prompt)],
        [text for text in answers if is_kept(text)],
        answers,
        [prompt.asked for file in MORE_BENIGN for _, prompt in prompts(read_rows([data / file]))],
    )
    return {"posts": posts, "requests": posts + shown}, left


def trained(name: str, rows: Rows, work: Path) -> Path:
    """Train a classifier by the recipe, unless that is done; returns its folder."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labelled.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    recipe = folder / RECIPE.name
    text = RECIPE.read_text(encoding="utf-8")
    if any(label == REQUEST for _, label in rows):
        text = text.replace("2: neither}", f"2: neither, {REQUEST}: request}}")
    recipe.write_text(text, encoding="utf-8", newline="\n")
    done = subprocess.run(["llmpipe", "run", str(recipe), "--run", str(folder / "run")])
    if done.returncode:
        sys.exit(f"llmpipe exited {done.returncode}")
    return folder / "run" / "moderator" / "model"


def threshold(layer: ClassifierLayer, label: str, benign: list[str], share: float) -> float:
    """Return the lowest score, from a half on, that at most a share of the benign texts has."""
    scores = sorted((one.score for text in benign for one in layer.find(text) if one.category == label), reverse=True)
    return min(0.99, max(0.5, round(scores[int(share * len(scores))] + 0.005, 2)))


def policy_of(classifier: dict[str, float]) -> Policy:
    """Return the default policy, with a rule for each class of a classifier."""
    rules: dict[str, Any] = dict(load(DEFAULT).rules)
    for label, score in classifier.items():
        rules[label] = Written.model_validate(
            {"layer": "classifier", "category": label, "score": score, "input": "block", "output": "block"}
        )
    return load(DEFAULT).model_copy(update={"rules": rules})


def told(name: str, found: dict[str, Any]) -> None:
    """Print what was found of one set."""
    for layer, one in [*found["layers"].items(), ("all", found["all"])]:
        precision = "      " if one["precision"] is None else f"{one['precision']:6.1%}"
        print(
            f"{name:<28} {layer:<11} precision {precision}  recall {one['recall']:6.1%}  "
            f"over-blocked {one['over_blocked']:5.1%}  {one['median_ms']:6.2f} ms, p95 {one['p95_ms']:.2f}"
        )
        for category, own in one["categories"].items() if layer != "all" else ():
            exact = "      " if own["precision"] is None else f"{own['precision']:6.1%}"
            print(f"{'':<28}   {category:<9} precision {exact}  recall {own['recall']:6.1%}")
        shares = "  ".join(f"{harm} {share:.1%}" for harm, share in one["recall_by_harm"].items())
        print(f"{'':<28}   recall of  {shares}")


def turn_ms(moderator: Moderator, turns: list[Turn]) -> tuple[float, float]:
    """Return the median of the milliseconds that moderation adds to a turn, of the wall's clock and the processor's."""
    walls, processor = [], []
    for prompt, answer in turns:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        moderator.judge(prompt, "input")
        stream = Stream(moderator)
        with suppress(Blocked):
            for word in re.findall(r"\s*\S+", answer):
                list(stream.add(word))
            list(stream.end())
        walls.append(1e3 * (time.perf_counter() - begun))
        processor.append(1e3 * (time.process_time() - begun_cpu))
    return median(walls), median(processor)


def took(name: str, policy: Policy, classifier: ClassifierLayer, turns: list[Turn]) -> list[str]:
    """Print what turns take, by rules and by the classifier; returns what misses its figure."""
    missed = []
    rules = layers_of(load(DEFAULT), Path())
    for layers, limit_ms in ((rules, MOST_RULES_MS), ({"classifier": classifier}, MOST_CLASSIFIER_MS)):
        moderator = Moderator(policy, layers, Log(Path(os.devnull)))
        turn_ms(moderator, turns[:3])
        wall_ms, processor_ms = turn_ms(moderator, turns)
        told = f"{name}, {' and '.join(layers)}: a turn takes {wall_ms:.1f} ms, {processor_ms:.1f} of the processor"
        print(told)
        missed += [told] if wall_ms > limit_ms else []
    return missed


def scored(name: str, labels: tuple[str, ...], folder: Path, left: Texts) -> list[str]:
    """Pick thresholds on one half and score the other; returns what misses its figure."""
    tune, score = left.half(False), left.half(True)
    layer = ClassifierLayer.load(str(folder), labels)
    share = FOUND_BENIGN / len(labels)
    scores = {label: threshold(layer, label, tune.benign + tune.more_benign, share) for label in labels}
    print(f"\n== classifier {name}; thresholds, from one half: {scores}")
    policy = policy_of(scores)
    layers = layers_of(policy, Path()) | {"classifier": layer}
    moderator = Moderator(policy, layers, Log(Path(os.devnull)))
    missed = took(name, policy, layer, [(text, left.answers[text]) for text in score.benign])
    for kind, harmful, benign in (
        ("posts / alpaca", score.posts, score.benign),
        ("posts / posts of neither", score.posts, score.neither),
        ("do_not_answer / alpaca", score.requests, score.benign),
    ):
        found = measured(moderator, harmful, benign)
        print(f"-- {kind}: {found['harmful']} harmful, {found['benign']} benign")
        told(kind, found)
        if "alpaca" in kind and found["all"]["over_blocked"] > MOST_BLOCKED:
            missed.append(f"{name}, {kind}: {found['all']['over_blocked']:.1%} of the benign prompts are blocked")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where the classifiers are trained, once")
    options = parser.parse_args()
    rows, left = read(options.data)
    folders = {name: trained(name, labelled, options.work) for name, labelled in rows.items()}

    import torch

    torch.set_num_threads(1)
    missed = scored("posts", ("hate", "offensive"), folders["posts"], left)
    missed += scored("requests", ("hate", "offensive", "request"), folders["requests"], left)
    print("\n" + ("\n".join(missed) or "all figures are met"))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
