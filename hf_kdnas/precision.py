"""Which arithmetic, and which way to compute attention, a machine does well."""

from __future__ import annotations

from typing import Literal, cast

import torch

Precision = Literal["fp32", "bf16", "fp16"]


def resolve_precision(device: torch.device, asked: str) -> Precision:
    """What `auto` means on a device: bf16 where its hardware computes in it, else fp32.

    On a CPU that takes AVX-512 BF16 or AMX instructions; emulated, bf16 is slower than fp32.
    """
    if asked != "auto":
        return cast("Precision", asked)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_computes_in_bf16() else "fp32"


def _cpu_computes_in_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, asked: str) -> torch.autocast:
    """The autocast context of a training section's `precision`."""
    precision = resolve_precision(device, asked)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def resolve_attention(device: torch.device, asked: str) -> str | None:
    """What `auto` means on a device: `eager` on a CPU, None (Transformers' choice) elsewhere.

    On CPUs the fused kernel of SDPA goes back through attention in bf16 two to four times as slowly as
    eager attention, at the lengths of texts that are classified.
    """
    if asked != "auto":
        return asked
    return "eager" if device.type == "cpu" else None


# What a teacher may be run in, by its name in Transformers, as a precision.
TEACHER_DTYPES: dict[str, Precision] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def teacher_precision(dtype: str, training: str) -> str:
    """The precision of a frozen teacher's forward: its `dtype`, or for `auto` that of the training."""
    return TEACHER_DTYPES.get(dtype, training)
