"""Students of one teacher, made on several ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from hf_kdnas import initialisation
from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family
from hf_kdnas.given_superlm import find_superlms
from hf_kdnas.initialisation import Initialiser
from hf_kdnas.run import write_json
from hf_kdnas.slicing import slice_student
from hf_kdnas.superlm.model import SuperLM

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


def test_a_student_as_wide_as_its_teacher_keeps_its_units(make_rank, batch) -> None:
    maker = make_rank(0, "project")
    whole = Architecture.from_config(maker.teacher.config)
    fewer = replace(whole, num_hidden_layers=2)
    assert torch.equal(maker.projection(fewer), torch.eye(whole.hidden_size))
    with torch.no_grad():
        wanted, found = (
            model.eval()(**batch).logits for model in (maker.teacher, maker.student(whole, seed=0))
        )
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    nested = replace(maker, nested=True)
    assert torch.equal(nested.projection(fewer), maker.stream.directions)
    assert not _same(nested.student(fewer, seed=0), maker.student(fewer, seed=0))


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


@pytest.fixture
def superlm_folder(tiny_config, tmp_path: Path) -> Path:
    """A run with one SuperLM as wide as the tiny teachers, whose shallow members are its last layers."""
    torch.manual_seed(1)
    model = AutoModel.from_config(tiny_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "spaces" / "all" / "superlm")
    write_json(tmp_path / "settings.json", {"superlm.layers": "last"})
    return tmp_path


@pytest.mark.parametrize("shape", [Architecture(2, 24, 3, 48), Architecture(1, 32, 8, 64)], ids=str)
def test_a_student_of_a_superlm_is_its_subnet_with_a_head(
    superlm_folder: Path, tiny_config, make_model, shape: Architecture
) -> None:
    teacher, found = make_model(tiny_config), find_superlms(str(superlm_folder), tiny_config)
    initialiser = Initialiser("superlm", teacher, superlms=found.load(teacher, 0), layers=found.layers)
    student = initialiser.student(shape, seed=0)
    assert type(student) is type(teacher)
    assert student.training
    trained = AutoModel.from_pretrained(superlm_folder / "spaces" / "all" / "superlm")
    wanted = dict(SuperLM(trained, "last").extract(shape).named_parameters())
    encoder = dict(get_family(tiny_config).base_model(student).named_parameters())
    assert wanted.keys() - encoder.keys() <= {"pooler.dense.weight", "pooler.dense.bias"}
    for name, parameter in encoder.items():
        assert torch.equal(parameter, wanted[name]), name
    assert student(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 2)
    # Its units are not in the teacher's order, or not along its directions.
    assert initialiser.projection(shape) is None


def test_the_smallest_superlm_that_a_student_fits_into_is_taken(tiny_bert_config, make_model) -> None:
    small, large = Architecture(2, 16, 4, 32), Architecture(3, 24, 4, 64)
    superlms = tuple(make_model(shape.apply_to(tiny_bert_config), seed=1) for shape in (small, large))
    initialiser = Initialiser("superlm", make_model(tiny_bert_config), superlms=superlms)
    cases = [(small, 0), (Architecture(1, 8, 2, 32), 0), (Architecture(3, 8, 2, 32), 1), (large, 1)]
    for shape, place in cases:
        assert _same(initialiser.student(shape, seed=0), slice_student(superlms[place], shape)), shape
    with pytest.raises(InvalidInput, match=large.key):
        initialiser.student(Architecture(3, 32, 4, 64), seed=0)
