"""The trainer: exact normalisation, live and cached teachers, checkpoints, refusals."""

from __future__ import annotations

import copy
import json
import random
import resource
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from accelerate.utils import DistributedType
from safetensors import safe_open
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    DistilBertConfig,
    TrainerCallback,
)

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.arguments import CHECKPOINTING, DistillationArguments
from hf_kdnas.distill.checks import refuse_sharding
from hf_kdnas.distill.criterion import DistillationCriterion, check_objectives
from hf_kdnas.distill.data import DistillationCollator, LengthGroupedSampler
from hf_kdnas.distill.signals import TeacherSignals
from hf_kdnas.distill.trainer import DistillationTrainer, last_checkpoint
from hf_kdnas.errors import InvalidInput
from hf_kdnas.tasks.masking import Masking

ALL = {
    "logits": {},
    "hidden": {"weight": 0.5, "layers": "searched"},
    "embeddings": {},
    "attention": {"weight": 0.5},
    "relations": {},
    "direct_relations": {"weight": {"from": 0.5, "to": 0.5}},
    "sentence": {},
    "task": {"weight": 0.1},
}
MASKING = Masking(mask_token_id=4, vocab_size=120, special_ids=(0, 1, 2, 3, 4), probability=0.3)
SHAPE = Architecture(num_hidden_layers=2, hidden_size=16, num_attention_heads=4, intermediate_size=32)


def rows_of(count: int, lengths=(2, 3, 60)):
    draw = random.Random(0)
    return [
        {
            "input_ids": [draw.randrange(5, 120) for _ in range(draw.choice(lengths))],
            "labels": draw.randrange(2),
            "index": index,
        }
        for index in range(count)
    ]


@pytest.fixture
def teacher(tiny_bert_config, make_model):
    return make_model(tiny_bert_config)


@pytest.fixture
def make_student(tiny_bert_config, make_model):
    def build(dropout=0.0, **changes):
        config = SHAPE.apply_to(tiny_bert_config)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
        for name, value in changes.items():
            setattr(config, name, value)
        return make_model(config, seed=1)

    return build


@pytest.fixture
def arguments(tmp_path):
    def build(**options):
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "objectives": ALL,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_steps": 1,
        }
        return DistillationArguments(**defaults | options)

    return build


class Gradients(TrainerCallback):
    """Keeps the gradients of the last step."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for module in (self.trainer.model, self.trainer.criterion):
            for name, parameter in module.named_parameters():
                self.found[name] = parameter.grad.clone()


def gradients_of(trainer):
    """Train in double precision, so that rounding hides nothing, and return the last step's gradients."""
    for module in (trainer.model, trainer.criterion, *([trainer.teacher] if trainer.teacher else [])):
        module.double()
    callback = Gradients(trainer)
    trainer.add_callback(callback)
    trainer.train()
    assert all(gradient.abs().max() > 0 for name, gradient in callback.found.items() if "bias" not in name)
    return callback.found


