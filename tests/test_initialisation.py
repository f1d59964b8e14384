"""Students of one teacher, made on several ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from hf_kdnas import initialisation
from hf_kdnas.architecture import Architecture
from hf_kdnas.initialisation import Initialiser

SHAPE = Architecture(2, 16, 4, 32)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    mask = (torch.arange(12) < torch.randint(4, 13, (16, 1))).long()
    return {"input_ids": torch.randint(5, 120, (16, 12)) * mask, "attention_mask": mask}


class FirstRank:
    """Hands out what the first rank has, to ranks that run one after another."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def to(self, rank: int) -> Callable[[Any], Any]:
        sent = iter(self.values)

        def share(value: Any) -> Any:
            if rank == 0:
                self.values.append(value)
                return value
            return next(sent)

        return share


@pytest.fixture
def make_rank(tiny_bert_config, make_model, batch, monkeypatch) -> Callable[..., Initialiser]:
    """Prepare students on a rank that computes not quite what the first one does.

    Sums in another order change the importance a little, and so the order of units that are nearly
    alike; and an eigenvector may come with either sign.
    """
    teacher = make_model(tiny_bert_config)
    labelled = {**batch, "labels": torch.randint(0, 2, (16,))}
    sensitivity, residual_stream = initialisation.sensitivity, initialisation.residual_stream

    def prepare(rank: int, method: str, **options: Any) -> Initialiser:
        draw = torch.Generator().manual_seed(rank)

        def inexact(*arguments: Any) -> Any:
            scores = sensitivity(*arguments)
            return {
                group: values * (1 + 1e-2 * rank * torch.randn(values.shape, generator=draw))
                for group, values in scores.items()
            }

        def turned(*arguments: Any) -> Any:
            stream = residual_stream(*arguments)
            return replace(stream, directions=stream.directions * (-1) ** rank)

        monkeypatch.setattr(initialisation, "sensitivity", inexact)
        monkeypatch.setattr(initialisation, "residual_stream", turned)
        return Initialiser.prepare(method, copy.deepcopy(teacher), [labelled], batch, **options)

    return prepare


def _same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    others = second.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize("method", ["slice", "project"])
def test_ranks_make_the_same_student_of_what_the_first_one_shares(method: str, make_rank) -> None:
    first_rank = FirstRank()
    first, second = (make_rank(rank, method, share=first_rank.to(rank)) for rank in (0, 1))
    assert _same(first.student(SHAPE, seed=0), second.student(SHAPE, seed=0))
    assert torch.equal(first.projection(SHAPE), second.projection(SHAPE))


@pytest.mark.parametrize("method", ["slice", "project"])
def test_ranks_that_share_nothing_make_different_students(method: str, make_rank) -> None:
    first, second = (make_rank(rank, method) for rank in (0, 1))
    assert not _same(first.student(SHAPE, seed=0), second.student(SHAPE, seed=0))


def test_order_and_directions_are_shared_both(make_rank) -> None:
    """Each alone would leave the ranks apart."""
    shared = FirstRank()
    make_rank(0, "project", share=shared.to(0))
    importance, directions = shared.values
    for kept in (importance, directions):

        def share(value: Any, kept: Any = kept) -> Any:
            return kept if type(value) is type(kept) else value

        first, second = make_rank(0, "project"), make_rank(1, "project", share=share)
        assert not _same(first.student(SHAPE, seed=0), second.student(SHAPE, seed=0))
