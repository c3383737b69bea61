"""Processes that write into a memory and are killed, and what is there afterwards. Run as a module, one of them:

python -m tests.unit.killed FILE CONVERSATION NAME FIRST LAST
"""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llmpipe.talk.memory import Memory

NAMES = ("alpha", "beta")


@dataclass(frozen=True)
class Outcome:
    """What was acknowledged and is lost, what is there more than once, and what SQLite says of the file."""

    acknowledged: int
    kills: int
    lost: int
    out_of_order: int
    twice: int
    found: int
    integrity: str
    seconds: float


def outcome(file: Path, *, writes: int, kills: int, seed: int) -> Outcome:
    """Have two processes write `writes` messages each, kill each of them `kills` times, and look at what is there."""
    begun = time.monotonic()
    with Memory(file) as memory:
        talks = {name: memory.begin(name) for name in NAMES}
    acknowledged: dict[str, list[int]] = {name: [] for name in NAMES}
    killed = dict.fromkeys(NAMES, 0)

    def write(name: str) -> None:
        chance = random.Random(f"{seed} {name}")
        while len(acknowledged[name]) < writes:
            per_life = chance.randrange(max(2, 2 * writes // max(1, kills))) if killed[name] < kills else writes
            killed[name] += _lived(file, talks[name], name, acknowledged[name], writes, per_life, chance)

    with ThreadPoolExecutor(len(NAMES)) as pool:
        list(pool.map(write, NAMES))
    return _looked_at(file, talks, acknowledged, sum(killed.values()), time.monotonic() - begun)


def _lived(
    file: Path, talk: int, name: str, acknowledged: list[int], writes: int, per_life: int, chance: random.Random
) -> int:
    """Start a writer, kill it in the midst of a write after `per_life` of them; return whether it was killed."""
    first = acknowledged[-1] + 1 if acknowledged else 0
    command = [sys.executable, "-m", "tests.unit.killed", str(file), str(talk), name, str(first), str(writes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout
        for count, line in enumerate(process.stdout):
            acknowledged.append(int(line))
            if count == per_life:
                time.sleep(chance.random() * 0.02)
                process.kill()
        if (code := process.wait()) > 0:
            raise RuntimeError(f"the writer {name} ended with {code}")
        return int(code < 0)


def _looked_at(
    file: Path, talks: dict[str, int], acknowledged: dict[str, list[int]], kills: int, seconds: float
) -> Outcome:
    lost = out_of_order = twice = found = 0
    with Memory(file) as memory:
        for name, talk in talks.items():
            kept = [int(one.content.rsplit(" ", 1)[1]) for one in memory.messages(talk)]
            lost += len(set(acknowledged[name]) - set(kept))
            out_of_order += kept != sorted(kept)
            twice += len(kept) - len(set(kept))
            found += len(memory.search(name, limit=10**9)) == len(kept)
    with sqlite3.connect(file) as raw:
        integrity = raw.execute("PRAGMA integrity_check").fetchone()[0]
        for table in ("message_words", "fact_words"):
            raw.execute(f"INSERT INTO {table} ({table}) VALUES ('integrity-check')")
    raw.close()
    total = sum(map(len, acknowledged.values()))
    return Outcome(total, kills, lost, out_of_order, twice, found, integrity, round(seconds, 1))


def main() -> None:
    """Write messages, and acknowledge each once it is kept."""
    file, conversation, name, first, last = sys.argv[1:]
    with Memory(Path(file)) as memory:
        for number in range(int(first), int(last)):
            memory.add(int(conversation), {"role": "user", "content": f"{name} message {number}"})
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
