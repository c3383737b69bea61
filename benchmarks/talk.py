"""Time to the first token of an answer in turn 20 of a conversation, against turn 2.

    python benchmarks/talk.py MODEL [--turns 20] [--answer 12] [--rounds 3]

The same conversation is had with and without what was kept of earlier answers, some rounds of each in turn; its
messages are of equal length, the answers greedy. Prints the medians over the rounds. Ends with 1 where the first token
of the last turn takes more than 1.5 times that of turn 2 with the kept cache, or where the two ways give different
answers. MODEL is all that `generate` takes. Seconds of the processor are printed too: on a busy machine they say how
much work there is, where the clock also counts the waiting for a turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from llmpipe.talk.engine import Engine, Message, Sampling
from llmpipe.talk.opening import opened

MOST = 1.5
ASK = "Tell me one more thing about the number {turn:02d}, and say it in a few plain words."


def talked(engine: Engine, *, turns: int, answer_tokens: int) -> tuple[list[tuple[float, float]], list[str]]:
    """Hold a conversation; returns seconds to the first text by the clock and of the processor, and the answers."""
    said: list[Message] = []
    waits, answers = [], []
    how = Sampling(max_new_tokens=answer_tokens, temperature=0)
    for turn in range(1, turns + 1):
        said.append({"role": "user", "content": ASK.format(turn=turn)})
        started, worked, text = time.perf_counter(), time.process_time(), ""
        wait = None
        for piece in engine.chat(said, how):
            if wait is None:
                wait = (time.perf_counter() - started, time.process_time() - worked)
            text += piece.text
        waits.append(wait or (0.0, 0.0))
        answers.append(text)
        said.append({"role": "assistant", "content": text})
    return waits, answers


def main() -> int:
    """Measure both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--answer", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, list[list[tuple[float, float]]]] = {"kept cache": [], "none": []}
    heard = set()
    with opened(given.model) as engine:
        list(engine.complete("warm", Sampling(max_new_tokens=4, temperature=0)))
        kept = engine.decoder.kept  # type: ignore[attr-defined]
        most = kept.most
        for _ in range(given.rounds):
            for name in found:
                kept.most = most if name == "kept cache" else 0
                kept.entries.clear()
                waits, answers = talked(engine, turns=given.turns, answer_tokens=given.answer)
                found[name].append(waits)
                heard.add(tuple(answers))
                print(f"{name}: {1000 * waits[1][0]:,.0f} and {1000 * waits[-1][0]:,.0f} ms", flush=True)
    ratios = {}
    for name, rounds in found.items():
        for clock, what in enumerate(("by the clock", "of the processor")):
            early, last = (statistics.median(waits[turn][clock] for waits in rounds) for turn in (1, -1))
            ratios[name, clock] = last / early
            print(f"median, {name}, {what}: {1000 * early:,.0f} and {1000 * last:,.0f} ms, ratio {last / early:.2f}")
    print("the answers are the same" if len(heard) == 1 else "the answers differ")
    return int(len(heard) > 1 or ratios["kept cache", 0] > MOST)


if __name__ == "__main__":
    sys.exit(main())
