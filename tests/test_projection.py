from __future__ import annotations

import copy

import pytest
import torch

from hf_kdnas import projection
from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.exact import as_exact
from hf_kdnas.importance import sensitivity
from hf_kdnas.projection import project_student, residual_stream
from hf_kdnas.slicing import reorder_by_importance, slice_student


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    mask = (torch.arange(20) < torch.randint(5, 21, (64, 1))).long()
    return {"input_ids": torch.randint(5, 120, (64, 20)) * mask, "attention_mask": mask}


@pytest.fixture
def teacher(tiny_bert_config, make_model, batch):
    """A teacher whose residual stream lives mostly on a few directions, as real ones do."""
    teacher = make_model(tiny_bert_config)
    torch.manual_seed(1)
    mixing = torch.linalg.qr(torch.randn(32, 32)).Q
    with torch.no_grad():
        for table in (teacher.bert.embeddings.word_embeddings, teacher.bert.embeddings.position_embeddings):
            table.weight.copy_(torch.randn_like(table.weight) * torch.logspace(0, -2, 32) @ mixing)
        for name, parameter in teacher.named_parameters():
            if parameter.dim() == 2 and "encoder" in name:
                parameter.normal_(std=0.15)
    labelled = {**batch, "labels": torch.randint(0, 2, (64,))}
    reorder_by_importance(teacher, sensitivity(teacher, [labelled]))
    return teacher


def _error(student, teacher, batch, stream, width: int) -> float:
    """Relative error of the student's last hidden states against the teacher's, projected."""
    kept = batch["attention_mask"].bool()
    with torch.no_grad():
        found = student.eval().bert(**batch).last_hidden_state[kept]
        wanted = teacher.bert(**batch).last_hidden_state[kept] @ stream.projection(width)
    return ((found - wanted).square().mean() / wanted.var()).item()


def test_directions_are_orthonormal_and_ordered_by_energy(teacher, batch) -> None:
    stream = residual_stream(teacher, batch)
    assert torch.allclose(stream.directions.T @ stream.directions, torch.eye(32), atol=1e-5)
    states = torch.cat([each for (_, part), each in stream.after.items() if part != "attention"])
    energy = (states @ stream.directions).square().sum(0)
    assert torch.all(energy.diff() <= 1e-3 * energy[0])


def test_padding_stays_out_of_the_stream(teacher, batch) -> None:
    stream = residual_stream(teacher, batch)
    tokens = int(batch["attention_mask"].sum())
    assert {len(states) for states in stream.after.values()} == {tokens}


def test_a_damaged_teacher_is_refused(teacher, batch) -> None:
    with torch.no_grad():
        teacher.bert.encoder.layer[1].output.dense.bias[0] = torch.nan
    with pytest.raises(InvalidInput, match=r"teacher\.model.*hidden states that are not finite"):
        residual_stream(teacher, batch)


@pytest.mark.parametrize("shape", [Architecture(3, 16, 4, 32), Architecture(2, 24, 4, 64)], ids=str)
def test_least_squares_come_nearer_than_projection_alone(teacher, batch, shape, monkeypatch) -> None:
    stream = residual_stream(teacher, batch)
    fitted = _error(project_student(teacher, shape, stream), teacher, batch, stream, shape.hidden_size)
    monkeypatch.setattr(projection._Fit, "_fit_dense", lambda self, site, module, inputs, output: output)
    plain = _error(project_student(teacher, shape, stream), teacher, batch, stream, shape.hidden_size)
    assert fitted < 0.9 * plain


def test_projection_comes_nearer_than_slicing(teacher, batch) -> None:
    shape = Architecture(3, 16, 4, 32)
    stream = residual_stream(teacher, batch)
    kept = batch["attention_mask"].bool()
    with torch.no_grad():
        wanted = teacher.bert(**batch).last_hidden_state[kept]
        sliced = slice_student(teacher, shape).eval().bert(**batch).last_hidden_state[kept]
        slice_error = ((sliced - wanted[:, :16]).square().mean() / wanted[:, :16].var()).item()
    assert _error(project_student(teacher, shape, stream), teacher, batch, stream, 16) < 0.5 * slice_error


def test_smaller_heads_keep_the_best_low_rank_attention(teacher, batch) -> None:
    """Teacher heads of rank 4 lose nothing when they are cut from 8 units to 4."""
    low = as_exact(teacher)
    with torch.no_grad():
        for layer in low.bert.encoder.layer:
            attention = layer.attention
            for linear in (attention.self.query, attention.self.key, attention.self.value):
                mix = torch.randn(4, 8, 4) @ torch.randn(4, 4, 33)
                linear.weight.view(4, 8, 32).copy_(0.1 * mix[..., :32])
                linear.bias.view(4, 8).copy_(0.1 * mix[..., 32])
    stream = residual_stream(low, batch)
    whole, small, smaller = (
        _error(
            project_student(low, Architecture(3, 32, 4, 64, head_size=size), stream), low, batch, stream, 32
        )
        for size in (None, 4, 2)
    )
    assert small == pytest.approx(whole, rel=0.01)
    assert smaller > 1.2 * whole


def test_making_a_student_leaves_the_teacher_alone(teacher, batch) -> None:
    before = copy.deepcopy(teacher.state_dict())
    project_student(teacher, Architecture(2, 16, 4, 32), residual_stream(teacher, batch))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not teacher.training
