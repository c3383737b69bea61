"""Build, load and mend models: architectures by name, the three kinds of language model, dropout, the pad token."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.data.hub import revision_of
from llmpipe.errors import Problem, StageError
from llmpipe.settings import AnySource, Artifact, HubSource
from llmpipe.training import quantized
from llmpipe.training.denoising import uses_sentinels

PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|padding|>")
"""Tokens that model families reserve for padding without always declaring them."""


CLASSES: dict[Artifact, Any] = {
    "causal-lm": AutoModelForCausalLM,
    "masked-lm": AutoModelForMaskedLM,
    "seq2seq-lm": AutoModelForSeq2SeqLM,
}
CALLED: dict[Artifact, str] = {
    "causal-lm": "a causal model",
    "masked-lm": "a masked model",
    "seq2seq-lm": "an encoder-decoder",
}
EXAMPLES: dict[Artifact, str] = {
    "causal-lm": "a Llama or a GPT-2",
    "masked-lm": "a BERT or a ModernBERT",
    "seq2seq-lm": "a T5 or a BART",
}
SPECIAL = ("bos", "eos", "pad", "cls", "sep")


def build(
    arch: str, config: dict[str, Any], *, tokenizer: Tokenizer, context: int, kind: Artifact = "causal-lm"
) -> PreTrainedModel:
    """Make an untrained model of an architecture (`llama`, `bert`, `t5`, …) in fp32.

    Raises:
        StageError: transformers has no such model of this kind, or refuses the configuration.
    """
    names = SPECIAL[:3] if kind == "causal-lm" else SPECIAL
    special: dict[str, Any] = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    if kind == "seq2seq-lm":  # T5 begins an answer with pad; the others, BART first, with the end token
        is_t5 = uses_sentinels(arch)
        special["decoder_start_token_id"] = tokenizer.pad_token_id if is_t5 else tokenizer.eos_token_id
        special["forced_eos_token_id"] = None  # BART's would be the id that its own vocabulary has for the end
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": context, "use_cache": False}
    try:
        shape = AutoConfig.for_model(arch, **sizes, **special, **config)
        if kind == "masked-lm":
            with torch.device("meta"):
                offset = position_offset(CLASSES[kind].from_config(shape))
            if offset:  # RoBERTa's positions begin after that of padding, so it needs more of them than it sees tokens
                shape = AutoConfig.for_model(
                    arch, **sizes | {"max_position_embeddings": context + offset}, **special, **config
                )
        model = CLASSES[kind].from_config(shape, dtype=torch.float32)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise StageError(f"cannot build {arch} from this config: {error}".splitlines()[0]) from error
    if kind != "masked-lm":
        generation = {key: value for key, value in special.items() if key[:3] not in ("cls", "sep")}
        model.generation_config = GenerationConfig(**generation, max_length=context)
    return model


def load(
    source: AnySource,
    ctx: Context,
    quantization: dict[str, Any] | None = None,
    *,
    kinds: tuple[Artifact, ...] = ("causal-lm",),
) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a language model in fp32 with its tokenizer, from a stage, a folder or the hub; an adapter is merged.

    `kinds` are those that the caller can use. Only safetensors weights are read and code of a model's repository is
    never run. `quantization` is what `quantized.loading` returned.

    Raises:
        StageError: it cannot be loaded, is of another kind, or would have to be merged in 4 bits.
    """
    from llmpipe.training import adapters  # which loads the model under an adapter with this function

    if adapter := adapters.find(source, ctx):
        quantized.refuse_merge(quantization, adapters.label(source), "the model is an adapter on another one")
        model, tokenizer = adapters.load_base(adapter, source, ctx)
        return adapters.merge(model, adapter.folder), tokenizer
    folder, options = ctx.folder_of(source), _options(source, ctx)
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        if any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
            problem = Problem("it is a classifier, which guesses no tokens", where=folder)
            raise StageError(problem, hint="name the model that it began from")
        kind = kind_of(config, kinds)
        if kind not in kinds:  # some load as another kind, without a word
            needed = " or ".join(CALLED[wanted] for wanted in kinds)
            problem = Problem(f"{config.model_type} is {CALLED[kind]}; {needed} is needed", where=folder)
            raise StageError(problem, hint=f"begin from {CALLED[kinds[0]]}, such as {EXAMPLES[kinds[0]]}")
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model = CLASSES[kind].from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **options, **(quantization or {})
        )
    except (OSError, ValueError) as error:
        raise StageError(Problem(str(error).splitlines()[0], where=folder), hint=_load_hint(source)) from error
    return model, tokenizer


def kind_of(config: Any, wanted: tuple[Artifact, ...]) -> Artifact:
    """Tell which kind of language model a configuration is of.

    What it was saved as decides. One that was saved without a head, such as many a BERT, is taken as the kind that is
    wanted, where only one is and transformers has a head of that kind for it.
    """
    if config.is_encoder_decoder:
        return "seq2seq-lm"
    saved = config.architectures or []
    if any(name.endswith("ForMaskedLM") for name in saved):
        return "masked-lm"
    has_head = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in saved)
    fits = wanted == ("masked-lm",) and type(config) in AutoModelForMaskedLM._model_mapping
    return "masked-lm" if fits and not has_head else "causal-lm"


