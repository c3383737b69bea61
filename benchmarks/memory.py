"""What a memory loses when its writers are killed: nothing that was acknowledged.

    python benchmarks/memory.py [--writes 1000] [--kills 40] [--seed 1]

Two processes write messages into one file, each acknowledging a message once it is kept, and are killed with SIGKILL
at random moments; each begins again after the last message that it acknowledged, until all are written. Then every
acknowledged message must be there, in order, and found by the full-text search; SQLite and the index must be whole.
Ends with 1 where they are not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.unit.killed import NAMES, outcome


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writes", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = outcome(
            Path(folder) / "home" / "memory.sqlite3", writes=asked.writes, kills=asked.kills, seed=asked.seed
        )
    print(json.dumps(asdict(told), indent=2))
    whole = told.acknowledged == 2 * asked.writes and told.integrity == "ok" and told.found == len(NAMES)
    raise SystemExit(0 if whole and not (told.lost or told.out_of_order) else 1)


if __name__ == "__main__":
    main()
