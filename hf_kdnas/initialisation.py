"""A student's weights before distillation: random, of its teacher, or of a trained SuperLM."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.importance import sensitivity
from hf_kdnas.projection import ResidualStream, project_student, residual_stream
from hf_kdnas.slicing import new_student, reorder_by_importance, slice_student

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# What `prepare` makes students by; they may also be of a SuperLM, given, or copies of the teacher.
METHODS = ("random", "slice", "project")


@dataclass(frozen=True)
class Initialiser:
    """Makes students of one teacher, all in the same way.

    Attributes:
        method: `random`, `slice` (the most important units), `project` (the principal directions
            of the residual stream, fitted by least squares), `superlm`, `given`, or `copy` (the teacher's
            units in the order that they have).
        teacher: The teacher; for `slice` and `project` in the order of importance (`prepare`).
        stream: The teacher's residual stream, for `project`.
        superlms: For `superlm`: trained SuperLMs of the teacher's class, from small to large.
        layers: Which layers of a SuperLM, or of the teacher, a shallower student starts from (see
            `slicing.source_layers`).
        given: The only student that there is, for `given`: a model with weights of its own.
        nested: Students are subnets of one another, as those of a SuperLM: their first units are the first
            directions, at any width.
    """

    method: str
    teacher: PreTrainedModel
    stream: ResidualStream | None = None
    superlms: tuple[PreTrainedModel, ...] = ()
    layers: str = "alternate"
    given: PreTrainedModel | None = None
    nested: bool = False

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

        Of a SuperLM it is the subnet of this shape, of the smallest one that has it. What a SuperLM has no
        weights for, such as the task head, was drawn when it was loaded.

        Args:
            architecture: The student's shape.
            seed: Decides the weights that are drawn (all of them for `random`).

        Raises:
            InvalidInput: If the student does not fit into the teacher or the SuperLMs that it is cut from.
        """
        if self.given is not None:
            return copy.deepcopy(self.given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.method == "random":
                return new_student(self.teacher, architecture)
            if self.superlms:
                return slice_student(self._superlm(architecture), architecture, self.layers)
            stream = self._stream_of(architecture)
            if stream is None:
                return slice_student(self.teacher, architecture, self.layers)
            return project_student(self.teacher, architecture, stream, self.layers)

    def projection(self, architecture: Architecture) -> Tensor | None:
        """The fixed map from teacher to student states, (teacher hidden, hidden), where there is one.

        A projected student lives on the principal directions, or as wide as its teacher on the teacher's own
        units, a sliced one on the first units. A SuperLM
        lives on directions, or an order of units, of the teacher that *it* was made of: objectives learn
        their maps to it, as to random students.
        """
        if self.method not in ("slice", "project"):
            return None
        stream = self._stream_of(architecture)
        if stream is not None:
            return stream.projection(architecture.hidden_size)
        return torch.eye(self.teacher.config.hidden_size)[:, : architecture.hidden_size]

    def _stream_of(self, architecture: Architecture) -> ResidualStream | None:
        """The stream as a projected student has it.

        One as wide as its teacher keeps the teacher's units: turning them would leave nothing out, and what
        LayerNorm does in another basis is only approximated.
        """
        if self.stream is None or self.nested:
            return self.stream
        whole = architecture.hidden_size == len(self.stream.directions)
        return self.stream.along_units() if whole else self.stream

    def _superlm(self, architecture: Architecture) -> PreTrainedModel:
        """The smallest SuperLM that the shape fits into, else the largest."""
        for superlm in self.superlms:
            if architecture.fits_into(Architecture.from_config(superlm.config)):
                return superlm
        return self.superlms[-1]
