"""The layer `classifier`: what a stage of `kind: classify` has learned to tell apart."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmpipe.moderation import Find

if TYPE_CHECKING:
    from llmpipe.evaluation.classifier import Classifier


class ClassifierLayer:
    """Gives a text the probabilities of the classes that a policy has rules for; of a long text, its worst window's."""

    def __init__(self, classifier: Classifier, labels: Sequence[str]) -> None:
        self._classifier, self._labels = classifier, labels
        self._lock = threading.Lock()
        """A tokenizer in Rust refuses to be borrowed by two threads where one of them changes how it cuts."""

    @classmethod
    def load(cls, folder: str, labels: Sequence[str]) -> ClassifierLayer:
        """Load the model of a folder."""
        from llmpipe.evaluation.classifier import Classifier  # torch: only where a policy names a classifier

        return cls(Classifier(folder), labels)

    def find(self, text: str) -> list[Find]:
        """Return each class with its probability."""
        if not text.strip():
            return []
        with self._lock:
            (probabilities,) = self._classifier.worst([text], self._labels)
        return [Find(label, probabilities[label], 0, len(text)) for label in self._labels]
