"""Training of classifiers: Trainer with weights for classes that are rare, and llmpipe's guards and measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe import gates as checks
from llmpipe.artifact import Gate
from llmpipe.evaluation.classes import measure
from llmpipe.training import adapters, saved
from llmpipe.training.classifier import Encoded, write
from llmpipe.training.flow import Measured
from llmpipe.training.reward_model import batches
from llmpipe.training.reward_trainer import LikeLengths

PROBES = 8
TOKENS_PER_PASS = 16384


def balanced(labels: Sequence[int], classes: int) -> Tensor:
    """Return a weight for each class, inverse to how often it comes; over the rows, their mean is 1."""
    counts = torch.bincount(torch.tensor(labels), minlength=classes).clamp(min=1)
    weights = 1 / counts
    return weights / (weights * counts).sum() * len(labels)


class Collator:
    """Rows as a batch, padded to the longest: input_ids and attention_mask (batch, seq), labels (batch,)."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Put rows into a batch."""
        longest = max(row.tokens for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : row.tokens] = torch.tensor(row.ids)
            mask[number, : row.tokens] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row.label for row in rows])}


class ClassTrainer(Measured, Trainer):
    """Trainer on texts and their classes."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        args: TrainingArguments,
        train: list[Encoded],
        held_out: list[Encoded],
        weights: Tensor | None,
    ) -> None:
        self.weights = weights
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=held_out or None,
            data_collator=Collator(tokenizer.pad_token_id),
            processing_class=tokenizer,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over rows: Trainer has to divide it by the passes

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Batch texts of like length, unless the user wants another strategy."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch = self.args.per_device_train_batch_size * self.args.world_size
        return LikeLengths([row.tokens for row in self.train_dataset], batch=batch, seed=self.args.seed)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """Return the mean cross-entropy of a batch in nats, each row weighed by its class.

        The weights' mean is 1 over all rows, so that the loss does not depend on which rows share a batch, as it would
        if the sum were divided by the batch's own weights (torch.nn.CrossEntropyLoss).
        """
        labels = inputs["labels"]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        losses = cross_entropy(outputs.logits.float(), labels, reduction="none", label_smoothing=smoothing)
        loss = losses.mean() if self.weights is None else (losses * self.weights.to(labels.device)[labels]).mean()
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def logits(self, rows: Sequence[Encoded]) -> Tensor:
        """Return logits without dropout, (rows, classes) in fp32 on the CPU."""
        was_training = self.model.training
        self.model.eval()
        found = torch.empty(len(rows), self.model.config.num_labels)
        for indices in batches([row.tokens for row in rows], tokens=TOKENS_PER_PASS):
            batch = self.data_collator([rows[index] for index in indices])
            given = {key: value.to(self.args.device) for key, value in batch.items() if key != "labels"}
            found[indices] = self.model(**given).logits.float().cpu()
        self.model.train(was_training)
        return found

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Log the loss of the held-out rows in nats, accuracy and macro-F1."""
        loss, found = self.measured()
        metrics = {"eval_loss": loss, "eval_accuracy": found["accuracy"], "eval_macro_f1": found["macro_f1"]}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def losses(self, loss: float) -> dict[str, float]:
        """Name the held-out loss, in nats per row."""
        return {"loss": loss}

    def held_out_loss(self) -> float:
        """Return nats per held-out row, weighed as in training."""
        return self.measured()[0]

    def measured(self) -> tuple[float, dict[str, Any]]:
        """Return loss and measures of the held-out rows; with several processes each takes its share of them."""
        args, names = self.args, list(self.model.config.id2label.values())
        mine = self.eval_dataset[args.process_index :: args.world_size]
        labels = torch.tensor([row.label for row in mine], dtype=torch.long)
        logits = self.logits(mine)
        weights = torch.ones(len(names)) if self.weights is None else self.weights
        loss = (cross_entropy(logits, labels, reduction="none") * weights[labels]).double().sum()
        cells = torch.bincount(labels * len(names) + logits.argmax(1), minlength=len(names) ** 2)
        total = torch.cat([loss[None], cells.double()]).to(args.device)
        if args.world_size > 1:
            dist.all_reduce(total)
        confusion = total[1:].view(len(names), -1).long().tolist()
        return float(total[0] / len(self.eval_dataset)), measure(confusion, names)


def gates(
    trainer: ClassTrainer, folder: Path, texts: Sequence[str], train: Sequence[Encoded], *, context: int
) -> list[Gate]:
    """Check what was saved to a folder on a few texts, and what it learned from."""
    again, tokenizer = (
        auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for auto in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    own = trainer.processing_class
    probes = [Encoded(ids, 0) for ids in write(texts[:PROBES], own, context=context)]
    same = write(texts[:PROBES], tokenizer, context=context) == [probe.ids for probe in probes]
    before = trainer.logits(probes)
    trainer.model, kept = again.to(trainer.args.device), trainer.model
    after, trainer.model = trainer.logits(probes), kept
    return [
        checks.gate("head-reloads", same and adapters.near(before, after), f"off by {adapters.off(before, after):.1g}"),
        checks.pad_is_not_end(own.pad_token_id, (own.eos_token_id, own.sep_token_id)),
        checks.gate(
            "every-class-is-learned", {row.label for row in train} == set(range(trainer.model.config.num_labels))
        ),
        saved.same_weights(trainer.model.state_dict(), again.state_dict()),
        *trainer.replayed,
    ]
