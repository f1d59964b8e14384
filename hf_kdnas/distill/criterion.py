"""The distillation loss: objectives, their weights, and exact normalisation."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives import Batch, Head, Objective, Signals, objective_class
from hf_kdnas.distill.weights import OFF, Weight
from hf_kdnas.errors import InvalidInput
from hf_kdnas.importance import UnitGroup

Counts: TypeAlias = Mapping[str, "int | Tensor"]


class DistillationCriterion(nn.Module):
    """The weighted sum of objectives, each divided by its own number of units.

    `loss = sum_i weight_i * sum_i / count_i`. Where a step is spread over micro-batches and ranks, give
    `forward` the counts over all of them: the losses then add up to the loss of the joined batch.

    Maps that objectives learn are parameters of this module: hand them to the optimiser.

    Args:
        objectives: Options of each objective by name (see `OBJECTIVES`) or import path, and its
            `weight` (default 1.0; see `Weight`); a weight of 0 turns it off.
        student: Shape of the student.
        teacher: Shape of the teacher.
        projection: A fixed map from teacher to student states, (H_T, H_S), for the objectives that
            take one; None lets them learn maps.
        head: The student's head for whole texts, if it has one; None lets the labels say what they mean.
        seed: Decides the first weights of learned maps, whatever was drawn before: every rank and
            every resumed run begin with the same.

    Attributes:
        weights: Weight of each objective by name.
        progress: The part of the training that is behind, from 0 to 1; whoever trains keeps it up to date.
        student_signals: Names of the signals that the student has to give.

    Raises:
        InvalidInput: If an objective or one of its options is unknown, a weight is negative, no weight
            is above 0, or an objective doesn't fit to the two shapes.
    """

    def __init__(
        self,
        objectives: Mapping[str, Mapping[str, Any] | None],
        student: Architecture,
        teacher: Architecture,
        *,
        projection: Tensor | None = None,
        head: Head | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.weights = check_objectives(objectives)
        self.progress = 0.0
        modules: dict[str, Objective] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in self.weights:
                kind = objective_class(name)
                options = {key: value for key, value in (objectives[name] or {}).items() if key != "weight"}
                if "projection" in inspect.signature(kind).parameters:
                    options["projection"] = projection
                modules[name] = _made(kind, name, student, teacher, options)
                modules[name].head = head
        self._objectives = modules
        # A module's name may not hold the dots of an import path.
        self.objectives = nn.ModuleDict({_module_name(name): module for name, module in modules.items()})
        self.student_signals = _union(module.student_signals for module in modules.values())

    @property
    def teacher_signals(self) -> frozenset[str]:
        """Names of the signals that the teacher has to give; fewer once a layer map is found."""
        return _union(module.teacher_signals for module in self._objectives.values())

    @property
    def calibrated(self) -> bool:
        """Whether no objective has constants that `calibrate` has still to fix."""
        return all(objective.calibrated for objective in self._objectives.values())

    def counts(self, *batches: Batch) -> dict[str, int | Tensor]:
        """Number of units of each objective in all of some batches, from their masks and labels alone."""
        return {name: sum(map(objective.count, batches)) for name, objective in self._objectives.items()}

    def begin_as_copy(self) -> None:
        """Set what is learned to what suits a student that is its teacher's copy."""
        for objective in self._objectives.values():
            objective.begin_as_copy()

    def student_units(self, name: str) -> tuple[UnitGroup | None, ...]:
        """What each dimension of a tensor of the state indexes of the student's units; empty for none."""
        _, module, rest = name.split(".", 2)
        return cast("Objective", self.objectives[module]).student_units(rest)

    def reads_queries(self, name: str) -> bool:
        """Whether a tensor of the state maps the student's queries, whose scale a cut may change."""
        _, module, rest = name.split(".", 2)
        return cast("Objective", self.objectives[module]).reads_queries(rest)

    @torch.no_grad()
    def calibrate(self, student: Signals, teacher: Signals, batch: Batch) -> None:
        """Let the objectives fix their constants from a sample of both models' signals.

        Without it they take them from the first batch that they see, which then should be neither a
        micro-batch nor one rank's part of a step.
        """
        for objective in self._objectives.values():
            objective.calibrate(student, teacher, batch)

    def forward(
        self, student: Signals, teacher: Signals, batch: Batch, counts: Counts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, as its part of a step.

        Args:
            student: The student's signals by name.
            teacher: The teacher's signals by name.
            batch: `attention_mask` (batch, length), and `labels` where there are any.
            counts: Units of each objective in the whole step: over all micro-batches and ranks.

        Returns:
            The loss (a scalar) and each term by name: without its weight, divided by its count,
            detached.
        """
        terms = {
            name: objective(student, teacher, batch) / _at_least_one(counts[name])
            for name, objective in self._objectives.items()
        }
        weighted = [self.weights[name].at(self.progress) * term for name, term in terms.items()]
        return torch.stack(weighted).sum(), {name: term.detach() for name, term in terms.items()}


def check_objectives(objectives: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Weight]:
    """Check objectives before any model is there, and return the weights of those that are on.

    Raises:
        InvalidInput: If an objective or one of its options is unknown, a weight is negative, or no
            weight is above 0.
    """
    weights = {}
    for name, options in objectives.items():
        _check_options(name, objective_class(name), options or {})
        weights[name] = Weight.parse(f"objectives.{name}.weight", (options or {}).get("weight", 1.0))
    weights = {name: weight for name, weight in weights.items() if weight != OFF}
    if not weights:
        raise InvalidInput(
            "objectives",
            dict(objectives),
            "at least one needs a weight above 0",
            "Try logits: {weight: 1.0}.",
        )
    return weights


def _check_options(name: str, kind: type[Objective], options: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(kind).parameters)[2:]
    allowed = ["weight", *(parameter for parameter in parameters if parameter != "projection")]
    for option in options:
        if option not in allowed:
            raise InvalidInput(
                f"objectives.{name}", option, f"its options are {', '.join(allowed)}", "Remove or rename it."
            )


def _made(
    kind: type[Objective],
    name: str,
    student: Architecture,
    teacher: Architecture,
    options: Mapping[str, Any],
) -> Objective:
    try:
        return kind(student, teacher, **options)
    except (AttributeError, TypeError) as error:  # a text in the place of a number, and the like
        given = {key: value for key, value in options.items() if key != "projection"}
        raise InvalidInput(
            f"objectives.{name}", given, f"an option is of the wrong type ({error})", "Change its value."
        ) from error


def _union(names: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset(chain.from_iterable(names))


def _module_name(name: str) -> str:
    return name.replace(".", "_")


def _at_least_one(count: int | Tensor) -> int | Tensor:
    return count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1)
