"""Models that are ready to be timed on the inputs of a target."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hf_kdnas.errors import InvalidInput
from hf_kdnas.latency.target import LatencyTarget
from hf_kdnas.slicing import move_to

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A model that comes after another finds its weights driven out of the cache: 2 layers x 96 take 0.9 ms
# then instead of 0.6. So each runs unmeasured for so long, and at least once, before every timed run.
SETTLE_MS = 2.0


class TimedRun(ABC):
    """A model with its inputs."""

    @abstractmethod
    def run(self) -> None:
        """Run it to the end."""

    def milliseconds(self) -> float:
        """Milliseconds of one run."""
        start = time.perf_counter()
        self.run()
        return (time.perf_counter() - start) * 1000

    def settled_milliseconds(self) -> float:
        """Time a run that finds the caches as its own last runs left them."""
        spent = 0.0
        while spent < SETTLE_MS:
            spent += self.milliseconds()
        return self.milliseconds()


class OnnxRun(TimedRun):
    """An ONNX Runtime session with its inputs.

    Args:
        path: The ONNX file.
        target: Where and how.

    Raises:
        InvalidInput: If the model doesn't take token ids, or none of the target's batch size and length.
    """

    def __init__(self, path: Path, target: LatencyTarget) -> None:
        self._session = target.session(path)
        for each in self._session.get_inputs():
            if each.type not in _DTYPES:
                raise InvalidInput(
                    "latency",
                    str(path),
                    f"takes whole numbers, and its input {each.name} is {each.type}",
                    "Give a model that reads token ids.",
                )
        self._inputs = {
            each.name: _input(path, each.name, target).astype(_DTYPES[each.type])
            for each in self._session.get_inputs()
        }
        try:
            self.milliseconds()
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise InvalidInput(
                "latency",
                str(target),
                f"{path} doesn't take a batch of {target.batch_size} x {target.sequence_length} tokens "
                f"({' '.join(str(error).split())})",
                "Choose another batch size or length, or export with both dynamic.",
            ) from error

    def run(self) -> None:
        """Run it to the end."""
        self._session.run(None, self._inputs)


class PyTorchRun(TimedRun):
    """A model as PyTorch runs it, with its inputs.

    Args:
        model: The model; it is moved to the device of the target's provider.
        target: Where and how.
    """

    def __init__(self, model: PreTrainedModel, target: LatencyTarget) -> None:
        cpu = target.provider == "CPUExecutionProvider" or not torch.cuda.is_available()
        self._device = torch.device("cpu" if cpu else "cuda")
        self._threads = target.threads
        self._model = model.eval()
        move_to(model, self._device)
        shape = (target.batch_size, target.sequence_length)
        self._inputs = {
            "input_ids": torch.full(shape, _TOKEN, device=self._device),
            "attention_mask": torch.ones(shape, dtype=torch.long, device=self._device),
        }

    def milliseconds(self) -> float:
        """Milliseconds of one run with the target's threads."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return super().milliseconds()
        finally:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(self) -> None:
        """Run it to the end."""
        self._model(**self._inputs)
        if self._device.type == "cuda":
            torch.cuda.synchronize()


_DTYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}

# An id that every vocabulary has and that is nowhere the padding, which RoBERTa gives no position of its own.
_TOKEN = 3


def _input(path: Path, name: str, target: LatencyTarget) -> NDArray[np.int64]:
    """One of the inputs of a text model: full rows, as padding costs the same."""
    shape = (target.batch_size, target.sequence_length)
    values = {
        "input_ids": np.full(shape, _TOKEN),
        "attention_mask": np.ones(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
        "position_ids": np.broadcast_to(np.arange(shape[1], dtype=np.int64), shape),
    }
    if name not in values:
        raise InvalidInput(
            "MODEL",
            str(path),
            f"inputs may be {', '.join(values)}, this one asks for {name}",
            "Give a text model.",
        )
    return values[name]