def _options(source: AnySource, ctx: Context) -> dict[str, Any]:
    revision = revision_of(source, ctx, kind="model") if isinstance(source, HubSource) else None
    return {"revision": revision, "trust_remote_code": False, "local_files_only": revision is None}


def is_encoder_decoder(source: AnySource, ctx: Context) -> bool:
    """Tell from its configuration whether a model is an encoder-decoder; what cannot be read is left to `load`."""
    try:
        return bool(AutoConfig.from_pretrained(ctx.folder_of(source), **_options(source, ctx)).is_encoder_decoder)
    except (OSError, ValueError):
        return False


def _load_hint(source: AnySource) -> str:
    if isinstance(source, HubSource):
        return "is the id right, and can the hub be reached? A folder that was downloaded works as {path: FOLDER}"
    return "a folder with config.json, *.safetensors and a tokenizer is needed"


def load_tokenizer(source: AnySource, ctx: Context) -> Tokenizer:
    """Load a tokenizer from a stage, a folder or the hub."""
    revision = revision_of(source, ctx, kind="model") if isinstance(source, HubSource) else None
    folder = ctx.folder_of(source)
    try:
        options: dict[str, Any] = {"revision": revision, "local_files_only": revision is None}
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise StageError(Problem(str(error).splitlines()[0], where=folder), hint=_load_hint(source)) from error


def mend_pad(model: PreTrainedModel, tokenizer: Tokenizer, ctx: Context) -> None:
    """Give padding a token of its own.

    Where pad is the end token, any code that masks padding also masks the end, and the model never learns to stop
    (huggingface/trl#1623 and a dozen more). Takes a token that is already there before it adds one.
    """
    end = tokenizer.eos_token_id
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == end:
        was = "was the end token" if tokenizer.pad_token_id is not None else "was missing"
        vocabulary = tokenizer.get_vocab()
        spare = [name for name in (*PAD_NAMES, tokenizer.unk_token) if name in vocabulary and vocabulary[name] != end]
        if spare:
            tokenizer.pad_token = spare[0]
        else:
            tokenizer.add_special_tokens({"pad_token": PAD_NAMES[0]})
            grow(model, len(tokenizer))
        ctx.say(f"pad token {was}; it is now {tokenizer.pad_token} (id {tokenizer.pad_token_id})")
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:  # a masked model generates nothing
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        ends = model.generation_config.eos_token_id
        if isinstance(ends, list):  # Qwen's has the pad token among them, which would end an answer at once
            model.generation_config.eos_token_id = [end for end in ends if end != tokenizer.pad_token_id]


def mend_end(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Have generation stop at the tokenizer's end token where the model does not say at what."""
    config = getattr(model, "generation_config", None)
    if config is not None and config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id


@torch.no_grad()
def grow(model: PreTrainedModel, size: int) -> None:
    """Give a model's vocabulary at least `size` rows; a new one is the mean of the others.

    Not drawn around the mean, as transformers does: an adapter's base has to grow in the same way every time.
    """
    old = model.get_input_embeddings().num_embeddings
    if size <= old:
        return
    model.resize_token_embeddings(size, mean_resizing=False)
    for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):  # a classifier has one
        layer.weight[old:] = layer.weight[:old].mean(0)
        if getattr(layer, "bias", None) is not None:
            layer.bias[old:] = layer.bias[:old].mean()


def set_dropout(model: PreTrainedModel, share: float, ctx: Context | None) -> None:
    """Set every dropout that the architecture has, and say which where there is a context."""
    names = [
        name
        for name, value in vars(model.config).items()
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, int | float)
    ]
    for name in names:
        setattr(model.config, name, share)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(vars(module).get(name), float):  # attention reads its own copy of the configuration
                setattr(module, name, share)
    if ctx is not None:
        ctx.say(f"dropout {share} for {', '.join(names)}" if names else "this architecture has no dropout to set")


def context_length(model: PreTrainedModel) -> int:
    """Return how many tokens the model can see at once."""
    config = model.config
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        if isinstance(found := getattr(config, name, None), int):
            return found - position_offset(model)
    return 1024


def position_offset(model: PreTrainedModel) -> int:
    """Return the position of a document's first token: 0, but for RoBERTa and its kin, where it follows padding's."""
    counts = (module for module in model.modules() if hasattr(module, "create_position_ids_from_input_ids"))
    return next((module.padding_idx + 1 for module in counts), 0)


def fitting_context(model: PreTrainedModel, context: int) -> int:
    """Return the context, or raise StageError when the model cannot see that many tokens."""
    limit = context_length(model)
    if context > limit:
        raise StageError(f"context is {context} tokens, but the model sees {limit} at most", hint=f"context: {limit}")
    return context


def accepts_positions(model: PreTrainedModel) -> bool:
    """Whether documents can be packed: without position ids the attention mask cannot be cut at their borders."""
    return "position_ids" in inspect.signature(model.forward).parameters


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a plain Hugging Face folder: safetensors, configuration, tokenizer with its template."""
    model.config.use_cache = True  # off during training, where packed documents would leak through the cache
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
