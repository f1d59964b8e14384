"""Mean squared difference of relations behind their softmax, against a direct computation in float64."""

from __future__ import annotations

import pytest
import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives import Relations, SharedSignals
from hf_kdnas.distill.objectives.scores import SHORT
from hf_kdnas.errors import InvalidInput

TEACHER = Architecture(num_hidden_layers=4, hidden_size=12, num_attention_heads=6, intermediate_size=16)
STUDENT = Architecture(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=16)
PARTS = ("query", "key", "value")
# Rows are softened along their keys, or across rows where the longest is shorter than SHORT.
LENGTHS = [(5, 2, 3), (SHORT + 2, 4, 1)]


def batch_of(lengths):
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return {"attention_mask": mask}


def signals_of(architecture, layer, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths), architecture.attention_size)
    return {f"{part}.{layer}": torch.randn(shape, generator=generator).double() for part in PARTS}


def relation(states, heads):
    """Of one text without padding: (length, heads x d) to a matrix for each relation head."""
    split = states.reshape(len(states), heads, -1)
    return [
        torch.softmax(split[:, head] @ split[:, head].T / split.shape[-1] ** 0.5, dim=-1)
        for head in range(heads)
    ]


def direct(student, teacher, lengths, heads):
    total = 0
    for row, length in enumerate(lengths):
        for part in PARTS:
            wanted = relation(teacher[f"{part}.4"][row, :length], heads)
            learned = relation(student[f"{part}.2"][row, :length], heads)
            for p, q in zip(wanted, learned, strict=True):
                for query in range(length):
                    total = total + ((p[query] - q[query]) ** 2).sum() / length / heads
    return total


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("heads", [1, 4])
def test_value_and_gradients(lengths, heads):
    objective = Relations(STUDENT, TEACHER, loss="mse", relation_heads=heads)
    batch, teacher = batch_of(lengths), signals_of(TEACHER, 4, lengths, seed=1)
    found = []
    for compute in (lambda s: objective(s, teacher, batch), lambda s: direct(s, teacher, lengths, heads)):
        student = signals_of(STUDENT, 2, lengths, seed=2)
        leaves = [signal.requires_grad_() for signal in student.values()]
        value = compute(student)
        found.append([value, *torch.autograd.grad(value, leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert objective.count(batch) == sum(lengths)


def test_what_is_left_out_is_as_before():
    """Distributions are compared by KL, products by their squared difference."""
    lengths = LENGTHS[0]
    signals = signals_of(STUDENT, 2, lengths, 2), signals_of(TEACHER, 4, lengths, 1), batch_of(lengths)
    values = [
        [Relations(STUDENT, TEACHER, softmax=softmax, loss=loss)(*signals) for loss in (None, named)]
        for softmax, named in ((True, "kl"), (False, "mse"))
    ]
    assert [left_out == named for left_out, named in values] == [True, True]
    assert Relations(STUDENT, TEACHER, loss="mse")(*signals) not in [value for value, _ in values]


def test_kl_without_distributions_is_refused():
    with pytest.raises(InvalidInput, match=r"relations.loss: got 'kl'; with softmax: false .* mse alone"):
        Relations(STUDENT, TEACHER, loss="kl", softmax=False)


@pytest.mark.parametrize("loss", ["cosine", ""])
def test_another_loss_is_refused(loss):
    with pytest.raises(InvalidInput, match="losses are kl, mse"):
        Relations(STUDENT, TEACHER, loss=loss)


@pytest.mark.parametrize("options", [{}, {"loss": "mse"}, {"softmax": False}], ids=str)
def test_a_student_in_double_precision_learns_from_signals_in_single(options):
    objective, lengths = Relations(STUDENT, TEACHER, relation_heads=4, **options), (5, 2, 3)
    batch, student = batch_of(lengths), signals_of(STUDENT, 2, lengths, seed=2)
    teacher = {name: signal.float() for name, signal in signals_of(TEACHER, 4, lengths, seed=1).items()}
    exact = {name: signal.double() for name, signal in teacher.items()}
    torch.testing.assert_close(objective(student, teacher, batch), objective(student, exact, batch))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("options", [{}, {"loss": "mse"}, {"softmax": False}], ids=str)
def test_students_that_share_their_teachers_relations_are_given_the_same_values(options, lengths):
    batch, teacher = batch_of(lengths), signals_of(TEACHER, 4, lengths, seed=1)
    padding = ~batch["attention_mask"].bool()
    for signal in teacher.values():
        signal[padding] = float("nan")
    shared = SharedSignals(teacher, batch)
    for seed, size in enumerate((8, 4, 8)):
        shape = Architecture(
            num_hidden_layers=2, hidden_size=size, num_attention_heads=2, intermediate_size=16
        )
        objective, student = (
            Relations(shape, TEACHER, relation_heads=4, **options),
            signals_of(shape, 2, lengths, seed),
        )
        for signal in student.values():
            signal[padding] = float("inf")
        value = objective(student, shared, batch)
        assert value > 0
        torch.testing.assert_close(value, objective(student, teacher, batch), rtol=1e-10, atol=0)
        # What was made of the teacher's signals is not made again.
        for signal in shared.values():
            signal.zero_()


def test_relations_that_are_shared_are_those_of_one_layer_and_number_of_heads():
    lengths = LENGTHS[0]
    student, batch = signals_of(STUDENT, 2, lengths, 2), batch_of(lengths)
    teacher = signals_of(TEACHER, 4, lengths, 1) | signals_of(TEACHER, 3, lengths, 3)
    shared = SharedSignals(teacher, batch)
    for options in ({}, {"relation_heads": 2}, {"teacher_layer": 3}, {"loss": "mse"}, {"softmax": False}):
        objective = Relations(STUDENT, TEACHER, **options)
        torch.testing.assert_close(objective(student, shared, batch), objective(student, teacher, batch))
