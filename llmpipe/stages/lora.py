"""lora: what sft does, with an adapter on the model (arXiv:2106.09685). Reads a model and chats; writes `adapter/`.

    pirate: {kind: lora, model: chat, data: {path: pirate.jsonl}, lora: {r: 16, lora_alpha: 32}}

DoRA and rsLoRA are options of peft: `lora: {use_dora: true}`, `lora: {use_rslora: true}`. Later stages add the adapter
to the model's weights, or with a `lora:` of their own train it further.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llmpipe.lora import RESERVED_IN_SFT
from llmpipe.settings import Passthrough
from llmpipe.stages import sft

VERSION = sft.VERSION


class Settings(sft.Settings):
    """What `kind: lora` understands: all that sft does."""

    kind: Literal["lora"] = Field("lora", description="which stage this is")  # type: ignore[assignment]
    lora: Annotated[dict[str, Any], Passthrough("peft.LoraConfig", RESERVED_IN_SFT)] = Field(
        default_factory=dict, description="options of peft.LoraConfig, as they are"
    )


produces, run = sft.produces, sft.run
