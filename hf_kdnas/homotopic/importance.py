"""What units are removed by: scores of a model's units, gathered while it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.families import get_family
from hf_kdnas.importance import Importance, UnitGroup, add_unit_sums, unit_dimensions

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# Scores of the gradients that a training has anyway.
GRADIENT_SCORES = ("sensitivity", "taylor")

# Scores below this part of the weights' sums are rounding errors: at most 1e-10 was seen where student and
# teacher are the same, and at least 2e-7 where there is something to learn.
_ROUNDING = 1e-9

_Keep: TypeAlias = "Callable[[Tensor], None]"


class RunningImportance:
    """Scores of units from the gradients of one step after the other.

    A step's score I of a unit is the sum over all parameters that touch it of `|theta * dL/dtheta|`
    (`sensitivity`; HomoDistil, arXiv 2302.09632: a column's score is the L1 sum over its parameters), or the
    absolute value of the sum of `theta * dL/dtheta` (`taylor`; Molchanov et al., arXiv 1906.10771: what the
    loss would change by without the unit, to first order).

    It is smoothed as in PLATON (arXiv 2206.12562): `Ibar = b1 Ibar + (1 - b1) I`, uncertainty
    `U = |I - Ibar|`, `Ubar = b2 Ubar + (1 - b2) U`, score `Ibar * Ubar`. PLATON does so for each parameter,
    which takes twice the memory of the weights. Here units are smoothed: two numbers a unit. Without the
    uncertainty that comes to the same, because sums and smoothing commute; with it, it is ours.

    Args:
        model: The model that is trained.
        metric: One of GRADIENT_SCORES.
        smoothing: b1, below 1.
        uncertainty: b2; 1 turns it off, as it must be where b1 is 0.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        metric: str = "sensitivity",
        *,
        smoothing: float = 0.85,
        uncertainty: float = 0.85,
    ) -> None:
        self._metric = metric
        self._smoothing, self._uncertainty = smoothing, uncertainty
        self._family = get_family(model.config).of(type(model))
        self._means, self._deviations = no_scores(model), no_scores(model)

    @torch.no_grad()
    def update(self, model: PreTrainedModel) -> None:
        """Take in the gradients of a step.

        A step whose gradients are not all finite, as mixed precision in fp16 has some, is left out: clipping
        has made those zero that were.
        """
        found: Importance = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                signed = self._metric == "taylor"
                add_unit_sums(found, self._family, name, parameter, parameter.grad, signed=signed)
        if not found:
            return
        finite = torch.stack([sums.isfinite().all() for sums in found.values()]).all()
        means, deviations = self._means, self._deviations
        for group, sums in found.items():
            scores = sums.abs().float()
            mean = means[group].to(scores.device).lerp(scores, 1 - self._smoothing)
            deviation = deviations[group].to(scores.device)
            spread = deviation.lerp((scores - mean).abs(), 1 - self._uncertainty)
            means[group] = torch.where(finite, mean, means[group].to(scores.device))
            deviations[group] = torch.where(finite, spread, deviation)

    @property
    def memory(self) -> int:
        """Steps after which one counts for less than 1 % of what it counted for at first."""
        rates = (self._smoothing, 0.0 if self._uncertainty == 1 else self._uncertainty)
        return max(1, math.ceil(math.log(0.01) / math.log(max(rates)))) if any(rates) else 1

    def scores(self) -> Importance:
        """The scores so far, on the CPU."""
        if self._uncertainty == 1:
            return {group: mean.cpu() for group, mean in self._means.items()}
        return {group: (mean * self._deviations[group]).cpu() for group, mean in self._means.items()}

    def unknown(self, weights: Importance) -> set[UnitGroup]:
        """The groups of units that no gradient has said anything of yet but rounding errors.

        Args:
            weights: The model's `magnitude`.
        """
        return {
            group
            for group, mean in self._means.items()
            if float(mean.max()) <= _ROUNDING * float(weights[group].max())
        }

    def state_dict(self) -> dict[str, Tensor]:
        """`Ibar` and `Ubar` of each group of units; `group_of` reads the names."""
        return {
            f"{kind}.{axis}.{layer or 0}": values
            for kind, scores in (("mean", self._means), ("deviation", self._deviations))
            for (axis, layer), values in scores.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        for name, values in state.items():
            scores = self._means if name.startswith("mean.") else self._deviations
            scores[group_of(name)] = values


def group_of(name: str) -> UnitGroup:
    """The group of units that a tensor of `RunningImportance.state_dict` is about."""
    _, axis, layer = name.split(".")
    return axis, int(layer) or None


def no_scores(model: PreTrainedModel) -> Importance:
    """A score of 0 for each unit of a model."""
    family = get_family(model.config).of(type(model))
    return {
        group: torch.zeros(parameter.shape[dimension])
        for name, parameter in model.named_parameters()
        for dimension, group in unit_dimensions(family, name)
    }


@torch.no_grad()
def magnitude(model: PreTrainedModel) -> Importance:
    """Score units by the absolute values of all parameters that touch them, summed (on the CPU)."""
    family = get_family(model.config).of(type(model))
    scores = no_scores(model)
    for name, parameter in model.named_parameters():
        add_unit_sums(scores, family, name, parameter.float().cpu())
    return scores


@torch.no_grad()
def activation(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> Importance:
    """Score units by their absolute activations over real tokens, summed (on the CPU).

    Residual units are looked at behind each layer, neurons and the units of heads where the next linear map
    reads them. Units of a task head have none, and score 0. The model's mode is left as it was found.

    Args:
        model: Any model with a family.
        batches: Keyword arguments of the model's forward, `attention_mask` among them.
    """
    family = get_family(model.config).of(type(model))
    scores, heads = no_scores(model), Architecture.from_config(model.config).num_attention_heads
    real: list[Tensor] = []

    def keep(group: UnitGroup, values: Tensor) -> None:
        sums = (values.abs().float() * real[-1][..., None]).sum((0, 1)).cpu()
        scores[group] += sums
        if group[0] == "heads" and ("per_head", None) in scores:
            scores["per_head", None] += sums.view(heads, -1).sum(1)

    handles = []
    for layer in range(1, Architecture.from_config(model.config).num_hidden_layers + 1):
        for path, group in (
            (family.in_layer(layer, family.attention_dense), ("heads", layer)),
            (family.in_layer(layer, family.output_dense), ("ffn", layer)),
        ):
            module = family.module(model, path)
            handles.append(module.register_forward_pre_hook(_reading(partial(keep, group))))
        output = family.module(model, family.layer_output(layer))
        handles.append(output.register_forward_hook(_writing(partial(keep, ("hidden", None)))))
    training = model.training
    model.eval()
    for batch in batches:
        real.append(batch["attention_mask"])
        model(**batch)
    model.train(training)
    for handle in handles:
        handle.remove()
    return scores


def _reading(keep: _Keep) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda module, inputs: keep(inputs[0])


def _writing(keep: _Keep) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda module, inputs, output: keep(output)
