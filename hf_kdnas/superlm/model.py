"""A SuperLM: one model whose parts are the members of a space."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call

from hf_kdnas.slicing import new_student, parts_of, require_fit, slice_student

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_kdnas.architecture import Architecture


class SuperLM:
    """The shared weights of a space's members: a stock model of which every member is a part.

    Attributes:
        model: The weights; its shape is the space's `widest`.
        layers: Which of its layers a shallower member has (see `slicing.source_layers`).

    Args:
        model: The weights, units ordered so that the important come first.
        layers: Which layers a shallower member has.
    """

    def __init__(self, model: PreTrainedModel, layers: str = "alternate") -> None:
        self.model = model
        self.layers = layers
        self._subnets: dict[Architecture, Subnet] = {}

    def subnet(self, architecture: Architecture) -> Subnet:
        """A member, to be run on the shared weights; made once for each shape.

        Raises:
            InvalidInput: If the shape does not fit into the SuperLM.
        """
        if architecture not in self._subnets:
            require_fit(self.model, architecture)
            self._subnets[architecture] = Subnet(self.model, architecture, self.layers)
        return self._subnets[architecture]

    def extract(self, architecture: Architecture) -> PreTrainedModel:
        """A member as a model of its own; its outputs equal the subnet's.

        Raises:
            InvalidInput: If the shape does not fit into the SuperLM.
        """
        return slice_student(self.model, architecture, self.layers)


class Subnet:
    """A member of a SuperLM: the stock model of its shape, called with parts of the shared weights.

    The stock model is there on the meta device alone, without weights of its own. It is called within
    `training` or `evaluating`.

    Attributes:
        skeleton: The stock model; hooks on its modules see what passes through.
        gradient_norm: Of the gradients that the last block of `training` handed over, a scalar.
    """

    gradient_norm: Tensor

    def __init__(self, model: PreTrainedModel, architecture: Architecture, layers: str) -> None:
        with torch.device("meta"):
            self.skeleton = new_student(model, architecture)
            self.skeleton.tie_weights()
        self._shared = dict(model.named_parameters())
        self._parts = parts_of(model, self.skeleton, layers)
        # The skeleton's own, also those that no checkpoint holds, have no values.
        self._buffers = dict(model.named_buffers())
        self._weights: dict[str, Tensor] = {}

    def __call__(self, **inputs: Any) -> Any:
        """The stock model's output."""
        return functional_call(self.skeleton, {**self._weights, **self._buffers}, kwargs=inputs)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Calls in this block are in training mode; what is backpropagated is added to the shared gradients.

        The parts are leaves of their own: a gradient has the size of the member, and not of the SuperLM with
        zeros around it.
        """
        self.skeleton.train()
        with self._weighted():
            for weight in self._weights.values():
                weight.requires_grad_()
            yield
            gradients = {
                name: weight.grad for name, weight in self._weights.items() if weight.grad is not None
            }
            # All at once: a norm each would be hundreds of kernels.
            norms = torch._foreach_norm(list(gradients.values()))
            self.gradient_norm = torch.linalg.vector_norm(torch.stack(norms))
            for name, gradient in gradients.items():
                self._hand_over(name, gradient)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Calls in this block are in evaluation mode and without gradients."""
        self.skeleton.eval()
        with torch.no_grad(), self._weighted():
            yield

    @contextmanager
    def _weighted(self) -> Iterator[None]:
        self._weights = {
            name: part.of(self._shared[part.source].detach()) for name, part in self._parts.items()
        }
        try:
            yield
        finally:
            self._weights = {}

    def _hand_over(self, name: str, gradient: Tensor) -> None:
        part = self._parts[name]
        shared = self._shared[part.source]
        if shared.grad is None:
            if part.scale == 1.0 and gradient.shape == shared.shape:
                shared.grad = gradient
                return
            shared.grad = torch.zeros_like(shared)
        part.add_gradient(shared.grad, gradient)
