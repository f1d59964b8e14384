"""Project a teacher on the principal directions of its residual stream, and cut students there.

Choosing residual units throws away what the others carried; projecting keeps most of it. A student's
residual stream is the teacher's, seen along its first principal directions: linear maps become
`P^T W P`, embeddings `E P`. What that can't express (LayerNorm in the rotated basis, fewer neurons,
fewer heads, dropped layers) is made up for by least squares, front to back, on the student's own
activations. The student is an approximation that training repairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import nn

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import Family, get_family
from hf_kdnas.slicing import (
    end_layers,
    keeps_heads,
    move_to,
    new_student,
    parts_of,
    query_scale,
    require_fit,
    source_layers,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Site: TypeAlias = tuple[int, str]
"""What puts out the residual stream: (0, "embeddings"), (layer, "attention") or (layer, "output")."""

RIDGE = 1e-2
"""Pull of least-squares fits towards the projected weights, relative to the mean feature energy."""


@dataclass(frozen=True)
class ResidualStream:
    """What a teacher's residual stream looks like on a sample of texts.

    Attributes:
        batch: The sample as one batch: keyword arguments of the forward, without labels.
        directions: Principal directions of the hidden states of all layers, (hidden, hidden), the
            most energetic first.
        before: States that enter each LayerNorm, (tokens, hidden), padding left out.
        after: States that leave it, likewise.
    """

    batch: Mapping[str, Tensor]
    directions: Tensor
    before: Mapping[Site, Tensor]
    after: Mapping[Site, Tensor]

    def projection(self, width: int) -> Tensor:
        """The map from teacher states to states of a student of this width, (hidden, width)."""
        return self.directions[:, :width]

    def along_units(self) -> ResidualStream:
        """The same stream seen along the teacher's own units, in the place of the principal directions."""
        return replace(self, directions=torch.eye(len(self.directions), device=self.directions.device))


def norm_sites(family: Family, layers: int) -> dict[Site, str]:
    """Module path of each LayerNorm on the residual stream, in forward order.

    Where embeddings are of another width, the first is the linear map from them.
    """
    sites: dict[Site, str] = {(0, "embeddings"): family.embeddings_norm or family.embeddings}
    for layer in range(1, layers + 1):
        sites[layer, "attention"] = family.in_layer(layer, family.attention_norm)
        sites[layer, "output"] = family.in_layer(layer, family.output_norm)
    return sites


