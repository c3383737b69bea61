"""Time to the first token of an answer, late in a conversation against early in it.

    python benchmarks/talk.py MODEL [--turns 20] [--answer 16]

The same conversation is had twice, with and without what was kept of earlier answers; the messages are of equal length,
the answers greedy and of equal length too. Ends with 1 where the first token of the last turn takes more than 1.5 times
that of turn 2 with the kept cache, or where the two ways give different answers. MODEL is all that `generate` takes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

from llmpipe.talk.engine import Engine, Message, Sampling
from llmpipe.talk.opening import opened

MOST = 1.5
ASK = "Tell me one more thing about the number {turn:02d}, and say it in a few plain words."


def talked(engine: Engine, *, turns: int, answer_tokens: int) -> tuple[list[float], list[str]]:
    """Hold a conversation; returns seconds to the first text, and the answers."""
    said: list[Message] = []
    waits, answers = [], []
    how = Sampling(max_new_tokens=answer_tokens, temperature=0)
    for turn in range(1, turns + 1):
        said.append({"role": "user", "content": ASK.format(turn=turn)})
        started, wait, text = time.perf_counter(), None, ""
        for piece in engine.chat(said, how):
            if wait is None:
                wait = time.perf_counter() - started
            text += piece.text
        waits.append(wait or 0.0)
        answers.append(text)
        said.append({"role": "assistant", "content": text})
    return waits, answers


def late(waits: Sequence[float]) -> tuple[float, float, float]:
    """Return seconds in turn 2 and in the last, and how many times the first that is; each a median of three turns."""
    early, last = statistics.median(waits[1:4]), statistics.median(waits[-3:])
    return early, last, last / early


def main() -> int:
    """Measure both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--answer", type=int, default=16)
    given = parser.parse_args()
    found = {}
    with opened(given.model) as engine:
        list(engine.complete("warm", Sampling(max_new_tokens=4, temperature=0)))
        kept = engine.decoder.kept  # type: ignore[attr-defined]
        for name, most in (("kept cache", kept.most), ("none", 0)):
            kept.most = most
            kept.entries.clear()
            waits, answers = talked(engine, turns=given.turns, answer_tokens=given.answer)
            found[name] = (late(waits), answers)
            (early, last, ratio), turn2, turn_last = found[name][0], waits[1], waits[-1]
            print(
                f"{name}: turns 2-4 {1000 * early:,.0f} ms, last three {1000 * last:,.0f} ms, ratio {ratio:.2f};"
                f" turn 2 alone {1000 * turn2:,.0f} ms, turn {given.turns} {1000 * turn_last:,.0f} ms,"
                f" ratio {turn_last / turn2:.2f}",
                flush=True,
            )
    same = found["kept cache"][1] == found["none"][1]
    print("the answers are the same" if same else "the answers differ")
    return int(not same or found["kept cache"][0][2] > MOST)


if __name__ == "__main__":
    sys.exit(main())