def assert_same(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            found[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


@pytest.mark.parametrize("projected", [False, True])
def test_accumulation_gives_the_gradient_of_the_joined_batch(teacher, make_student, arguments, projected):
    projection = torch.eye(32)[:, :16] if projected else None
    found = {}
    for batch_size, accumulation in ((32, 1), (8, 4)):
        args = arguments(
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,
        )
        trainer = DistillationTrainer(
            make_student(), args, teacher, projection=projection, train_dataset=rows_of(32)
        )
        found[accumulation] = gradients_of(trainer)
        assert trainer.state.global_step == 1
        found[accumulation]["logged"] = torch.tensor(trainer.state.log_history[0]["loss"])
    assert_same(found[4], found[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("positions", ["masked", "all"])
def test_accumulation_over_hidden_tokens(tiny_bert_config, arguments, positions):
    """Batches hide very different numbers of tokens."""
    tiny_bert_config.hidden_dropout_prob = tiny_bert_config.attention_probs_dropout_prob = 0.0
    found = []
    for batch_size, accumulation in ((32, 1), (4, 8)):
        torch.manual_seed(0)
        teacher, student = (
            AutoModelForMaskedLM.from_config(shape.apply_to(tiny_bert_config))
            for shape in (Architecture.from_config(tiny_bert_config), SHAPE)
        )
        args = arguments(
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,
            objectives={"mlm": {"positions": positions}, "task": {}},
        )
        rows = [{"input_ids": row["input_ids"]} for row in rows_of(32, (6, 12, 60))]
        trainer = DistillationTrainer(student, args, teacher, masking=MASKING, train_dataset=rows)
        found.append(gradients_of(trainer))
    assert_same(found[1], found[0], rtol=1e-6, atol=1e-9)


def test_the_gradient_is_that_of_the_criterion_on_the_whole_batch(teacher, make_student, arguments):
    """Against a computation without Trainer, so that a factor common to all steps shows."""
    args = arguments(per_device_train_batch_size=4, gradient_accumulation_steps=8, max_grad_norm=0.0)
    trainer = DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(32))
    maps = {name: tensor.clone() for name, tensor in trainer.criterion.state_dict().items()}
    found = gradients_of(trainer)

    student = make_student().double()
    criterion = DistillationCriterion(ALL, SHAPE, Architecture.from_config(teacher.config)).double()
    criterion.load_state_dict(maps)
    batch = DistillationCollator(0)(rows_of(32))
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    signals = []
    for model in (student, teacher):
        output = model(**inputs, output_hidden_states=True)
        layers = model.bert.encoder.layer
        states = output.hidden_states
        signals.append({"logits": output.logits} | {f"hidden.{k}": state for k, state in enumerate(states)})
        for number, layer in enumerate(layers, start=1):
            for part in ("query", "key", "value"):
                signals[-1][f"{part}.{number}"] = getattr(layer.attention.self, part)(states[number - 1])
    detached = {name: signal.detach() for name, signal in signals[1].items()}
    loss, _ = criterion(signals[0], detached, batch, criterion.counts(batch))
    loss.backward()
    wanted = {n: p.grad for module in (student, criterion) for n, p in module.named_parameters()}
    assert_same(found, wanted, rtol=1e-6, atol=1e-9)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-4)


def kind_rows(rows, kind):
    """The same rows with the labels of a kind of task."""
    draw = random.Random(1)
    for row in rows:
        size = len(row["input_ids"])
        if kind == "QuestionAnswering":
            del row["labels"]
            row |= {"start_positions": draw.randrange(size), "end_positions": draw.randrange(size)}
        elif kind == "TokenClassification":
            row["labels"] = [draw.choice([-100, 0, 1]) for _ in range(size - 1)] + [0]
        else:
            row["labels"] = [float(draw.randrange(2)) for _ in range(2)]
    return rows


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_every_kind_of_task(tiny_bert_config, arguments, tmp_path, kind):
    """Accumulation and cached signals, as for classification; an evaluation gives the head's loss."""
    head = getattr(transformers, f"AutoModelFor{kind}")
    tiny_bert_config.problem_type = "multi_label_classification"  # only sequence heads read it
    torch.manual_seed(0)
    teacher = head.from_config(tiny_bert_config)
    config = SHAPE.apply_to(tiny_bert_config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    rows = kind_rows(rows_of(32), kind)
    names = DistillationCriterion(ALL, SHAPE, Architecture.from_config(tiny_bert_config)).teacher_signals
    ids = [row["input_ids"] for row in rows]
    cached = TeacherSignals.build(teacher, ids, names, tmp_path / "signals", precision="fp32")
    found = []
    for source, batch_size, accumulation in ((teacher, 32, 1), (teacher, 8, 4), (cached, 32, 1)):
        args = arguments(
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,
            objectives=ALL,
        )
        torch.manual_seed(1)
        student = head.from_config(config)
        trainer = DistillationTrainer(student, args, source, train_dataset=rows, eval_dataset=rows[:5])
        found.append(gradients_of(trainer))
    assert_same(found[1], found[0], rtol=1e-6, atol=1e-9)
    assert_same(found[2], found[0], rtol=1e-3, atol=1e-5)
    batch = DistillationCollator(0)(rows[:5])
    with torch.no_grad():
        wanted = trainer.model.eval()(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)


# Outputs, problem_type, and a label of each row.
HEADS = {
    "a score": (1, None, lambda i: i / 4),
    "a score in a list": (1, "regression", lambda i: [i / 4]),
    "a whole number as a score": (1, None, lambda i: i),
    "scores": (3, "regression", lambda i: [i / 4, 1.0, -2.0]),
    "classes": (3, None, lambda i: i % 3),
    "several classes": (3, None, lambda i: [float(i % 2), 1.0, 0.0]),
    "one class or none": (1, "multi_label_classification", lambda i: [float(i % 2)]),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_task_is_what_the_students_own_head_computes(tiny_bert_config, make_student, arguments, kind):
    outputs, problem, label = HEADS[kind]
    rows = [{**row, "labels": label(index)} for index, row in enumerate(rows_of(8))]
    student = make_student(num_labels=outputs, problem_type=problem)
    args = arguments(objectives={"task": {}}, learning_rate=0.0)
    trainer = DistillationTrainer(student, args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    own = trainer.evaluate()["eval_loss"]
    assert trainer.state.log_history[0]["loss_task"] == pytest.approx(own, rel=1e-4)


def test_the_outputs_of_a_regression_are_compared_as_scores(make_student, make_model, arguments):
    """KL would take them for the logits of one distribution, or of several."""
    student = make_student(num_labels=3, problem_type="regression")
    teacher = make_model(student.config, seed=5)
    rows = [{**row, "labels": [0.5, 1.0, 2.0]} for row in rows_of(8)]
    args = arguments(objectives={"logits": {}}, learning_rate=0.0)
    trainer = DistillationTrainer(student, args, teacher, train_dataset=rows)
    trainer.train()
    batch = DistillationCollator(0)(rows)
    with torch.no_grad():
        ours, theirs = (model.eval()(**batch).logits for model in (student, teacher))
    wanted = torch.nn.functional.mse_loss(ours, theirs).item()
    assert trainer.state.log_history[0]["loss_logits"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("outputs", "problem", "label", "message"),
    [
        (2, None, 2, "labels: got 2; the student has classes 0 to 1"),
        (2, None, -1, "labels: got -1; the student has classes 0 to 1"),
        (2, None, 1.0, "multi_label_classification with 2 outputs takes a list of 2 floats"),
        (2, None, [1], "single_label_classification with 2 outputs takes a whole number"),
        (2, None, [1.0] * 3, "multi_label_classification with 2 outputs takes a list of 2 floats"),
        (2, None, "yes", "multi_label_classification with 2 outputs takes a list of 2 floats"),
        (3, "regression", 1.0, "regression with 3 outputs takes a list of 3 floats"),
        (1, None, [1.0, 2.0], "regression with 1 outputs takes a number"),
    ],
)
def test_labels_that_the_head_has_no_place_for_are_refused(
    make_student, arguments, outputs, problem, label, message
):
    student = make_student(num_labels=outputs, problem_type=problem)
    rows = [{**row, "labels": label} for row in rows_of(8)]
    trainer = DistillationTrainer(student, arguments(objectives={"task": {}}), train_dataset=rows)
    with pytest.raises(InvalidInput, match=message):
        trainer.train()


def test_labels_by_another_name_are_checked_as_well(make_student, arguments):
    rows = [{"input_ids": [5, 6], "label": 2}] * 8
    trainer = DistillationTrainer(make_student(), arguments(objectives={"task": {}}), train_dataset=rows)
    with pytest.raises(InvalidInput, match="the student has classes 0 to 1"):
        trainer.train()


@pytest.mark.parametrize(
    ("column", "past"), [("start_positions", -1), ("end_positions", 0), ("end_positions", 9)]
)
def test_answers_outside_their_text_are_refused(tiny_bert_config, arguments, column, past):
    student = transformers.BertForQuestionAnswering(tiny_bert_config)
    rows = kind_rows(rows_of(8), "QuestionAnswering")
    length = len(rows[3]["input_ids"])
    rows[3][column] = -1 if past < 0 else length + past
    trainer = DistillationTrainer(student, arguments(objectives={"task": {}}), train_dataset=rows)
    with pytest.raises(InvalidInput, match=rf"{column}: got .*have the places 0 to {length - 1}\. .*cut off"):
        trainer.train()


def test_token_labels_beyond_the_head_are_refused(tiny_bert_config, arguments):
    student = transformers.BertForTokenClassification(tiny_bert_config)
    rows = kind_rows(rows_of(8), "TokenClassification")
    rows[-1]["labels"][-1] = 2
    trainer = DistillationTrainer(student, arguments(objectives={"task": {}}), train_dataset=rows)
    with pytest.raises(InvalidInput, match="the student has classes 0 to 1; -100 is a label"):
        trainer.train()


@pytest.mark.parametrize("live", [True, False])
def test_a_teacher_of_another_head_is_refused(tiny_bert_config, make_student, arguments, tmp_path, live):
    """Both have two labels: their logits would be broadcast against each other."""
    teacher = transformers.BertForTokenClassification(tiny_bert_config)
    if not live:
        ids = [row["input_ids"] for row in rows_of(4)]
        teacher = TeacherSignals.build(teacher, ids, ["logits"], tmp_path / "signals")
    with pytest.raises(InvalidInput, match="the teacher's logits are those of each token"):
        DistillationTrainer(make_student(), arguments(objectives={"logits": {}}), teacher)


def test_a_masked_lm_teaches_no_classification(tiny_bert_config, make_student, arguments):
    teacher = transformers.BertForMaskedLM(tiny_bert_config)
    with pytest.raises(InvalidInput, match="the teacher's logits are those of the vocabulary"):
        DistillationTrainer(make_student(), arguments(objectives={"mlm": {}}), teacher)
    DistillationTrainer(make_student(), arguments(objectives={"hidden": {}}), teacher)


def test_every_family_is_distilled_from_live_and_cached_teachers(
    tiny_config, make_model, arguments, tmp_path
):
    for name in list(vars(tiny_config)):
        if "dropout" in name:
            setattr(tiny_config, name, 0.0)
    shape = Architecture(2, 24, 4, 32)
    teacher, rows = make_model(tiny_config), rows_of(32)
    names = DistillationCriterion(ALL, shape, Architecture.from_config(tiny_config)).teacher_signals
    cached = TeacherSignals.build(teacher, [row["input_ids"] for row in rows], names, tmp_path / "signals")
    found = []
    for source in (teacher, cached):
        student = make_model(shape.apply_to(tiny_config), seed=1)
        args = arguments(per_device_train_batch_size=32, max_grad_norm=0.0)
        found.append(gradients_of(DistillationTrainer(student, args, source, train_dataset=rows)))
    assert_same(found[1], found[0], rtol=2e-2, atol=1e-4)


def test_a_student_of_another_family_takes_its_own_inputs(teacher, make_model, arguments):
    student = make_model(DistilBertConfig(vocab_size=120, dim=16, n_layers=2, n_heads=4, hidden_dim=32))
    rows = [{**row, "token_type_ids": [0] * len(row["input_ids"])} for row in rows_of(16)]
    trainer = DistillationTrainer(student, arguments(), teacher, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert {f"loss_{name}" for name in ALL} <= trainer.state.log_history[0].keys()
    assert trainer.evaluate()["eval_loss"] > 0


def test_the_teacher_stays_as_it_is_and_out_of_the_checkpoint(teacher, make_student, arguments, tmp_path):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = make_student(dropout=0.1)
    teacher.train()
    trainer = DistillationTrainer(
        student, arguments(save_strategy="epoch"), teacher, train_dataset=rows_of(16)
    )
    trainer.train()
    assert_same(teacher.state_dict(), before, rtol=0, atol=0)
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    checkpoint = last_checkpoint(tmp_path / "out")
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(student.state_dict())
    with safe_open(checkpoint / "criterion.safetensors", "pt") as file:
        maps = ["hidden.maps.1", "hidden.maps.2", "embeddings.maps.0"]
        maps += [f"direct_relations.maps.{part}" for part in ("query", "key", "value")]
        learned = {f"objectives.{each}.{part}" for each in maps for part in ("weight", "bias")}
        fixed = {"objectives.hidden.found", "objectives.sentence.projection"}
        assert set(file.keys()) == learned | fixed
    # What push_to_hub uploads: the output folder without checkpoints.
    trainer.save_model()
    pushed = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert pushed == {"config.json", "model.safetensors", "training_args.bin"}
    trainer.save_model(str(tmp_path / "final"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    assert_same(loaded.state_dict(), student.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("step", [3, 5, 8])
def test_a_resumed_run_ends_with_the_same_weights(teacher, make_student, arguments, tmp_path, step):
    fading = {**ALL, "logits": {"weight": {"from": 1.0, "to": 0.0}}}
    args = arguments(save_strategy="steps", save_steps=1, num_train_epochs=2, objectives=fading)
    ends = []
    for checkpoint in (None, str(tmp_path / "out" / f"checkpoint-{step}")):
        torch.manual_seed(len(ends))
        trainer = DistillationTrainer(make_student(dropout=0.1), args, teacher, train_dataset=rows_of(40))
        trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.state.global_step == 10
        ends.append({**trainer.model.state_dict(), **trainer.criterion.state_dict()})
    assert_same(ends[1], ends[0], rtol=0, atol=0)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_disk_that_fills_while_a_checkpoint_is_written(teacher, make_student, arguments, tmp_path, file):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fills(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                written = tmp_path / "out" / "checkpoint-2" / file
                resource.setrlimit(resource.RLIMIT_FSIZE, (written.stat().st_size - 1, limits[1]))

    args = arguments(save_strategy="steps", save_steps=2, max_steps=5, objectives=ALL)
    trainer = DistillationTrainer(
        make_student(), args, teacher, train_dataset=rows_of(40), callbacks=[Fills()]
    )
    try:
        with pytest.raises(InvalidInput, match=r"at step 4 \(.*GB free\)\. Make room and go on"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert last_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-2"
    trainer = DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(40))
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert trainer.state.global_step == 5


@pytest.mark.parametrize(
    "workers", [{}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}]
)
def test_a_resumed_run_hides_the_same_tokens(make_student, arguments, tmp_path, workers):
    """The loader is a batch ahead of the step, and a worker may be older than the epoch."""
    args = arguments(
        save_strategy="steps", save_steps=1, num_train_epochs=2, objectives={"task": {}}, **workers
    )
    rows = [{"input_ids": row["input_ids"]} for row in rows_of(40)]
    ends = []
    for checkpoint in (None, *(str(tmp_path / "out" / f"checkpoint-{step}") for step in (3, 7))):
        torch.manual_seed(0)
        student = AutoModelForMaskedLM.from_config(make_student().config)
        trainer = DistillationTrainer(student, args, masking=MASKING, train_dataset=rows)
        trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.data_collator.epoch.tolist() == [args.seed, 1]
        ends.append(trainer.model.state_dict())
    for end in ends[1:]:
        assert_same(end, ends[0], rtol=0, atol=0)


def test_a_resumed_run_keeps_its_layer_map(teacher, make_student, make_model, arguments, tmp_path):
    args = arguments(save_strategy="steps", save_steps=1, objectives={"hidden": {"layers": "searched"}})
    first = DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(40))
    first.train()
    sources = first.criterion.objectives["hidden"].sources
    found = []
    for seed in range(2, 6):
        # Another student, for which the search finds another map.
        other = make_model(make_student().config, seed=seed)
        trainer = DistillationTrainer(other, args, teacher, train_dataset=rows_of(40))
        trainer._calibrate()
        found.append(trainer.criterion.objectives["hidden"].sources)
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
        assert trainer.criterion.objectives["hidden"].sources == sources
        assert_same(trainer.criterion.state_dict(), first.criterion.state_dict(), rtol=0, atol=0)
    assert any(each != sources for each in found)


def test_a_checkpoint_without_the_learned_maps_is_refused(teacher, make_student, arguments, tmp_path):
    args = arguments(
        save_strategy="steps", save_steps=1, save_only_model=True, objectives={"hidden": {}}, max_steps=2
    )
    DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(16)).train()
    again = DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(16))
    with pytest.raises(InvalidInput, match=r"checkpoint-1'; must hold criterion\.safetensors"):
        again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))


def test_a_checkpoint_of_other_objectives_is_refused(teacher, make_student, arguments, tmp_path):
    args = arguments(save_strategy="steps", save_steps=1, objectives={"hidden": {}}, max_steps=1)
    DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(16)).train()
    args.objectives = {"hidden": {"layers": "uniform-consecutive"}}
    again = DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(16))
    with pytest.raises(InvalidInput, match="its learned maps are not those of the objectives hidden"):
        again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))


