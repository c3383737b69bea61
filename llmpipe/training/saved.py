"""Gates on a folder that a stage wrote: what is read from it has to be what was trained, and has to stop.

Each looks at the disk, where later stages and chats look; `llmpipe.gates` says why each is there. They are for the
process that wrote the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.artifact import Gate
from llmpipe.data import said
from llmpipe.gates import gate, pad_is_not_end
from llmpipe.training import adapters, models, objectives, templates
from llmpipe.training.ppo.shared import POLICY

PROBES = (
    [said("user", "What is a duck?")],
    [said("user", "What is a duck?"), said("assistant", "A bird."), said("user", "And a\n  shoe?")],
)
KINDS = {"causal": "causal-lm", "masked": "masked-lm", "denoising": "seq2seq-lm"}


def gates(
    model: PreTrainedModel | PeftModel, tokenizer: Tokenizer, folder: Path, *, objective: str = "causal"
) -> list[Gate]:
    """Check a language model that was saved, or the adapter on one: weights, ties, template and generation config.

    It has to stop at every token that the model in memory stops at.
    """
    ends = [] if objective == "masked" else [generation_stops(model, tokenizer, folder)]
    return [*weights(model, tokenizer, folder, objective), template_travels(tokenizer, folder), *ends]


def gates_of_policy(
    trainer: Any, policy: PreTrainedModel | PeftModel, tokenizer: Tokenizer, folder: Path
) -> list[Gate]:
    """Check a policy that learned from its own answers: what it was held to, and what was saved."""
    return [
        gate("reference-unchanged", trainer.collector.reference.is_unchanged),
        pad_is_not_end(tokenizer.pad_token_id, policy.generation_config.eos_token_id),
        *adapters.gates(policy),
        *gates(policy, tokenizer, folder),
        *trainer.replayed,
    ]


def template_travels(tokenizer: Tokenizer, folder: Path) -> Gate:
    """Check that the saved tokenizer writes chats and texts in the tokens that the one in memory does."""
    try:
        again = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        return gate("template-travels", False, str(error).splitlines()[0])
    return gate("template-travels", _written(again) == _written(tokenizer))


def _written(tokenizer: Tokenizer) -> list[Any]:
    """Return a text and a few chats as ids; of a chat that the template refuses, what it says."""
    found: list[Any] = [tokenizer("A duck and\n a shoe.")["input_ids"]]
    if tokenizer.chat_template is None:
        return found
    for messages in PROBES:
        for ask in (False, True):
            try:
                text = templates.apply(tokenizer, messages, tokenize=False, add_generation_prompt=ask)
            except Exception as error:  # templates raise what they like: jinja2's errors, and their own
                found.append(str(error))
            else:
                found.append([text, tokenizer(text, add_special_tokens=False)["input_ids"]])
    return found


def generation_stops(model: PreTrainedModel | PeftModel, tokenizer: Tokenizer, folder: Path) -> Gate:
    """Check that the saved generation config ends an answer at what the model's does, and at nothing that pads."""
    wanted = _ids(model.generation_config.eos_token_id)
    try:
        saved = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError as error:
        return gate("generation-stops", False, str(error).splitlines()[0])
    stops = _ids(saved.eos_token_id)
    pads = {saved.pad_token_id, tokenizer.pad_token_id} - {None}
    names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(sorted(stops)))) or "nothing"
    return gate("generation-stops", bool(stops) and wanted <= stops and not stops & pads, f"stops at {names}")


def _ids(found: int | list[int] | None) -> set[int]:
    return {one for one in (found if isinstance(found, list) else [found]) if one is not None}


def weights_of(model: PreTrainedModel | PeftModel, again: PreTrainedModel, folder: Path) -> Gate:
    """Check that weights that were read from a folder are those in memory; of an adapter, those in its own file."""
    if isinstance(model, PeftModel):
        own = get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False)
        return same_weights(own, load_file(folder / adapters.WEIGHTS))
    return same_weights(model.state_dict(), again.state_dict())


@torch.no_grad()
def weights(model: PreTrainedModel | PeftModel, tokenizer: Tokenizer, folder: Path, objective: str) -> list[Gate]:
    """Check that the folder holds the weights in memory, and that a model read from it gives the same logits."""
    try:
        if isinstance(model, PeftModel):
            return [weights_of(model, model, folder)]
        again, facts = models.CLASSES[KINDS[objective]].from_pretrained(  # type: ignore[index]
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        return [gate("weights-reload", False, str(error).splitlines()[0])]
    again.to(model.device)
    odd = [f"{name} is {what}" for what in ("missing", "unexpected") for name in sorted(facts[f"{what}_keys"])]
    reload = gate("weights-reload", False, odd[0]) if odd else weights_of(model, again, folder)
    if reload.passed:
        document = torch.arange(objectives.PROBE_TOKENS).numpy() % model.config.vocab_size
        own, other = (objectives.probe(one.eval(), tokenizer, objective, [document]) for one in (model, again))
        reload = gate("weights-reload", adapters.near(own, other), f"off by {adapters.off(own, other):.1g}")
    return [reload, *_ties(model, again)]


def same_weights(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> Gate:
    """Check that weights which were read from a folder are those in memory, to the bit."""
    for name in sorted(own.keys() | saved.keys()):
        if name not in own or name not in saved:
            return gate("weights-reload", False, f"{name} is {'missing' if name in own else 'unexpected'}")
        if not torch.equal(own[name].cpu(), saved[name].cpu()):
            return gate("weights-reload", False, f"{name} differs")
    return gate("weights-reload", True, "off by 0")


def _ties(model: PreTrainedModel, again: PreTrainedModel) -> list[Gate]:
    """Check that the model in memory and the one that was read have one matrix, where the configuration says so."""
    if not model.config.tie_word_embeddings or model.get_output_embeddings() is None:
        return []
    ends = [(one.get_input_embeddings().weight, one.get_output_embeddings().weight) for one in (model, again)]
    return [gate("tied-embeddings", all(first.data_ptr() == last.data_ptr() for first, last in ends))]
