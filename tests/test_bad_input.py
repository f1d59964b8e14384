"""A user's mistake ends in one clear message and exit code 2, before any expensive work."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_kdnas import cli, materials
from hf_kdnas.architecture import Architecture

HEAD_OF_THREE = {"num_labels": 3, "id2label": {0: "bad", 1: "so-so", 2: "good"}}


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuning is the first expensive thing that a search does."""

    def work(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the mistake should have been noticed before")

    monkeypatch.setattr(materials, "prepare_teacher", work)


def _refused(
    project: Path, capsys: pytest.CaptureFixture[str], *settings: str, workflow: str = "search"
) -> str:
    """The one message that a run with these settings ends in."""
    assert cli.main([workflow, "--config", str(project / "recipe.yaml"), *settings]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kdnas:")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("--search.episode", "3"), ("search.episode", "Did you mean episodes?")),
        (("--data.text", "review"), ("data.text", "review", "text, label")),
        (("--teacher.fine_tune", "null"), ("teacher.model", "ForSequenceClassification", "fine_tune")),
        (("--space.max_parameters", "10"), ("max_parameters", "none of the")),
        (("--search.constraints.latency_ms", "1e-6"), ("latency_ms", "the fastest", " ms")),
        (("--search.constraints.speedup", "1e6"), ("speedup", "the fastest", "teacher's speed")),
        (
            ("--search.constraints.speedup", "1e6", "--search.constraints.latency_ms", "1e6"),
            ("constraints.speedup", "the fastest"),
        ),
        (("--compare", "{objectives: {OD: {logits: {}}}}"), ("compare: got ['OD']", "kdnas distill")),
        (("--latency.provider", "TPUExecutionProvider"), ("latency.provider", "CPUExecutionProvider")),
        (("--latency.precision", "int8"), ("latency.precision", "export.int8", "kdnas latency --precision")),
        (("--latency.sequence_length", "100"), ("latency.sequence_length", "64")),
        (("--search.baselines", "[distilbert]"), ("search.baselines", "6L-768H-3072F-12A-gelu")),
        (
            ("--distillation.objectives.hidden.layers", "first"),
            ("objectives.hidden.layers: got 'first'", "uniform+last"),
        ),
        (
            (
                "--space.hidden_size",
                "[16, 24, 32]",
                "--space.num_attention_heads",
                "[2]",
                "--distillation.objectives",
                "{relations: {relation_heads: 16}}",
            ),
            ("distillation.objectives.relations.relation_heads: got 16", "24"),
        ),
        (("--teacher.model", "package:no_such_package/model"), ("pip install no-such-package",)),
        (("--data.path", "no/such/reviews.csv"), ("data.path", "no such file, seen from")),
        (
            ("--distillation.training.training_arguments", "{savestrategy: no}"),
            ("savestrategy", "save_strategy"),
        ),
        (
            ("--distillation.training.training_arguments", "{adam_beta1: small}"),
            ("distillation.training.training_arguments.adam_beta1", "must be a number"),
        ),
        (
            ("--distillation.training.training_arguments", "{dropout: 0.3}"),
            ("training_arguments: got 'dropout'", "Set dropout in place"),
        ),
        (
            ("--search.proxy.training_arguments", "{lr_scheduler_type: straight}"),
            ("search.proxy.training_arguments", "straight", "Leave it out"),
        ),
        (
            ("--teacher.fine_tune.training_arguments", "{eval_strategy: epoch}"),
            ("teacher.fine_tune.training_arguments.eval_strategy", "Leave it out"),
        ),
        (("--distillation.training.precision", "fp16"), ("distillation.training.precision", "bf16")),
        (("--distillation.objectives.logits.temperature", "warm"), ("objectives.logits", "warm")),
        (("--search.constraints.parameters", "10"), ("search.constraints.parameters", "the smallest")),
        (("--search.sampler", "no_such_module:Sampler"), ("search.sampler", "no_such_module")),
        (("--search.storage", "sqlite:////no/such/folder/study.db"), ("search.storage", "no/such/folder")),
        (("--search.storage", "/dev/null/study.log"), ("search.storage", "a folder that can be written")),
        (("--search.storage", "sqlite:/study.db"), ("search.storage", "two slashes")),
        (("--search.storage", "postgresql:/u:pw@h/db"), ("got 'postgresql:/h/db'",)),
        (("--hub_token", "hf_abcdefgh12345"), ("hub_token", "hf_...")),
        (
            ("--search.sampler", "random", "--search.random_baseline", "true"),
            ("search.random_baseline", "a random one"),
        ),
        (("--data.reporting_split", "train"), ("data.reporting_split", "prove nothing")),
        (
            ("--data.data_files", "{validation: reviews.csv}"),
            ("data.data_files", "a file itself", "Set data.path to the files' type"),
        ),
        (("--space.hidden_act", "[gellu]"), ("space.hidden_act", "Did you mean gelu?")),
        (("--report_to", "[tensorbord]"), ("report_to", "Did you mean tensorboard?")),
        (("--report_to", "[comet_ml]"), ("report_to", "pip install comet-ml")),
        (("--output_dir", "/dev/null/run"), ("output_dir", "must be a folder that can be written")),
        (("--data.label", "text"), ("data.text", "the column of the labels")),
        (
            ("--search.quality", "hidden_states", "--distillation.objectives", "{logits: {}}"),
            ("search.quality", "Add hidden"),
        ),
        (("--distillation.objectives", "{mlm: {}}"), ("distillation.objectives", "data.task: fill-mask")),
        (("--data.text", "[text, text]"), ("data.text", "two different ones")),
        (("--data.where", "{label: fresh}"), ("data.label", "all rows to train on have the label")),
        (("--search.alpha", ".nan"), ("search.alpha", "must be a finite number")),
        (("--seed", "4294967296"), ("seed", "4294967295")),
        (("--distillation.initialisation", "superlm"), ("distillation.superlm", "kdnas superlm train")),
        (
            ("--distillation.superlm", "runs/superlm"),
            ("distillation.superlm", "initialisation: project does not read it"),
        ),
        (
            ("--distillation.initialisation", "superlm", "--distillation.superlm", "runs/superlm"),
            ("distillation.superlm", "runs/superlm", "spaces/NAME/superlm"),
        ),
    ],
    ids=lambda value: value[0].removeprefix("--") if value[0].startswith("--") else "",
)
def test_a_setting_that_cannot_be_used(
    tiny_project: Path, capsys: pytest.CaptureFixture[str], settings: tuple[str, ...], named: tuple[str, ...]
) -> None:
    message = _refused(tiny_project, capsys, *settings)
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("--student", "no/such/model"), ("student", "no/such/model", "every-second-layer")),
        (("--student", "4L-32H-64F-4A-gelu"), ("student", "can't be cut from the teacher")),
        (("--student", "1L-17H-32F-2A-gelu"), ("17", "2")),
        (
            ("--compare", "{objectives: {OD: {logits: {}}, HS: {hidden: {layers: [[9, 1]]}}}}"),
            ("compare.objectives.HS.hidden.layers: got [9, 1]",),
        ),
        (("--compare", "{objectives: {OD: {logit: {}}}}"), ("compare.objectives.OD", "Did you mean logits?")),
        (
            (
                "--distillation.augmentation.copies",
                "1",
                "--distillation.objectives",
                "{logits: {}, task: {}}",
            ),
            ("distillation.augmentation.copies", "made texts have no labels"),
        ),
        (
            (
                "--distillation.augmentation.copies",
                "1",
                "--compare",
                "{objectives: {both: {task: {}, logits: {}}}}",
            ),
            ("distillation.augmentation.copies", "the objective task of both"),
        ),
        (
            ("--distillation.augmentation.copies", "1", "--data.text", "[text, other]"),
            ("distillation.augmentation.copies", "tasks about single texts"),
        ),
        (("--compare", "{objectives: {OD: {}}}"), ("compare.objectives.OD", "at least one is needed")),
    ],
)
def test_a_student_that_cannot_be_distilled(
    tiny_project: Path, capsys: pytest.CaptureFixture[str], settings: tuple[str, ...], named: tuple[str, ...]
) -> None:
    message = _refused(tiny_project, capsys, *settings, workflow="distill")
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "a whole safetensors file"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "run code"),
        (lambda folder: (folder / "config.json").unlink(), "the folder has no config"),
    ],
)
def test_a_student_that_is_not_whole(
    tiny_project: Path, tiny_bert_config, capsys: pytest.CaptureFixture[str], spoil: Any, named: str
) -> None:
    student = tiny_project / "student"
    AutoModelForSequenceClassification.from_config(tiny_bert_config).save_pretrained(student)
    spoil(student)
    message = _refused(tiny_project, capsys, "--student", str(student), workflow="distill")
    assert "student" in message
    assert named in message
    assert cli.main(["latency", str(student)]) == 2
    assert named in capsys.readouterr().err


