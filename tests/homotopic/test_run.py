"""Segments, one after the other: what is trained, what is kept, how it goes on."""

from __future__ import annotations

import json
import os
import resource

import pytest
import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.signals import TeacherSignals
from hf_kdnas.distill.trainer import DistillationTrainer, last_checkpoint
from hf_kdnas.distill.training import train
from hf_kdnas.errors import InvalidInput
from hf_kdnas.homotopic.compaction import OPTIMISERS, Compaction
from hf_kdnas.homotopic.importance import magnitude
from hf_kdnas.homotopic.run import total_steps
from hf_kdnas.homotopic.trainer import HomotopicTrainer
from hf_kdnas.progress import Narrator
from hf_kdnas.recipe import TrainingSection
from hf_kdnas.recipe_homotopic import DISCREPANCY
from hf_kdnas.slicing import slice_student

TARGET = Architecture(3, 16, 4, 40)


def looks(history) -> list[dict]:
    return [each for each in history if any(name.startswith(DISCREPANCY) for name in each)]


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_equal(left, right) -> None:
    assert left.keys() == right.keys()
    for name, values in left.items():
        torch.testing.assert_close(right[name], values, rtol=0, atol=0)


def test_the_student_ends_in_its_shape_and_is_looked_at_on_the_way(make_distillation, tmp_path) -> None:
    student, history = make_distillation().run(tmp_path)
    assert Architecture.from_config(student.config) == TARGET
    found = [(each["step"], each["hidden_size"]) for each in looks(history)]
    # Every 5 steps, and on both sides of each compaction: at 2, 4 and 14 of 20.
    assert found == [
        (0, 32),
        (2, 32),
        (2, 28),
        (4, 28),
        (4, 20),
        (5, 20),
        (10, 20),
        (14, 20),
        (14, 16),
        (15, 16),
        (20, 16),
    ]
    names = {f"{DISCREPANCY}{name}" for name in ("logits", "hidden", "attention", "embeddings")}
    assert all(names | {"held_out_task"} <= each.keys() for each in looks(history))
    first = looks(history)[0]
    assert all(first[name] < 1e-9 for name in names)
    assert first["held_out_task"] > 0.1
    assert looks(history)[-1][f"{DISCREPANCY}logits"] > 0
    assert [path.name for path in tmp_path.glob("segment-*/*")] == ["checkpoint-20"]


def test_labels_alone_are_looked_at_by_what_is_predicted(make_distillation, tmp_path) -> None:
    _, history = make_distillation(objectives={"task": {}}).run(tmp_path)
    first, *_, last = looks(history)
    assert {name for name in first if name.startswith(DISCREPANCY)} == {f"{DISCREPANCY}logits"}
    assert first[f"{DISCREPANCY}logits"] < 1e-9 < last[f"{DISCREPANCY}logits"]
    assert last["held_out_task"] > 0.1


def test_losses_up_to_every_cut_and_to_the_end_are_kept(make_distillation, tmp_path) -> None:
    _, history = make_distillation().run(tmp_path)
    assert [each["step"] for each in history if "loss" in each] == [2, 4, 10, 14, 20]


def test_what_tensorboard_writes_is_not_removed_at_a_cut(make_distillation, tmp_path, monkeypatch) -> None:
    """Transformers 4.57 has an argument for the place, 5 looks at the environment when a trainer is made."""
    places = []
    original = HomotopicTrainer.__init__

    def noting(trainer, *arguments, **options):
        original(trainer, *arguments, **options)
        places.append(getattr(trainer.args, "logging_dir", os.environ["TENSORBOARD_LOGGING_DIR"]))

    monkeypatch.setattr(HomotopicTrainer, "__init__", noting)
    make_distillation().run(tmp_path)
    assert places == [str(tmp_path / "logs")] * 4
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


def test_steps_learning_rates_and_rows_are_those_of_one_training(
    make_distillation, tmp_path, monkeypatch
) -> None:
    seen: dict[str, list] = {"homotopic": [], "plain": []}
    what = "homotopic"
    original = DistillationTrainer.compute_loss

    def noting(trainer, model, inputs, *arguments, **options):
        rate, step = trainer.lr_scheduler.get_last_lr(), trainer.state.global_step
        seen[what].append((step, rate[0], inputs["input_ids"].tolist(), trainer.criterion.progress))
        return original(trainer, model, inputs, *arguments, **options)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", noting)
    narrowed = make_distillation()
    narrowed.run(tmp_path)
    what = "plain"
    train(
        slice_student(narrowed.teacher, TARGET),
        narrowed.training,
        narrowed.objectives,
        narrowed.rows,
        tmp_path / "plain",
        seed=0,
        teacher=narrowed.teacher,
        narrator=Narrator(speaks=False),
        what="plain",
    )
    assert len(seen["plain"]) == 20
    assert seen["homotopic"] == seen["plain"]


