"""tokenizer: learns to cut text into tokens. Reads text; writes `tokenizer/`, a folder that AutoTokenizer loads.

    tok: {kind: tokenizer, data: {path: "texts/*.txt"}, algorithm: bpe, vocab_size: 8192}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from llmpipe.context import Context, Result
from llmpipe.settings import Accepts, Artifact, Count, DataSources, StageSettings

if TYPE_CHECKING:
    import tokenizers

VERSION = 1

PAD, BOS, END, UNKNOWN = "<|pad|>", "<|bos|>", "<|end|>", "<|unk|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")

SAMPLE_CHARACTERS = 200_000  # enough to tell bytes per token to three figures

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
    algorithm: Literal["bpe", "unigram", "wordpiece", "byte", "char"] = Field(
        "bpe", description="bpe (byte-level) suits most; byte and char need no training; wordpiece is BERT's"
    )
    vocab_size: Count = Field(8192, ge=16, description="most tokens, special ones included; byte and char take what they need")
    special_tokens: list[str] = Field(default_factory=list, description="further tokens that text is never cut within")
    chat_template: str | None = Field(None, description="Jinja text; the default has a token for each role")


def produces(settings: Settings) -> Artifact:
    """Say what comes out."""
    return "tokenizer"


def run(settings: Settings, ctx: Context) -> Result:
    """Train the tokenizer and measure how well it compresses the text it has seen."""
    from transformers import PreTrainedTokenizerFast

    from llmpipe.artifact import Gate
    from llmpipe.data.sources import read_texts

    assert settings.data is not None
    size = {"documents": 0, "bytes": 0}
    sample: list[str] = []

    def counted() -> Iterator[str]:
        for text in read_texts(settings.data or [], ctx):
            size["documents"] += 1
            size["bytes"] += len(text.encode("utf-8"))
            room = SAMPLE_CHARACTERS - sum(map(len, sample))
            sample.extend([text[:room]] if room > 0 else [])
            yield text

    ctx.progress(doing="reading text")
    model = learn(settings, counted())
    ctx.explain(
        f"The tokenizer cuts text into pieces a model can count: it read {size['documents']:,} documents "
        f"({size['bytes'] / 1e6:.1f} MB) and made a vocabulary of {model.get_vocab_size():,}."
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN if settings.algorithm in ("unigram", "wordpiece", "char") else None,
        extra_special_tokens=[*ROLES, *settings.special_tokens],
        clean_up_tokenization_spaces=False,
        chat_template=settings.chat_template or CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(ctx.dir / "tokenizer")
    pieces = sum(len(ids) for ids in tokenizer(sample, add_special_tokens=False)["input_ids"])
    metrics = {
        "vocab_size": len(tokenizer),
        "documents": size["documents"],
        "bytes": size["bytes"],
        "bytes_per_token": round(sum(len(text.encode("utf-8")) for text in sample) / max(1, pieces), 3),
    }
    ids = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    gate = Gate(name="pad-bos-end-distinct", passed=len(ids) == 3, why="a pad that is also the end hides the end from training")
    return Result(outputs=["tokenizer"], metrics=metrics, gates=[gate])


def learn(settings: Settings, texts: Iterator[str]) -> tokenizers.Tokenizer:
    """Train a tokenizer of the algorithm that the settings name on a stream of texts.

    Raises:
        DataError: the texts cannot be read, or there are none.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = [PAD, BOS, END, *ROLES, *settings.special_tokens]
    lossy = settings.algorithm in ("unigram", "wordpiece", "char")
    special = [*special[:3], UNKNOWN, *special[3:]] if lossy else special
    options = {"vocab_size": settings.vocab_size, "special_tokens": special, "show_progress": False}
    match settings.algorithm:
        case "bpe" | "byte":
            # no pair is frequent enough to be merged for `byte`: its vocabulary is the 256 bytes
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            options |= {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
            options |= {"vocab_size": 256 + len(special)} if settings.algorithm == "byte" else {}
            trainer = trainers.BpeTrainer(**options)
        case "unigram":
            tokenizer = Tokenizer(models.Unigram())
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
            tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
            trainer = trainers.UnigramTrainer(**options, unk_token=UNKNOWN)
        case "wordpiece":
            tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            tokenizer.decoder = decoders.WordPiece()
            trainer = trainers.WordPieceTrainer(**options)
        case "char":
            letters = Counter(chain.from_iterable(texts))  # counted here: a trainer would keep a string for each letter
            known = [letter for letter, _ in letters.most_common(settings.vocab_size - len(special))]
            tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *known])}, UNKNOWN))
            tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
            tokenizer.decoder = decoders.Fuse()
            tokenizer.add_special_tokens(special)
            trainer = None
    if trainer is not None:
        tokenizer.train_from_iterator(texts, trainer)
    begin = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[begin]
    )
    return tokenizer
