"""Which number format a device does well: measured, not assumed.

A CPU without bf16 units multiplies bf16 a hundred times slower than fp32, one with AMX up to eight times faster; the
same line of a recipe has to do the right thing on both.
"""

from __future__ import annotations

import time
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
MIN_GAIN = 2.0  # autocast adds a cast to every operation, so a matmul must gain at least this much to pay for it


def choose(wanted: Literal["auto", "fp32", "bf16", "fp16"], *, tokens: int, width: int) -> Precision:
    """Resolve `auto` for this device.

    CUDA from Ampere on takes bf16, older CUDA fp16, other accelerators fp32. A CPU takes bf16 only where a matmul of
    this model's shape, (tokens, width) x (width, 4 width), is at least `MIN_GAIN` times faster than in fp32.
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    if torch.backends.mps.is_available() or width < 512:
        return "fp32"
    gain = _matmul_s(torch.float32, tokens, width) / _matmul_s(torch.bfloat16, tokens, width)
    return "bf16" if gain >= MIN_GAIN else "fp32"


def _matmul_s(dtype: torch.dtype, tokens: int, width: int) -> float:
    """Return the seconds of the fastest of three products, casts of the activations included."""
    activations = torch.randn(min(tokens, 1024), width)
    weight = torch.randn(width, 4 * width)
    fastest = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        activations.to(dtype) @ weight.to(dtype)
        fastest = min(fastest, time.perf_counter() - begun)
        if fastest > 1.0:
            break  # a device without bf16 units: one look is enough
    return fastest


def matmul_gflops(dtype: torch.dtype, *, size: int = 1024) -> float:
    """Measure how many GFLOP/s a square product reaches on the CPU, the best of three."""
    return 2 * size**3 * 4 / _matmul_s(dtype, size, size) / 1e9


def arguments(precision: Precision) -> dict[str, bool]:
    """Return the TrainingArguments that stand for a precision; both are always set, for TRL's default is bf16."""
    return {"bf16": precision == "bf16", "fp16": precision == "fp16"}
