"""The policy and the value network as one module: what is wrapped, stepped and checkpointed together.

Sequences are prompts and answers joined, padded on the right. A causal model sees nothing to its right and counts
positions from the left, so that they need neither a mask nor position ids, and padding cannot change a number
(left-padded GPT-2 without position ids is off by more than a nat per token).
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmpipe.training.ppo.shared import VALUE, ValueAdapter, fingerprint, names_of

PROBE_TOKENS = 8
LEAST_ROWS = 8  # answers that an entropy is taken of: the tokens of one are alike


@dataclass(frozen=True)
class Sequences:
    """Prompts with their answers.

    `ids`: (answers, seq), padded on the right. `prompt_lengths`, `lengths`: (answers,), tokens of each prompt and of
    each answer, its end token included.
    """

    ids: Tensor
    prompt_lengths: Tensor
    lengths: Tensor

    def predicting(self) -> Tensor:
        """Mark the positions whose next token is an answer's, (answers, seq)."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        first = (self.prompt_lengths - 1)[:, None]
        return (place >= first) & (place < first + self.lengths[:, None])

    def answer_tokens(self) -> Tensor:
        """Return the tokens of all answers one after the other, (tokens,)."""
        return self.ids[:, 1:][self.predicting()[:, :-1]]

    def mask(self) -> Tensor:
        """Mark the tokens of answers that are padded to the longest one, (answers, longest answer)."""
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        return torch.arange(longest, device=self.ids.device) < self.lengths[:, None]

    def rows(self, chosen: Tensor) -> Sequences:
        """Return some of the rows, cut to the longest of them."""
        prompts, lengths = self.prompt_lengths[chosen], self.lengths[chosen]
        return Sequences(self.ids[chosen, : int((prompts + lengths).max())], prompts, lengths)

    def to(self, device: torch.device) -> Sequences:
        """Move to a device."""
        return Sequences(self.ids.to(device), self.prompt_lengths.to(device), self.lengths.to(device))


