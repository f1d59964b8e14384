"""Latency of shapes for the search: measured once each, predicted only to leave out what is hopeless."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hf_kdnas.errors import InvalidInput
from hf_kdnas.latency.measure import LatencyReport
from hf_kdnas.latency.predict import LatencyPredictor
from hf_kdnas.latency.shape import measure_shape
from hf_kdnas.latency.store import latency_key

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_kdnas.architecture import Architecture
    from hf_kdnas.latency.export.base import Exporter
    from hf_kdnas.latency.store import LatencyStore
    from hf_kdnas.latency.target import LatencyTarget
    from hf_kdnas.space import SearchSpace

# Shapes measured to fit the predictor, besides the cheapest and the dearest member.
CALIBRATION_SHAPES = 6

# A predicted latency may be off by so much before a member is left out without being measured: held-out
# shapes were predicted up to 24 % too high.
TOLERANCE = 1.3


class Ceilings(Protocol):
    """The constraints on latency, as in a recipe."""

    @property
    def latency_ms(self) -> float | None:
        """Highest median, in milliseconds."""

    @property
    def speedup(self) -> float | None:
        """Least speed-up over the teacher."""


@dataclass
class ShapeLatencies:
    """Latency of an architecture on the target, against the teacher's shape.

    Attributes:
        config: The teacher's config with its task head.
        model_class: Class of the teacher and its students.
        target: Where to measure.
        exporter: Makes the graphs.
        store: What was measured before; the teacher's shape is kept beside it, exported once for all runs.
        used: Reports that this run read or measured, by architecture.
    """

    config: PretrainedConfig
    model_class: type[Any]
    target: LatencyTarget
    exporter: Exporter
    store: LatencyStore
    used: dict[Architecture, LatencyReport] = field(default_factory=dict)

    @cached_property
    def reference(self) -> Path:
        """ONNX file of the teacher's shape; made when a measurement needs it."""
        key = latency_key(
            self.config, self.target, self.config, self.model_class.__name__, self.exporter.name
        )
        return self.store.folder / f"{key}.onnx"

    def __call__(self, architecture: Architecture) -> LatencyReport:
        """The report of a shape; measured now if it isn't in the store."""
        if architecture not in self.used:
            self.used[architecture] = measure_shape(
                self.model_class,
                architecture.apply_to(self.config),
                self.target,
                reference=self.reference,
                reference_config=self.config,
                exporter=self.exporter,
                store=self.store,
            )
        return self.used[architecture]

    def within(self, architecture: Architecture, ceilings: Ceilings) -> bool:
        """Whether a shape, measured, keeps to the constraints on latency."""
        return broken(self(architecture).median_ms, self(architecture).ratio, ceilings) is None

    def reachable(self, space: SearchSpace, ceilings: Ceilings, seed: int) -> SearchSpace:
        """The members that may keep to the constraints, by a predictor fitted on a few measurements.

        Raises:
            InvalidInput: If not even the cheapest member keeps to them (says what it takes).
        """
        if ceilings.latency_ms is None and ceilings.speedup is None:
            return space
        promising = self.promising(space.members, ceilings, seed)
        return space.restricted({"search.constraints": promising.__contains__})

    def require_reachable(self, shapes: Sequence[Architecture], ceilings: Ceilings) -> None:
        """See that the cheapest of some shapes, measured, keeps to the constraints.

        Raises:
            InvalidInput: If it doesn't (says what it takes).
        """
        if ceilings.latency_ms is None and ceilings.speedup is None:
            return
        fastest = self._by_cost(shapes)[0]
        report = self(fastest)
        name = broken(report.median_ms, report.ratio, ceilings)
        if name is not None:
            raise InvalidInput(
                f"search.constraints.{name}",
                getattr(ceilings, name),
                f"the fastest architecture of the space, {fastest.key}, takes {report.median_ms:.2f} ms "
                f"here, {report.speedup:.2f} times the teacher's speed",
                "Ask for less, or add smaller architectures to the space.",
            )

    def promising(
        self, shapes: Sequence[Architecture], ceilings: Ceilings, seed: int
    ) -> frozenset[Architecture]:
        """Of some shapes those that may keep to the constraints, by a predictor fitted on a few of them.

        Raises:
            InvalidInput: If not even the cheapest shape keeps to the constraints (says what it takes).
        """
        self.require_reachable(shapes, ceilings)
        by_cost = self._by_cost(shapes)
        teacher_ms, ratios = self._predicted(by_cost, seed)
        least = {shape: ratio / TOLERANCE for shape, ratio in ratios.items()}
        return frozenset(
            shape for shape, ratio in least.items() if broken(ratio * teacher_ms, ratio, ceilings) is None
        )

    def predicted(self, shapes: Sequence[Architecture], seed: int) -> dict[Architecture, float]:
        """The latency of any shapes over the teacher's, by a predictor fitted on a few measurements."""
        return self._predicted(self._by_cost(shapes), seed)[1]

    def _by_cost(self, shapes: Sequence[Architecture]) -> list[Architecture]:
        return sorted(shapes, key=lambda shape: (shape.flops(self.target.sequence_length), shape))

    def _predicted(
        self, by_cost: Sequence[Architecture], seed: int
    ) -> tuple[float, dict[Architecture, float]]:
        """What the teacher takes, in milliseconds, and the ratios of the shapes to that."""
        inner = by_cost[1:-1]
        drawn = random.Random(seed).sample(inner, min(CALIBRATION_SHAPES, len(inner)))
        measured = [by_cost[0], *drawn, by_cost[-1]]
        predictor = LatencyPredictor(self.target)
        # Ratios to the teacher are steadier than milliseconds on a machine that is not quiet.
        predictor.fit([(shape, self(shape).ratio) for shape in measured])
        teacher_ms = statistics.median(self(shape).median_ms / self(shape).ratio for shape in measured)
        return teacher_ms, {shape: predictor.predict(shape) for shape in by_cost}


def broken(milliseconds: float, ratio: float, ceilings: Ceilings) -> str | None:
    """The first constraint that a latency, and its ratio to the teacher's, don't keep to; None if they do."""
    if ceilings.latency_ms is not None and milliseconds > ceilings.latency_ms:
        return "latency_ms"
    if ceilings.speedup is not None and ratio > 1 / ceilings.speedup:
        return "speedup"
    return None
