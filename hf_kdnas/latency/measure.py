"""Timing a model on ONNX Runtime, in turn with a reference, so that a noisy machine cancels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_kdnas.errors import InvalidInput
from hf_kdnas.latency.target import LatencyTarget, describe_target, import_onnxruntime

# A model that comes after another finds its weights driven out of the cache: 2 layers x 96 take 0.9 ms
# then instead of 0.6. So each runs unmeasured for so long, and at least once, before every timed run.
SETTLE_MS = 2.0

# Two-sided 95 % of the normal distribution, for the order statistics around a median.
_Z = 1.96


@dataclass(frozen=True)
class LatencyReport:
    """What was measured; all times in milliseconds.

    Attributes:
        median_ms: Median latency.
        iqr_ms: Distance between the quartiles: the spread.
        interval_ms: 95 % interval of the median (order statistics).
        ratio: Median over rounds of latency / reference latency; 1 without a reference.
        ratio_interval: Its 95 % interval.
        reference_median_ms: The reference's median latency, or None.
        rounds: Timed runs of each model.
        target: The target's fields.
        device: Processor or GPU.
        onnxruntime: Its version.
    """

    median_ms: float
    iqr_ms: float
    interval_ms: tuple[float, float]
    ratio: float
    ratio_interval: tuple[float, float]
    reference_median_ms: float | None
    rounds: int
    target: dict[str, Any]
    device: str
    onnxruntime: str

    @property
    def speedup(self) -> float:
        """How many times as fast as the reference."""
        return 1 / self.ratio

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LatencyReport:
        """Read what `to_dict` gave."""
        intervals = {name: tuple(fields[name]) for name in ("interval_ms", "ratio_interval")}
        return cls(**{**fields, **intervals})

    def __str__(self) -> str:
        low, high = self.interval_ms
        lines = [
            f"latency    {self.median_ms:.3f} ms  (95 % interval {low:.3f} to {high:.3f}, "
            f"spread {self.iqr_ms:.3f}, {self.rounds} rounds)"
        ]
        if self.reference_median_ms is not None:
            low, high = self.ratio_interval
            lines += [
                f"reference  {self.reference_median_ms:.3f} ms, timed in turn",
                f"speed-up   {self.speedup:.2f} times  (95 % interval {1 / high:.2f} to {1 / low:.2f})",
            ]
        lines += [f"target     {describe_target(self.target)}", f"device     {self.device}"]
        return "\n".join([*lines, f"runtime    onnxruntime {self.onnxruntime}"])


def measure(path: Path, target: LatencyTarget, *, reference: Path | None = None) -> LatencyReport:
    """Time a model file, and a reference in turn with it.

    Every round times each model once; the ratio is taken within a round, so that a machine that slows
    down for a while slows both.

    Args:
        path: The ONNX file.
        target: Where and how; the file is measured as it is, `precision` only labels the report.
        reference: Another ONNX file; the report's ratio is to it.

    Raises:
        InvalidInput: If a model doesn't take text of the target's batch size and length.
    """
    runs = [_Run(each, target) for each in (path, reference) if each is not None]
    for run in runs:
        for _ in range(target.warmup):
            run.milliseconds()
    times = np.array([[run.settled_milliseconds() for run in runs] for _ in range(target.rounds)])
    own, other = times[:, 0], times[:, -1]
    ratios = own / other
    return LatencyReport(
        median_ms=float(np.median(own)),
        iqr_ms=float(np.subtract(*np.percentile(own, [75, 25]))),
        interval_ms=median_interval(own),
        ratio=float(np.median(ratios)),
        ratio_interval=median_interval(ratios),
        reference_median_ms=float(np.median(other)) if reference is not None else None,
        rounds=target.rounds,
        target=asdict(target),
        device=target.device,
        onnxruntime=import_onnxruntime().__version__,
    )


def median_interval(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of a median, by order statistics: no assumption about the distribution."""
    ordered = np.sort(np.asarray(values))
    count = len(ordered)
    half = _Z * count**0.5 / 2
    low = max(0, int(np.floor((count - 1) / 2 - half)))
    high = min(count - 1, int(np.ceil((count - 1) / 2 + half)))
    return float(ordered[low]), float(ordered[high])


class _Run:
    """A session with its inputs."""

    def __init__(self, path: Path, target: LatencyTarget) -> None:
        self._session = target.session(path)
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

    def milliseconds(self) -> float:
        start = time.perf_counter()
        self._session.run(None, self._inputs)
        return (time.perf_counter() - start) * 1000

    def settled_milliseconds(self) -> float:
        """Time a run that finds the caches as its own last runs left them."""
        spent = 0.0
        while spent < SETTLE_MS:
            spent += self.milliseconds()
        return self.milliseconds()


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
