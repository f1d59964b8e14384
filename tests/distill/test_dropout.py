from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.arguments import training_arguments
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.data import DistillationCollator
from hf_kdnas.distill.dropout import set_dropout
from hf_kdnas.distill.loop import train_alone
from hf_kdnas.distill.trainer import DistillationTrainer
from hf_kdnas.progress import Narrator
from hf_kdnas.recipe import TrainingSection

INPUTS = {"input_ids": torch.tensor([[2, 5, 7, 6, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
ROWS = [{"input_ids": [2, 5 + index % 2, 9, 3], "labels": index % 2} for index in range(8)]
SECTION = TrainingSection(epochs=1, batch_size=4, precision="fp32", dropout=0)


def answers_alike(model) -> bool:
    """Whether it answers twice alike in training mode."""
    model.train()
    first, second = (model(**INPUTS).logits for _ in range(2))
    return torch.equal(first, second)


@pytest.mark.parametrize("attention", ["eager", None])
def test_reaches_every_place_of_every_family(tiny_config, make_model, attention):
    tiny_config._attn_implementation = attention
    model = make_model(tiny_config)
    set_dropout(model, None)
    assert not answers_alike(model)
    before = model.config.to_dict()
    set_dropout(model, 0)
    assert answers_alike(model)
    assert model.config.to_dict() == before


def test_dropout_of_the_trainer(tiny_bert_config, make_model, tmp_path):
    for dropout in (None, 0):
        model = make_model(tiny_bert_config)
        section = replace(SECTION, dropout=dropout)
        arguments = training_arguments(section, tmp_path, objectives={"task": {}})
        DistillationTrainer(model, arguments, train_dataset=ROWS).train()
        assert answers_alike(model) == (dropout == 0)


def test_dropout_of_the_plain_loop(tiny_bert_config, make_model):
    shape = Architecture.from_config(tiny_bert_config)
    for dropout in (None, 0):
        model = make_model(tiny_bert_config)
        train_alone(
            model,
            DistillationCriterion({"task": {}}, shape, shape),
            replace(SECTION, dropout=dropout),
            ROWS,
            DistillationCollator(0),
            torch.device("cpu"),
            seed=0,
            narrator=Narrator(speaks=False),
            what="student",
        )
        assert answers_alike(model) == (dropout == 0)
