from __future__ import annotations

import pytest
import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.slicing import end_layers, head_rows, query_scale, slice_student, source_layers


def test_students_start_from_evenly_spread_layers() -> None:
    assert source_layers(12, 4) == [1, 4, 7, 10]
    assert source_layers(6, 4) == [1, 2, 4, 5]
    assert source_layers(5, 5) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("student", range(1, 13))
def test_layers_end_where_the_teacher_ends_and_not_before_they_start(student: int) -> None:
    starts, ends = source_layers(12, student), end_layers(12, student)
    assert ends[-1] == 12
    assert all(start <= end for start, end in zip(starts, ends, strict=True))
    assert ends == sorted(set(ends))


def test_smaller_heads_keep_the_first_units_of_the_first_heads() -> None:
    wide, narrow = Architecture(1, 12, 3, 8), Architecture(1, 4, 2, 8)
    assert head_rows(wide, narrow).tolist() == [0, 1, 4, 5]


def test_larger_heads_take_units_in_order() -> None:
    wide, narrow = Architecture(1, 12, 3, 8), Architecture(1, 12, 2, 8)
    assert head_rows(wide, narrow).tolist() == list(range(12))
    assert query_scale(wide, narrow) == 1.0


def test_attention_logits_keep_their_size_where_heads_shrink(tiny_bert_config, make_model) -> None:
    teacher = make_model(tiny_bert_config)
    with torch.no_grad():  # only the first half of each head says anything: nothing is lost by the cut
        for layer in teacher.bert.encoder.layer:
            for linear in (layer.attention.self.query, layer.attention.self.key):
                linear.weight.view(4, 8, 32)[:, 4:] = 0
                linear.bias.view(4, 8)[:, 4:] = 0
    narrow = Architecture(3, 32, 4, 64, head_size=None)
    student = slice_student(teacher, Architecture(3, 16, 4, 64))
    query = teacher.bert.encoder.layer[0].attention.self.query.weight.view(4, 8, 32)[:, :4, :16]
    cut = student.bert.encoder.layer[0].attention.self.query.weight.view(4, 4, 16)
    # q.k / sqrt(8) before, q'.k / sqrt(4) after.
    assert torch.allclose(cut / 4**0.5, query / 8**0.5)
    assert narrow.attention_size == 32


def test_a_student_wider_than_its_teacher_is_refused(tiny_bert_config, make_model) -> None:
    with pytest.raises(InvalidInput, match="3L-32H-64F-4A-gelu"):
        slice_student(make_model(tiny_bert_config), Architecture(3, 64, 4, 64))


def test_a_student_carries_labels_but_not_its_teachers_path(tiny_bert_config, make_model) -> None:
    teacher = make_model(tiny_bert_config)
    teacher.config.id2label = {0: "rotten", 1: "fresh"}
    teacher.config.name_or_path = "/home/someone/teacher"
    student = slice_student(teacher, Architecture(2, 16, 2, 32))
    assert student.config.id2label == {0: "rotten", 1: "fresh"}
    assert "someone" not in student.config.to_json_string(use_diff=False)
