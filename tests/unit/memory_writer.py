"""A process that writes into a memory, one message after the other, and acknowledges each that was kept.

python -m tests.unit.memory_writer FILE CONVERSATION NAME FIRST LAST
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmpipe.talk.memory import Memory


def main() -> None:
    file, conversation, name, first, last = sys.argv[1:]
    with Memory(Path(file)) as memory:
        for number in range(int(first), int(last)):
            memory.add(int(conversation), {"role": "user", "content": f"{name} message {number}"})
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
