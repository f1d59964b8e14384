"""Where the training of a SuperLM goes on: weights, the optimiser's moments, and a few numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from hf_kdnas.run import atomic_folder, read_json, write_json

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW

STATE, WEIGHTS, MOMENTS = "state.json", "weights.safetensors", "moments.safetensors"


class Checkpoint:
    """The newest state of a training, in a folder that is replaced as a whole.

    All that is drawn in a step follows from the seed and the step's number, so that no generator is kept.

    Args:
        folder: Where it is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, model: nn.Module, optimiser: AdamW, state: dict[str, Any]) -> None:
        """Put this state in the place of the last one; on one process of a launch."""
        parameters = dict(model.named_parameters())
        moments = {
            f"{moment}.{name}": tensor
            for name, parameter in parameters.items()
            for moment, tensor in optimiser.state.get(parameter, {}).items()
        }
        with atomic_folder(self._folder) as unfinished:
            save_file(
                {name: each.detach().contiguous() for name, each in parameters.items()}, unfinished / WEIGHTS
            )
            save_file(moments, unfinished / MOMENTS)
            write_json(unfinished / STATE, state)

    @torch.no_grad()
    def load(self, model: nn.Module, optimiser: AdamW) -> dict[str, Any] | None:
        """Put the last state into a model and its optimiser.

        Returns:
            What `save` was given, or None where there is nothing to go on from.
        """
        state: dict[str, Any] | None = read_json(self._folder / STATE)
        if state is None:
            return None
        weights, moments = load_file(self._folder / WEIGHTS), load_file(self._folder / MOMENTS)
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
            if f"step.{name}" in moments:
                optimiser.state[parameter] = {
                    moment: moments[f"{moment}.{name}"].to(parameter.device)
                    for moment in ("step", "exp_avg", "exp_avg_sq")
                }
        return state

    def remove(self) -> None:
        """Delete it, when the training has ended."""
        shutil.rmtree(self._folder, ignore_errors=True)