@torch.no_grad()
def residual_stream(teacher: PreTrainedModel, batch: Mapping[str, Tensor]) -> ResidualStream:
    """Run the teacher once over a sample and take the principal directions of its hidden states.

    Args:
        teacher: A post-LayerNorm encoder, with or without a head.
        batch: Keyword arguments of the forward with `attention_mask`; some 8,000 tokens are enough.

    Raises:
        InvalidInput: If hidden states are not finite.
    """
    family = get_family(teacher.config)
    kept = batch["attention_mask"].bool()
    before: dict[Site, Tensor] = {}
    after: dict[Site, Tensor] = {}

    def record(site: Site, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        before[site], after[site] = inputs[0][kept].float(), output[kept].float()

    sites = norm_sites(family, Architecture.from_config(teacher.config).num_hidden_layers)
    hooks = {path: partial(record, site) for site, path in sites.items()}
    with _evaluating(teacher), _forward_hooks(family, teacher, hooks):
        teacher(**batch)
    hidden = [states for (_, part), states in after.items() if part != "attention"]
    energy = sum(states.double().T @ states.double() for states in hidden)
    assert isinstance(energy, torch.Tensor)
    if not energy.isfinite().all():
        raise InvalidInput(
            "teacher.model",
            teacher.config._name_or_path,
            "has hidden states that are not finite",
            "Its weights are damaged, or it diverged in its training: choose another.",
        )
    directions = torch.linalg.eigh(energy).eigenvectors.flip(1)
    return ResidualStream(batch, directions.float(), before, after)


@torch.no_grad()
def project_student(
    teacher: PreTrainedModel, architecture: Architecture, stream: ResidualStream, layers: str = "alternate"
) -> PreTrainedModel:
    """Cut a student out of a teacher along the principal directions of its residual stream.

    Neurons, heads and head units are the first ones, so call it on a model that went through
    `reorder_by_importance`, with the stream of that same model.

    Args:
        teacher: The wider model.
        architecture: The student's shape, no wider or deeper than the teacher's.
        stream: From `residual_stream(teacher, ...)`.
        layers: Which layers it starts from (see `slicing.source_layers`).

    Returns:
        A stock model of the teacher's class, in training mode.

    Raises:
        InvalidInput: If the student does not fit into the teacher.
    """
    require_fit(teacher, architecture)
    wide = Architecture.from_config(teacher.config)
    student = new_student(teacher, architecture)
    move_to(student, teacher.device)
    starts = source_layers(wide.num_hidden_layers, architecture.num_hidden_layers, layers)
    _copy_projected(teacher, student, stream.projection(architecture.hidden_size), layers)
    if keeps_heads(wide, architecture) and architecture.attention_head_size < wide.attention_head_size:
        _compress_heads(teacher, student, wide, architecture, stream, starts)
    else:
        _rescale_queries(student, query_scale(wide, architecture))
    _Fit(student, architecture, stream, starts, _ends(wide, starts, layers)).run()
    return student


def _ends(wide: Architecture, starts: list[int], layers: str) -> list[int]:
    """The teacher layer, from 1, whose output each layer should come near."""
    if layers == "alternate":
        return end_layers(wide.num_hidden_layers, len(starts))
    # Each takes the place of all up to where the next one starts.
    return [*(start - 1 for start in starts[1:]), wide.num_hidden_layers]


def _copy_projected(
    teacher: PreTrainedModel, student: PreTrainedModel, projection: Tensor, layers: str
) -> None:
    family = get_family(teacher.config).of(type(teacher))
    parts, sources = parts_of(teacher, student, layers), dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        part = parts[name]
        source: Tensor = sources[part.source]
        for dimension, axis in enumerate(family.parameter_axes(name)):
            if axis in ("hidden", "decoder_units"):
                source = torch.tensordot(source, projection, dims=([dimension], [0])).movedim(-1, dimension)
            else:
                source = source[(*[slice(None)] * dimension, part.index[dimension])]
        parameter.copy_(source)


def _rescale_queries(student: PreTrainedModel, scale: float) -> None:
    """Multiply the query projections of all layers."""
    family = get_family(student.config)
    layers = Architecture.from_config(student.config).num_hidden_layers
    for layer in range(1, layers + 1):
        for parameter in family.module(student, family.projection(layer, "query")).parameters():
            parameter.mul_(scale)


def _compress_heads(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    wide: Architecture,
    narrow: Architecture,
    stream: ResidualStream,
    starts: list[int],
) -> None:
    """Give each smaller head the best low-rank form of its teacher head, on the sample's states.

    Attention depends on queries and keys through their product alone, and on values and the output
    map through theirs; the singular vectors of those products, weighted by the states that enter the
    layer, lose least.
    """
    family = get_family(teacher.config)
    projection = stream.projection(narrow.hidden_size)
    for layer, source in enumerate(starts, start=1):
        site = (source - 1, "output") if source > 1 else (0, "embeddings")
        states = stream.after[site] @ projection
        maps = {
            which: _augmented(family, teacher, family.projection(source, which), projection)
            for which in ("query", "key", "value")
        }
        out = _linear(family, teacher, family.in_layer(source, family.attention_dense)).weight
        maps["out"] = (projection.T @ out).double()
        new = _compressed(maps, _energy_root(_with_one(states).double()), wide, narrow)
        for which in ("query", "key", "value"):
            linear = _linear(family, student, family.projection(layer, which))
            linear.weight.copy_(new[which][:, :-1])
            linear.bias.copy_(new[which][:, -1])
        _linear(family, student, family.in_layer(layer, family.attention_dense)).weight.copy_(new["out"])


def _compressed(
    maps: Mapping[str, Tensor], roots: tuple[Tensor, Tensor], wide: Architecture, narrow: Architecture
) -> dict[str, Tensor]:
    """The query, key, value (with biases) and output maps of a layer's smaller heads."""
    root, inverse = roots
    size, small = wide.attention_head_size, narrow.attention_head_size
    queries, keys, values, outs = [], [], [], []
    for head in range(narrow.num_attention_heads):
        units = slice(head * size, (head + 1) * size)
        query, key = _low_rank(root @ maps["query"][units].T, maps["key"][units] @ root, small)
        out, value = _low_rank(maps["out"][:, units], maps["value"][units] @ root, small)
        queries.append((small / size) ** 0.5 * query.T @ inverse)
        keys.append(key @ inverse)
        values.append(value @ inverse)
        outs.append(out)
    return {
        "query": torch.cat(queries),
        "key": torch.cat(keys),
        "value": torch.cat(values),
        "out": torch.cat(outs, dim=1),
    }


def _linear(family: Family, model: PreTrainedModel, path: str) -> nn.Linear:
    return cast("nn.Linear", family.module(model, path))


def _augmented(family: Family, teacher: PreTrainedModel, path: str, projection: Tensor) -> Tensor:
    """A linear's weight in the projected basis with its bias as last column, in double precision."""
    linear = _linear(family, teacher, path)
    return torch.cat([linear.weight @ projection, linear.bias[:, None]], dim=1).double()


def _with_one(states: Tensor) -> Tensor:
    return torch.cat([states, states.new_ones(len(states), 1)], dim=1)


def _energy_root(states: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of the states' second moment, and its inverse."""
    values, vectors = torch.linalg.eigh(states.T @ states / len(states))
    values = values.clamp_min(values.max() * 1e-8).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def _low_rank(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (rows, rank) and (rank, columns) whose product is nearest to `left @ right`."""
    left_basis, left_rest = torch.linalg.qr(left)
    right_basis, right_rest = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(left_rest @ right_rest.T)
    weight = values[:rank].sqrt()
    return left_basis @ u[:, :rank] * weight, (right_basis @ v[:rank].T * weight).T


class _Fit:
    """Least squares, front to back, in a single forward over the sample.

    Hooks fit each module on what really enters it, and hand on what the fitted module puts out, so
    that every later fit sees the effect of the earlier ones.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        narrow: Architecture,
        stream: ResidualStream,
        starts: list[int],
        ends: list[int],
    ) -> None:
        self.family = get_family(student.config)
        self.student = student
        self.stream = stream
        self.projection = stream.projection(narrow.hidden_size)
        self.kept = stream.batch["attention_mask"].bool()
        self.starts = starts
        self.ends = ends
        self.residual: Tensor | None = None

    def run(self) -> None:
        """Fit every linear that writes to the residual stream, and every LayerNorm on it."""
        hooks: dict[str, Any] = {}
        for site, path in norm_sites(self.family, len(self.starts)).items():
            hooks[path] = partial(self._fit_norm, self._source(site))
        if self.family.embeddings_norm is None:
            hooks[self.family.embeddings] = self._keep_residual  # exact as it is
        for layer in range(1, len(self.starts) + 1):
            denses = {"attention": self.family.attention_dense, "output": self.family.output_dense}
            for part, dense in denses.items():
                site = self._source((layer, part))
                hooks[self.family.in_layer(layer, dense)] = partial(self._fit_dense, site)
        with _evaluating(self.student), _forward_hooks(self.family, self.student, hooks):
            self.student(**self.stream.batch)

    def _source(self, site: Site) -> Site:
        """The teacher's site that a student's site stands for.

        A layer starts from one teacher layer, but its output takes the place of all the layers up to
        the one that `ends` names.
        """
        layer, part = site
        if layer == 0:
            return site
        return ((self.starts if part == "attention" else self.ends)[layer - 1], part)

    def _fit_dense(
        self, site: Site, module: nn.Linear, inputs: tuple[Tensor, ...], _output: Tensor
    ) -> Tensor:
        """Make residual + output come near the projected sum that enters the teacher's LayerNorm."""
        assert self.residual is not None
        features = _with_one(inputs[0][self.kept])
        weight = torch.cat([module.weight, module.bias[:, None]], dim=1)
        target = self.stream.before[site] @ self.projection - self.residual[self.kept]
        error = target - features @ weight.T
        moment = features.T @ features
        pull = RIDGE * moment.diagonal().mean()
        moment.diagonal().add_(pull)
        weight = weight + torch.linalg.solve(moment, features.T @ error).T
        module.weight.copy_(weight[:, :-1])
        module.bias.copy_(weight[:, -1])
        return module.forward(inputs[0])

    def _keep_residual(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.residual = output

    def _fit_norm(
        self, site: Site, module: nn.LayerNorm, inputs: tuple[Tensor, ...], _output: Tensor
    ) -> Tensor:
        """Scale and shift each unit so that it comes near the projected state of the teacher."""
        normed = nn.functional.layer_norm(inputs[0], module.normalized_shape, eps=module.eps)
        states, target = normed[self.kept], self.stream.after[site] @ self.projection
        centred = states - states.mean(0)
        slope = (centred * (target - target.mean(0))).mean(0) / centred.square().mean(0).clamp_min(1e-6)
        module.weight.copy_(slope)
        module.bias.copy_(target.mean(0) - slope * states.mean(0))
        self.residual = module.forward(inputs[0])
        return self.residual


@contextmanager
def _forward_hooks(family: Family, model: PreTrainedModel, hooks: Mapping[str, Any]) -> Iterator[None]:
    handles = [family.module(model, path).register_forward_hook(hook) for path, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