def joined(prompts: list[list[int]], answers: list[list[int]], *, pad_id: int) -> Sequences:
    """Join prompts with their answers."""
    rows = [torch.tensor(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    nothing = torch.zeros(0, 0, dtype=torch.long)  # what a process has when there are fewer prompts than processes
    return Sequences(
        nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id) if rows else nothing,
        torch.tensor([len(prompt) for prompt in prompts], dtype=torch.long),
        torch.tensor([len(answer) for answer in answers], dtype=torch.long),
    )


class ValueNetwork(nn.Module):
    """A transformer without its language-model head, and one number for each position."""

    def __init__(self, backbone: PreTrainedModel, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, ids: Tensor, predicting: Tensor) -> Tensor:
        """Return the values at the marked positions, (tokens,)."""
        hidden = self.backbone(input_ids=ids, use_cache=False).last_hidden_state
        values: Tensor = self.head(hidden[predicting]).squeeze(-1)
        return values


def zero_head(hidden_size: int) -> nn.Linear:
    """Make a head that begins at 0: with nothing known, no answer is better than another."""
    head = nn.Linear(hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def head_of_scores(score: nn.Linear, weights: Tensor) -> nn.Linear:
    """Join the heads of a reward model, (heads, hidden), into one that gives their weighted sum."""
    head = zero_head(score.in_features)
    with torch.no_grad():
        head.weight.copy_(weights[None] @ score.weight)
        if score.bias is not None:
            head.bias.copy_(weights @ score.bias)
    return head


def rescale(head: nn.Linear, *, mean: float, deviation: float) -> None:
    """Make a head give (value - mean) / deviation."""
    with torch.no_grad():
        head.weight.div_(deviation)
        head.bias.sub_(mean).div_(deviation)


class PolicyValue(nn.Module):
    """A policy, and a value network of its own, an adapter beside the policy's, or a head on its last hidden state.

    Log-probabilities are taken at the sampling temperature. Only the positions that predict an answer's token are
    projected onto the vocabulary.
    """

    def __init__(
        self, policy: PreTrainedModel, value: ValueNetwork | ValueAdapter | nn.Linear, *, temperature: float
    ) -> None:
        super().__init__()
        self.policy, self.value = policy, value
        adapter = names_of(policy, VALUE) if isinstance(value, ValueAdapter) else frozenset()
        self.value_adapter = frozenset(f"policy.{name}" for name in adapter)
        self.temperature = temperature
        self.config = policy.config
        self.projects_alone = _projects_alone(policy)

    def forward(self, ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities in nats and values of the answers' tokens, each (tokens,) in fp32, row by row."""
        sequences = Sequences(ids, prompt_lengths, lengths)
        predicting = sequences.predicting()
        logps, hidden = self._logps(self.policy, sequences, predicting)
        values = self.value(hidden).squeeze(-1) if isinstance(self.value, nn.Linear) else self.value(ids, predicting)
        return logps, values.float()

    def logps_of(self, model: PreTrainedModel, sequences: Sequences) -> Tensor:
        """Return log-probabilities of the answers' tokens under another model, by the same computation, (tokens,)."""
        return self._logps(model, sequences, sequences.predicting())[0]

    def _logps(self, model: PreTrainedModel, sequences: Sequences, predicting: Tensor) -> tuple[Tensor, Tensor]:
        tokens = sequences.answer_tokens()
        if not self.projects_alone:
            found = model(input_ids=sequences.ids, use_cache=False, output_hidden_states=True)
            logits = found.logits[predicting].float() / self.temperature
            return -F.cross_entropy(logits, tokens, reduction="none"), found.hidden_states[-1][predicting]
        hidden = backbone_of(model)(input_ids=sequences.ids, use_cache=False).last_hidden_state[predicting]
        head = model.get_output_embeddings()
        if type(head) is nn.Linear and head.bias is None and len(tokens):
            # a tenth faster than the next lines at 33k tokens; torch 2.13's chunked `options=` are 20 times slower here
            losses = F.linear_cross_entropy(hidden / self.temperature, head.weight, tokens, reduction="none")
        else:
            losses = F.cross_entropy(head(hidden).float() / self.temperature, tokens, reduction="none")
        return -losses.float(), hidden

    @torch.no_grad()
    def entropy(self, sequences: Sequences, *, most_tokens: int) -> Tensor:
        """Return the policy's entropy in nats before some of the answers' tokens, evenly chosen, (tokens,)."""
        count = len(sequences.lengths)
        enough = math.ceil(most_tokens * count / max(1, int(sequences.lengths.sum())))
        step = max(1, count // max(LEAST_ROWS, enough))
        sequences = sequences.rows(torch.arange(0, count, step, device=sequences.ids.device))
        places = torch.nonzero(sequences.predicting())
        places = places[:: max(1, len(places) // most_tokens)][:most_tokens]
        chosen = torch.zeros_like(sequences.ids, dtype=torch.bool)
        chosen[places[:, 0], places[:, 1]] = True
        if self.projects_alone:
            hidden = backbone_of(self.policy)(input_ids=sequences.ids, use_cache=False).last_hidden_state
            logits = self.policy.get_output_embeddings()(hidden[chosen])
        else:
            logits = self.policy(input_ids=sequences.ids, use_cache=False).logits[chosen]
        logits = logits.float() / self.temperature
        return torch.distributions.Categorical(logits=logits, validate_args=False).entropy()  # validation needs a row

    def part_of(self, name: str) -> str:
        """Say whether a parameter is the `policy`'s or the `value`'s; an adapter of the value lies in the policy."""
        return "value" if name.startswith("value.") or name in self.value_adapter else "policy"

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what the optimizer changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the policy recomputes its activations; Trainer asks."""
        return bool(self.policy.is_activation_checkpointing)

    def activation_checkpointing_enable(self, **options: object) -> None:
        """Recompute activations in both networks."""
        self.policy.activation_checkpointing_enable(**options)
        if isinstance(self.value, ValueNetwork):
            self.value.backbone.activation_checkpointing_enable(**options)


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the transformer without its head; the adapters of a peft model stay in it."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model


@torch.no_grad()
def _projects_alone(policy: PreTrainedModel) -> bool:
    """Whether the logits are the head's output and nothing more: some models cap or scale them afterwards."""
    ids = torch.arange(PROBE_TOKENS, device=policy.device)[None] % policy.config.vocab_size
    was_training = policy.training
    policy.eval()
    whole = policy(input_ids=ids, use_cache=False).logits
    alone = policy.get_output_embeddings()(backbone_of(policy)(input_ids=ids, use_cache=False).last_hidden_state)
    policy.train(was_training)
    return whole.shape == alone.shape and torch.allclose(whole, alone, atol=1e-4, rtol=1e-4)


class Reference:
    """What the policy is held near to: a frozen copy of it, taken before training."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.model: PreTrainedModel = deepcopy(policy).eval().requires_grad_(False)
        self.fingerprint = fingerprint_of(self.model)

    def __call__(self, model: PolicyValue, sequences: Sequences) -> Tensor:
        """Return the log-probabilities of the answers' tokens in nats, (tokens,)."""
        return model.logps_of(self.model, sequences)

    @property
    def is_unchanged(self) -> bool:
        """Whether its weights are what they were."""
        return fingerprint_of(self.model) == self.fingerprint


def fingerprint_of(model: nn.Module) -> str:
    """Return the sha256 of all weights."""
    return fingerprint(model.state_dict().items())
