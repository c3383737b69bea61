"""Policy, value network and reference as adapters on one base model (LoRA, arXiv:2106.09685).

The policy's adapter is the active one, always; another is active only inside of `using`. A fresh policy's reference is
the base with its adapters off, exactly the model that it began from. A policy that came as an adapter is held to a
frozen copy of that adapter: the bare base is not what it began from.
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
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmpipe import lora as options
from llmpipe.errors import StageError

POLICY, VALUE, REFERENCE = "default", "value", "ref"
"""Names of adapters; the first and the last are those by which TRL's trainers know a policy and its reference."""


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
    fresh = deepcopy(policy.peft_config[POLICY])
    fresh.init_lora_weights = True
    if folder is not None:
        policy.add_adapter(REFERENCE, deepcopy(fresh))
        weights = get_peft_model_state_dict(policy, adapter_name=POLICY, save_embedding_layers=False)
        set_peft_model_state_dict(policy, weights, adapter_name=REFERENCE)
    if value:
        policy.add_adapter(VALUE, fresh)
    policy.set_adapter(POLICY)
    if value:
        policy.set_requires_grad(VALUE)
    return policy


def put(base: PreTrainedModel, lora: dict[str, Any], folder: Path | None) -> PeftModel:
    """Put one adapter on a model: a fresh one, or the one in `folder` to train further.

    Raises:
        StageError: peft cannot make such an adapter on this model, or it could not be merged.
    """
    began_on = digests(base)
    try:
        if folder is None:
            config = LoraConfig(task_type="CAUSAL_LM", **{**options.DEFAULTS, **lora})
            adapted = get_peft_model(base, config, adapter_name=POLICY)
        else:
            config = LoraConfig.from_pretrained(folder)
            config.lora_dropout, config.inference_mode = lora.get("lora_dropout", 0.0), False
            adapted = PeftModel.from_pretrained(base, folder, adapter_name=POLICY, is_trainable=True, config=config)
    except (ValueError, RuntimeError, TypeError) as error:
        raise StageError(f"lora: {error}".splitlines()[0]) from error
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if base.config.tie_word_embeddings and any(isinstance(layer, BaseTunerLayer) for layer in ends):
        message = "lora.target_modules names the embedding or the output layer, which are one matrix in this model"
        raise StageError(f"{message}: merged, the adapter of one would change both", hint="target_modules: all-linear")
    adapted.began_on = began_on
    return adapted


def is_base_unchanged(policy: PeftModel) -> bool:
    """Whether every weight of the model that `put` was given is still there, to the bit."""
    unchanged: bool = policy.began_on <= digests(policy)
    return unchanged


def digests(model: nn.Module) -> Counter[str]:
    """Count a model's weights by their sha256; their names change as adapters are put around them."""
    return Counter(fingerprint([("", weight)]) for weight in model.parameters())


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


class AdapterReference:
    """What a policy with adapters is held near to, on the base that it shares: no adapter, or the one it came with."""

    def __init__(self, policy: PeftModel) -> None:
        self.model = policy
        self.adapter = REFERENCE if REFERENCE in policy.peft_config else None
        self.fingerprint = self._fingerprint()

    def __call__(self, model: Any, sequences: Any) -> Tensor:
        """Return the log-probabilities of the answers' tokens in nats, (tokens,)."""
        with using(self.model, self.adapter):
            logps: Tensor = model.logps_of(self.model, sequences)
        return logps

    @property
    def is_unchanged(self) -> bool:
        """Whether the weights under the trained adapters are what they were."""
        return self._fingerprint() == self.fingerprint

    def _fingerprint(self) -> str:
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        state = self.model.state_dict()
        return fingerprint((name, tensor) for name, tensor in state.items() if name not in trained)


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 of named weights."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
