"""tokenizer: learns to cut text into tokens. Reads text; writes `tokenizer/`, a folder that AutoTokenizer loads.

    tok: {kind: tokenizer, data: {path: "texts/*.txt"}, algorithm: bpe, vocab_size: 8192}

`report.json` says how well it cuts each language or file, beside other tokenizers (`compare: {path: gpt2}`), and
`pieces.svg` shows its most frequent pieces. Of more text than `max_bytes` an even sample is learned from: which pieces
are frequent is known long before all has been read, and trainers keep every different word in memory.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from llmpipe.context import Context, Result
from llmpipe.errors import DataError
from llmpipe.settings import Accepts, Artifact, Count, DataSources, FolderSources, StageSettings

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    from llmpipe.data.even_sample import EvenSample
    from llmpipe.evaluation.token_report import Samples

VERSION = 1

PAD, BOS, END, UNKNOWN = "<|pad|>", "<|bos|>", "<|end|>", "<|unk|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")

BYTES = 256
MOST_BYTES = 200_000_000
"""Trainers keep 1.1 kB for each different word: with the words of web pages below 1 GB in all."""
LOSSY = ("unigram", "wordpiece", "char", "word")  # may meet letters, or words, that they have no token for

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|assistant|>' }}
        {%- generation %}{{ message['content'] + eos_token }}{% endgeneration %}
    {%- else %}
        {{- '<|' + message['role'] + '|>' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""
"""Each turn is its role's token, the text, and the end token; `generation` marks what the model is to learn."""


class Settings(StageSettings):
    """What `kind: tokenizer` understands."""

    kind: Literal["tokenizer"] = Field("tokenizer", description="which stage this is")
    data: Annotated[DataSources | None, Accepts(("dataset",))] = Field(None, description="text to learn from")
    algorithm: Literal["bpe", "unigram", "wordpiece", "byte", "char", "word"] = Field(
        "bpe",
        description="bpe (byte-level) suits most; byte and char need no training; wordpiece is BERT's; word, for "
        "classifiers, keeps words whole: a model cannot write one that it does not know",
    )
    vocab_size: Count = Field(
        8192, ge=16, description="most tokens, special ones included; byte and char take what they need"
    )
    lower_case: bool = Field(
        False,
        exclude_if=lambda lowered: not lowered,
        description="read capitals as small letters, and forms of a letter as one (NFKC); a model writes so, too",
    )
    special_tokens: list[str] = Field(default_factory=list, description="further tokens that text is never cut within")
    chat_template: str | None = Field(None, description="Jinja text; the default has a token for each role")
    max_bytes: Count = Field(
        MOST_BYTES,
        exclude_if=lambda most: most == MOST_BYTES,
        description="most text to learn from, in bytes of UTF-8; of more, an even sample over all of the data",
    )
    compare: Annotated[FolderSources | None, Accepts(("tokenizer",), fill=False)] = Field(
        None, exclude_if=lambda others: others is None, description="other tokenizers to report on beside this one"
    )

    def unused_inputs(self) -> frozenset[str]:
        """There need be no other tokenizer."""
        return frozenset({"compare"})


def produces(_settings: Settings) -> Artifact:
    """Say what comes out."""
    return "tokenizer"