@pytest.mark.parametrize("live", [True, False])
def test_layers_that_a_search_passed_over_are_read_no_more(teacher, make_student, arguments, tmp_path, live):
    rows, names = rows_of(16), [f"hidden.{layer}" for layer in (1, 2, 3)]
    source = teacher
    if not live:
        source = TeacherSignals.build(
            teacher, [row["input_ids"] for row in rows], names, tmp_path / "signals"
        )
    args = arguments(objectives={"hidden": {"layers": "searched"}})
    trainer = DistillationTrainer(make_student(), args, source, train_dataset=rows)
    trainer.train()
    found = {f"hidden.{layer}" for layer in trainer.criterion.objectives["hidden"].found.tolist()}
    assert len(found) == 2
    assert trainer.criterion.teacher_signals == found
    batch = trainer.data_collator(rows[:2])
    assert set(trainer._teacher_signals(batch)) == found


def test_gradients_of_student_and_learned_maps_are_clipped_as_one(teacher, make_student, arguments):
    args = arguments(objectives={"hidden": {}}, max_grad_norm=1e-3)
    trainer = DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(8))
    norms = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            both = [*trainer.model.parameters(), *trainer.criterion.parameters()]
            norms.append(torch.nn.utils.get_total_norm([each.grad for each in both if each.grad is not None]))

    trainer.add_callback(Norm())
    trainer.train()
    assert norms[0].item() == pytest.approx(1e-3, rel=1e-2)


