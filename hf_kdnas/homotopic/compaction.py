"""Compaction: a checkpoint becomes that of a narrower student, with the units that matter most."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.learned import CRITERION
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family
from hf_kdnas.homotopic.importance import group_of
from hf_kdnas.importance import Importance, UnitGroup, unit_dimensions
from hf_kdnas.run import atomic_folder, read_json
from hf_kdnas.slicing import HEAD_GROUPS, new_student, query_scale, unit_orders

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_kdnas.distill.criterion import DistillationCriterion

OPTIMISER = "optimizer.pt"
# Those of Transformers that keep nothing but numbers for each weight, which can be cut with it.
OPTIMISERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
SCORES = "scores.safetensors"
# Names of what the optimiser numbers, in its order.
NAMES = "parameters.json"
# Of a name that is the criterion's, not the student's.
LEARNED = "criterion:"
# The teacher's residual units that the student has.
TEACHER_UNITS = "teacher_units"


@dataclass(frozen=True)
class Compaction:
    """Which units of a student go on, in the order that they had.

    Attributes:
        model: The student before it.
        shape: The student's shape after it.
        kept: The units that go on, by group, ascending.
    """

    model: PreTrainedModel
    shape: Architecture
    kept: Mapping[UnitGroup, Tensor]

    @classmethod
    def by_importance(cls, model: PreTrainedModel, shape: Architecture, importance: Importance) -> Compaction:
        """Keep the most important units.

        Heads are compared as wholes, by the sum over their units, then the units inside each; where layers
        share something per head (a position bias), all lose the same heads.

        Args:
            model: The student.
            shape: No wider, of the same depth.
            importance: A score for each of the student's units, on the CPU.
        """
        heads = Architecture.from_config(model.config).num_attention_heads
        sizes = {
            "hidden": shape.hidden_size,
            "head_units": shape.hidden_size,
            "ffn": shape.intermediate_size,
            "heads": shape.attention_head_size,
            "per_head": 1,
        }
        kept = {}
        for group, order in unit_orders(model, importance).items():
            if group[0] in HEAD_GROUPS:
                order = order.view(heads, -1)[: shape.num_attention_heads]
            kept[group] = order[..., : sizes[group[0]]].flatten().sort().values
        return cls(model, shape, kept)

    def of_parameter(self, name: str, values: Tensor) -> Tensor:
        """The part of a tensor in a parameter's shape that goes on."""
        family = get_family(self.model.config).of(type(self.model))
        for dimension, group in unit_dimensions(family, name):
            values = values.index_select(dimension, self.kept[group])
        return values

    @torch.no_grad()
    def student(self) -> PreTrainedModel:
        """The narrower student, a stock model in training mode.

        Queries are scaled so that attention logits keep their size where heads shrink.
        """
        student, whole = new_student(self.model, self.shape), dict(self.model.named_parameters())
        query = f".{get_family(self.model.config).projections['query']}."
        for name, parameter in student.named_parameters():
            parameter.copy_(self.of_parameter(name, whole[name]))
            if query in f".{name}":
                parameter.mul_(self._query_scale)
        return student

    def of_criterion(
        self, criterion: DistillationCriterion, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The part of what objectives learned that goes on; what reads queries undoes their scale."""
        return {
            name: self._of_learned(criterion, name, values)
            / (self._query_scale if criterion.reads_queries(name) else 1)
            for name, values in state.items()
        }

    @property
    def _query_scale(self) -> float:
        return query_scale(Architecture.from_config(self.model.config), self.shape)

    def _of_learned(self, criterion: DistillationCriterion, name: str, values: Tensor) -> Tensor:
        for dimension, group in enumerate(criterion.student_units(name)):
            if group is not None:
                values = values.index_select(dimension, self.kept[group])
        return values

    def of_optimiser(
        self, criterion: DistillationCriterion, state: Mapping[str, Any], names: list[str]
    ) -> dict[str, Any]:
        """An optimiser's state dict, with the moments of what goes on.

        Moments of queries are not scaled: what they make of a step is a ratio of the two.

        Raises:
            InvalidInput: If the optimiser keeps something of another shape than its parameter's.
        """
        shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        learned = dict(criterion.named_parameters())
        shapes |= {f"{LEARNED}{name}": parameter.shape for name, parameter in learned.items()}

        def cut(name: str, values: Any) -> Any:
            if not isinstance(values, torch.Tensor) or not values.dim():
                return values
            if values.shape != shapes[name]:
                raise InvalidInput(
                    "training_arguments.optim",
                    f"an optimiser that keeps {tuple(values.shape)} for {tuple(shapes[name])}",
                    "only what is kept for each weight can be cut with it",
                    "Leave it out: AdamW will do.",
                )
            if name.startswith(LEARNED):
                return self._of_learned(criterion, name.removeprefix(LEARNED), values)
            return self.of_parameter(name, values)

        moments = {
            number: {key: cut(names[number], values) for key, values in kept.items()}
            for number, kept in state["state"].items()
        }
        return {**state, "state": moments}

    def of_scores(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a running importance's state, and of the teacher's units, that goes on."""
        groups = {key: ("hidden", None) if key == TEACHER_UNITS else group_of(key) for key in scores}
        return {key: values[self.kept[groups[key]]] for key, values in scores.items()}


def compact(source: Path, target: Path, compaction: Compaction, criterion: DistillationCriterion) -> None:
    """Write a checkpoint as it would be if the student had had the narrower shape.

    Whatever doesn't depend on the shape (the learning rate's schedule, the step, random numbers) is the same.

    Args:
        source: A checkpoint of `HomotopicTrainer`.
        target: Folder of the new one; it appears whole or not at all.
        compaction: What goes on.
        criterion: The student's, before it.
    """
    with atomic_folder(target) as folder:
        for file in source.iterdir():
            if file.suffix != ".safetensors" and file.name not in (OPTIMISER, "config.json"):
                shutil.copy2(file, folder / file.name)
        compaction.student().save_pretrained(folder)
        names = read_json(source / NAMES)
        moments = torch.load(source / OPTIMISER, map_location="cpu", weights_only=True)
        torch.save(compaction.of_optimiser(criterion, moments, names), folder / OPTIMISER)
        save_file(compaction.of_scores(load_file(source / SCORES)), folder / SCORES)
        if (source / CRITERION).is_file():
            learned = compaction.of_criterion(criterion, load_file(source / CRITERION))
            save_file(learned, folder / CRITERION)
