"""Timing a model on ONNX Runtime, in turn with a reference, so that a noisy machine cancels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_kdnas.latency.runs import OnnxRun, PyTorchRun, TimedRun
from hf_kdnas.latency.target import LatencyTarget, describe_target, import_onnxruntime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
        lines += [
            f"target     {describe_target(self.target)}, {self.target['precision']}",
            f"device     {self.device}",
        ]
        return "\n".join([*lines, f"runtime    onnxruntime {self.onnxruntime}"])


def measure(
    model: Path | PreTrainedModel, target: LatencyTarget, *, reference: Path | None = None
) -> LatencyReport:
    """Time a model, and a reference in turn with it.

    Every round times each model once; the ratio is taken within a round, so that a machine that slows
    down for a while slows both.

    Args:
        model: An ONNX file, or a model that PyTorch runs, on the device of the target's provider.
        target: Where and how; the model is measured as it is, `precision` only labels the report.
        reference: Another ONNX file; the report's ratio is to it.

    Raises:
        InvalidInput: If a model doesn't take text of the target's batch size and length.
    """
    runs: list[TimedRun] = [OnnxRun(model, target) if isinstance(model, Path) else PyTorchRun(model, target)]
    if reference is not None:
        runs.append(OnnxRun(reference, target))
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