def test_without_anything_to_remove_it_is_a_plain_distillation(make_distillation, tmp_path) -> None:
    whole = make_distillation("3L-32H-64F-4A-gelu", objectives={"logits": {}, "task": {}})
    assert len(whole.segments) == 1
    student, _ = whole.run(tmp_path)
    plain = slice_student(whole.teacher, Architecture(3, 32, 4, 64))
    train(
        plain,
        whole.training,
        whole.objectives,
        whole.rows,
        tmp_path / "plain",
        seed=0,
        teacher=whole.teacher,
        narrator=Narrator(speaks=False),
        what="plain",
    )
    assert_equal(weights_of(plain), weights_of(student))


@pytest.mark.parametrize("kill", [2, 4, 9, 15])
def test_a_training_that_was_killed_goes_on_exactly(make_distillation, tmp_path, monkeypatch, kill) -> None:
    """In a segment, in its first step, in its last: 2, 4 and 14 are compactions, a new epoch begins at 10."""
    student, history = make_distillation().run(tmp_path / "whole")
    original = HomotopicTrainer.gather

    def dies(trainer) -> None:
        if trainer.state.global_step == kill - 1:
            raise KeyboardInterrupt
        original(trainer)

    monkeypatch.setattr(HomotopicTrainer, "gather", dies)
    with pytest.raises(KeyboardInterrupt):
        make_distillation().run(tmp_path / "killed")
    monkeypatch.setattr(HomotopicTrainer, "gather", original)
    resumed, again = make_distillation().run(tmp_path / "killed")
    assert_equal(weights_of(student), weights_of(resumed))
    assert looks(again) == looks(history)


def test_a_kill_between_a_segment_and_its_compaction_costs_nothing(
    make_distillation, tmp_path, monkeypatch
) -> None:
    student, _ = make_distillation().run(tmp_path / "whole")

    def dies(*arguments) -> None:
        raise KeyboardInterrupt

    killed = make_distillation()
    original = type(killed)._compact
    monkeypatch.setattr(type(killed), "_compact", dies)
    with pytest.raises(KeyboardInterrupt):
        killed.run(tmp_path / "killed")
    monkeypatch.setattr(type(killed), "_compact", original)
    trained = []
    original = type(killed)._train
    monkeypatch.setattr(
        type(killed),
        "_train",
        lambda run, segment, *rest: trained.append(segment) or original(run, segment, *rest),
    )
    resumed, _ = make_distillation().run(tmp_path / "killed")
    assert trained == list(killed.segments[1:])
    assert_equal(weights_of(student), weights_of(resumed))


def test_a_finished_training_is_read(make_distillation, tmp_path, monkeypatch) -> None:
    distillation = make_distillation()
    student, history = distillation.run(tmp_path)
    monkeypatch.setattr(type(distillation), "_train", None)
    again, same = distillation.run(tmp_path)
    assert_equal(weights_of(student), weights_of(again))
    assert same == history


def test_a_folder_that_was_being_deleted_is_begun_again(make_distillation, tmp_path) -> None:
    """What is left of another student is none of this one's."""
    make_distillation().run(tmp_path)
    (tmp_path / "settings.json").unlink()
    (tmp_path / "notes.txt").write_text("the user's own", encoding="utf-8")
    student, _ = make_distillation("3L-20H-40F-4A-gelu").run(tmp_path)
    assert Architecture.from_config(student.config) == Architecture(3, 20, 4, 40)
    assert (tmp_path / "notes.txt").is_file()


