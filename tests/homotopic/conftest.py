"""What tests of narrowing share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hf_kdnas.homotopic.importance import no_scores


@pytest.fixture
def make_scores() -> Callable:
    """Scores of a model's units, drawn."""

    def build(model, seed: int = 0):
        draw = torch.Generator().manual_seed(seed)
        return {group: torch.rand(len(zeros), generator=draw) for group, zeros in no_scores(model).items()}

    return build


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four texts, one of them padded."""
    ids = torch.randint(5, 120, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}
