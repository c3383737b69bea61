"""How well personal data is found, by kind: recall and precision, exact to the character.

    python benchmarks/pii.py [presidio_synth_first750.json]

Rules were tuned on 1,000 generated texts a kind and on the first half of the file; the figures are of 1,000 fresh ones
a kind (other seed, other sentences) and of the file's second half, those that rules were tuned on beside them. Then
how fast it is, on the same texts. Exits 1 when a promise is missed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from llmpipe.curation.pii import find
from tests.unit.people import MAKERS, Labelled, Score, presidio, scores, texts

SEED_TUNED, SEED_FRESH = 0, 1
LEAST = {"email": (0.95, 0.95), "ip": (0.95, 0.95), "card": (0.95, 0.95), "iban": (0.95, 0.95), "phone": (0.80, 0.90)}


def generated(*, tuning: bool) -> list[Labelled]:
    """Return the generated texts of all kinds."""
    seed = SEED_TUNED if tuning else SEED_FRESH
    return [text for kind in MAKERS for text in texts(kind, seed, tuning=tuning)]


def show(title: str, tuned: list[Labelled], scored: list[Labelled]) -> bool:
    """Print the figures of one source; returns whether all promises are kept."""
    kept = True
    print(f"\n| {title} | there | recall | precision | tuned on: recall | precision |\n|---|---|---|---|---|---|")
    before, after = scores(tuned), scores(scored)
    for kind, score in after.items():
        if not score.there and not score.found:
            continue
        least = LEAST.get(kind, (0.0, 0.0))
        kept &= score.recall >= least[0] and score.precision >= least[1]
        print(f"| {kind} | {score.there} | {shares(score)} | {shares(before[kind])} |")
    return kept


def shares(score: Score) -> str:
    return f"{score.recall:.3f} | {score.precision:.3f}"


def main() -> None:
    fresh = generated(tuning=False)
    kept = show("generated", generated(tuning=True), fresh)
    if len(sys.argv) > 1:
        rows = presidio(Path(sys.argv[1]))
        kept &= show("presidio", rows[: len(rows) // 2], rows[len(rows) // 2 :])
    started = time.process_time()
    for text in fresh:
        find(text.text)
    megabytes = sum(len(text.text.encode()) for text in fresh) / 1e6
    print(f"\n{megabytes / (time.process_time() - started):.2f} MB/s on texts that nearly all hold something")
    sys.exit(not kept)


if __name__ == "__main__":
    main()
