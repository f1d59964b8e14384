"""Latency of shapes for the search: measured once each, predicted only to leave out what is hopeless."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hf_kdnas.errors import InvalidInput
from hf_kdnas.latency.measure import LatencyReport
from hf_kdnas.latency.predict import LatencyPredictor
from hf_kdnas.latency.shape import measure_shape

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
        reference: ONNX file of the teacher's shape; made when a measurement needs it.
        exporter: Makes the graphs.
        store: What was measured before.
        used: Reports that this run read or measured, by architecture.
    """

    config: PretrainedConfig
    model_class: type[Any]
    target: LatencyTarget
    reference: Path
    exporter: Exporter
    store: LatencyStore
    used: dict[Architecture, LatencyReport] = field(default_factory=dict)

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
        return meets(self(architecture).median_ms, self(architecture).ratio, ceilings)

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
        for name, broken in (
            ("latency_ms", ceilings.latency_ms is not None and report.median_ms > ceilings.latency_ms),
            ("speedup", ceilings.speedup is not None and report.ratio > 1 / ceilings.speedup),
        ):
            if broken:
                raise InvalidInput(
                    f"search.constraints.{name}",
                    getattr(ceilings, name),
                    f"the fastest architecture of the space, {fastest.key}, takes {report.median_ms:.2f} ms "
                    f"here, {1 / report.ratio:.2f} times the teacher's speed",
                    "Ask for less, or add smaller architectures to the space.",
                )

    def promising(
        self, shapes: Sequence[Architecture], ceilings: Ceilings, seed: int
    ) -> frozenset[Architecture]:
        """The same of any shapes.

        Raises:
            InvalidInput: If not even the cheapest shape keeps to the constraints (says what it takes).
        """
        self.require_reachable(shapes, ceilings)
        by_cost = self._by_cost(shapes)
        teacher_ms, ratios = self._predicted(by_cost, seed)
        least = {shape: ratio / TOLERANCE for shape, ratio in ratios.items()}
        return frozenset(
            shape for shape, ratio in least.items() if meets(ratio * teacher_ms, ratio, ceilings)
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


def meets(milliseconds: float, ratio: float, ceilings: Ceilings) -> bool:
    """Whether a latency, and its ratio to the teacher's, keep to the constraints."""
    return (ceilings.latency_ms is None or milliseconds <= ceilings.latency_ms) and (
        ceilings.speedup is None or ratio <= 1 / ceilings.speedup
    )
