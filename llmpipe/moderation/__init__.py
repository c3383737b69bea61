"""Moderation: layers that find what a text should not say, and a policy that says what becomes of it.

    policy.py      the YAML file: which finds of which layer are blocked, redacted, warned of or logged, and where
    words.py       layers `words` and `personal`: lists of words, personal data and keys
    classifier.py  layer `classifier`: the model of a `classify` stage
    guard.py       layer `guard`: a guard model at an address
    moderator.py   puts texts through the layers, decides by the policy, writes the log
    stream.py      the same for a text that comes in parts: what is not to be shown never is

A layer has a method `find(text)`, which may be called from several threads at once. Models are loaded only for a policy
that names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Action = Literal["block", "redact", "warn", "log"]
Place = Literal["input", "output", "tool"]
LayerName = Literal["words", "personal", "classifier", "guard"]


@dataclass(frozen=True)
class Find:
    """What a layer found in `text[start:end]`, which is all of the text where a model judges it as a whole."""

    category: str
    score: float
    start: int
    end: int


class Layer(Protocol):
    """What looks at texts."""

    def find(self, text: str) -> list[Find]:
        """Return what is found, in the order of the text.

        Raises:
            TalkError: it cannot look; what happens then is in the policy.
        """
        ...