def test_last_checkpoint_passes_over_what_a_kill_left(tmp_path):
    assert last_checkpoint(tmp_path / "none") is None
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global_step": 10}'), (15, '{"glob'), (20, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_terms_are_logged_by_name(teacher, make_student, arguments):
    args = arguments(logging_steps=2)
    trainer = DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(32))
    trainer.train()
    first, second = trainer.state.log_history[:2]
    for logs in (first, second):
        weights = check_objectives(ALL)
        weighted = sum(weight.at(0) * logs[f"loss_{name}"] for name, weight in weights.items())
        assert logs["loss"] == pytest.approx(weighted, abs=1e-3)
    assert first["loss_hidden"] != second["loss_hidden"]


def test_terms_are_those_of_the_steps_since_a_resumption(teacher, make_student, arguments, tmp_path):
    args = arguments(save_strategy="steps", save_steps=3, logging_strategy="epoch", max_steps=4)
    for _ in range(2):
        trainer = DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(32))
        last = tmp_path / "out" / "checkpoint-3"
        trainer.train(resume_from_checkpoint=str(last) if last.exists() else None)
    logs = next(each for each in trainer.state.log_history if "loss" in each)
    weighted = sum(weight.at(0) * logs[f"loss_{name}"] for name, weight in check_objectives(ALL).items())
    assert weighted == pytest.approx(logs["loss"], abs=1e-3)


