"""What a rendered pipeline takes from llmpipe: its steps as a block of datatrove, and its words.

This module alone imports datatrove (0.10), and is imported by rendered pipelines alone.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.batching import batched
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer
from pydantic import TypeAdapter

from llmpipe.curation import Document, quality, steps
from llmpipe.curation.passes import Job, Work
from llmpipe.curation.tally import Tally
from llmpipe.curation.words import words

BATCH_DOCUMENTS = 64

SHA1 = HashConfig(hash_fc="sha1")
"""Of 64 bits. datatrove 0.10.1 gives xxhash text, which xxhash 4 does not take (it asks for xxhash < 4)."""

AS_IT_IS = TextNormConfig(
    lowercase=False,
    norm_whitespace=False,
    remove_punctuation=False,
    norm_unicode_diacritics=False,
    norm_numbers=False,
)
AS_OURS: dict[str, Any] = {"norm_config": AS_IT_IS, "hash_config": SHA1}
"""Texts are compared by llmpipe's `Words`, as they are."""


class Size(PipelineStep):
    """Counts documents and their bytes of UTF-8."""

    type = "llmpipe"
    name = "size"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Page]:
        """Pass documents on."""
        del rank, world_size
        for page in data:
            self.stat_update("total")
            self.stat_update("bytes", value=len(page.text.encode("utf-8", "surrogatepass")))
            yield page


class Step(PipelineStep):
    """A step of `curate`, with the settings that a recipe gives it; what it did is in its statistics.

    `given`: the file or folder of what the step is given beside them, where there is such a thing.
    """

    type = "llmpipe"

    def __init__(self, step: str, *, given: str | None = None, **settings: Any) -> None:
        self.name = step
        super().__init__()
        self.settings, self.given = {"step": step, **settings}, given

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Page]:
        """Take documents through the step; what a page had beside its text stays behind."""
        del rank, world_size
        settings: Any = TypeAdapter[Any](steps.Step).validate_python(self.settings)
        work = Work(Job(((settings, opened(settings, self.given)),)))
        for pages in batched(data, BATCH_DOCUMENTS):
            tally = Tally(self.name)
            with self.track_time("batch"):
                left = work.through([(Document(page.text, str(page.id)), ()) for page in pages], [tally])
            self._note(tally)
            yield from (Page(text=document.text, id=document.where) for document in left)

    def _note(self, tally: Tally) -> None:
        counts = {"total": tally.documents_in, "dropped": tally.dropped, "changed": tally.changed, "added": tally.added}
        for name, count in (counts | {f"found {name}": number for name, number in tally.found.items()}).items():
            if count:
                self.stat_update(name, value=count, unit="batch")


def opened(settings: Any, given: str | None) -> Any:
    """Read what a step is given: hashes of the evaluation, 8 bytes each, or a model's folder as it is."""
    if settings.step == "decontaminate" and given:
        data = Path(given).read_bytes()
        return frozenset(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8))
    return given


class Spaces(WordTokenizer):
    """Cuts a text as the step `quality` does: words at white space, sentences at their marks."""

    def word_tokenize(self, text: str) -> list[str]:
        """Return the words."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """Return the sentences."""
        return [text[start:end] for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return where sentences begin and end; there is one at least."""
        ends = [found.end() for found in quality.SENTENCE_END.finditer(text)] or [len(text)]
        return list(zip([0, *ends], ends, strict=False))


class Words(Spaces):
    """Cuts a text into words as the steps do that compare texts."""

    def word_tokenize(self, text: str) -> list[str]:
        """Return the words, in lower case and without punctuation."""
        return words(text)


def spaced_once(page: Page) -> bytes:
    """Return what makes two texts equal: they themselves, white space apart."""
    return " ".join(page.text.split()).encode("utf-8", "surrogatepass")