def test_a_student_of_another_vocabulary(
    tiny_project: Path, tiny_bert_config, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_bert_config.update({"vocab_size": 50})
    AutoModelForSequenceClassification.from_config(tiny_bert_config).save_pretrained(tiny_project / "student")
    message = _refused(tiny_project, capsys, "--student", str(tiny_project / "student"), workflow="distill")
    assert "vocab_size 50" in message
    assert "the teacher's vocab_size is 120" in message


@pytest.mark.parametrize(
    ("workflow", "settings"),
    [
        ("distill", "--student={0}"),
        ("search", "--distillation.initialisation=superlm --distillation.superlm={0}"),
    ],
)
def test_a_student_that_numbers_as_many_tokens_otherwise(
    tiny_project: Path,
    tiny_bert_config,
    tiny_tokenizer,
    capsys: pytest.CaptureFixture[str],
    workflow: str,
    settings: str,
) -> None:
    student = tiny_project / "student"
    AutoModelForSequenceClassification.from_config(tiny_bert_config).save_pretrained(student)
    tiny_tokenizer.save_pretrained(student)
    (student / "vocab.txt").unlink(missing_ok=True)
    file = student / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"] |= {"the": 6, "a": 5}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    message = _refused(tiny_project, capsys, *settings.format(student).split(), workflow=workflow)
    assert "'a' as id 5" in message
    assert "the teacher's tokenizer has it as id 6; 2 tokens differ" in message


def test_a_student_of_other_positions(
    tiny_project: Path, tiny_bert_config, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_bert_config.update({"max_position_embeddings": 32})
    AutoModelForSequenceClassification.from_config(tiny_bert_config).save_pretrained(tiny_project / "student")
    message = _refused(tiny_project, capsys, "--student", str(tiny_project / "student"), workflow="distill")
    assert "max_position_embeddings 32" in message
    assert "the teacher's max_position_embeddings is 64" in message


@pytest.mark.parametrize(
    ("workflow", "settings", "named"),
    [
        (
            "search",
            ("--search.baselines", "[every-second-layer]"),
            ("search.baselines", "2L-32H-64F-4A-gelu can't be cut from the SuperLM, 2L-24H-64F-4A-gelu"),
        ),
        (
            "search",
            ("--space.hidden_size", "[32]", "--search.baselines", "[]"),
            ("initialisation: superlm (no wider or deeper than 2L-24H-64F-4A-gelu)", "none of the"),
        ),
        ("distill", ("--student", "3L-16H-32F-4A-gelu"), ("student", "can't be cut from the SuperLM")),
        ("distill", ("--student", "base"), ("student", "a model brings its own weights")),
    ],
)
def test_a_shape_that_does_not_fit_into_the_superlm(
    tiny_project: Path,
    tiny_bert_config,
    capsys: pytest.CaptureFixture[str],
    workflow: str,
    settings: tuple[str, ...],
    named: tuple[str, ...],
) -> None:
    shape = Architecture(2, 24, 4, 64)
    AutoModel.from_config(shape.apply_to(tiny_bert_config)).save_pretrained(tiny_project / "superlm")
    settings = tuple(str(tiny_project / each) if each == "base" else each for each in settings)
    superlm = (
        "--distillation.initialisation",
        "superlm",
        "--distillation.superlm",
        str(tiny_project / "superlm"),
    )
    message = _refused(tiny_project, capsys, *superlm, *settings, workflow=workflow)
    for part in named:
        assert part in message


def test_labels_that_the_teachers_head_does_not_have(
    tiny_project: Path, tiny_bert_config, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_bert_config.update(HEAD_OF_THREE)
    AutoModelForSequenceClassification.from_config(tiny_bert_config).save_pretrained(tiny_project / "base")
    message = _refused(tiny_project, capsys, "--teacher.fine_tune", "null")
    assert "bad, so-so, good" in message
    assert "2 classes (rotten, fresh)" in message


def test_words_that_neither_head_nor_data_number(
    tiny_project: Path, tiny_bert_config, capsys: pytest.CaptureFixture[str]
) -> None:
    """The alphabet would make `fresh` class 0, of which the teacher may know the other."""
    teacher = AutoModelForSequenceClassification.from_config(tiny_bert_config)
    teacher.save_pretrained(tiny_project / "base")
    message = _refused(tiny_project, capsys, "--teacher.fine_tune", "null", "--data.labels", "null")
    assert "data.labels" in message
    assert "fresh, rotten" in message
    assert "in the order of the head's ids" in message


WORDS = {"tokens": ["a", "film"], "ner_tags": ["O", "B-X"]}
ANSWERS = {"question": "was it", "context": "a film", "answers": {"text": ["film"], "answer_start": [2]}}


@pytest.mark.parametrize(
    ("task", "row", "settings", "named"),
    [
        ("token-classification", WORDS | {"ner_tags": ["O"]}, (), ("data.label", "1 tags beside 2 words")),
        ("token-classification", WORDS | {"ner_tags": "O"}, (), ("data.label", "needs lists of tags")),
        ("token-classification", WORDS, ("--data.labels", "[O, B-Y]"), ("data.labels", "holds B-X, O")),
        (
            "token-classification",
            WORDS,
            ("--data.metric", "pearson"),
            ("data.metric", "scored by seqeval, accuracy"),
        ),
        (
            "token-classification",
            WORDS,
            ("--teacher.fine_tune", "null"),
            ("teacher.model", "BertForSequenceClassification", "...ForTokenClassification"),
        ),
        (
            "question-answering",
            ANSWERS | {"answers": {"text": ["film"], "answer_start": [0]}},
            (),
            ("data.label", "'film'", "at character 0 its context has 'a fi'"),
        ),
        ("question-answering", ANSWERS | {"answers": "film"}, (), ("data.label", "as in SQuAD")),
        ("question-answering", ANSWERS, ("--data.stride", "30"), ("data.stride", "the longest question")),
        ("question-answering", ANSWERS, ("--data.text", "[context]"), ("data.text", "two different columns")),
        (
            "question-answering",
            ANSWERS,
            ("--teacher.fine_tune", "null"),
            ("teacher.model", "...ForQuestionAnswering"),
        ),
        ("text-classification", {"text": "a", "label": {"text": "b"}}, (), ("data.label", "dict")),
        ("text-classification", {"text": "a", "label": [0, 1, 1]}, (), ("data.label", "not a 0 or 1")),
        ("text-classification", WORDS, ("--data.text", "tokens"), ("data.text", "texts are needed")),
        ("tagging", WORDS, (), ("data.task", "token-classification")),
        ("fill-mask", WORDS, ("--data.label", "tags"), ("data.label", "learns from texts alone")),
        ("fill-mask", WORDS, (), ("teacher.fine_tune", "no labels in fill-mask")),
        (
            "fill-mask",
            {"text": "a film"},
            ("--teacher.fine_tune", "null"),
            ("teacher.model", "...ForMaskedLM"),
        ),
        (
            "sentence-similarity",
            {"text": "a film"},
            ("--teacher.fine_tune", "null"),
            ("distillation.objectives", "nothing for logits, mlm, task", "sentence: {}"),
        ),
        (
            "sentence-similarity",
            {"text": "a film"},
            (
                *("--teacher.fine_tune", "null"),
                *("--distillation.objectives", "{sentence: {pooling: cls}}"),
            ),
            ("distillation.objectives.sentence.pooling", "made by mean"),
        ),
    ],
)
def test_rows_that_do_not_fit_the_task(
    tiny_project: Path,
    tiny_bert_config,
    capsys: pytest.CaptureFixture[str],
    task: str,
    row: dict[str, Any],
    settings: tuple[str, ...],
    named: tuple[str, ...],
) -> None:
    AutoModelForSequenceClassification.from_config(tiny_bert_config).save_pretrained(tiny_project / "base")
    rows = tiny_project / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"label": "x", **row}) for _ in range(40)), encoding="utf-8")
    data = ("--data.path", str(rows), "--data.task", task, "--data.labels", "null")
    text = () if task == "text-classification" else ("--data.text", "[]")
    message = _refused(tiny_project, capsys, *data, *text, *settings)
    for part in named:
        assert part in message


