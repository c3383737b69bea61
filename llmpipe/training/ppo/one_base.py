"""Whether a reward model is an adapter on the base that the policy's adapters are on, and then one more of them.

Two adapters are on one base where the edges of their runs lead to one and the same folder, or commit of a repository,
and their tokenizers have one vocabulary, so that the base was grown in the same way for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.data.hub import revision_of
from llmpipe.errors import Problem, StageError
from llmpipe.settings import AnySource, HubSource
from llmpipe.training import adapters, models, reward_model
from llmpipe.training.ppo.shared import VALUE, RewardAdapter
from llmpipe.training.reward_model import Parts, RewardModel, vocabulary_of

REWARD = "reward"
"""What adapters of reward models are called, with their number."""


@dataclass(frozen=True)
class OneBase:
    """A policy with its adapters, and which model they are on."""

    policy: PeftModel
    tokenizer: Tokenizer
    under: adapters.Adapter
    """The policy's adapter, whose `base` this is."""

    def reward_model(self, source: AnySource, ctx: Context) -> RewardModel:
        """Load a reward model: as one more adapter where it is one on this base, else as a model of its own.

        Raises:
            StageError: it cannot be loaded, or does not fit.
        """
        roles = ["policy", *(["value"] if VALUE in self.policy.peft_config else []), "reference"]
        name = adapters.label(source)
        adapter = adapters.find(source, ctx)
        if adapter is None:
            reason = "it is no adapter"
        elif _place(adapter) != _place(self.under):
            reason = "its adapter is on another base"
        else:
            tokenizer = _tokenizer(adapter, source, ctx)
            parts = reward_model.take_apart(adapter.folder, tokenizer, ctx)
            if parts.is_plain and vocabulary_of(tokenizer) == vocabulary_of(self.tokenizer):
                ctx.say(f"{', '.join(roles)} and the reward model {name} share one base")
                return RewardModel(self._add(parts, adapter.folder), tokenizer, parts.format)
            reason = "it has another tokenizer" if parts.is_plain else "more than an adapter was trained"
        shared = f"{', '.join(roles[:-1])} and {roles[-1]} share one base"
        ctx.say(f"{shared}; the reward model {name} is a model of its own, for {reason}")
        return reward_model.load(source, ctx)

    def _add(self, parts: Parts, folder: Path) -> RewardAdapter:
        """Put a reward model's adapter on the base, frozen.

        Raises:
            StageError: it is of another shape than this base.
        """
        name = f"{REWARD}{sum(other.startswith(REWARD) for other in self.policy.peft_config)}"
        try:
            self.policy.add_adapter(name, parts.config)
            unknown = set_peft_model_state_dict(self.policy, parts.weights, adapter_name=name).unexpected_keys
        except (ValueError, RuntimeError) as error:
            unknown = str(error).splitlines()
        if unknown:
            message = f"the adapter does not fit {type(self.policy.get_base_model()).__name__}: {unknown[0]}"
            raise StageError(Problem(message, where=str(folder)), hint="was the base changed since?")
        heads = nn.Linear(parts.score.shape[1], parts.score.shape[0], bias=False)
        heads.weight.data.copy_(parts.score)
        return RewardAdapter(self.policy, name, heads)


def _tokenizer(adapter: adapters.Adapter, source: AnySource, ctx: Context) -> Tokenizer:
    """Load an adapter's own tokenizer, or the one of its base."""
    if (adapter.folder / "tokenizer_config.json").is_file():
        return models.load_tokenizer(source, ctx)
    return models.load_tokenizer(adapter.base, adapter.ctx)


def _place(adapter: adapters.Adapter) -> tuple[str, str | None]:
    """Say where the model under an adapter lies: two that are one lie in the same place."""
    source, ctx = adapter.base, adapter.ctx
    if isinstance(source, HubSource):
        return source.hub, revision_of(source, ctx, kind="model")
    return str(Path(ctx.folder_of(source)).resolve()), None
