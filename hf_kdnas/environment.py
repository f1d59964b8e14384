"""What a run ran on: versions, processor, providers."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = (
    "hf-kdnas",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "huggingface_hub",
    "optuna",
    "optimum-onnx",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
)

# Instruction sets that decide how fast fp32 and INT8 kernels are.
_CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
)


def environment() -> dict[str, str]:
    """Versions by package, and `python`, `platform`, `device`, `cpu`, `cpu_flags`, `cores`, `providers`.

    Packages that are not installed are left out.
    """
    cpu, flags = _cpu()
    return {
        "device": _gpu() or cpu,
        "cpu": cpu,
        "cpu_flags": " ".join(flag for flag in _CPU_FLAGS if flag in flags),
        "cores": str(_cores()),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
        "providers": ", ".join(_providers()),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> tuple[str, set[str]]:
    """The processor's name and its flags, where Linux tells them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name") or platform.processor() or platform.machine(), set(flags.split())


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu() -> str | None:
    if find_spec("torch") is None:
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _providers() -> list[str]:
    if find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    return [str(name) for name in onnxruntime.get_available_providers()]
