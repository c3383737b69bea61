"""Load on loopback: `llmpipe serve` against `transformers serve`, the same model folder, taking turns.

    python benchmarks/serve.py FOLDER [--clients 50] [--seconds 60] [--rounds 3]

Each client streams one answer after the other. Prints for each side, as medians of the rounds: answer tokens per second
(counted on the text by the model's tokenizer, for both alike), time to the first text, errors, and memory before and
after all of it. Ends with 1 where llmpipe is slower or has errors other than 429.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = "token-of-the-benchmark"
BIN = Path(sys.executable).parent
THINGS = ("duck", "shoe", "ball", "hat", "cake", "boat", "kite", "drum")


@dataclass
class Side:
    """A running server, and what was seen of it in each round."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    model: str
    rates: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    answers: int = 0

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+)", status)
        return int(found[1]) / 1024 if found else 0.0


@dataclass
class Seen:
    """What the clients of one round saw."""

    texts: list[str] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextlib.contextmanager
def started(name: str, folder: str, more: list[str]) -> Iterator[Side]:
    port = free_port()
    command = [str(BIN / name), "serve", folder, "--port", str(port), *more]
    with tempfile.TemporaryFile() as said:
        env = {**os.environ, "LLMPIPE_TOKEN": TOKEN}
        process = subprocess.Popen(command, env=env, stdout=said, stderr=said)
        side = Side(name, process, port, folder)
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    if ask(side, "GET", "/health").status == 200:
                        break
                time.sleep(0.5)
            asked(side, Seen(), 0)  # what is loaded at the first question is loaded now
            yield side
        finally:
            process.terminate()
            process.wait()


def ask(side: Side, method: str, path: str, content: object = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=300)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connection.request(method, path, None if content is None else json.dumps(content), headers)
    return connection.getresponse()


def asked(side: Side, seen: Seen, number: int) -> None:
    """Have one answer streamed."""
    one, other = THINGS[number % 8], THINGS[(number // 8 + 1) % 8]
    messages = [{"role": "user", "content": f"Tell me a story about a {one} and a {other}."}]
    more = {"max_tokens": 48, "temperature": 0.8, "seed": number, "stream": True}
    begun, text = time.perf_counter(), ""
    try:
        reply = ask(side, "POST", "/v1/chat/completions", {"model": side.model, "messages": messages, **more})
        if reply.status != 200:
            seen.errors.append(str(reply.status))
            reply.read()
            if reply.status == 429:
                time.sleep(float(reply.headers.get("Retry-After") or 1))
            return
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                seen.errors.append(str(chunk["error"]))
                return
            new = (chunk["choices"][0]["delta"].get("content") or "") if chunk["choices"] else ""
            if new and not text:
                seen.first_s.append(time.perf_counter() - begun)
            text += new
    except (OSError, http.client.HTTPException) as failure:
        seen.errors.append(type(failure).__name__)
    finally:
        seen.texts.append(text)


def loaded(side: Side, clients: int, seconds: float) -> tuple[Seen, float]:
    """Have all clients ask until the time is over; returns what they saw and how long it took to the last answer."""
    seen, begun = Seen(), time.perf_counter()

    def client(number: int) -> None:
        while time.perf_counter() - begun < seconds:
            asked(side, seen, number)
            number += clients

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen, time.perf_counter() - begun


def shown(side: Side, before_mb: float) -> None:
    ordered = sorted(side.first_s) or [float("nan")]
    p50, p95 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]
    rounds = ", ".join(f"{rate:,.0f}" for rate in side.rates)
    print(
        f"{side.name}: {statistics.median(side.rates):,.0f} answer tokens/s ({rounds})"
        f", {side.answers:,} answers; first text p50 {p50:.2f} s, p95 {p95:.2f} s; errors {side.errors or 'none'};"
        f" RSS {before_mb:,.0f} -> {side.memory_mb():,.0f} MB",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    from transformers import AutoTokenizer

    folder = str(Path(given.folder).resolve())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with started("llmpipe", folder, ["--no-memory"]) as ours, started("transformers", folder, []) as theirs:
        before = {side.name: side.memory_mb() for side in (ours, theirs)}
        for _ in range(given.rounds):
            for side in (ours, theirs):
                seen, took_s = loaded(side, given.clients, given.seconds)
                tokens = sum(len(ids) for ids in tokenizer(seen.texts, add_special_tokens=False)["input_ids"])
                side.rates.append(tokens / took_s)
                side.first_s += seen.first_s
                side.answers += sum(map(bool, seen.texts))
                for error in seen.errors:
                    side.errors[error] = side.errors.get(error, 0) + 1
        for side in (ours, theirs):
            shown(side, before[side.name])
        ratio = statistics.median(a / b for a, b in zip(ours.rates, theirs.rates, strict=True))
        print(f"llmpipe / transformers: {ratio:.2f}")
        return int(ratio < 1 or bool(ours.errors.keys() - {"429"}))


if __name__ == "__main__":
    sys.exit(main())
