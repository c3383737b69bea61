"""Whether a file larger than memory is read, learned from and curated in memory that does not grow with it.

    python benchmarks/large_file.py wikitext2.valid.txt --megabytes 100 4000
    python benchmarks/large_file.py wikitext2.valid.txt --megabytes 4000 --only read.txt read.jsonl

The file is the paragraphs of the text again and again, each with a number before it, as .txt with blank lines between
them and as .jsonl with one a line. `read` iterates over the documents, `tokenizer` learns a byte-level BPE of 8,192
tokens, `curate` drops exact duplicates and writes the split. Peaks are of the sum over all processes, sampled. Exits 1
when one is above 1 GB, or a part takes longer than `--minutes`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from curate import timed

PEAK_MB = 1000
STAGES: dict[str, dict[str, Any]] = {
    "tokenizer": {"vocab_size": 8192},
    "curate": {"steps": ["exact_duplicates"], "processes": 2},
}
PARTS = [f"{part}.{suffix}" for suffix in ("txt", "jsonl") for part in ("read", *STAGES)]


def write_file(text: Path, path: Path, megabytes: int) -> None:
    """Write paragraphs until the file is large enough."""
    paragraphs = [line.strip() for line in text.read_text("utf-8").splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        made = [('{"text": "', json.dumps(paragraph, ensure_ascii=False)[1:] + "}\n") for paragraph in paragraphs]
    else:
        made = [("", paragraph + "\n\n") for paragraph in paragraphs]
    written = turn = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            # Numbers of few digits: millions of words that come once each would be another test.
            written += file.write("".join(f"{a}{turn} {n} {b}" for n, (a, b) in enumerate(made)))
            turn += 1


def work(part: str, path: Path, out: Path) -> None:
    """Do one part; called in a process of its own."""
    from llmpipe import stages
    from llmpipe.artifact import StepRecord
    from llmpipe.context import Context
    from llmpipe.data.sources import read_texts

    record = StepRecord(name="made", kind=part, stage_version=1, fingerprint="", seed=0, settings={}, inputs=[])
    ctx = Context(out, record, lambda _: None)
    (out / "made").mkdir(parents=True)
    options = {"data": {"path": str(path)}}
    if part == "read":
        sources: Any = stages.load("tokenizer").Settings.model_validate(options)
        sys.stdout.write(f"{sum(len(text) for text in read_texts(sources.data, ctx)):,} characters")
        return
    module = stages.load(part)
    sys.stdout.write(json.dumps(module.run(module.Settings.model_validate(options | STAGES[part]), ctx).metrics))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[4000])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], *map(Path, options.work[1:]))
        return
    too_much = False
    for megabytes in options.megabytes:
        for name in options.only:
            with tempfile.TemporaryDirectory() as folder:
                part, _, suffix = name.partition(".")
                path = Path(folder) / f"large.{suffix}"
                write_file(options.text, path, megabytes)
                command = [sys.executable, __file__, "--work", part, str(path), str(Path(folder) / "run")]
                seconds, peak = timed(command, limit_s=options.minutes * 60)
            slow = seconds >= options.minutes * 60
            rate = "stopped" if slow else f"{megabytes / seconds:5.1f} MB/s"
            print(f"{name:16} {megabytes:5} MB  {seconds:6.1f} s  {rate}  peak {peak:5.0f} MB", flush=True)
            too_much |= slow or peak > PEAK_MB
    sys.exit(too_much)


if __name__ == "__main__":
    main()
