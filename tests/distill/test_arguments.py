"""Arguments: what is refused, and how a training section becomes them."""

from __future__ import annotations

import os

import pytest
import torch
from transformers import AutoModelForSequenceClassification, HfArgumentParser, Trainer, TrainingArguments

from hf_kdnas.distill.arguments import CHECKPOINTING, DistillationArguments, training_arguments
from hf_kdnas.distill.trainer import DistillationTrainer
from hf_kdnas.distill.training import shared_arguments
from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe import TrainingSection


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": {"logit": {}}}, "objectives are logits, hidden, embeddings"),
        ({"objectives": '{"logits": '}, "must be JSON"),
        ({"remove_unused_columns": True}, "signals are such columns"),
        ({"fsdp": "full_shard"}, "hooks need whole layers"),
        ({"deepspeed": {"zero_optimization": {}}}, "hooks need whole layers"),
        ({"label_smoothing_factor": 0.1}, "the teacher softens"),
        ({"dropout": 1.5}, "must be from 0 to 1"),
        ({"teacher_dtype": "fp16"}, "dtypes are auto, float32, bfloat16, float16"),
        ({f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}, "use_reentrant: False"),
    ],
)
def test_refused(tmp_path, options, message):
    with pytest.raises(InvalidInput, match=message):
        DistillationArguments(output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.mark.skipif(
    "train_sampling_strategy" not in DistillationArguments.__dataclass_fields__, reason="of Transformers 5"
)
def test_another_order_of_the_rows_is_refused(tmp_path):
    for strategy in ("sequential", "batch_rebalance"):
        with pytest.raises(InvalidInput, match="batches are made by length"):
            DistillationArguments(output_dir=str(tmp_path), use_cpu=True, train_sampling_strategy=strategy)


def test_on_a_command_line(tmp_path):
    (args,) = HfArgumentParser(DistillationArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "--objectives", '{"task": {"weight": 0.5}}']
    )
    assert args.objectives == {"task": {"weight": 0.5}}
    assert args.remove_unused_columns is False


def test_a_training_section_becomes_arguments(tmp_path):
    section = TrainingSection(
        epochs=2.5,
        batch_size=16,
        learning_rate=3e-4,
        warmup_fraction=0.25,
        weight_decay=0.02,
        max_grad_norm=0.5,
        precision="bf16",
        gradient_accumulation_steps=2,
        training_arguments={"adam_beta2": 0.98, "save_total_limit": 3},
    )
    args = training_arguments(section, tmp_path, objectives={"task": {}}, seed=7)
    assert args.get_warmup_steps(100) == 25
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.learning_rate) == (2.5, 16, 3e-4)
    assert (args.weight_decay, args.max_grad_norm, args.gradient_accumulation_steps) == (0.02, 0.5, 2)
    assert (args.bf16, args.fp16, args.adam_beta2, args.save_total_limit) == (True, False, 0.98, 3)
    assert (args.objectives, args.seed, args.report_to) == ({"task": {}}, 7, [])
    assert args.use_cpu is not torch.accelerator.is_available()


def test_a_build_for_a_gpu_that_is_not_there_trains_as_the_others_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = training_arguments(TrainingSection(precision="bf16"), tmp_path, objectives={"task": {}})
    assert (args.bf16, args.use_cpu, args.device.type) == (True, True, "cpu")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("epoch", 500, True)),
        ({"logging_steps": 5}, ("steps", 5, True)),
        ({"logging_strategy": "no", "disable_tqdm": False}, ("no", 500, False)),
    ],
)
def test_logs_and_bars_are_those_that_a_recipe_asks_for(tmp_path, given, expected):
    args = shared_arguments(TrainingSection(training_arguments=given), tmp_path, objectives={"task": {}})
    assert (args.logging_strategy, args.logging_steps, args.disable_tqdm) == expected


def test_an_unknown_argument_names_its_nearest(tmp_path):
    section = TrainingSection(training_arguments={"adam_beta_2": 0.98})
    with pytest.raises(InvalidInput, match="Did you mean adam_beta2"):
        training_arguments(section, tmp_path)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_precision_is_the_sections_whatever_was_trained_before(
    tmp_path, monkeypatch, tiny_bert_config, precision
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = training_arguments(TrainingSection(precision=precision), tmp_path, objectives={"task": {}})
    trainer = DistillationTrainer(AutoModelForSequenceClassification.from_config(tiny_bert_config), args)
    assert trainer.accelerator.mixed_precision == {"bf16": "bf16", "fp32": "no"}[precision]


def test_nothing_is_left_for_whatever_is_trained_next(tmp_path, monkeypatch, tiny_bert_config):
    """Transformers keeps precision (4.57) and compilation in the environment, where Accelerate looks."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    section = TrainingSection(precision="bf16", training_arguments={"torch_compile": True})
    before = dict(os.environ)
    args = training_arguments(section, tmp_path, objectives={"task": {}})
    model = AutoModelForSequenceClassification.from_config(tiny_bert_config)
    first = DistillationTrainer(model, args).accelerator.state
    assert (first.mixed_precision, first.dynamo_plugin.backend.value) == ("bf16", "INDUCTOR")
    assert dict(os.environ) == before
    plain = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    second = Trainer(model, plain).accelerator.state
    assert (second.mixed_precision, second.dynamo_plugin.backend.value) == ("no", "NO")
