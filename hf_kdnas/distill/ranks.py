"""What training on several ranks needs beyond DDP's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hf_kdnas.distill.capture import Capture, forward_signals

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def leave_out_unused(
    student: PreTrainedModel, capture: Capture, names: Iterable[str], batch: Mapping[str, Any]
) -> None:
    """Take the parameters that no signal follows from out of DDP's exchange, before it wraps the student.

    DDP counts on a gradient of all that the student's outputs follow from. The loss reads hooks instead: of
    hidden states alone, for one, none comes to the head, and DDP would wait for it for ever.

    Args:
        student: The model.
        capture: Its hooks.
        names: The signals that the loss reads.
        batch: Any batch.
    """
    signals = forward_signals(student, capture, batch)
    with torch.enable_grad():
        # Of frozen layers, say embeddings, a signal has no gradient.
        followed = [signals[name] for name in names if signals[name].requires_grad]
        torch.autograd.backward([signal.float().sum() for signal in followed])
    # A tied parameter goes by each of its names.
    named = student.named_parameters(remove_duplicate=False)
    unused = {name: parameter for name, parameter in named if parameter.grad is None}
    student.zero_grad()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(student, list(unused))
    # Neither does DDP give these the first rank's values now.
    for parameter in unused.values():
        distributed.broadcast(parameter.data, 0)