def test_a_head_that_nothing_reads_is_not_run(tiny_bert_config, arguments):
    shapes = Architecture.from_config(tiny_bert_config), SHAPE
    teacher, student = (AutoModelForMaskedLM.from_config(each.apply_to(tiny_bert_config)) for each in shapes)
    runs = []
    student.cls.register_forward_hook(lambda *_: runs.append(1))
    for objectives, expected in (({"hidden": {}}, 0), ({"hidden": {}, "mlm": {}}, 2)):
        trainer = DistillationTrainer(
            student,
            arguments(objectives=objectives),
            teacher,
            masking=MASKING,
            train_dataset=[{"input_ids": row["input_ids"]} for row in rows_of(16)],
        )
        trainer.train()
        assert len(runs) == expected


def test_a_scheduler_of_the_users_own(teacher, make_student, arguments):
    student = make_student()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = DistillationTrainer(
        student, arguments(), teacher, train_dataset=rows_of(16), optimizers=(optimizer, scheduler)
    )
    maps = {name: each.detach().clone() for name, each in trainer.criterion.named_parameters()}
    assert maps
    trainer.train()
    for name, parameter in trainer.criterion.named_parameters():
        assert not torch.equal(parameter, maps[name])


class Numbered(torch.utils.data.Dataset):
    """Rows by number alone, without end: nothing tells it but the length."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index % len(self.rows)]


def test_rows_by_number_alone(teacher, make_student, arguments):
    rows = rows_of(16)
    trainer = DistillationTrainer(
        make_student(),
        arguments(eval_strategy="epoch"),
        teacher,
        train_dataset=Numbered(rows),
        eval_dataset=Numbered(rows),
    )
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "no rows"), ([{"text": "a film", "labels": 0}], "rows with text, labels'; rows need input_ids")],
)
def test_rows_that_are_none_or_not_tokenised_are_refused(teacher, make_student, arguments, rows, message):
    with pytest.raises(InvalidInput, match=message):
        DistillationTrainer(make_student(), arguments(), teacher, train_dataset=rows)


def test_a_training_without_rows_is_refused(teacher, make_student, arguments):
    with pytest.raises(InvalidInput, match="train_dataset: got None"):
        DistillationTrainer(make_student(), arguments(), teacher).train()


def test_labels_to_evaluate_on_are_checked_before_the_training(teacher, make_student, arguments):
    wrong = [{**row, "labels": 7} for row in rows_of(8)]
    args = arguments(eval_strategy="epoch", objectives={"logits": {}})
    trainer = DistillationTrainer(
        make_student(), args, teacher, train_dataset=rows_of(16), eval_dataset=wrong
    )
    with pytest.raises(InvalidInput, match="labels"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_evaluation_hides_the_same_tokens_each_time(make_student, arguments):
    student = AutoModelForMaskedLM.from_config(make_student().config)
    rows = [{"input_ids": row["input_ids"]} for row in rows_of(16, (30,))]
    args = arguments(objectives={"task": {}}, eval_strategy="epoch", num_train_epochs=3, learning_rate=0.0)
    trainer = DistillationTrainer(student, args, masking=MASKING, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [logs["eval_loss"] for logs in trainer.state.log_history if "eval_loss" in logs]
    assert len(losses) == 3
    assert len(set(losses)) == 1


def test_rows_without_labels_are_predicted_by_what_the_student_reads(make_model, arguments):
    student = make_model(DistilBertConfig(vocab_size=120, dim=16, n_layers=2, n_heads=4, hidden_dim=32))
    rows = [
        {"input_ids": row["input_ids"], "token_type_ids": [0] * len(row["input_ids"])} for row in rows_of(8)
    ]
    trainer = DistillationTrainer(student, arguments(objectives={"task": {}}))
    assert trainer.predict(rows).predictions.shape == (8, 2)


def test_a_weight_falls_with_the_steps(teacher, make_student, arguments):
    args = arguments(objectives={"logits": {"weight": {"from": 1.0, "to": 0.0}}}, num_train_epochs=1)
    trainer = DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(32))
    trainer.train()
    for step, logs in enumerate(trainer.state.log_history[:4]):
        assert logs["loss"] == pytest.approx(logs["loss_logits"] * (1 - step / 4), abs=6e-5)


def test_a_loss_that_is_not_finite_stops_the_training(teacher, make_student, arguments):
    trainer = DistillationTrainer(make_student(), arguments(), teacher, train_dataset=rows_of(32))

    real = trainer.criterion.forward

    def forward(*inputs):
        loss, terms = real(*inputs)
        factor = torch.nan if trainer.state.global_step == 2 else 1.0
        return loss, {**terms, "relations": factor * terms["relations"]}

    trainer.criterion.forward = forward
    with pytest.raises(InvalidInput, match=r"objectives\.relations.*not finite, first at step 3"):
        trainer.train()


def test_evaluation_asks_the_student_alone(teacher, make_student, arguments, tmp_path):
    rows = rows_of(32)
    signals = TeacherSignals.build(
        teacher, [row["input_ids"] for row in rows[:24]], ["logits"], tmp_path / "signals"
    )
    args = arguments(objectives={"logits": {}})
    student = make_student()
    trainer = DistillationTrainer(student, args, signals, train_dataset=rows[:24], eval_dataset=rows[24:])
    trainer.train()
    batch = DistillationCollator(0)(rows[24:])
    with torch.no_grad():
        logits = student.eval()(batch["input_ids"], batch["attention_mask"]).logits
    wanted = torch.nn.functional.cross_entropy(logits, batch["labels"]).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-4)
    assert trainer.predict(rows[24:]).predictions.shape == (8, 2)
    assert trainer.data_collator.signals.names == signals.names


def test_the_task_alone_needs_no_teacher(make_student, arguments):
    student = make_student()
    before = student.classifier.weight.detach().clone()
    trainer = DistillationTrainer(student, arguments(objectives={"task": {}}), train_dataset=rows_of(16))
    trainer.train()
    assert not torch.equal(student.classifier.weight, before)


def test_mixed_precision_is_gone_after_training(teacher, make_student, arguments):
    student = make_student()
    dtypes = set()
    student.bert.encoder.layer[0].output.dense.register_forward_hook(lambda m, i, o: dtypes.add(o.dtype))
    trainer = DistillationTrainer(student, arguments(bf16=True), teacher, train_dataset=rows_of(16))
    trainer.train()
    assert dtypes == {torch.bfloat16}
    dtypes.clear()
    student(torch.tensor([[2, 7, 3]]))
    assert dtypes == {torch.float32}


def test_checkpointed_activations_give_the_same_gradient(teacher, make_student, arguments):
    found = []
    # Options of the user's own, which leave the kind of checkpointing to us.
    for options in ({}, {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"preserve_rng_state": True}}):
        args = arguments(per_device_train_batch_size=32, max_grad_norm=0.0, **options)
        trainer = DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(32))
        found.append(gradients_of(trainer))
    assert_same(found[1], found[0], rtol=1e-6, atol=1e-9)


def test_another_vocabulary_is_refused(teacher, make_student, arguments):
    with pytest.raises(InvalidInput, match="vocab_size: got 128; the teacher's vocabulary has 120 entries"):
        DistillationTrainer(make_student(vocab_size=128), arguments(), teacher, train_dataset=rows_of(8))


def test_another_numbering_of_the_tokens_is_refused(
    teacher, make_student, arguments, tiny_tokenizer, tmp_path
):
    vocabulary = sorted(tiny_tokenizer.get_vocab(), key=tiny_tokenizer.get_vocab().get)
    vocabulary[10], vocabulary[11] = vocabulary[11], vocabulary[10]
    file = Path(tmp_path / "vocab.txt")
    file.write_text("\n".join(vocabulary), encoding="utf-8")
    other = BertTokenizerFast(vocab=str(file), vocab_file=str(file))
    with pytest.raises(InvalidInput, match="2 tokens differ"):
        DistillationTrainer(
            make_student(),
            arguments(),
            teacher,
            train_dataset=rows_of(8),
            processing_class=tiny_tokenizer,
            teacher_processing_class=other,
        )


def test_other_labels_are_refused(teacher, make_student, arguments):
    with pytest.raises(InvalidInput, match="num_labels: got 3; the teacher has 2 labels"):
        DistillationTrainer(make_student(num_labels=3), arguments(), teacher, train_dataset=rows_of(8))


def test_the_same_labels_in_another_order_are_refused(teacher, make_student, arguments):
    teacher.config.id2label = {0: "entailment", 1: "contradiction"}
    with pytest.raises(InvalidInput, match="id2label: got 'contradiction, entailment'; the teacher has"):
        DistillationTrainer(
            make_student(id2label={0: "contradiction", 1: "entailment"}),
            arguments(),
            teacher,
            train_dataset=rows_of(8),
        )


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (
            {"attention": {}, "hidden": {"layers": [[4, 1]]}},
            r"objectives\.hidden\.layers: got \[4, 1\]; the teacher has layers 0 to 3, the student 0 to 2",
        ),
        ({"relations": {"teacher_layer": 7}}, "the teacher has layers 1 to 3"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(teacher, make_student, arguments, objectives, message):
    with pytest.raises(InvalidInput, match=message):
        DistillationTrainer(
            make_student(), arguments(objectives=objectives), teacher, train_dataset=rows_of(8)
        )


def test_a_teacher_that_shares_weights_is_refused(teacher, arguments):
    with pytest.raises(InvalidInput, match=r"frozen, and shares weights with the student.*deepcopy"):
        DistillationTrainer(teacher, arguments(), teacher, train_dataset=rows_of(8))


def test_objectives_without_a_teacher_are_refused(make_student, arguments):
    with pytest.raises(InvalidInput, match=r"the objectives need its hidden\.1, hidden\.2"):
        DistillationTrainer(make_student(), arguments(objectives={"hidden": {}}), train_dataset=rows_of(8))


def test_signals_that_lack_a_name_are_refused(teacher, make_student, arguments, tmp_path):
    signals = TeacherSignals.build(teacher, [[2, 3]], ["logits"], tmp_path / "signals")
    args = arguments(objectives={"logits": {}, "hidden": {}})
    with pytest.raises(InvalidInput, match=r"need hidden\.2, hidden\.3 as well"):
        DistillationTrainer(make_student(), args, signals, train_dataset=rows_of(1))


def test_batches_without_the_signals_that_were_given_are_refused(teacher, make_student, arguments, tmp_path):
    rows = rows_of(8)
    signals = TeacherSignals.build(
        teacher, [row["input_ids"] for row in rows], ["logits"], tmp_path / "signals"
    )
    args = arguments(objectives={"logits": {}})
    trainer = DistillationTrainer(
        make_student(), args, signals, train_dataset=rows, data_collator=DistillationCollator(0)
    )
    with pytest.raises(InvalidInput, match='the batches need "teacher" as well'):
        trainer.train()


def test_arguments_survive_json(arguments):
    args = arguments(objectives=json.dumps({"task": {"weight": 2}}))
    assert json.loads(args.to_json_string())["objectives"] == {"task": {"weight": 2}}


# Batches by length, as either line of Transformers has it.
BY_LENGTH = (
    {"group_by_length": True}
    if "group_by_length" in DistillationArguments.__dataclass_fields__
    else {"train_sampling_strategy": "group_by_length"}
)


def test_a_hyperparameter_search_makes_a_student_a_trial(teacher, make_student, arguments, tmp_path):
    rows = rows_of(32)
    names = DistillationCriterion(ALL, SHAPE, Architecture.from_config(teacher.config)).teacher_signals
    cached = TeacherSignals.build(teacher, [row["input_ids"] for row in rows], names, tmp_path / "signals")
    trainer = DistillationTrainer(
        None,
        arguments(**BY_LENGTH),
        cached,
        train_dataset=rows,
        eval_dataset=rows[:8],
        model_init=lambda: make_student(),
    )
    made = set()

    def space(trial):
        made.add(trainer.criterion)
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)}

    best = trainer.hyperparameter_search(hp_space=space, n_trials=2, backend="optuna")
    assert best.objective > 0
    assert 1e-4 <= best.hyperparameters["learning_rate"] <= 1e-2
    assert len(made) == 2
    assert trainer.criterion not in made
    assert {f"loss_{name}" for name in ALL} <= trainer.state.log_history[0].keys()
    trained = {id(each) for group in trainer.optimizer.param_groups for each in group["params"]}
    assert {id(each) for each in trainer.criterion.parameters()} <= trained
    assert isinstance(trainer._get_train_sampler(), LengthGroupedSampler)


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], ids=["traced", "compiled"]
)
def test_a_compiled_student_learns_the_same(teacher, make_student, arguments, backend):
    """Hooks are set for each forward, long after the student was compiled."""
    lengths = (7,) if backend == "aot_eager" else (3, 7, 20)
    logs = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": backend}):
        args = arguments(max_steps=4, **options)
        trainer = DistillationTrainer(make_student(), args, teacher, train_dataset=rows_of(32, lengths))
        trainer.train()
        logs.append(trainer.state.log_history[:4])
    assert trainer.model_wrapped is not trainer.model
    for plain, compiled in zip(*logs, strict=True):
        for name in ("loss", *(f"loss_{each}" for each in ALL)):
            assert compiled[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize(
    ("dtype", "bf16", "expected"),
    [
        ("auto", False, torch.float32),
        ("auto", True, torch.bfloat16),
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("float16", False, torch.float16),
    ],
)
def test_a_live_teacher_computes_in_its_own_dtype(teacher, make_student, arguments, dtype, bf16, expected):
    student, found = make_student(), []
    for model in (student, teacher):
        dtypes = set()
        model.bert.encoder.layer[0].output.dense.register_forward_hook(
            lambda module, inputs, output, dtypes=dtypes: dtypes.add(output.dtype)
        )
        found.append(dtypes)
    args = arguments(bf16=bf16, teacher_dtype=dtype)
    DistillationTrainer(student, args, teacher, train_dataset=rows_of(8)).train()
    assert found == [{torch.bfloat16 if bf16 else torch.float32}, {expected}]
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}


def test_a_teacher_that_was_loaded_in_half_precision(teacher, make_student, arguments):
    logs = []
    for model in (teacher, copy.deepcopy(teacher).bfloat16()):
        trainer = DistillationTrainer(make_student(), arguments(), model, train_dataset=rows_of(8))
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for name in (f"loss_{each}" for each in ALL):
        assert logs[1][name] == pytest.approx(logs[0][name], rel=0.1, abs=0.02), name


@pytest.mark.parametrize(("short", "whose"), [("student", "student"), ("teacher", "teacher")])
def test_texts_longer_than_a_position_table_are_refused(
    tiny_bert_config, make_model, make_student, arguments, short, whose
):
    tiny_bert_config.max_position_embeddings = 32 if short == "teacher" else 64
    teacher = make_model(tiny_bert_config)
    student = make_student(max_position_embeddings=32 if short == "student" else 64)
    trainer = DistillationTrainer(student, arguments(), teacher, train_dataset=rows_of(8))
    with pytest.raises(InvalidInput, match=f"a text of 60 tokens'; this {whose} has positions for 32"):
        trainer.train()


def test_texts_too_long_to_be_evaluated_are_refused(make_student, arguments):
    short, long = rows_of(8, (3,)), rows_of(8, (70,))
    args = arguments(objectives={"task": {}}, eval_strategy="epoch")
    trainer = DistillationTrainer(make_student(), args, train_dataset=short, eval_dataset={"a": long})
    with pytest.raises(InvalidInput, match=r"a text of 70 tokens"):
        trainer.train()
    assert trainer.state.global_step == 0
    with pytest.raises(InvalidInput, match=r"a text of 70 tokens"):
        trainer.evaluate(long)


def test_a_loss_beside_the_objectives_is_refused(make_student, arguments):
    with pytest.raises(InvalidInput, match=r"compute_loss_func: .* the loss is the sum of the objectives"):
        DistillationTrainer(make_student(), arguments(objectives={"task": {}}), compute_loss_func=print)


def test_streamed_rows_are_refused(make_student, arguments):
    rows = datasets.Dataset.from_list(rows_of(8)).to_iterable_dataset()
    with pytest.raises(InvalidInput, match=r"IterableDataset'; must have a length.*without streaming"):
        DistillationTrainer(
            make_student(), arguments(max_steps=1, objectives={"task": {}}), train_dataset=rows
        )


def test_reentrant_checkpointing_on_the_model_itself_is_refused(teacher, make_student, arguments):
    def checkpointed():
        student = make_student()
        enable = getattr(student, f"{CHECKPOINTING}_enable")
        enable(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}})
        return student

    with pytest.raises(InvalidInput, match=r"reentrant checkpointing.*use_reentrant: False"):
        DistillationTrainer(checkpointed(), arguments(), teacher, train_dataset=rows_of(8))
    args = arguments(**{CHECKPOINTING: True})  # sets the other kind
    DistillationTrainer(checkpointed(), args, teacher, train_dataset=rows_of(8)).train()


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_launches_that_split_layers_are_refused(kind):
    with pytest.raises(InvalidInput, match=f"{kind.value}.*whole layers on each rank.*DDP"):
        refuse_sharding(kind)
    refuse_sharding(DistributedType.MULTI_GPU)
