"""Classifiers of texts: how one is made or loaded, and how it reads texts.

It is a plain sequence classifier of transformers, encoder or decoder. Texts are written as its tokenizer writes them by
itself, so that `pipeline("text-classification")` on the folder gives what the stage measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.architectures import architectures
from llmpipe.context import Context
from llmpipe.data.hub import revision_of
from llmpipe.errors import Problem, StageError
from llmpipe.settings import AnySource, Artifact, HubSource
from llmpipe.training import adapters, models

HINT = "begin from an encoder such as BERT, or from a causal model such as a Llama or a GPT-2"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as tokens, and the index of its class."""

    ids: list[int]
    label: int

    @property
    def tokens(self) -> int:
        """How long it is."""
        return len(self.ids)


def load(source: AnySource, ctx: Context, names: Sequence[str]) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a model in fp32 with a head for these classes, and its tokenizer; an adapter is merged first.

    Raises:
        StageError: it cannot be loaded, or transformers has no classifier for it.
    """
    if adapters.find(source, ctx):
        whole, tokenizer = models.load(source, ctx)
        return _headed(whole, names), tokenizer
    folder, tokenizer = ctx.folder_of(source), models.load_tokenizer(source, ctx)
    revision = revision_of(source, ctx, kind="model") if isinstance(source, HubSource) else None
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False, "local_files_only": revision is None}
    try:
        config = _for_classes(AutoConfig.from_pretrained(folder, **options), names, folder)
        model, facts = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head for other classes makes way for a fresh one
            **options,
        )
    except (OSError, ValueError) as error:
        raise StageError(Problem(str(error).splitlines()[0], where=folder), hint=HINT) from error
    fresh = [*facts["missing_keys"], *(key for key, *_ in facts["mismatched_keys"])]
    body = [key for key in fresh if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key]
    if body:
        raise StageError(Problem(f"has no weights for {body[0]}", where=folder), hint=HINT)
    return model, tokenizer


def _for_classes(config: Any, names: Sequence[str], where: str) -> Any:
    """Put the classes into a configuration."""
    if config.is_encoder_decoder:
        problem = Problem(f"{config.model_type} is an encoder-decoder; one of the two is needed alone", where=where)
        raise StageError(problem, hint=HINT)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = "single_label_classification"
    return config


def _headed(model: PreTrainedModel, names: Sequence[str]) -> PreTrainedModel:
    """Put a model's weights under a fresh head.

    Raises:
        StageError: transformers has no classifier for it.
    """
    config = _for_classes(model.config, names, model.config.model_type)
    try:
        made: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise StageError(f"transformers has no classifier for {config.model_type}", hint=HINT) from error
    body = model.base_model.state_dict()
    made.base_model.load_state_dict(body, strict=False)
    if missing := [key for key in made.base_model.state_dict() if key not in body and "pooler" not in key]:
        raise StageError(f"{model.config.model_type} has no weights for {missing[0]}", hint=HINT)
    return made


def build(
    arch: str, config: dict[str, Any], names: Sequence[str], *, tokenizer: Tokenizer, context: int
) -> PreTrainedModel:
    """Make an untrained classifier of an architecture in fp32.

    Raises:
        StageError: transformers refuses the configuration, or has no such classifier.
    """
    kind: Artifact = "masked-lm" if arch in architectures("masked") else "causal-lm"
    return _headed(models.build(arch, config, tokenizer=tokenizer, context=context, kind=kind), names)


def mark(tokenizer: Tokenizer) -> None:
    """See to it that a text begins or ends with a token of its own, where its class can be read.

    A tokenizer that marks texts in its own way is left as it is.

    Raises:
        StageError: it has no token for that.
    """
    if tokenizer.num_special_tokens_to_add():
        return
    begin, end = tokenizer.cls_token or tokenizer.bos_token, tokenizer.sep_token or tokenizer.eos_token
    if end is None:
        raise StageError(
            "the tokenizer has no end token, and the class is read at one",
            hint='name one of its tokens in tokenizer_config.json: "eos_token": "</s>"',
        )
    tokens = [token for token in (begin, "$A", end) if token]
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in (begin, end) if token}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=tokens, special_tokens=[*special.items()])


def write(texts: Sequence[str], tokenizer: Tokenizer, *, context: int) -> list[list[int]]:
    """Return texts as the tokenizer writes them, cut off after `context` tokens."""
    return tokenizer(list(texts), truncation=True, max_length=context, return_attention_mask=False)["input_ids"]


def too_long(texts: Sequence[str], rows: Sequence[Encoded], tokenizer: Tokenizer, *, context: int) -> int:
    """Count the texts that were cut off."""
    full = [text for text, row in zip(texts, rows, strict=True) if row.tokens == context]
    return sum(len(ids) > context for ids in tokenizer(full, verbose=False)["input_ids"]) if full else 0
