"""A student's weights before distillation: random, sliced or projected from its teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hf_kdnas.errors import InvalidInput
from hf_kdnas.importance import sensitivity
from hf_kdnas.projection import ResidualStream, project_student, residual_stream
from hf_kdnas.slicing import new_student, reorder_by_importance, slice_student

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_kdnas.architecture import Architecture

METHODS = ("random", "slice", "project")


@dataclass(frozen=True)
class Initialiser:
    """Makes students of one teacher, all in the same way.

    Attributes:
        method: `random`, `slice` (the most important units) or `project` (the principal directions
            of the residual stream, fitted by least squares).
        teacher: The teacher; for `slice` and `project` in the order of importance (`prepare`).
        stream: The teacher's residual stream, for `project`.
        given: The only student that there is, for `given`: a model with weights of its own.
    """

    method: str
    teacher: PreTrainedModel
    stream: ResidualStream | None = None
    given: PreTrainedModel | None = None

    @classmethod
    def prepare(
        cls,
        method: str,
        teacher: PreTrainedModel,
        labelled: Sequence[Mapping[str, Tensor]],
        sample: Mapping[str, Tensor],
        share: Callable[[Any], Any] = lambda value: value,
    ) -> Initialiser:
        """Reorder the teacher in place and look at its residual stream, as the method needs it.

        The teacher's function stays the same.

        Args:
            method: One of METHODS.
            teacher: A model with a task head.
            labelled: Batches with `labels`, for the importance of units.
            sample: One batch without labels, some 8,000 tokens, for the residual stream.
            share: Gives every rank what the first one has. Ranks must agree on the order of units and on
                the directions, and GPUs add up in no fixed order.

        Raises:
            InvalidInput: If the method is unknown.
        """
        if method not in METHODS:
            raise InvalidInput(
                "initialisation", method, f"methods are {', '.join(METHODS)}", "Choose one of these."
            )
        if method == "random":
            return cls(method, teacher)
        reorder_by_importance(teacher, share(sensitivity(teacher, labelled)))
        if method == "slice":
            return cls(method, teacher)
        stream = residual_stream(teacher, sample)
        directions = share(stream.directions.cpu()).to(teacher.device)
        return cls(method, teacher, replace(stream, directions=directions))

    def student(self, architecture: Architecture, seed: int) -> PreTrainedModel:
        """A stock model of the teacher's class with this shape, in training mode.

        Args:
            architecture: The student's shape.
            seed: Decides the weights that are drawn (all of them for `random`).

        Raises:
            InvalidInput: If a sliced or projected student does not fit into the teacher.
        """
        if self.given is not None:
            return copy.deepcopy(self.given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.method == "random":
                return new_student(self.teacher, architecture)
            if self.stream is None:
                return slice_student(self.teacher, architecture)
            return project_student(self.teacher, architecture, self.stream)

    def projection(self, architecture: Architecture) -> Tensor | None:
        """The fixed map from teacher to student states, (teacher hidden, hidden), where there is one.

        A projected student lives on the principal directions, a sliced one on the first units.
        """
        if self.method not in ("slice", "project"):
            return None
        if self.stream is not None:
            return self.stream.projection(architecture.hidden_size)
        return torch.eye(self.teacher.config.hidden_size)[:, : architecture.hidden_size]
