"""Objectives of tasks without labels, against a direct computation in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives import MaskedLM, Objective, Sentence
from hf_kdnas.errors import InvalidInput

TEACHER = Architecture(num_hidden_layers=4, hidden_size=12, num_attention_heads=6, intermediate_size=16)
STUDENT = Architecture(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=16)
LENGTHS = (5, 2, 3)
VOCABULARY = 7


def batch_of() -> dict[str, Any]:
    mask = (torch.arange(5) < torch.tensor(LENGTHS)[:, None]).long()
    labels = torch.full((3, 5), -100)
    labels[0, 1], labels[0, 4], labels[2, 2] = 3, 5, 0
    return {"attention_mask": mask, "labels": labels}


def signals_of(shape: Architecture, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    widths = {"logits": VOCABULARY, f"hidden.{shape.num_hidden_layers}": shape.hidden_size}
    return {
        name: torch.randn(3, 5, width, generator=draw, dtype=torch.float64).requires_grad_()
        for name, width in widths.items()
    }


def compare(objective: Objective, direct: Any) -> None:
    """Value and gradients, and that parts of a batch add up."""
    batch, teacher = batch_of(), signals_of(TEACHER, 1)
    results = []
    for compute in (
        lambda student: objective(student, teacher, batch),
        lambda student: direct(student, teacher),
    ):
        student = signals_of(STUDENT, 2)
        value = compute(student)
        gradients = torch.autograd.grad(value, list(student.values()), allow_unused=True)
        results.append((value, [each for each in gradients if each is not None]))
    assert results[0][0].item() == pytest.approx(results[1][0].item(), rel=1e-9)
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(ours, theirs)
    student, rows = signals_of(STUDENT, 2), (slice(0, 1), slice(1, 3))

    def part(of: dict[str, torch.Tensor], where: slice) -> dict[str, torch.Tensor]:
        return {name: value[where] for name, value in of.items()}

    parts = [objective(*(part(each, where) for each in (student, teacher, batch))) for where in rows]
    assert sum(parts).item() == pytest.approx(results[0][0].item(), rel=1e-9)
    counts = [objective.count(part(batch, where)) for where in rows]
    assert sum(counts) == objective.count(batch)


@pytest.mark.parametrize("loss", ["cosine", "mse"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence(loss: str, pooling: str) -> None:
    projection = torch.linalg.qr(torch.randn(12, 8, dtype=torch.float64)).Q
    objective = Sentence(STUDENT, TEACHER, loss=loss, pooling=pooling, projection=projection)

    def pooled(states: torch.Tensor, row: int) -> torch.Tensor:
        return states[row, : LENGTHS[row]].mean(0) if pooling == "mean" else states[row, 0]

    def direct(student: Any, teacher: Any) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row in range(3):
            ours = pooled(student["hidden.2"], row)
            theirs = pooled(teacher["hidden.4"], row) @ projection
            if loss == "cosine":
                total = total + 1 - ours @ theirs / (ours.norm() * theirs.norm())
            else:
                total = total + (ours - theirs).square().sum() / theirs.square().sum()
        return total

    compare(objective, direct)
    assert objective.count(batch_of()) == 3
    assert (objective.student_signals, objective.teacher_signals) == ({"hidden.2"}, {"hidden.4"})


def test_a_map_that_is_drawn_keeps_lengths_and_is_kept_in_checkpoints() -> None:
    torch.manual_seed(0)
    objective = Sentence(STUDENT, TEACHER)
    assert objective.projection is not None
    torch.testing.assert_close(objective.projection.T @ objective.projection, torch.eye(8))
    assert "projection" in objective.state_dict()
    assert Sentence(TEACHER, TEACHER).projection is None
    assert not Sentence(STUDENT, TEACHER, projection=torch.eye(12)[:, :8]).state_dict()


@pytest.mark.parametrize("positions", ["masked", "all"])
def test_mlm(positions: str) -> None:
    objective = MaskedLM(STUDENT, TEACHER, positions=positions, temperature=2.0)
    batch = batch_of()
    chosen = batch["labels"] != -100 if positions == "masked" else batch["attention_mask"] == 1

    def direct(student: Any, teacher: Any) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row, place in chosen.nonzero().tolist():
            p = (teacher["logits"][row, place].detach() / 2).softmax(-1)
            q = (student["logits"][row, place] / 2).softmax(-1)
            total = total + 4 * (p * (p.log() - q.log())).sum()
        return total

    compare(objective, direct)
    assert int(objective.count(batch)) == int(chosen.sum())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Sentence, {"loss": "l1"}, "objectives.sentence.loss"),
        (Sentence, {"pooling": "max"}, "objectives.sentence.pooling"),
        (MaskedLM, {"positions": "some"}, "objectives.mlm.positions"),
        (MaskedLM, {"temperature": 0}, "objectives.mlm.temperature"),
    ],
)
def test_options_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        kind(STUDENT, TEACHER, **options)


def test_a_wider_student_needs_a_projection() -> None:
    with pytest.raises(InvalidInput, match="no wider than its teacher"):
        Sentence(TEACHER, STUDENT)


@pytest.mark.parametrize(
    ("labels", "message"), [({}, "has attention_mask"), ({"labels": torch.ones(1)}, r"of shape \(1,\)")]
)
def test_mlm_without_hidden_tokens_is_refused(labels: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(InvalidInput, match=f"needs hidden tokens.*{message}"):
        MaskedLM(STUDENT, TEACHER).count({"attention_mask": torch.ones(1, 2), **labels})
