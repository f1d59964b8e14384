"""The ONNX file of any model folder, exported where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_kdnas.errors import InvalidInput
from hf_kdnas.latency.export import export_model, get_exporter
from hf_kdnas.latency.export.optimum import TASKS
from hf_kdnas.latency.quantise import quantise
from hf_kdnas.latency.target import LatencyTarget
from hf_kdnas.resources import resolve_path, why_not_loaded
from hf_kdnas.teacher import check_folder

NAMES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}


def onnx_file(model: str, scratch: Path, *, precision: str, revision: str | None = None) -> Path:
    """The ONNX file of a model.

    Args:
        model: A folder with `onnx/model.onnx` or `model.onnx`, or with a model, with or without a head; a
            Hub id; an ONNX file, which is taken as it is.
        scratch: Where to export or quantise to, if need be.
        precision: `fp32` or `int8`.
        revision: Of a model on the Hub.

    Raises:
        InvalidInput: If there is no such model, or it can't be exported.
    """
    path = Path(resolve_path(model))
    if path.suffix == ".onnx" and path.is_file():
        return _loadable(path)
    found = _find(path, NAMES[precision])
    if found is not None:
        return _loadable(found)
    found = _find(path, NAMES["fp32"])
    fp32 = _export(model, revision, scratch) if found is None else _loadable(found)
    return fp32 if precision == "fp32" else quantise(fp32, scratch / NAMES["int8"])


def _find(path: Path, name: str) -> Path | None:
    return next((folder / name for folder in (path / "onnx", path) if (folder / name).is_file()), None)


def _loadable(path: Path) -> Path:
    """A file of the user's, once ONNX Runtime has loaded it."""
    try:
        LatencyTarget().session(path)
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise InvalidInput(
            "MODEL_DIR",
            str(path),
            "must be a whole ONNX model",
            f"Export it again: {' '.join(str(error).split())}",
        ) from error
    return path


def _export(model: str, revision: str | None, scratch: Path) -> Path:
    from transformers import AutoConfig

    import hf_kdnas.exact  # noqa: F401  # so that the Auto classes know it

    check_folder("MODEL_DIR", model, tokenizer=False)
    try:
        config = AutoConfig.from_pretrained(resolve_path(model), revision=revision, trust_remote_code=False)
        head_class = _head_class(config.architectures or [])
        loaded = head_class.from_pretrained(
            resolve_path(model), revision=revision, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InvalidInput(
            "MODEL_DIR",
            model,
            "must be an ONNX file, a model's folder or a Hub id",
            why_not_loaded(model, error),
        ) from error
    return export_model(loaded, scratch, exporter=get_exporter()).path


def _head_class(architectures: list[str]) -> Any:
    """The Auto class of a model's head; a model whose head isn't known is timed without it."""
    import transformers

    heads = [head for head in TASKS if any(name.endswith(head) for name in architectures)]
    head = heads[0] if heads else ""
    return getattr(transformers, f"AutoModel{head.removesuffix('Model')}")
