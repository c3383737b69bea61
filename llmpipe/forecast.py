"""What the stages of a run will take, as far as arithmetic on the recipe can tell: no time, and memory roughly.

Reads the recipe, and the configuration and the headers of models that lie on this disk. Imports nothing heavy.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpipe import architectures
from llmpipe.artifact import StepRecord, read_json
from llmpipe.errors import StageError
from llmpipe.estimate import Estimate, flops

IMPORTS_MB = 620
"""Of a worker that has imported torch and the trainers, before its first model."""
NUMBER_BYTES = 4  # of fp32
PER_TOKEN_AND_LAYER = 34
"""Numbers of half a word that a layer keeps for each token and unit of width until the backward pass (Korthikanti
2022, arXiv:2205.05198, equation 2, without attention's own, which SDPA does not keep)."""
PER_TOKEN_AND_PIECE = 3
"""Numbers for each token and piece of the vocabulary: logits, their softmax, their gradient."""
BATCH_ROWS = 8  # as Trainer has it


@dataclass(frozen=True)
class Shape:
    """What memory and FLOPs go by."""

    parameters: int
    width: int
    layers: int
    vocabulary: int


def forecast(records: list[StepRecord], run_dir: Path) -> dict[str, Estimate]:
    """Estimate training stages whose model is known without building it; the others are left out."""
    shapes: dict[str, Shape] = {}
    vocabularies: dict[str, int] = {}
    found: dict[str, Estimate] = {}
    for record in records:
        if record.kind == "tokenizer":
            learned = record.settings["algorithm"] not in ("byte", "char")  # which are as large as it takes
            made = _vocabulary(run_dir / record.name / "tokenizer")
            vocabularies[record.name] = made or (record.settings["vocab_size"] if learned else 0)
        if "trainer" not in record.settings:
            continue
        shape = _shape(record, shapes, vocabularies, run_dir)
        if shape is not None:
            shapes[record.name] = shape
            found[record.name] = _of_shape(record.settings, shape)
    return found


def _shape(
    record: StepRecord, shapes: Mapping[str, Shape], vocabularies: Mapping[str, int], run_dir: Path
) -> Shape | None:
    """Find the shape of the model that a stage trains."""
    model = record.settings.get("model") or {}
    if "size" in model or "arch" in model:
        tokenizer = record.settings.get("tokenizer") or {}
        vocabulary = vocabularies.get(tokenizer.get("stage", ""), 0) or _vocabulary(Path(tokenizer.get("path", "")))
        if "size" in model:
            return _dialled(model["size"], vocabulary, record.settings["objective"])
        return _configured(model["arch"], model.get("config") or {}, vocabulary)
    if "stage" in model:
        if model["stage"] in shapes:
            return shapes[model["stage"]]
        return _in_folder(run_dir / model["stage"] / "model")
    return _in_folder(Path(model["path"])) if "path" in model else None


def _dialled(size: int, vocabulary: int, objective: str) -> Shape | None:
    from llmpipe.training import shapes  # plain arithmetic

    if not vocabulary:
        return None
    try:
        shape = shapes.dial(size, vocab_size=vocabulary, objective=objective)
    except StageError:
        return None  # the stage will say it
    depth = shape.get("num_hidden_layers") or shape["num_layers"]
    width = shape.get("hidden_size") or shape["d_model"]
    parameters = shapes.parameters(depth, width, vocabulary, objective=objective)
    return Shape(parameters, width, 2 * depth if objective == "denoising" else depth, vocabulary)


def _configured(arch: str, config: Mapping[str, Any], vocabulary: int) -> Shape | None:
    """Count the weights that a configuration makes, within a few per cent: no norms, biases, positions or heads."""
    given = architectures.completed(arch, config)

    def first(*names: str) -> Any:
        return next((given[name] for name in names if given.get(name)), 0)

    width = first("hidden_size", "n_embd", "d_model")
    depth = first("num_hidden_layers", "n_layer", "num_layers", "encoder_layers")
    heads = first("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")
    if not (vocabulary and width and depth and heads) or first("num_local_experts", "num_experts", "n_routed_experts"):
        return None  # one without attention, or with several feed-forward parts of which a token sees some
    head = first("head_dim", "d_kv") or width // heads
    attention = 2 * width * head * (heads + (first("num_key_value_heads") or heads))
    act = str(first("hidden_act", "feed_forward_proj"))
    is_gated = act == "silu" or act.startswith("gated") or "hidden_activation" in given
    feed_forward = (3 if is_gated else 2) * width * first("intermediate_size", "n_inner", "d_ff", "encoder_ffn_dim")
    layer = attention + (feed_forward or 8 * width**2)  # four times the width where nothing is said, as in GPT-2
    decoders = 0
    if "decoder_layers" in given or "num_decoder_layers" in given:
        decoders = first("decoder_layers", "num_decoder_layers") or depth
    embeddings = vocabulary * width * (1 if given.get("tie_word_embeddings", True) else 2)
    layers = depth * layer + decoders * (layer + attention)  # a decoder's layers look at the encoder, too
    return Shape(embeddings + layers, width, depth + decoders, vocabulary)


def _vocabulary(folder: Path) -> int:
    """Count the pieces of a tokenizer in a folder; 0 where it cannot be told."""
    tokenizer = read_json(folder / "tokenizer.json") or {}
    return len(tokenizer.get("model", {}).get("vocab") or ())


def _in_folder(folder: Path) -> Shape | None:
    """Read the shape of a model from its configuration and the headers of its weights."""
    config = read_json(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not isinstance(config, dict) or not files:
        return None
    width = config.get("hidden_size") or config.get("n_embd") or config.get("d_model")
    layers = config.get("num_hidden_layers") or config.get("n_layer") or config.get("num_layers")
    if not width or not layers:
        return None
    return Shape(sum(map(_numbers, files)), width, layers, config.get("vocab_size") or 0)


def _numbers(file: Path) -> int:
    """Count the numbers in a safetensors file: a length of eight bytes, then JSON, then the numbers."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _of_shape(settings: Mapping[str, Any], shape: Shape) -> Estimate:
    """Count tokens, FLOPs and bytes of a training stage in fp32 with Adam."""
    trained = 0 if settings.get("lora") is not None else shape.parameters
    micro, tokens = _batch(settings)
    models = 4 if "rollouts" in settings else 1
    weights = NUMBER_BYTES * (models * shape.parameters + 3 * trained * min(models, 2))  # gradients, Adam's two moments
    kept = shape.layers * shape.width * PER_TOKEN_AND_LAYER * NUMBER_BYTES // 2
    activations = micro * (kept + PER_TOKEN_AND_PIECE * shape.vocabulary * NUMBER_BYTES)
    return Estimate(
        parameters=shape.parameters,
        tokens=tokens,
        flops=None if tokens is None else flops(settings, shape.parameters, trained, tokens),
        peak_memory_mb=IMPORTS_MB + (weights + activations) / 2**20,
        disk_bytes=NUMBER_BYTES * (shape.parameters + 2 * 3 * trained),
    )


def _batch(settings: Mapping[str, Any]) -> tuple[int, int | None]:
    """Return the most tokens of a pass, and those of the whole stage, None where the data decide."""
    trainer = settings["trainer"]
    if "rollouts" in settings:
        answered = settings["rollouts"] * settings["rollout"]["samples"] * settings["rollout"]["max_new_tokens"]
        return settings["micro_batch_tokens"], answered * settings["epochs"]
    context = settings.get("context")
    if settings.get("batch_tokens"):
        micro, step = min(settings["micro_batch_tokens"], settings["batch_tokens"]), settings["batch_tokens"]
    else:
        rows = trainer.get("per_device_train_batch_size", BATCH_ROWS)
        micro = rows * (context or 512)
        step = micro * trainer.get("gradient_accumulation_steps", 1) if context else None
    steps = trainer.get("max_steps", -1)
    return micro, steps * step if steps > 0 and step else None
