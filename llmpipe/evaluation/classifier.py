"""A classifier that judges whole texts on a CPU, many at once; a long one is cut into windows of its context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH_TOKENS = 8192


class Classifier:
    """The classifier of a folder that a stage of `kind: classify` has written."""

    def __init__(self, folder: str) -> None:
        options = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **options
        ).eval()
        self.has_many = self.model.config.problem_type == "multi_label_classification"
        """Whether a text may be of several classes, each with a probability of its own; `classify` makes none such."""
        self.classes = [self.model.config.id2label[number] for number in range(self.model.config.num_labels)]

    def worst(self, texts: Sequence[str], labels: Sequence[str]) -> list[dict[str, float]]:
        """Return the probability of each class for each text, in the window where `labels` together have most."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        windows, owners = encoded["input_ids"], encoded["overflow_to_sample_mapping"]
        columns = [self.classes.index(label) for label in labels]
        probabilities = self._probabilities(windows)
        wanted = probabilities[:, columns].sum(dim=1).tolist()
        worst: dict[int, int] = {}
        for window, owner in enumerate(owners):
            if owner not in worst or wanted[window] > wanted[worst[owner]]:
                worst[owner] = window
        return [dict(zip(self.classes, probabilities[worst[n]].tolist(), strict=True)) for n in range(len(texts))]

    @torch.inference_mode()
    def _probabilities(self, windows: list[list[int]]) -> torch.Tensor:
        """Return `(windows, classes)`."""
        found = torch.empty(len(windows), len(self.classes))
        for batch in _batches(windows):
            padded = self.tokenizer.pad({"input_ids": [windows[n] for n in batch]}, return_tensors="pt")
            logits = self.model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
            found[batch] = logits.sigmoid() if self.has_many else logits.softmax(dim=-1)
        return found


def _batches(windows: list[list[int]]) -> Iterator[list[int]]:
    """Yield numbers of windows of like length, padded to at most 8,192 tokens together."""
    batch: list[int] = []
    for number in sorted(range(len(windows)), key=lambda number: len(windows[number])):
        if batch and (len(batch) + 1) * len(windows[number]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