def run(settings: Settings, ctx: Context) -> Result:
    """Train the tokenizer and measure how well it compresses the text it has seen."""
    from transformers import PreTrainedTokenizerFast

    from llmpipe import gates
    from llmpipe.evaluation.token_report import Samples
    from llmpipe.training import saved

    samples = Samples()
    with tempfile.TemporaryDirectory(dir=ctx.dir) as folder:
        texts, size = read(settings, ctx, samples, Path(folder))
        ctx.progress(doing="learning the vocabulary")
        model = learn(settings, iter(texts))
    ctx.explain(
        f"The tokenizer cuts text into pieces a model can count: it read {size['documents']:,} documents "
        f"({size['bytes'] / 1e6:.1f} MB) and made a vocabulary of {model.get_vocab_size():,}."
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN if settings.algorithm in LOSSY else None,
        extra_special_tokens=[*ROLES, *settings.special_tokens],
        clean_up_tokenization_spaces=False,
        chat_template=settings.chat_template or CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(ctx.dir / "tokenizer")
    ids = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    with ctx.checking():
        distinct = gates.gate("pad-bos-end-distinct", len(ids) == 3)
        checks = [distinct, saved.template_travels(tokenizer, ctx.dir / "tokenizer")]
    metrics = {"vocab_size": len(tokenizer), **size, **write_report(settings, ctx, tokenizer, samples)}
    return Result(outputs=["tokenizer", "report.json", "pieces.svg"], metrics=metrics, gates=checks)


def read(settings: Settings, ctx: Context, samples: Samples, folder: Path) -> tuple[EvenSample, dict[str, int]]:
    """Return what is learned from, kept in `folder`, and how much there was; the report has samples of all of it."""
    from llmpipe.data.even_sample import EvenSample
    from llmpipe.data.sources import read_documents

    kept = EvenSample(folder / "texts", max_bytes=settings.max_bytes, seed=ctx.seed)
    size = {"documents": 0, "bytes": 0}
    ctx.progress(doing="reading text")
    for row, text in read_documents(settings.data or [], ctx):
        size["documents"] += 1
        size["bytes"] += len(text.encode("utf-8"))
        samples.add(row, text)
        kept.add(text)
    if kept.share < 1:
        ctx.say(
            f"learns from {kept.bytes / 1e6:,.1f} of {size['bytes'] / 1e6:,.1f} MB, an even sample: "
            f"max_bytes is {settings.max_bytes / 1e6:,.1f} MB"
        )
        size |= {"sampled_documents": kept.documents, "sampled_bytes": kept.bytes}
    return kept, size


def write_report(
    settings: Settings, ctx: Context, tokenizer: PreTrainedTokenizerFast, samples: Samples
) -> dict[str, float]:
    """Write report.json and pieces.svg, say the most of it, and return the figures for the manifest."""
    from llmpipe.artifact import write_json, write_text
    from llmpipe.evaluation import token_report
    from llmpipe.training.models import load_tokenizer

    ctx.progress(doing="measuring the tokenizer")
    others = {Path(ctx.folder_of(source)).name: load_tokenizer(source, ctx) for source in settings.compare or ()}
    found = token_report.report(tokenizer, samples, others)
    for line in token_report.lines(found):
        ctx.say(line)
    write_json(ctx.dir / "report.json", found)
    write_text(ctx.dir / "pieces.svg", token_report.picture(found))
    compared = {f"{name}_bytes_per_token": other["bytes_per_token"] for name, other in found["compared"].items()}
    return {"bytes_per_token": found["bytes_per_token"], "unused_tokens": found["unused_tokens"], **compared}


def learn(settings: Settings, texts: Iterator[str]) -> tokenizers.Tokenizer:
    """Train a tokenizer of the algorithm that the settings name on a stream of texts.

    Raises:
        DataError: the texts cannot be read, or have more letters than the vocabulary has room for.
    """
    from tokenizers import normalizers, processors

    alike = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]) if settings.lower_case else None
    if alike is not None:  # here, as not every learner below has a trainer that would ask the tokenizer to do it
        texts = map(alike.normalize_str, texts)
    names = [PAD, BOS, END, *([UNKNOWN] if settings.algorithm in LOSSY else []), *ROLES, *settings.special_tokens]
    tokenizer = LEARNERS[settings.algorithm](texts, settings.vocab_size, list(dict.fromkeys(names)))
    if (size := tokenizer.get_vocab_size()) > settings.vocab_size and settings.algorithm != "byte":
        letters = "256 bytes" if settings.algorithm == "bpe" else "every letter of the text"
        message = f"vocab_size {settings.vocab_size} has no room for {letters} and {len(names)} special tokens"
        raise DataError(message, hint=f"vocab_size: {size}, or more, or algorithm: byte")
    if alike is not None:
        tokenizer.normalizer = alike
    begin = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[begin]
    )
    return tokenizer


def _learn_bpe(texts: Iterator[str], size: int, special: list[str]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _learn_bytes(texts: Iterator[str], _size: int, special: list[str]) -> tokenizers.Tokenizer:
    """Leave no room for merges, so that the vocabulary is the 256 bytes."""
    return _learn_bpe(texts, BYTES + len(special), special)


def _learn_unigram(texts: Iterator[str], size: int, special: list[str]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, show_progress=False, unk_token=UNKNOWN)
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # the trainer has no class of its own for this
        if "not large enough" not in str(error):
            raise
        message = f"vocab_size {size} has no room for every letter of the text and {len(special)} special tokens"
        raise DataError(message, hint="raise vocab_size, or take algorithm: byte") from None
    return tokenizer


def _learn_wordpiece(texts: Iterator[str], size: int, special: list[str]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _learn_chars(texts: Iterator[str], size: int, special: list[str]) -> tokenizers.Tokenizer:
    """Count letters here: a trainer would keep a string for each one of the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = Counter(chain.from_iterable(texts))
    known = [letter for letter, _ in letters.most_common() if letter not in special][: max(0, size - len(special))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *known])}, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _learn_words(texts: Iterator[str], size: int, special: list[str]) -> tokenizers.Tokenizer:
    """Keep words and runs of punctuation whole, the commonest first; one that came once has its token, too."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # \w+|[^\w\s]+
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


LEARNERS: dict[str, Callable[[Iterator[str], int, list[str]], tokenizers.Tokenizer]] = {
    "bpe": _learn_bpe,
    "byte": _learn_bytes,
    "unigram": _learn_unigram,
    "wordpiece": _learn_wordpiece,
    "char": _learn_chars,
    "word": _learn_words,
}
