"""A finished reward model: what it read answers as, how it scores token ids, how it is saved and loaded.

`reward.json` lies beside the weights and says how the answers that the model learned from were written as tokens; a
score means something only for answers that are written in the same way. An adapter's folder is as peft writes one of a
sequence classifier, with the heads among its weights: peft alone can read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import cached_file

from llmpipe.artifact import read_json, write_json
from llmpipe.context import Context
from llmpipe.data import said
from llmpipe.data.formats import Conversation
from llmpipe.data.hub import revision_of
from llmpipe.errors import Problem, StageError
from llmpipe.settings import AnySource, HubSource
from llmpipe.training import adapters, models
from llmpipe.training.chat import render
from llmpipe.training.ppo.policy_value import backbone_of
from llmpipe.training.ppo.shared import SCORE, RewardAdapter

FORMAT_FILE = "reward.json"
ONE_CRITERION = "reward"
"""The name of the only head of a model whose data have no criteria."""


@dataclass(frozen=True)
class RewardFormat:
    """How the answers that a reward model learned from were written, and what its heads mean."""

    chat_template: str | None
    """None: prompt and answer were joined as plain text, after the tokenizer's begin token if it has one."""
    end_token_id: int
    """The token that ends an answer; one that was cut off goes without."""
    vocabulary: str
    """sha256 of the tokenizer's vocabulary, see `vocabulary_of`."""
    criteria: tuple[str, ...]
    """One for each head."""
    weights: tuple[float, ...]
    """The reward is the weighted sum of the heads."""


@dataclass(frozen=True)
class RewardModel:
    """A sequence classifier with one output for each criterion, not trained any further, and how to feed it."""

    model: PreTrainedModel | PeftModel | RewardAdapter
    tokenizer: Tokenizer
    format: RewardFormat

    @torch.no_grad()
    def scores(self, sequences: Sequence[Sequence[int]], *, tokens_per_pass: int = 16384) -> torch.Tensor:
        """Score prompts with their answers, given as ids; returns (answers, heads) in fp32 on the CPU.

        At most `tokens_per_pass` tokens, padding included, go through the model at once, or one row. An answer is
        read at its last token by its length: transformers 5.23 looks for the last one that is not padding by its
        id, and misses the end token where that is the padding, too.
        """
        self.model.eval()
        found = torch.empty(len(sequences), len(self.format.criteria))
        for rows in batches([len(ids) for ids in sequences], tokens=tokens_per_pass):
            found[rows] = pooled(self.model, [sequences[row] for row in rows]).float().cpu()
        return found