def test_a_tokenizer_of_another_vocabulary(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_project / "base" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "vocab_size": 50}), encoding="utf-8")
    message = _refused(tiny_project, capsys)
    assert "120 tokens" in message
    assert "50" in message


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ("config.json", "no config"),
        ("tokenizer*", "no tokenizer"),
        ("model.safetensors", "no safetensors weights"),
    ],
)
def test_a_teacher_whose_folder_lacks_a_file(
    tiny_project: Path, capsys: pytest.CaptureFixture[str], removed: str, named: str
) -> None:
    for path in [*(tiny_project / "base").glob(removed), tiny_project / "base" / "vocab.txt"]:
        path.unlink(missing_ok=True)
    assert named in _refused(tiny_project, capsys)


def test_a_teacher_of_pickled_weights(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny_project / "base" / "model.safetensors").rename(tiny_project / "base" / "pytorch_model.bin")
    message = _refused(tiny_project, capsys)
    assert "pytorch_model.bin, which loading may run code from" in message
    assert "save_pretrained" in message


def test_a_teacher_cut_off_in_its_download(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tiny_project / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "must be a whole safetensors file" in _refused(tiny_project, capsys)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("name: tiny\nname: tinier\n", "the key name stands there twice"),
        ("data: [", "must be YAML"),
        ("output_dir: {{ name }}", "must be YAML"),
    ],
)
def test_a_recipe_file_that_cannot_be_read(
    tiny_project: Path, capsys: pytest.CaptureFixture[str], content: str, named: str
) -> None:
    (tiny_project / "recipe.yaml").write_text(content, encoding="utf-8")
    assert named in _refused(tiny_project, capsys)


