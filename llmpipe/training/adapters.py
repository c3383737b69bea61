"""Adapters as artifacts: a folder with an adapter's weights, and the model under it, found by the run's own edges.

`adapter_config.json` names the base by its stage, its hub id or the last part of its path, never by a path of this
machine (`chat+adapter` is the model `chat` with its own adapter merged); where the base lies is in the manifest of the
stage that made the adapter. Adapters that were made elsewhere name a hub id or a folder, and that is taken.
"""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import cached_file

from llmpipe import lora as options
from llmpipe.artifact import Gate, read_json, read_manifest
from llmpipe.context import Context
from llmpipe.data.hub import revision_of
from llmpipe.errors import Problem, StageError
from llmpipe.gates import gate
from llmpipe.settings import AnySource, FolderSource, GgufSource, HubSource, PathSource, StageSource
from llmpipe.training import models, quantized
from llmpipe.training.ppo.shared import POLICY, is_base_unchanged

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
HUB_ID = r"[\w.-]+/[\w.-]+"
TOLERANCE = 1e-4
"""How far a logit may move when an adapter is merged, as a share of the largest one."""
PROBE_TOKENS = 16
MERGED = "+adapter"


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, and where the model under it comes from."""

    folder: Path
    base: AnySource
    ctx: Context
    """In which `base` is to be read: of the run that made the adapter."""


def find(source: AnySource, ctx: Context) -> Adapter | None:
    """Return the adapter that a source is; None where it is a whole model.

    Raises:
        StageError: it is an adapter, and what is under it cannot be told.
    """
    folder = _folder(source, ctx)
    return None if folder is None else _adapter(folder, ctx)


def _folder(source: AnySource, ctx: Context) -> Path | None:
    """Return the folder of an adapter on this machine, downloaded if need be; None where the source is none."""
    if not isinstance(source, HubSource):
        folder = Path(ctx.folder_of(source))
        return folder if (folder / CONFIG).is_file() and not (folder / "config.json").is_file() else None
    revision = revision_of(source, ctx, kind="model")
    there: dict[str, Any] = {"revision": revision, "local_files_only": revision is None}
    quietly = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        if not cached_file(source.hub, CONFIG, **there, **quietly) or cached_file(
            source.hub, "config.json", **there, **quietly
        ):
            return None
        return Path(snapshot_download(source.hub, allow_patterns=list(HUB_FILES), **there))
    except (OSError, ValueError):
        return None  # loading it as a model says what is wrong


def _adapter(folder: Path, ctx: Context) -> Adapter:
    if not (folder / WEIGHTS).is_file():  # peft would take a pickle instead
        raise StageError(Problem(f"has no {WEIGHTS}; weights in a pickle are not read", where=str(folder)))
    named = (config := read_json(folder / CONFIG) or {}).get("base_model_name_or_path")
    manifest = read_manifest(folder.parent) if folder.name == "adapter" else None
    if manifest is None:
        return Adapter(folder, _base_elsewhere(folder, named, config.get("revision")), ctx)
    inside = replace(ctx, run_dir=folder.parent.parent, step=manifest)
    for entry in manifest.inputs:
        if entry.field != "model":
            continue
        source: AnySource = TypeAdapter(FolderSource).validate_python(entry.source)
        above = find(source, inside)
        if named == label(source) + (MERGED if above else ""):
            return Adapter(folder, source, inside)
        if above:  # it was trained further, on the same base
            return Adapter(folder, above.base, above.ctx)
    raise StageError(
        Problem(f"the adapter was made on {named}, which is not among the inputs of its stage", where=str(folder))
    )


def _base_elsewhere(folder: Path, named: str | None, revision: str | None) -> AnySource:
    """Turn what an adapter from elsewhere says of its base into a source."""
    if named:
        for place in (folder / named, Path(named)):
            if place.is_dir():
                return PathSource.model_validate({"path": str(place)})
            if place.is_file() and place.suffix.lower() == ".gguf":
                return GgufSource.model_validate({"gguf": str(place)})
        if re.fullmatch(HUB_ID, named):
            return HubSource.model_validate({"hub": named, "revision": revision})
    raise StageError(
        Problem(f"the model under this adapter is not here: {named or 'none is named'}", where=str(folder / CONFIG)),
        hint='set "base_model_name_or_path" in it to a hub id, a folder or a GGUF file',
    )


def label(source: AnySource) -> str:
    """Name a model without a path of this machine."""
    if isinstance(source, StageSource):
        return source.stage
    if isinstance(source, HubSource):
        return source.hub
    return Path(source.gguf if isinstance(source, GgufSource) else source.path).name  # type: ignore[union-attr]


def load_base(
    adapter: Adapter, source: AnySource, ctx: Context, quantization: dict[str, Any] | None = None
) -> tuple[PreTrainedModel, Tokenizer]:
    """Load the model under an adapter, with the adapter's own tokenizer and generation config where it has them."""
    model, tokenizer = models.load(adapter.base, adapter.ctx, quantization)
    if (adapter.folder / "tokenizer_config.json").is_file():
        tokenizer = models.load_tokenizer(source, ctx)
        models.grow(model, len(tokenizer))
    if (adapter.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(adapter.folder)
    return model, tokenizer


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return a model with an adapter added to its weights.

    Raises:
        StageError: the adapter is not this model's, or the merged model gives other logits.
    """
    try:
        adapted = PeftModel.from_pretrained(model, folder)
    except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
        message = f"the adapter does not fit {type(model).__name__}: {str(error).splitlines()[0]}"
        raise StageError(Problem(message, where=str(folder))) from error
    ids = probe(model)
    before = logits_of(adapted, ids)
    merged: PreTrainedModel = adapted.merge_and_unload()
    if not near(before, logits_of(merged, ids)):
        raise StageError(
            Problem("merged into its base, this adapter gives other logits than beside it", where=str(folder)),
            hint="was the base changed since, or its vocabulary?",
        )
    return merged.requires_grad_(True)  # peft froze it


def merge_gate(policy: PeftModel) -> Gate:
    """Check that a policy's adapter gives the same logits when it is merged; the base is put back but for rounding."""
    ids = probe(policy)
    before = logits_of(policy, ids)
    policy.merge_adapter([POLICY])
    after = logits_of(policy, ids)
    policy.unmerge_adapter()
    return gate("adapter-merges", near(before, after), f"off by {off(before, after):.1g}")


def probe(model: PreTrainedModel) -> Tensor:
    """Return a few tokens to compare models on, (1, tokens)."""
    return torch.arange(PROBE_TOKENS, device=model.device)[None] % model.config.vocab_size


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return a model's logits without dropout, (1, tokens, vocabulary)."""
    was_training = model.training
    model.eval()
    logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    model.train(was_training)
    return logits


def near(left: Tensor, right: Tensor) -> bool:
    """Whether two models' logits differ by rounding alone."""
    return off(left, right) <= TOLERANCE


def off(left: Tensor, right: Tensor) -> float:
    """Return the most that two models' logits differ, as a share of the largest one where that is above 1."""
    return float((left - right).abs().max()) / max(1.0, float(left.abs().max()))


@dataclass(frozen=True)
class Beginning:
    """What an adapter is to be trained on."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    folder: Path | None
    """Of an adapter that is trained further; None for a fresh one."""
    base: str
    """The model's name in the new adapter's configuration."""
    revision: str | None


def begin(
    source: AnySource, lora: dict[str, Any] | None, ctx: Context, quantization: dict[str, Any] | None = None
) -> Beginning:
    """Load a model to train whole (`lora` is None), or what an adapter with these options is to be trained on.

    An adapter of the same shape is trained further; of another shape, it is merged, and a fresh one begins.
    `quantization` is what `quantized.loading` returned.

    Raises:
        StageError: it cannot be loaded, or would have to be merged in 4 bits.
    """
    adapter = None if lora is None else find(source, ctx)
    if lora is None or adapter is None:
        return Beginning(*models.load(source, ctx, quantization), None, label(source), _revision(source, ctx))
    model, tokenizer = load_base(adapter, source, ctx, quantization)
    if reason := difference(adapter.folder, lora, model):
        quantized.refuse_merge(quantization, label(source), reason)
        ctx.say(f"the adapter {label(source)} is merged into its model and a new one begun on it: {reason}")
        return Beginning(merge(model, adapter.folder), tokenizer, None, label(source) + MERGED, None)
    revision = _revision(adapter.base, adapter.ctx)
    return Beginning(model, tokenizer, adapter.folder, label(adapter.base), revision)


def _revision(source: AnySource, ctx: Context) -> str | None:
    return revision_of(source, ctx, kind="model") if isinstance(source, HubSource) else None


def save_policy(policy: PreTrainedModel | PeftModel, begun: Beginning, folder: Path) -> None:
    """Write a policy for later stages: its adapter if it has one, else the whole model; the tokenizer beside it."""
    if not isinstance(policy, PeftModel):
        models.save(policy, begun.tokenizer, folder)
        return
    save(policy, folder, base=begun.base, revision=begun.revision)
    policy.generation_config.save_pretrained(folder)
    begun.tokenizer.save_pretrained(folder)


def gates(policy: PreTrainedModel | PeftModel) -> list[Gate]:
    """Check that the base is what it was, and that a later stage, which merges the adapter, gets what was trained."""
    if not isinstance(policy, PeftModel):
        return []
    # in this order: to see whether it merges leaves the base changed by rounding
    unchanged = gate("base-unchanged", is_base_unchanged(policy))
    return [unchanged, quantized.gate(policy) if quantized.is_quantized(policy) else merge_gate(policy)]


def save(policy: PeftModel, folder: Path, *, base: str | None = None, revision: str | None = None) -> None:
    """Write the policy's adapter in peft's format; without a base where nobody is to look for it."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(policy, adapter_name=POLICY, save_embedding_layers=False)
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = deepcopy(policy.peft_config[POLICY])
    config.inference_mode, config.base_model_name_or_path, config.revision = True, base, revision
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # a set has another order in every process
    config.save_pretrained(folder)


def difference(folder: Path, lora: dict[str, Any], base: PreTrainedModel) -> str | None:
    """Say why an adapter cannot be trained further under these options of `lora:`, or None where it can."""
    config = LoraConfig.from_pretrained(folder)
    for name in options.RESERVED.keys() & {"bias", "modules_to_save", "trainable_token_indices", "layer_replication"}:
        if getattr(config, name) not in (None, "none", [], {}):
            return f"it has {name}"
    for name, wanted in lora.items():
        has = getattr(config, name)
        if name == "target_modules":
            if targeted(base, wanted) != targeted(base, has):
                return "it is on other modules"
        elif name != "lora_dropout" and has != wanted:
            return f"its {name} is {has}, and {wanted} is asked for"
    return None


def targeted(base: PreTrainedModel, modules: Any) -> set[str]:
    """Name the modules of a model that `target_modules` means.

    Raises:
        StageError: it means none.
    """
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(base.config)
    try:
        found = get_peft_model(skeleton, LoraConfig(target_modules=modules), low_cpu_mem_usage=True)
    except ValueError as error:
        raise StageError(f"lora.target_modules: {error}".splitlines()[0]) from error
    return set(found.base_model.targeted_module_names)
