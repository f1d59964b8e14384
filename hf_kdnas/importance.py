"""How much each residual unit, head unit and neuron of a model matters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch

from hf_kdnas.families import Axis, Family, get_family

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput

UnitGroup: TypeAlias = tuple[str, int | None]
"""An axis that can be reordered, with the layer (from 1) it belongs to; None for the whole model."""

Importance: TypeAlias = dict[UnitGroup, "Tensor"]
"""A score per unit, by group: `("hidden", None)` (hidden,), `("ffn", 2)` (intermediate,) and so on."""

# Numbers of a block whose values fit a core's cache.
_CACHED = 2**18


def unit_group(axis: Axis, layer: int | None) -> UnitGroup | None:
    """The group of units that a dimension indexes; None where nothing can be reordered."""
    if axis in ("hidden", "decoder_units"):
        return ("hidden", None)
    if axis in ("head_units", "per_head"):
        return (axis, None)
    if axis in ("heads", "ffn"):
        return (axis, layer)
    return None


def unit_dimensions(family: Family, name: str) -> Iterator[tuple[int, UnitGroup]]:
    """The dimensions of a parameter that can be reordered, with their groups."""
    layer = family.layer_of(name)
    for dimension, axis in enumerate(family.parameter_axes(name)):
        group = unit_group(axis, layer)
        if group is not None:
            yield dimension, group


def sensitivity(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Importance:
    """Score units by |theta * dL/dtheta|, summed over a unit's parameters and over the batches (on the CPU).

    The loss L is the model's own on labelled batches (`labels` included). A model without a head has none:
    there it is the sum of its last states along random signs, which tells how far each parameter moves them.
    The model's mode and gradients are left as they were found.

    Args:
        model: Any model with a family.
        batches: Keyword arguments of the model's forward, `labels` among them where it has a head.
    """
    family = get_family(model.config).of(type(model))
    parameters = dict(model.named_parameters())
    scores: Importance = {}
    training = model.training
    model.eval()
    for batch in batches:
        output = model(**batch)
        loss = output.loss if "labels" in batch or "start_positions" in batch else _reaction(output, batch)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            if gradient is not None:
                add_unit_sums(scores, family, name, parameter, gradient)
    model.train(training)
    return {group: values.cpu() for group, values in scores.items()}


def _reaction(output: BaseModelOutput, batch: Mapping[str, Tensor]) -> Tensor:
    """Sum of the real tokens' last states, each number with a sign that is drawn, the same every time."""
    states = output.last_hidden_state
    assert states is not None
    draw = torch.Generator().manual_seed(0)
    signs = torch.randint(2, states.shape, generator=draw).to(states) * 2 - 1
    return (states * signs * batch["attention_mask"][..., None]).sum()


@torch.no_grad()
def add_unit_sums(
    scores: Importance,
    family: Family,
    name: str,
    parameter: Tensor,
    gradient: Tensor | None = None,
    *,
    signed: bool = False,
) -> None:
    """Add |theta| or |theta * dL/dtheta| of a parameter to the scores of all units that it touches, in place.

    Args:
        scores: Sums so far.
        family: The family of the model.
        name: Name of the parameter.
        parameter: theta.
        gradient: dL/dtheta, of the same shape.
        signed: Add theta * dL/dtheta itself.
    """
    dimensions = list(unit_dimensions(family, name))
    if not dimensions:
        return
    # On a CPU the sums cost what memory costs: blocks of rows whose values stay in the cache halve that.
    rows = len(parameter)
    block = max(1, _CACHED * rows // parameter.numel()) if parameter.device.type == "cpu" else rows
    sums = [parameter.new_zeros(parameter.shape[dimension]) for dimension, _ in dimensions]
    for start in range(0, rows, block):
        taken = slice(start, start + block)
        values = parameter[taken].abs() if gradient is None else parameter[taken] * gradient[taken]
        if not signed:
            values.abs_()
        for (dimension, _), summed in zip(dimensions, sums, strict=True):
            others = [other for other in range(values.dim()) if other != dimension]
            of_block = values.sum(others) if others else values
            if dimension == 0:
                summed[taken] = of_block
            else:
                summed += of_block
    for (_, group), summed in zip(dimensions, sums, strict=True):
        scores[group] = scores[group] + summed if group in scores else summed
