"""The other side of benchmarks/curate.py, run by the Python of a virtual environment that has datatrove.

python -m venv DIR && DIR/bin/pip install 'datatrove[processing]' spacy orjson
"""

from __future__ import annotations

import sys
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer


class Spaces(WordTokenizer):
    """Words are what stands between spaces, sentences what ends in a mark: what llmpipe does."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        import re

        return re.split(r"(?<=[.!?])\s+", text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


def main(pages: Path, out: Path, processes: int, words: str) -> None:
    if words == "spaces":
        import datatrove.utils.text as texts

        texts.load_word_tokenizer = lambda *_: Spaces("en")
    bands = MinhashConfig(n_grams=5, num_buckets=21, hashes_per_bucket=6, hash_config=HashConfig(precision=64))
    filters = [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(),
        FineWebQualityFilter(char_duplicates_ratio=0.1, new_line_ratio=10),
    ]
    stages = [
        ([JsonlReader(str(pages)), *filters, JsonlWriter(str(out / "filtered"), compression=None)], processes),
        ([JsonlReader(str(out / "filtered")), MinhashDedupSignature(str(out / "signatures"), config=bands)], processes),
        ([MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=bands)], 21),
        ([MinhashDedupCluster(str(out / "buckets"), str(out / "remove"), config=bands)], 1),
        (
            [
                JsonlReader(str(out / "filtered")),
                MinhashDedupFilter(str(out / "remove")),
                JsonlWriter(str(out / "left"), compression=None),
            ],
            processes,
        ),
    ]
    for number, (pipeline, tasks) in enumerate(stages):
        logs = str(out / f"logs{number}")
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=processes, logging_dir=logs).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
