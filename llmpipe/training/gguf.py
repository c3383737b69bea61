"""GGUF: a Llama-type model and its tokenizer in one file, for llama.cpp and what is built on it.

The names, the order of the rows of queries and keys, and the metadata are those of llama.cpp's own converter (source:
ggml-org/llama.cpp, convert_hf_to_gguf.py). What was written is read back by transformers and compared before anybody
gets it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    TokenType,
    get_tensor_name_map,
)
from gguf.quants import quantize
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.errors import Problem, StageError
from llmpipe.training import templates
from llmpipe.training.adapters import logits_of, probe

Number = Literal["F32", "F16", "Q8_0"]

FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}
BOUNDS = {"F32": 1e-6, "F16": 5e-3, "Q8_0": 1e-1}
"""How far a logit of the file may be from the model's, as a share of the largest one.

Trained models of half a million parameters: 0 for F32, 4e-4 for F16, 1.2e-2 for Q8_0. With the rows of
queries and keys in the wrong order, they were off by 0.36 and 0.55.
"""

TEXTS = ("Once upon a time, 12345 ducks didn't swim.", "  two\n\n\tthree   ", "naïve 漢字 🦆 e\u0301")
GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LEAVE_OUT = "leave out --gguf: the folder itself is read by transformers and all that loads its models"


@dataclass(frozen=True)
class Written:
    """What became of a model in a GGUF file."""

    largest_shift: float
    """How far the file's logits are from the model's, at most, as a share of the largest one."""
    wider: int
    """Matrices whose rows do not come out even in blocks of Q8_0, and so are in F16."""


def write(model: PreTrainedModel, tokenizer: Tokenizer, path: Path, *, number: Number, name: str) -> Written:
    """Write a model as a GGUF file, alone in its folder, and read it back.

    Raises:
        StageError: GGUF has no place for such a model or tokenizer, or what is read back is another one.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    _refuse_model(model)
    _refuse_tokenizer(backend)
    writer = GGUFWriter(path, "llama")
    _describe(writer, model, number=number, name=name)
    _add_tokenizer(writer, tokenizer, backend, size=model.config.vocab_size)
    wider = _add_weights(writer, model, number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(_check(model, tokenizer, path, number), wider)


def _refuse_model(model: PreTrainedModel) -> None:
    """Refuse what a reader of the file would take for something else."""
    config = model.config
    if config.model_type != "llama":
        raise StageError(
            f"--gguf writes Llama-type models, and this one is of the type {config.model_type}", hint=LEAVE_OUT
        )
    odd = {
        "rope_type": config.rope_parameters.get("rope_type", "default") != "default",
        "hidden_act": config.hidden_act != "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }
    if found := [key for key, is_odd in odd.items() if is_odd]:
        raise StageError(f"--gguf writes plain Llamas, and this one has its own {' and '.join(found)}", hint=LEAVE_OUT)


def _refuse_tokenizer(backend: dict[str, Any]) -> None:
    """Refuse all but byte-level BPE that cuts words as GPT-2 does: readers know others by a model's name alone."""
    split = backend["pre_tokenizer"] or {}
    is_known = (
        backend["model"]["type"] == "BPE" and backend["normalizer"] is None and GPT2_SPLIT.items() <= split.items()
    )
    if not is_known:
        message = "--gguf writes byte-level BPE tokenizers that cut words as GPT-2 does, and this one is another"
        raise StageError(message, hint="a tokenizer stage with `algorithm: bpe` makes such a one")
    if not backend["model"]["merges"]:
        raise StageError("--gguf writes tokenizers that merge bytes, and this one is of bytes alone", hint=LEAVE_OUT)


def _describe(writer: GGUFWriter, model: PreTrainedModel, *, number: Number, name: str) -> None:
    """Add what config.json says of a Llama."""
    config = model.config
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[number])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, backend: dict[str, Any], *, size: int) -> None:
    """Add the vocabulary, one token for each of the model's rows, the merges and the chat template."""
    tokens, types = [f"[PAD{row}]" for row in range(size)], [TokenType.UNUSED] * size
    for token, row in tokenizer.get_vocab().items():
        tokens[row], types[row] = token, TokenType.NORMAL
    for added in backend["added_tokens"]:
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in backend["model"]["merges"]])
    for add, row in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if row is not None:
            add(row)
    begun, plain = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    writer.add_add_bos_token(begun == [tokenizer.bos_token_id, *plain])
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(without_generation(tokenizer.chat_template))


