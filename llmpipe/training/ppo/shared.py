"""Policy, value network, reference and reward model as adapters on one base model (LoRA, arXiv:2106.09685).

The policy's adapter is the active one, always; another is active only inside of `using`. A fresh policy's reference is
the base with its adapters off, exactly the model that it began from. A policy that came as an adapter is held to a
frozen copy of that adapter: the bare base is not what it began from. A reward model that is an adapter on this very
base lies beside them, frozen, and the value's begins as a copy of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmpipe import lora as options
from llmpipe.errors import StageError

POLICY, VALUE, REFERENCE = "default", "value", "ref"
"""Names of adapters; the first and the last are those by which TRL's trainers know a policy and its reference."""

SCORE = "base_model.model.score.weight"
"""The heads' name among the weights of a reward model's adapter; all others are those of a causal model's."""


def attach(base: PreTrainedModel, lora: dict[str, Any], folder: Path | None, *, value: bool) -> PeftModel:
    """Put the policy's adapter on a model: a fresh one, or the one in `folder` to train further, with its reference.

    Args:
        base: frozen from here on.
        lora: options of peft.LoraConfig.
        folder: of an adapter that fits the options.
        value: add an adapter for the value network, of the policy's shape.

    Raises:
        StageError: peft cannot make such an adapter on this model, or it could not be merged.
    """
    policy = put(base, lora, folder)
    if folder is not None:
        copy(policy, POLICY, REFERENCE)
    if value:
        fresh = deepcopy(policy.peft_config[POLICY])
        fresh.init_lora_weights = True
        policy.add_adapter(VALUE, fresh)
    policy.set_adapter(POLICY)
    if value:
        policy.set_requires_grad(VALUE)
    return policy


def copy(model: PeftModel, adapter: str, name: str) -> None:
    """Put a frozen copy of an adapter beside it."""
    config = deepcopy(model.peft_config[adapter])
    config.init_lora_weights = True
    model.add_adapter(name, config)
    weights = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    set_peft_model_state_dict(model, weights, adapter_name=name)


def put(base: PreTrainedModel, lora: dict[str, Any], folder: Path | None) -> PeftModel:
    """Put one adapter on a model: a fresh one, or the one in `folder` to train further.

    On a classifier, the adapter of a causal model fits just as well; its heads are trained whole.

    Raises:
        StageError: peft cannot make such an adapter on this model, or it could not be merged.
    """
    kind = "CAUSAL_LM" if base.get_output_embeddings() is not None else "SEQ_CLS"
    try:
        if folder is None:
            config = LoraConfig(task_type=kind, **{**options.DEFAULTS, **lora})
            adapted = get_peft_model(base, config, adapter_name=POLICY)
        else:
            config = LoraConfig.from_pretrained(folder)
            config.task_type, config.inference_mode = kind, False
            config.lora_dropout = lora.get("lora_dropout", 0.0)
            adapted = _loaded(base, folder, config)
    except (ValueError, RuntimeError, TypeError) as error:
        raise StageError(f"lora: {error}".splitlines()[0]) from error
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if base.config.tie_word_embeddings and any(isinstance(layer, BaseTunerLayer) for layer in ends):
        message = "lora.target_modules names the embedding or the output layer, which are one matrix in this model"
        raise StageError(f"{message}: merged, the adapter of one would change both", hint="target_modules: all-linear")
    adapted.began_on = digests(weight for weight in adapted.parameters() if not weight.requires_grad)
    return adapted


def _loaded(base: PreTrainedModel, folder: Path, config: LoraConfig) -> PeftModel:
    if config.task_type == "CAUSAL_LM":
        return PeftModel.from_pretrained(base, folder, adapter_name=POLICY, is_trainable=True, config=config)
    config.base_model_name_or_path = None  # or peft warns that it changes the name
    adapted = get_peft_model(base, config, adapter_name=POLICY)
    heads = {SCORE: adapted.score.weight}  # a causal model's adapter has none, and peft 0.21 asks for them
    set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu") | heads, adapter_name=POLICY)
    return adapted


