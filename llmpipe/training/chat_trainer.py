"""TRL's SFTTrainer as llmpipe uses it."""

from __future__ import annotations

from typing import Any

from trl import SFTTrainer

from llmpipe.training.flow import Measured
from llmpipe.training.lora import OnlyTrained


class ChatTrainer(OnlyTrained, Measured, SFTTrainer):
    """SFTTrainer with llmpipe's guards, token-weighted evaluation, and checkpoints of adapters without their base."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card into checkpoints; `llmpipe export` writes one for people."""
