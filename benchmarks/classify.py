"""A classifier trained from nothing against a class-weighted bag of n-grams, on the same split, in one run.

    pip install scikit-learn
    python benchmarks/classify.py path/to/davidson_train.csv [--seeds 1 2 3]

The held-out fifth is chosen by a hash of the text, and neither side sees it before it is scored. The bag is words and
pairs of words, logistic regression with class_weight="balanced" (scikit-learn's defaults); `--show-bags` also scores
other counts and strengths. The recipe's settings were chosen on a part of the training side.

Exits 1 when the mean macro-F1 of the seeds is not above the bag's, or a run takes more than 300 s.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

from llmpipe.data.split import is_held_out
from llmpipe.evaluation.classes import measure

RECIPE = Path(__file__).parents[1] / "recipes" / "moderation-cpu.yaml"
NAMES = ("hate", "offensive", "neither")
SHARE, MOST_SECONDS = 0.2, 300

Rows = list[tuple[str, int]]


def read(path: Path) -> tuple[Rows, Rows]:
    """Return the rows to train on and those to score."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["tweet"], int(row["class"])) for row in csv.DictReader(file)]
    sides: tuple[Rows, Rows] = ([], [])
    for text, label in rows:  # by another hash than the stage's, which would find nothing left to hold out
        sides[is_held_out(f"benchmark: {text}", SHARE)].append((text, label))
    return sides


def score(predicted: list[int], rows: Rows) -> dict:
    confusion = [[0] * len(NAMES) for _ in NAMES]
    for guess, (_, label) in zip(predicted, rows, strict=True):
        confusion[label][guess] += 1
    return measure(confusion, NAMES)


def bag(train: Rows, held_out: Rows, *, tfidf: bool = False, strength: float = 1.0) -> dict:
    """Score logistic regression on words and pairs of words; `strength` is C, the inverse of the penalty."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = (TfidfVectorizer if tfidf else CountVectorizer)(ngram_range=(1, 2))
    counts = words.fit_transform([text for text, _ in train])
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
    model.fit(counts, [label for _, label in train])
    return score(model.predict(words.transform([text for text, _ in held_out])).tolist(), held_out)


def trained(train: Rows, held_out: Rows, seed: int, folder: Path) -> tuple[dict, float]:
    """Run the recipe on the training rows through the command; returns the held-out scores, and seconds."""
    with (folder / "labelled.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *train])
    recipe = folder / RECIPE.name
    recipe.write_text(
        RECIPE.read_text(encoding="utf-8").replace("seed: 42", f"seed: {seed}"), encoding="utf-8", newline="\n"
    )
    begun = time.monotonic()
    done = subprocess.run(["llmpipe", "run", str(recipe), "--run", str(folder / "run")])
    seconds = time.monotonic() - begun
    if done.returncode:
        sys.exit(f"llmpipe exited {done.returncode}")
    return score(predict(folder / "run" / "moderator" / "model", held_out), held_out), seconds


def predict(folder: Path, rows: Rows) -> list[int]:
    """Classify as anybody would, with transformers alone."""
    from transformers import pipeline

    tell = pipeline("text-classification", str(folder), truncation=True)
    index = {name: label for label, name in enumerate(NAMES)}
    return [index[one["label"]] for one in tell([text for text, _ in rows], batch_size=64)]


def shown(found: dict) -> str:
    by_class = "  ".join(f"{name} {own['f1']:.3f}" for name, own in found["by_class"].items())
    return f"macro-F1 {found['macro_f1']:.4f}  accuracy {found['accuracy']:.4f}  {by_class}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--show-bags", action="store_true", help="score other bags, too")
    options = parser.parse_args()
    train, held_out = read(options.data)
    print(f"{len(train):,} rows to train on, {len(held_out):,} held out")
    rival = bag(train, held_out)
    print(f"bag of n-grams          {shown(rival)}")
    for tfidf in (False, True) if options.show_bags else ():
        for strength in (0.1, 1.0, 10.0):
            name = f"{'tf-idf' if tfidf else 'counts'}, C {strength:g}"
            print(f"  {name:<22}{shown(bag(train, held_out, tfidf=tfidf, strength=strength))}")
    runs = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            found, seconds = trained(train, held_out, seed, Path(folder))
        print(f"trained, seed {seed:<4}      {shown(found)}  {seconds:.0f} s")
        runs.append((found["macro_f1"], seconds))
    reached, slowest = mean(own for own, _ in runs), max(seconds for _, seconds in runs)
    print(
        f"mean of {len(runs)} seeds: {reached:.4f}; the bag {rival['macro_f1']:.4f}; the slowest took {slowest:.0f} s"
    )
    sys.exit(reached <= rival["macro_f1"] or slowest > MOST_SECONDS)


if __name__ == "__main__":
    main()