def test_texts_that_are_none(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny_project / "reviews.csv").write_text("text,label\n" + "1,rotten\n2,fresh\n" * 50, encoding="utf-8")
    assert "texts are needed" in _refused(tiny_project, capsys)


def test_the_folder_of_another_recipe(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="noticed before"):
        cli.main(["search", "--config", str(tiny_project / "recipe.yaml")])
    message = _refused(tiny_project, capsys, "--seed", "7")
    assert "--resume" in message
    assert "--overwrite" in message


def test_what_was_refused_can_be_asked_for_anew(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "the fastest" in _refused(tiny_project, capsys, "--search.constraints.speedup", "1e6")
    assert list((tiny_project / "run").iterdir()) == []
    with pytest.raises(AssertionError, match="noticed before"):
        cli.main(["search", "--config", str(tiny_project / "recipe.yaml")])


@pytest.mark.parametrize(
    "settings", [("--search.constraints.speedup", "1e6"), ("--search.storage", "sqlite:///no/such/study.db")]
)
def test_a_run_is_not_deleted_for_one_that_is_refused(
    tiny_project: Path, capsys: pytest.CaptureFixture[str], settings: tuple[str, ...]
) -> None:
    with pytest.raises(AssertionError, match="noticed before"):
        cli.main(["search", "--config", str(tiny_project / "recipe.yaml")])
    before = (tiny_project / "run" / "run.json").read_bytes()
    _refused(tiny_project, capsys, *settings, "--overwrite")
    assert (tiny_project / "run" / "run.json").read_bytes() == before


def test_no_room_for_the_signals(
    tiny_project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tiny_project)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    message = _refused(tiny_project, capsys)
    assert "GB of the teacher's signals" in message
    assert "KDNAS_CACHE" in message


def test_no_exporter(
    tiny_project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_kdnas.latency import export

    for exporter in export.EXPORTERS.values():
        monkeypatch.setattr(exporter, "available", staticmethod(lambda: False))
    extra = "optimum" if version("transformers").startswith("4.") else "onnx"
    assert f'pip install "hf-kdnas[{extra},onnxruntime]"' in _refused(tiny_project, capsys)
