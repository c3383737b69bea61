"""QLoRA (arXiv:2305.14314): the model under an adapter in 4 bits, as bitsandbytes and transformers load it.

Embeddings, norms and the output layer stay in fp32, and peft freezes all of them, so that nothing is left of what
peft's `prepare_model_for_kbit_training` would do. It has been run with bitsandbytes 0.50 on a CPU, on
tiny models, but not on a GPU yet.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel

from llmpipe import gates
from llmpipe.artifact import Gate
from llmpipe.errors import StageError
from llmpipe.training import precision as precisions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def loading(settings: Any) -> dict[str, Any]:
    """Return what `from_pretrained` is to be told of `quantize:`; nothing where it is left out.

    Raises:
        StageError: there is no CUDA device, or no bitsandbytes.
    """
    if settings.quantize is None:
        return {}
    if not torch.cuda.is_available():
        raise StageError(
            "quantize: nf4 keeps the model in 4 bits, which is for CUDA GPUs, and none is here",
            hint="leave out quantize:; lora: itself works on this machine",
        )
    if find_spec("bitsandbytes") is None:
        raise StageError(
            "quantize: nf4 needs bitsandbytes, which is not installed", hint="pip install 'llmpipe[qlora]'"
        )
    computed_in = precisions.choose(settings.precision, tokens=0, width=0)  # on CUDA it is not measured
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[computed_in],
    )
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}


def is_quantized(model: PreTrainedModel | PeftModel) -> bool:
    """Whether weights of a model are in fewer bits than they are computed with."""
    return "quantization_config" in vars(model.config)


def refuse_merge(quantization: dict[str, Any] | None, name: str, reason: str) -> None:
    """Raise StageError where an adapter would be merged into weights in 4 bits, which would round it away."""
    if quantization:
        raise StageError(
            f"the adapter {name} would have to be merged into a model in 4 bits: {reason}",
            hint="leave out quantize:, or train that adapter further, with the options that it has",
        )


def gate(policy: PeftModel) -> Gate:
    """Check an adapter on a model in 4 bits, whose logits no later stage has: they add it to the model in full."""
    trained = (weight for weight in policy.parameters() if weight.requires_grad)
    return gates.gate("adapter-is-finite", all(bool(weight.isfinite().all()) for weight in trained))