def test_a_disk_that_fills_at_a_cut(make_distillation, tmp_path, monkeypatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    original = Compaction.by_importance

    def fills(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Compaction, "by_importance", fills)
        try:
            with pytest.raises(InvalidInput, match=r"must take a checkpoint, and did not at step 2 "):
                make_distillation().run(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    student, _ = make_distillation().run(tmp_path)
    assert Architecture.from_config(student.config) == TARGET


def test_steps_between_checkpoints_may_change(make_distillation, tmp_path, monkeypatch) -> None:
    def dies(trainer) -> None:
        if trainer.state.global_step == 15:
            raise KeyboardInterrupt
        original(trainer)

    original = HomotopicTrainer.gather
    monkeypatch.setattr(HomotopicTrainer, "gather", dies)
    with pytest.raises(KeyboardInterrupt):
        make_distillation(section={"save_steps": 100}).run(tmp_path)
    monkeypatch.setattr(HomotopicTrainer, "gather", original)
    make_distillation(section={"save_steps": 2}).run(tmp_path)
    last = max(tmp_path.glob("segment-*"))
    assert last_checkpoint(last).name == "checkpoint-20"
    state = json.loads((last / "checkpoint-20" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["save_steps"] == 2


def test_another_target_is_refused(make_distillation, tmp_path) -> None:
    make_distillation().run(tmp_path)
    with pytest.raises(InvalidInput, match=r"was begun towards 3L-16H-40F-4A-gelu .*with other segments\. "):
        make_distillation("3L-20H-40F-4A-gelu").run(tmp_path)


def test_another_seed_is_refused(make_distillation, tmp_path) -> None:
    make_distillation().run(tmp_path)
    with pytest.raises(InvalidInput, match=r"with other seed \(0, now 1\)\. "):
        make_distillation(seed=1).run(tmp_path)


def test_another_teacher_or_other_rows_are_refused(make_distillation, tmp_path) -> None:
    make_distillation(origin="one").run(tmp_path)
    with pytest.raises(InvalidInput, match=r"with other teacher or data\. "):
        make_distillation(origin="another").run(tmp_path)


@pytest.mark.parametrize("importance", ["sensitivity", "taylor", "magnitude", "activation"])
@pytest.mark.parametrize("maps", ["learned", "kept"])
def test_all_scores_and_maps(make_distillation, tmp_path, importance, maps) -> None:
    student, history = make_distillation(section={"importance": importance, "maps": maps}).run(tmp_path)
    assert Architecture.from_config(student.config) == TARGET
    assert looks(history)[0][f"{DISCREPANCY}hidden"] < 1e-9
    assert all(each[f"{DISCREPANCY}hidden"] > 0 for each in looks(history)[1:])


def test_units_of_a_head_have_no_activations_and_are_cut_by_magnitude(make_distillation, tmp_path) -> None:
    seen = []
    original = Compaction.by_importance

    def noting(model, shape, importance):
        seen.append((importance, magnitude(model)))
        return original(model, shape, importance)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Compaction, "by_importance", noting)
        make_distillation(section={"importance": "activation"}).run(tmp_path)
    for given, own in seen:
        alike = {group[0] for group in own if torch.equal(given[group], own[group])}
        assert alike == {"head_units"}


def test_a_copy_without_gradients_is_cut_by_magnitude(make_distillation, tmp_path, capsys) -> None:
    """At the first cut, after 2 steps: without dropout and labels there is nothing to learn until then."""
    narrowed = make_distillation(objectives={"hidden": {}, "logits": {}}, narrator=Narrator())
    config = narrowed.teacher.config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0  # of students made from now on
    seen = []
    original = Compaction.by_importance

    def noting(model, shape, importance):
        seen.append((importance, magnitude(model)))
        return original(model, shape, importance)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Compaction, "by_importance", noting)
        narrowed.run(tmp_path)
    by_weights = [all(torch.equal(given[group], own[group]) for group in own) for given, own in seen]
    assert by_weights == [True, False, False]
    assert capsys.readouterr().err.count("no gradients of") == 1


def test_a_folder_that_other_machines_do_not_see_is_told(make_distillation, tmp_path, monkeypatch) -> None:
    """On such a machine no checkpoint is ever there: only the first process of a launch writes."""
    monkeypatch.setattr(HomotopicTrainer, "_save_checkpoint", lambda *arguments: None)
    with pytest.raises(InvalidInput, match=r"segment-0'; .* all machines must see this folder"):
        make_distillation().run(tmp_path)


def test_activations_of_pairs_are_those_of_pairs(make_distillation, tmp_path) -> None:
    """The second text's tokens are of another type, which moves their states."""
    section = {"importance": "activation", "compactions": 1}
    alone = make_distillation(section=section)
    pairs = [{**row, "token_type_ids": [1] * len(row["input_ids"])} for row in alone.rows]
    given = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Compaction, "by_importance", lambda model, shape, found: given.append(found) or 1 / 0)
        for rows in (alone.rows, pairs):
            with pytest.raises(ZeroDivisionError):
                make_distillation(section=section, rows=rows, training={"learning_rate": 1e-9}).run(
                    tmp_path / str(len(given))
                )
    assert not torch.allclose(given[0]["hidden", None], given[1]["hidden", None])


def test_kept_units_are_compared_with_what_they_were(make_distillation, tmp_path) -> None:
    """Right after a cut their embeddings are still near the teacher's; other units' would not be."""
    narrowed = make_distillation(section={"maps": "kept"}, training={"learning_rate": 1e-9})
    _, history = narrowed.run(tmp_path)
    last = looks(history)[-1][f"{DISCREPANCY}embeddings"]
    assert last < 0.5  # relative to the states' variance: 2 for states that have nothing to do with them


def test_cached_signals_teach_the_same(make_distillation, tmp_path) -> None:
    live = make_distillation(objectives={"logits": {}, "hidden": {}})
    names = ["logits", "hidden.1", "hidden.2", "hidden.3"]
    ids = [row["input_ids"] for row in live.rows]
    signals = TeacherSignals.build(live.teacher, ids, names, tmp_path / "signals", precision="fp32")
    student, _ = live.run(tmp_path / "live")
    other = make_distillation(objectives=live.objectives, signals=signals)
    other.teacher.train()  # as it may come from Python: it is looked at without dropout
    cached, history = other.run(tmp_path / "cached")
    assert looks(history)[0][f"{DISCREPANCY}hidden"] < 1e-9
    for name, values in weights_of(student).items():
        torch.testing.assert_close(weights_of(cached)[name], values, rtol=1e-3, atol=1e-4)


def test_accumulated_micro_batches_are_one_step(make_distillation, tmp_path) -> None:
    """By plain descent: AdamW and clipping make the same steps of gradients that are all too large."""
    plain = {"max_grad_norm": 1e9, "learning_rate": 1e-2, "training_arguments": {"optim": "sgd"}}
    options = {"count": 8, "training": {"epochs": 20, **plain}}  # the same 8 rows in every step
    whole = make_distillation(**options)
    config = whole.teacher.config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0  # of students made from now on
    options["training"] |= {"batch_size": 4, "gradient_accumulation_steps": 2}
    halves = make_distillation(**options)
    assert halves.segments == whole.segments
    found, wanted = (each.run(tmp_path / str(id(each)))[0] for each in (halves, whole))
    for name, values in weights_of(wanted).items():
        torch.testing.assert_close(weights_of(found)[name], values, rtol=1e-3, atol=1e-4)


def test_layers_are_left_out_at_the_start(make_distillation, tmp_path) -> None:
    student, history = make_distillation("2L-16H-40F-4A-gelu").run(tmp_path)
    assert Architecture.from_config(student.config) == Architecture(2, 16, 4, 40)
    assert looks(history)[0]["hidden_size"] == 32


def test_mixed_precision(make_distillation, tmp_path) -> None:
    student, history = make_distillation(training={"precision": "bf16"}).run(tmp_path)
    assert {each.dtype for each in student.parameters()} == {torch.float32}
    assert all(value == value for each in looks(history) for value in each.values())


@pytest.mark.parametrize("name", OPTIMISERS[1:])
def test_optimisers_that_are_said_to_be_cut_are(make_distillation, tmp_path, name) -> None:
    training = {"training_arguments": {"optim": name}}
    student, _ = make_distillation(objectives={"hidden": {}}, training=training).run(tmp_path)
    assert Architecture.from_config(student.config) == TARGET


def test_every_segment_is_compiled(make_distillation, tmp_path) -> None:
    """Also where there are more of them than PyTorch compiles shapes of one model."""
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    counters.clear()
    arguments = {"torch_compile": True, "torch_compile_backend": "eager"}
    narrowed = make_distillation(objectives={"logits": {}}, training={"training_arguments": arguments})
    with config.patch(recompile_limit=2):  # monkeypatch would leave no limit at all
        narrowed.run(tmp_path)
    assert counters["frames"]["ok"] == counters["frames"]["total"] >= len(narrowed.segments) == 4


def test_steps_are_counted_as_the_trainer_does() -> None:
    section = TrainingSection(epochs=2.5, batch_size=8, gradient_accumulation_steps=3)
    assert total_steps(section, 81) == 10  # 11 batches, 4 steps an epoch
    assert total_steps(TrainingSection(training_arguments={"max_steps": 7}), 81) == 7
    whole = TrainingSection(epochs=2, batch_size=8, training_arguments={"dataloader_drop_last": True})
    assert total_steps(whole, 76) == 18