def batches(lengths: Sequence[int], *, tokens: int) -> Iterator[list[int]]:
    """Yield the indices of rows of about the same length, at most `tokens` at a time when they are padded."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and lengths[index] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pooled(model: PreTrainedModel | PeftModel | RewardAdapter, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the outputs at the last token of each sequence, (answers, heads).

    No mask is needed: what is to the right, which is where the padding goes, is never seen.
    """
    lengths = torch.tensor([len(ids) for ids in sequences])
    ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    hidden = backbone_of(model)(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    scores: torch.Tensor = model.score(hidden[torch.arange(len(sequences)), lengths - 1])
    return scores


def classifier(model: PreTrainedModel, criteria: Sequence[str]) -> PreTrainedModel:
    """Turn a causal model into a sequence classifier on the same weights, with a head for each criterion.

    The heads begin at zero, so that the untrained model prefers nothing, whatever the seed.

    Raises:
        StageError: transformers has no such classifier for the architecture.
    """
    config = deepcopy(model.config)
    config.id2label = dict(enumerate(criteria))
    config.label2id = {name: head for head, name in config.id2label.items()}
    refused = StageError(
        f"{config.model_type} cannot become a reward model: transformers has no classifier with a score head for it",
        hint="begin from another architecture, such as llama, qwen3 or gpt2",
    )
    try:
        with torch.device("meta"):  # the weights are the model's own
            made = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise refused from error
    if type(made.base_model) is not type(model.base_model) or not isinstance(
        getattr(made, "score", None), torch.nn.Linear
    ):
        raise refused
    setattr(made, made.base_model_prefix, model.base_model)
    made.score = torch.nn.Linear(made.score.in_features, len(criteria), bias=False, device=model.device)
    torch.nn.init.zeros_(made.score.weight)
    if any(tensor.is_meta for tensor in chain(made.parameters(), made.buffers())):
        raise refused
    return made


def vocabulary_of(tokenizer: Tokenizer) -> str:
    """Return the sha256 of all tokens and their ids: two tokenizers with the same one share token ids."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def end_token_of(tokenizer: Tokenizer, *, chat: bool) -> int:
    """Return the token that ends an answer: what the chat template writes after one, else the tokenizer's own.

    Only a token that text is never cut within can be it.

    Raises:
        StageError: there is none, so that a finished answer would look like one that was cut off.
    """
    writes_its_own = "eos_token" not in str(tokenizer.chat_template)
    if chat and (writes_its_own or tokenizer.eos_token_id is not None):
        written = render(Conversation([said("user", "a"), said("assistant", "b")]), tokenizer, 2).rstrip()
        last = tokenizer(written, add_special_tokens=False)["input_ids"][-1]
        if last in tokenizer.added_tokens_decoder:
            return int(last)
    if tokenizer.eos_token_id is None:
        raise StageError(
            "the tokenizer has no end token, so that a finished answer would look like one that was cut off",
            hint='name one of its tokens in tokenizer_config.json: "eos_token": "</s>"',
        )
    return int(tokenizer.eos_token_id)


def save(reward: RewardModel, folder: Path, begun: adapters.Beginning | None = None) -> None:
    """Write a plain Hugging Face folder, with the format beside the weights; of an adapter, it and the heads alone."""
    if isinstance(reward.model, PeftModel):
        assert begun is not None
        adapters.save(reward.model, folder, base=begun.base, revision=begun.revision)
        reward.tokenizer.save_pretrained(folder)
    else:
        models.save(reward.model, reward.tokenizer, folder)
    write_json(folder / FORMAT_FILE, asdict(reward.format))


def load(source: AnySource, ctx: Context) -> RewardModel:
    """Load a reward model in fp32 from a stage, a folder or the hub, frozen; an adapter is merged.

    One without `reward.json` was trained elsewhere: its format is taken from its tokenizer, and the user is told.

    Raises:
        StageError: it cannot be loaded, or has no head that scores.
    """
    if adapter := adapters.find(source, ctx):
        return merged(adapter, source, ctx)
    folder = ctx.folder_of(source)
    tokenizer = models.load_tokenizer(source, ctx)
    revision = revision_of(source, ctx, kind="model") if isinstance(source, HubSource) else None
    options: dict[str, Any] = {"revision": revision, "local_files_only": revision is None}
    try:
        model, facts = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
        file = cached_file(folder, FORMAT_FILE, _raise_exceptions_for_missing_entries=False, **options)
    except (OSError, ValueError) as error:
        raise StageError(Problem(str(error).splitlines()[0], where=folder), hint=HINT) from error
    if "score.weight" in facts["missing_keys"] or not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise StageError(Problem(HEADLESS, where=folder), hint=HINT)
    found = read_json(Path(file)) if file else None
    form = _format(found, tokenizer, folder, ctx, heads=model.config.num_labels)
    return RewardModel(model.eval().requires_grad_(False), tokenizer, form)


def merged(adapter: adapters.Adapter, source: AnySource, ctx: Context) -> RewardModel:
    """Load a reward model that is an adapter, with what is under it, and make one model of the two.

    Raises:
        StageError: they do not belong together, or the adapter has no head that scores.
    """
    base, tokenizer = adapters.load_base(adapter, source, ctx)
    form = take_apart(adapter.folder, tokenizer, ctx).format
    model = classifier(base, form.criteria)
    model.config.pad_token_id = tokenizer.pad_token_id
    model = adapters.merge(model, adapter.folder)
    return RewardModel(model.eval().requires_grad_(False), tokenizer, form)


@dataclass(frozen=True)
class Parts:
    """A reward model's adapter in parts: `config` and `weights` fit a causal model; `score` are (heads, hidden)."""

    config: LoraConfig
    weights: dict[str, Tensor]
    score: Tensor
    format: RewardFormat
    is_plain: bool
    """Whether nothing beside the heads was trained whole."""


def take_apart(folder: Path, tokenizer: Tokenizer, ctx: Context) -> Parts:
    """Read a reward model's adapter.

    Raises:
        StageError: it is not LoRA in safetensors, or has no head that scores.
    """
    try:
        config, weights = LoraConfig.from_pretrained(folder), load_file(folder / adapters.WEIGHTS)
    except (OSError, ValueError, TypeError) as error:
        raise StageError(Problem(str(error).splitlines()[0], where=str(folder)), hint=HINT) from error
    if SCORE not in weights:
        raise StageError(Problem(HEADLESS, where=str(folder)), hint=HINT)
    score = weights.pop(SCORE)
    form = _format(read_json(folder / FORMAT_FILE), tokenizer, str(folder), ctx, heads=len(score))
    whole = set(config.modules_to_save or ()) - {"classifier", "score"}  # both are named by peft, whatever there is
    is_plain = not whole and config.bias == "none" and not config.trainable_token_indices
    config.task_type, config.modules_to_save, config.lora_dropout = "CAUSAL_LM", None, 0.0
    return Parts(config, weights, score, form, is_plain)


HEADLESS = "has no weights of a head that scores answers"
HINT = "a reward model is needed: the output of a reward stage, or a sequence classifier with one label"


def _format(
    found: dict[str, Any] | None, tokenizer: Tokenizer, folder: str, ctx: Context, *, heads: int
) -> RewardFormat:
    """Read the format, or take it from the tokenizer, since most reward models were trained on its own template."""
    if found is not None:
        return RewardFormat(**{**found, **{key: tuple(found[key]) for key in ("criteria", "weights")}})
    if heads != 1:
        message = f"gives {heads} numbers, and has no {FORMAT_FILE} that says what they weigh"
        raise StageError(Problem(message, where=folder), hint=HINT)
    template = tokenizer.chat_template
    chat = template is not None
    end = end_token_of(tokenizer, chat=chat)
    form = RewardFormat(template, end, vocabulary_of(tokenizer), (ONE_CRITERION,), (1.0,))
    read = "its tokenizer's chat template" if chat else "plain text"
    token = f"{tokenizer.convert_ids_to_tokens(end)} (id {end})"
    ctx.say(f"{folder} has no {FORMAT_FILE}: it is taken to read {read}, and {token} at the end of an answer")
    return form
