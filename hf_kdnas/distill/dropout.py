"""Dropout of a model that is trained, whatever its config says."""

from __future__ import annotations

from typing import Any

from torch import nn


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Set the probability of dropout in every place of a model that has one.

    Dropout keeps a model from learning few labels by heart. A student that is to match its teacher's answers
    may do without. The config keeps what it says, for whoever trains the model later.

    Args:
        model: Changed in place.
        probability: 0 for none; None leaves the model's own.
    """
    if probability is None:
        return
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        # Transformers 4.57's attention by SDPA keeps a number of its own.
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = probability