def is_base_unchanged(policy: PeftModel) -> bool:
    """Whether every weight that `put` left frozen is still there, to the bit."""
    unchanged: bool = policy.began_on <= digests(policy.parameters())
    return unchanged


def digests(weights: Iterable[Tensor]) -> Counter[str]:
    """Count weights by their sha256; their names change as adapters are put around them."""
    return Counter(fingerprint([("", weight)]) for weight in weights)


@contextmanager
def using(model: PeftModel, adapter: str | None) -> Iterator[None]:
    """Have another adapter than the policy's active; None for none.

    peft 0.21 makes an adapter that it activates trainable and freezes the others, so that all are put back as they
    were. The graph of a forward pass that is over keeps the adapter that it went through.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        if adapter is None:
            model.base_model.disable_adapter_layers()
        else:
            model.set_adapter(adapter)
        yield
    finally:
        if adapter is None:
            model.base_model.enable_adapter_layers()
        model.set_adapter(POLICY)
        for parameter in trained:
            parameter.requires_grad_(True)


def names_of(model: PeftModel, adapter: str) -> frozenset[str]:
    """Name an adapter's parameters, as `model.named_parameters` does."""
    with using(model, adapter):
        return frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)


class ValueAdapter(nn.Module):
    """A value network that is an adapter on the policy's base, with a head of its own."""

    def __init__(self, policy: PeftModel, head: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self.shared = (policy,)  # in a tuple, for a module would be registered, and saved, a second time

    def forward(self, ids: Tensor, predicting: Tensor) -> Tensor:
        """Return the values at the marked positions, (tokens,)."""
        policy = self.shared[0]
        with using(policy, VALUE):
            hidden = policy.get_base_model().base_model(input_ids=ids, use_cache=False).last_hidden_state
        values: Tensor = self.head(hidden[predicting]).squeeze(-1)
        return values


class RewardAdapter(nn.Module):
    """A reward model that is a frozen adapter on the policy's base, with heads of its own; scored like a classifier."""

    def __init__(self, policy: PeftModel, adapter: str, score: nn.Linear) -> None:
        super().__init__()
        self.adapter, self.config = adapter, policy.config
        self.score = score.requires_grad_(False)
        self.shared = (policy,)  # in a tuple, for a module would be moved, and set to evaluate, a second time

    @property
    def device(self) -> torch.device:
        """Where it reads."""
        return self.score.weight.device

    def base_model(self, **inputs: Any) -> Any:
        """Return what the base gives through this adapter, as a classifier's transformer would."""
        policy = self.shared[0]
        with using(policy, self.adapter):
            return policy.get_base_model().base_model(**inputs)

    def lend_to_value(self) -> None:
        """Have the value's adapter begin as a copy of this one, in its shape."""
        policy = self.shared[0]
        policy.delete_adapter(VALUE)
        copy(policy, self.adapter, VALUE)
        policy.set_requires_grad(VALUE)


class AdapterReference:
    """What a policy with adapters is held near to, on the base that it shares: no adapter, or the one it came with."""

    def __init__(self, policy: PeftModel) -> None:
        self.model = policy
        self.adapter = REFERENCE if REFERENCE in policy.peft_config else None
        self.fingerprint = fingerprint_of_frozen(policy)

    def __call__(self, model: Any, sequences: Any) -> Tensor:
        """Return the log-probabilities of the answers' tokens in nats, (tokens,)."""
        with using(self.model, self.adapter):
            logps: Tensor = model.logps_of(self.model, sequences)
        return logps

    @property
    def is_unchanged(self) -> bool:
        """Whether the base, and all adapters that are not trained, are what they were."""
        return fingerprint_of_frozen(self.model) == self.fingerprint


def fingerprint_of_frozen(model: nn.Module) -> str:
    """Return the sha256 of all weights that are not trained."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return fingerprint((name, tensor) for name, tensor in model.state_dict().items() if name not in trained)


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 of named weights."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
