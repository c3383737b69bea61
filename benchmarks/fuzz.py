"""Feed the recipe reader and the readers of data what hypothesis thinks of, for as long as is wanted.

    python benchmarks/fuzz.py --minutes 5                # of recipes, then as long of data files
    python benchmarks/fuzz.py --minutes 60 --only files

Anything but an error of llmpipe's own ends it with the smallest input that does so. tests/unit/test_fuzz.py does the
same for a few seconds.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.unit import fuzzed

ROUND = 50


def fuzz(name: str, drawn: Any, check: Callable[[Any], None], minutes: float, first: int) -> int:
    """Run rounds of new examples until the time is over; returns how many examples there were."""
    end, count = time.monotonic() + 60 * minutes, 0
    for number in range(first, sys.maxsize):
        rules = settings(max_examples=ROUND, deadline=10_000, database=None, suppress_health_check=list(HealthCheck))
        seed(number)(rules(given(drawn)(lambda example: check(example))))()  # a function is given examples once
        count += ROUND
        print(f"\r{name}: {count:,} examples, the last seed {number}", end="", file=sys.stderr, flush=True)
        if time.monotonic() > end:
            print(file=sys.stderr)
            return count
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--only", choices=["recipes", "files"])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        checks = {
            "recipes": (fuzzed.recipe_texts(), lambda text: fuzzed.read_recipe(text, folder)),
            "files": (fuzzed.files(), lambda file: fuzzed.read_file(*file, folder)),
        }
        for name, (drawn, check) in checks.items():
            if asked.only in (None, name):
                count = fuzz(name, drawn, check, asked.minutes, asked.seed)
                print(f"{name}: {count:,} examples, nothing but errors of llmpipe's own")


if __name__ == "__main__":
    main()
