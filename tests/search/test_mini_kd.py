"""Mini-KD: a short distillation by a plain loop."""

from __future__ import annotations

import random

import pytest
import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.data import DistillationCollator, LengthGroupedSampler
from hf_kdnas.initialisation import Initialiser
from hf_kdnas.recipe import TrainingSection
from hf_kdnas.search.mini_kd import MiniKD, proxy_rows

SHAPE = Architecture(num_hidden_layers=2, hidden_size=16, num_attention_heads=4, intermediate_size=32)


@pytest.fixture
def distil(tiny_bert_config, make_model):
    """Weights of a student after so many steps with these objectives."""
    draw = random.Random(0)
    rows = [
        {"input_ids": [draw.randrange(5, 120) for _ in range(draw.choice((3, 9)))], "labels": index % 2}
        for index in range(16)
    ]
    initialiser = Initialiser("random", make_model(tiny_bert_config))

    def run(objectives, steps):
        section = TrainingSection(epochs=steps, batch_size=16, learning_rate=1e-2, precision="fp32")
        kept = {}

        def score(student):
            kept.update({name: tensor.clone() for name, tensor in student.state_dict().items()})
            return 0.5

        kd = MiniKD(
            initialiser, rows, DistillationCollator(0), objectives, section, 0, score, torch.device("cpu")
        )
        assert kd.reached(SHAPE) == 0.5
        return kept

    return run


def same(ours, theirs):
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_proxy_set_is_a_part_of_the_rows_that_the_seed_draws():
    rows = [{"input_ids": [index]} for index in range(100)]
    found = proxy_rows(rows, 0.3, 0)
    drawn = [row["input_ids"][0] for row in found]
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 30
    assert set(drawn) < set(range(100))
    assert proxy_rows(rows, 0.3, 0) == found
    assert proxy_rows(rows, 0.3, 1) != found


def test_weights_follow_the_steps(distil):
    fading = {"logits": {"weight": {"from": 1.0, "to": 0.0}}, "task": {}}
    constant = {"logits": {}, "task": {}}
    assert same(distil(fading, 1), distil(constant, 1))
    assert not same(distil(fading, 3), distil(constant, 3))
    assert same(distil(fading, 3), distil(fading, 3))


def test_every_objective_with_searched_layers(distil):
    objectives = {
        "hidden": {"layers": "searched"},
        "attention": {"softmax": True},
        "relations": {"softmax": False},
        "direct_relations": {},
        "embeddings": {},
    }
    trained = distil(objectives, 2)
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())
    assert not same(trained, distil({"logits": {}}, 2))


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_a_live_teacher_computes_in_its_own_dtype(tiny_bert_config, make_model, dtype, expected):
    teacher, dtypes = make_model(tiny_bert_config), set()
    teacher.bert.encoder.layer[0].output.dense.register_forward_hook(
        lambda module, inputs, output: dtypes.add(output.dtype)
    )
    rows = [{"input_ids": [2, 7, 3], "labels": 0}, {"input_ids": [2, 8, 9, 3], "labels": 1}]
    section = TrainingSection(epochs=1, precision="bf16")
    kd = MiniKD(
        initialiser=Initialiser("random", teacher),
        rows=rows,
        collator=DistillationCollator(0),
        objectives={"logits": {}},
        section=section,
        seed=0,
        score=lambda student: 0.5,
        device=torch.device("cpu"),
        teacher_dtype=dtype,
    )
    assert kd.reached(SHAPE) == 0.5
    assert dtypes == {expected}


def test_quality_by_hidden_states_is_that_of_the_last_epoch(tiny_bert_config, make_model):
    """KD-NAS without a task: 1 - L_HS. With a learning rate of next to nothing the loss stays as it was."""
    tiny_bert_config.hidden_dropout_prob = tiny_bert_config.attention_probs_dropout_prob = 0.0
    rows = [{"input_ids": [2, 5 + index, 3], "labels": 0} for index in range(6)]
    initialiser, collator = Initialiser("random", make_model(tiny_bert_config)), DistillationCollator(0)
    section = TrainingSection(epochs=2, batch_size=4, learning_rate=1e-12, precision="fp32")
    kd = MiniKD(
        initialiser,
        rows,
        collator,
        {"hidden": {}, "logits": {}},
        section,
        0,
        lambda student: 0.5,
        torch.device("cpu"),
        quality="hidden_states",
    )
    quality = kd.reached(SHAPE)
    teacher = Architecture.from_config(tiny_bert_config)
    criterion = DistillationCriterion({"hidden": {}}, SHAPE, teacher)
    student, losses = initialiser.student(SHAPE, 0), []
    sampler = LengthGroupedSampler([3] * 6, 4, 0)
    sampler.set_epoch(1)
    for indices in sampler.batches():
        batch = collator([rows[index] for index in indices])
        ours, theirs = (
            forward_signals(model.eval(), Capture(model, names), batch)
            for model, names in (
                (student, criterion.student_signals),
                (initialiser.teacher, criterion.teacher_signals),
            )
        )
        losses.append(criterion(ours, theirs, batch, criterion.counts(batch))[1]["hidden"].item())
    assert quality == pytest.approx(1 - sum(losses) / 2, abs=1e-4)
