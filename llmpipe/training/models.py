"""Build, load and mend models: the size dial, architectures by name, dropout, the pad token."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.data.hub import revision_of
from llmpipe.errors import Problem, StageError
from llmpipe.settings import AnySource, HubSource
from llmpipe.training import quantized

PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|padding|>")
"""Tokens that model families reserve for padding without always declaring them."""

DIAL_SLACK = 0.15


def dial(size: int, *, vocab_size: int) -> dict[str, int]:
    """Turn a parameter count into a Llama's shape.

    The rule: depth is the number of layers (at least 2) whose model of width 64 x depth comes nearest to the size, as
    a ratio; the width then goes in steps of 32 to what comes nearest at that depth. Heads are 32 wide below a width
    of 512, else 64; the feed-forward part is 8/3 of the width, rounded up to a multiple of 8; embeddings are tied.
    Where a large vocabulary makes steps of 32 too coarse, more than 15 % off, steps of 8 are taken, with heads to suit.

    Raises:
        StageError: the vocabulary alone takes more than the size.
    """

    def miss(depth: int, width: int) -> float:
        return abs(math.log(_parameters(depth, width, vocab_size) / size))

    depth = min(range(2, 129), key=lambda depth: miss(depth, 64 * depth))
    for step in (32, 8):
        width = min(range(step, 64 * depth + 65, step), key=lambda width: miss(depth, width))
        if abs(_parameters(depth, width, vocab_size) / size - 1) <= DIAL_SLACK:
            break
    else:
        message = f"no model of {size:,} parameters has a vocabulary of {vocab_size:,} tokens"
        raise StageError(message, hint="raise model.size, or lower vocab_size of the tokenizer")
    heads = width // next(head for head in (64, 32, 16, 8) if width % head == 0 and (head < 64 or width >= 512))
    return {
        "num_hidden_layers": depth,
        "hidden_size": width,
        "intermediate_size": _intermediate(width),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }


def _intermediate(width: int) -> int:
    return -(-8 * width // 3 // 8) * 8


def _parameters(depth: int, width: int, vocab_size: int) -> int:
    """Count a Llama's parameters: tied embeddings; four attention, three feed-forward matrices, two norms a layer."""
    return vocab_size * width + depth * (4 * width**2 + 3 * width * _intermediate(width) + 2 * width) + width


def build(arch: str, config: dict[str, Any], *, tokenizer: Tokenizer, context: int) -> PreTrainedModel:
    """Make an untrained model of an architecture (`llama`, `gpt2`, …) in fp32.

    Raises:
        StageError: transformers has no such causal model, or refuses the configuration.
    """
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    try:
        shape = AutoConfig.for_model(
            arch, vocab_size=len(tokenizer), max_position_embeddings=context, use_cache=False, **special, **config
        )
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise StageError(f"cannot build {arch} from this config: {error}".splitlines()[0]) from error
    model.generation_config = GenerationConfig(**special, max_length=context)
    return model


def load(
    source: AnySource, ctx: Context, quantization: dict[str, Any] | None = None
) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a causal model in fp32 with its tokenizer, from a stage, a folder or the hub; an adapter is merged.

    Only safetensors weights are read and code of a model's repository is never run. `quantization` is what
    `quantized.loading` returned.

    Raises:
        StageError: it cannot be loaded, is an encoder-decoder, or would have to be merged in 4 bits.
    """
    from llmpipe.training import adapters  # which loads the model under an adapter with this function

    if adapter := adapters.find(source, ctx):
        quantized.refuse_merge(quantization, adapters.label(source), "the model is an adapter on another one")
        model, tokenizer = adapters.load_base(adapter, source, ctx)
        return adapters.merge(model, adapter.folder), tokenizer
    folder = ctx.folder_of(source)
    revision = revision_of(source, ctx, kind="model") if isinstance(source, HubSource) else None
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False, "local_files_only": revision is None}
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        if config.is_encoder_decoder:  # some load as a decoder alone, without a word
            problem = Problem(f"{config.model_type} is an encoder-decoder; a causal model is needed", where=folder)
            raise StageError(problem, hint="begin from a causal model, such as a Llama or a GPT-2")
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **options, **(quantization or {})
        )
    except (OSError, ValueError) as error:
        raise StageError(Problem(str(error).splitlines()[0], where=folder), hint=_load_hint(source)) from error
    return model, tokenizer


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
    if getattr(model, "generation_config", None) is not None:  # a classifier has none
        model.generation_config.pad_token_id = tokenizer.pad_token_id


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
            return found
    return 1024


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
