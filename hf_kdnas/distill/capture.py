"""Signals taken from a running model by forward hooks, on the modules that its family names.

No `output_attentions` or `output_hidden_states`: fused attention stays on, and nothing is kept that no
objective asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import Family, get_family

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PretrainedConfig

_PROJECTIONS = ("query", "key", "value")


class _Complete(Exception):
    """All signals are there."""


class Capture:
    """Hooks on a model that keep the named signals of each forward.

    ```python
    capture = Capture(model, {"hidden.2", "query.3"})
    with capture:
        output = model(**inputs)
    capture.signals["hidden.2"]  # (batch, length, hidden)
    ```

    It may be entered again and again; every `with` starts with no signals. Layers count from 1,
    "hidden.0" is the output of the embeddings. "logits" is passed over: it is the model's own output
    (see `forward_signals`).

    Attributes:
        inputs: What the model takes of a batch.
        signals: What the last forward gave, by name.

    Args:
        model: A model of a known family, as it is before anything wraps it.
        names: Signals to keep.
        only: Nothing but the signals is wanted: a forward ends with the last of them.

    Raises:
        InvalidInput: If a signal or its layer doesn't exist, or the model type has no family.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], *, only: bool = False) -> None:
        names = set(names)
        self._ends = only and "logits" not in names
        config = cast("PretrainedConfig", model.config)
        family = get_family(config)
        self.inputs = family.inputs
        layers = Architecture.from_config(config).num_hidden_layers
        self._modules = {
            name: family.module(model, _path(family, name, layers)) for name in sorted(names - {"logits"})
        }
        self._handles: list[RemovableHandle] = []
        self.signals: dict[str, Tensor] = {}

    def __enter__(self) -> Capture:
        self.signals = {}
        self._handles = [
            module.register_forward_hook(partial(self._keep, name)) for name, module in self._modules.items()
        ]
        return self

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.signals[name] = output if isinstance(output, Tensor) else output[0]
        if self._ends and len(self.signals) == len(self._modules):
            raise _Complete

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        for handle in self._handles:
            handle.remove()
        if kind is None and len(self.signals) < len(self._modules):
            missing = sorted(self._modules.keys() - self.signals.keys())
            raise RuntimeError(
                f"no forward fed the hooks for {', '.join(missing)}: the model that ran is another one than "
                "the model that is captured, or it was compiled without its hooks"
            )
        return kind is _Complete


def forward_signals(
    model: Callable[..., Any], capture: Capture, batch: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Run a model on a batch and return its signals, with "logits" where its output has them.

    The logits of a question answering head are those of start and end side by side, (batch, length, 2).

    Args:
        model: The model, wrapped or not, that `capture` was made for, or what runs it.
        capture: Its hooks.
        batch: Model inputs; other entries (labels, the teacher's signals, token types where this model
            has none) are not passed on.
    """
    output = None
    with capture:
        output = model(**{name: batch[name] for name in capture.inputs if name in batch})
    # Taken out of the capture, which would keep the graph alive until the next forward.
    signals, capture.signals = capture.signals, {}
    logits = head_logits(output)
    return signals if logits is None else {**signals, "logits": logits}


def head_logits(output: Any) -> Tensor | None:
    """The logits of any head's output: (batch, labels), (batch, length, labels), or None without a head."""
    if getattr(output, "start_logits", None) is not None:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return getattr(output, "logits", None)


def signal_width(name: str, config: PretrainedConfig) -> int:
    """Size of a signal's last dimension in a model of this config.

    Raises:
        InvalidInput: If the model has no such signal.
    """
    if name == "logits":
        return int(config.num_labels)
    architecture = Architecture.from_config(config)
    kind, _ = _parse(name, architecture.num_hidden_layers)
    return architecture.hidden_size if kind == "hidden" else architecture.attention_size


def _path(family: Family, name: str, layers: int) -> str:
    kind, layer = _parse(name, layers)
    if kind != "hidden":
        return family.projection(layer, kind)
    return family.layer_output(layer) if layer else family.embeddings


def _parse(name: str, layers: int) -> tuple[str, int]:
    """Kind and layer of a signal such as "hidden.2"."""
    kind, _, layer = name.partition(".")
    if kind not in ("hidden", *_PROJECTIONS) or not layer.isdecimal():
        raise InvalidInput(
            "signal",
            name,
            "signals are logits, hidden.K, query.K, key.K and value.K",
            "Write the layer after the dot, counted from 1.",
        )
    lowest = 0 if kind == "hidden" else 1
    if not lowest <= int(layer) <= layers:
        raise InvalidInput(
            "signal", name, f"this model has layers {lowest} to {layers}", "Name a layer that exists."
        )
    return kind, int(layer)
