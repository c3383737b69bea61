"""What DPO and KTO share: a policy that is held to what it was, on answers that are ids already.

The reference is the policy as it came. Its log-probabilities are taken once, before anything is trained, so that no
second model is kept, and nothing that training does can change them. With an adapter that comes from another stage,
the policy as it came is the base with that adapter on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from datasets import Dataset
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, TrainingArguments
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe import gates as checks
from llmpipe.artifact import Gate
from llmpipe.context import Context
from llmpipe.settings import TrainingSettings
from llmpipe.training import adapters, flow, models, quantized, reward_model, saved
from llmpipe.training.flow import Measured
from llmpipe.training.lora import OnlyTrained, share
from llmpipe.training.packing import IGNORED
from llmpipe.training.ppo.policy_value import fingerprint_of
from llmpipe.training.ppo.shared import fingerprint_of_frozen, put

TOKENS_PER_PASS = 16384
PROBES = 8
TOLERANCE, COARSE_TOLERANCE = 1e-4, 0.1
"""Nats per token that a log-probability may be off by, in fp32 and in less; wrong positions put it off by a nat."""
LOST_NATS = 1.0
"""From here on it is said that good answers became less likely; DPO may do that (arXiv:2410.08847)."""
ITS_FIGURES: Any = object()
"""Given to TRL for a reference: there are its log-probabilities, and no model."""


class HeldToReference(OnlyTrained, Measured):
    """Mixed into trainers of TRL that compare log-probabilities of answers with a reference's.

    Rows have `prompt_ids`, two answers to it under `sides`, and `length`, the tokens of the longer one with its prompt.
    """

    sides: ClassVar[tuple[str, str]]
    figures: ClassVar[tuple[str, str]]
    """The columns of what the reference says of each side, as TRL reads them."""
    score: ClassVar[str]
    """The name of the second of what `measured` returns."""
    accelerator: Any
    processing_class: Any
    # TRL 1.16 would keep a second copy of an adapter, fresh or not, for a reference
    ref_model = property(lambda _: None, lambda *_: None, doc="None, whatever TRL sets.")

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: Tokenizer,
        *,
        args: TrainingArguments,
        rows: dict[str, list[Any]],
        held_out: dict[str, list[Any]] | None,
    ) -> None:
        self.came_with = fixed(model)
        super().__init__(  # type: ignore[call-arg]
            model=model,
            ref_model=ITS_FIGURES,
            args=args,
            train_dataset=Dataset.from_dict(rows),
            eval_dataset=Dataset.from_dict(held_out) if held_out else None,
            processing_class=tokenizer,
        )

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card into checkpoints; `llmpipe export` writes one for people."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """Leave the ids as they are: TRL 1.16 has no option to, and would ask for the text."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """Add what the reference says of each row: the policy itself, for this is called before it is trained.

        TRL 1.16's own hands the figures to other processes in a file, which they do not find where the data set is in
        memory (datasets then names the file at random).
        """
        logps = self.logps(dataset)
        for side, name in enumerate(self.figures):
            dataset = dataset.add_column(name, logps[:, side].tolist())
        return dataset

    def answer_logps(self, inputs: dict[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
        """Return the policy's log-probabilities of the answers of a collated batch in nats, (answers,)."""
        ids = inputs[f"{prefix}input_ids"]
        labels = ids.masked_fill(inputs[f"{prefix}completion_mask"] == 0, IGNORED)
        with torch.no_grad(), self.accelerator.autocast():
            outputs = self.model(
                input_ids=ids, attention_mask=inputs[f"{prefix}attention_mask"], labels=labels, fused_lm_head=True
            )
        logps: torch.Tensor = outputs.log_probs.sum(-1)
        return logps

    def logps_of(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the policy's log-probabilities of both sides of a collated batch in nats, (rows, 2)."""
        raise NotImplementedError

    def logps(self, data: Dataset) -> torch.Tensor:
        """Return the policy's log-probabilities of both sides of all rows in nats, (rows, 2), on the CPU.

        Each process reads its share of the rows; all get all of the figures.
        """
        args = self.args
        was_training = self.model.training
        self.model.eval()
        lengths = list(data["length"])
        mine = range(args.process_index, len(lengths), args.world_size)
        found = torch.zeros(len(lengths), 2, device=args.device)
        for rows in reward_model.batches([lengths[index] for index in mine], tokens=TOKENS_PER_PASS // 2):
            indices = [mine[row] for row in rows]
            batch = self.data_collator(data.__getitems__(indices))
            found[indices] = self.logps_of({key: value.to(args.device) for key, value in batch.items()}).float()
        if args.world_size > 1:
            dist.all_reduce(found)
        self.model.train(was_training)
        return found.cpu()

    def reference(self, data: Dataset) -> torch.Tensor:
        """Return what the loss takes for the reference's log-probabilities in nats, (rows, 2)."""
        return torch.tensor([list(data[name]) for name in self.figures]).T

    def measured(self) -> tuple[float, float | None]:
        """Return the held-out loss, and how well rewards tell good from bad where that can be told."""
        raise NotImplementedError

    def held_out_loss(self) -> float:
        """Return the held-out loss by the method's own equation, whatever `loss_type` it learns from."""
        return self.measured()[0]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Log the held-out loss, and how well rewards tell good from bad."""
        loss, score = self.measured()
        metrics = {"eval_loss": loss} | ({} if score is None else {f"eval_{self.score}": score})
        was_training = self.model.training
        self.model.eval()  # or TRL would add the figures of the training batches to these
        self.log(dict(metrics))
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def fixed(model: PreTrainedModel | PeftModel) -> str:
    """Return the sha256 of what a policy is held to: the weights under an adapter, or else all as they are now."""
    return fingerprint_of_frozen(model) if isinstance(model, PeftModel) else fingerprint_of(model)


def fitted(trainer: HeldToReference, ctx: Context, settings: TrainingSettings) -> dict[str, Any]:
    """Train, and return the metrics that mean something where the loss is not of tokens, and begins where it must."""
    metrics = flow.fit(trainer, ctx, settings) | share(trainer.model)
    return {name: metrics[name] for name in metrics if name not in ("held_out_perplexity", "held_out_loss_before")}


def as_it_came(trainer: HeldToReference, settings: Any, ctx: Context) -> PreTrainedModel | PeftModel:
    """Load a policy anew, as it was before it was trained; its vocabulary may have got a row for the pad token."""
    quiet = replace(ctx, emit=lambda _: None)
    begun = adapters.begin(settings.model, settings.lora, quiet, quantized.loading(settings))
    models.grow(begun.model, trainer.model.get_input_embeddings().num_embeddings)
    return begun.model if settings.lora is None else put(begun.model, settings.lora, begun.folder)


def gates(
    trainer: HeldToReference,
    again: PreTrainedModel | PeftModel,
    answers: Iterable[Sequence[int]],
    *,
    end: int,
    context: int,
) -> list[Gate]:
    """Check what makes a policy that is held to something else than it began from, or one that never stops.

    `again` is the policy as it came, loaded anew.
    """
    ends = trainer.model.generation_config.eos_token_id
    return [
        checks.gate("reference-unchanged", fixed(again) == trainer.came_with and agrees(trainer, again)),
        checks.pad_is_not_end(trainer.processing_class.pad_token_id, ends),
        checks.answers_end(answers, end=end, context=context),
        *adapters.gates(trainer.model),
    ]


def gates_of_output(trainer: HeldToReference, folder: Path, learned_tokens: int) -> list[Gate]:
    """Check that answers had tokens to learn, and what was saved."""
    return [
        checks.something_learned(learned_tokens),
        *saved.gates(trainer.model, trainer.processing_class, folder),
        *trainer.replayed,
    ]


def agrees(trainer: Any, again: PreTrainedModel | PeftModel) -> bool:
    """Whether a few of the reference's log-probabilities are those of the model as it came, read without padding."""
    rows = trainer.train_dataset.select(range(min(PROBES, len(trainer.train_dataset))))
    answers = [(row["prompt_ids"], row[side]) for row in rows for side in trainer.sides]
    with trainer.accelerator.autocast():
        plain = plain_logps(again.to(trainer.args.device), answers)
    off = (plain - trainer.reference(rows).flatten()).abs() / torch.tensor([len(answer) for _, answer in answers])
    low = trainer.args.bf16 or trainer.args.fp16
    return bool(off.max() <= (COARSE_TOLERANCE if low else TOLERANCE))


@torch.no_grad()
def plain_logps(model: PreTrainedModel | PeftModel, answers: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Return log-probabilities of answers to prompts in nats, (answers,), from the model's logits, one at a time.

    There is no padding, no mask and no fused head: what any batch has to agree with.
    """
    found = []
    for prompt, answer in answers:
        ids = torch.tensor([prompt + answer], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -len(answer) - 1 : -1]
        found.append(-cross_entropy(logits.float(), ids[0, -len(answer) :], reduction="sum"))
    return torch.stack(found).cpu()