def without_generation(template: str) -> str:
    """Turn the tags that mark what is learned into a condition that always holds; the white space stays the same.

    Only transformers knows them, and llama-cpp-python refuses a whole file for them (abetlen/llama-cpp-python#2225).
    """
    template = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", template)
    return re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", template)


def _add_weights(writer: GGUFWriter, model: PreTrainedModel, number: Number) -> int:
    """Add the weights, vectors in F32; returns how many matrices had to stay wider than asked for."""
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    block = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0][0]
    wider = 0
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        place = names.get_name(name, try_suffixes=(".weight",))
        if place is None:
            raise StageError(f"--gguf has no place for the weights {name}", hint=LEAVE_OUT)
        kind = GGMLQuantizationType[number if weight.ndim == 2 else "F32"]
        if kind is GGMLQuantizationType.Q8_0 and weight.shape[1] % block:
            kind, wider = GGMLQuantizationType.F16, wider + 1
        data = quantize(_as_llama_cpp(name, weight, model).float().contiguous().numpy(), kind)
        writer.add_tensor(place, data, raw_dtype=kind)
    return wider


def _as_llama_cpp(name: str, weight: Tensor, model: PreTrainedModel) -> Tensor:
    """Order the rows of queries and keys for a rotation of neighbours; transformers rotates the halves of a head.

    `weight` and what is returned are (heads * width, hidden size).
    """
    config = model.config
    if name.endswith("q_proj.weight"):
        heads = config.num_attention_heads
    elif name.endswith("k_proj.weight"):
        heads = config.num_key_value_heads
    else:
        return weight
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def read_back(path: Path) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a GGUF file with transformers, in fp32.

    transformers 5.23 gives every such tokenizer a token more, `<|endoftext|>`, which the model has no row for.
    """
    options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options)
    return model, AutoTokenizer.from_pretrained(path.parent, **options)


def _check(model: PreTrainedModel, tokenizer: Tokenizer, path: Path, number: Number) -> float:
    """Compare a file with what it was made of; returns how far the logits are apart, as a share of the largest one."""
    found, its_tokenizer = read_back(path)
    for text in (*TEXTS, "a".join(str(token) for token in tokenizer.all_special_tokens)):
        ids, its_ids = (one(text)["input_ids"] for one in (tokenizer, its_tokenizer))
        if ids != its_ids or tokenizer.decode(ids) != its_tokenizer.decode(ids):
            message = f"read back from the GGUF file, the tokenizer gives other tokens for {text!r}"
            raise StageError(Problem(message), hint=LEAVE_OUT)
    if tokenizer.chat_template and _rendered(tokenizer) != _rendered(its_tokenizer):
        raise StageError("read back from the GGUF file, the chat template gives another text", hint=LEAVE_OUT)
    ids = probe(model)
    logits = logits_of(model, ids)
    shift = float((logits - logits_of(found, ids)).abs().max()) / max(1.0, float(logits.abs().max()))
    wider = "take a wider --gguf, such as F32" if number != "F32" else LEAVE_OUT
    if not math.isfinite(shift):
        raise StageError("read back from the GGUF file, logits are not finite", hint=wider)
    if shift > BOUNDS[number]:
        message = f"read back from the GGUF file, a logit is off by {shift:.2g} of the largest one"
        raise StageError(f"{message}, and {BOUNDS[number]:.2g} is the bound", hint=wider)
    return shift


def _rendered(tokenizer: Tokenizer) -> str:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    text: str = templates.apply(tokenizer, turns, tokenize=False, add_generation_prompt=True)
    return text
