"""Every kind of task from end to end: a search ends in a stock student, in ONNX, a report and a card."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForMaskedLM

from hf_kdnas import cli
from hf_kdnas.distill.loop import train_alone
from hf_kdnas.run import read_json
from hf_kdnas.search import mini_kd
from hf_kdnas.stages import Stages
from hf_kdnas.tasks.masking import Masking

GOOD, BAD = ("good", "great", "fine", "superb"), ("bad", "poor", "dull", "awful")
OTHER = ("the", "film", "movie", "plot", "acting", "story", "was", "and", "with", "very")

pytestmark = pytest.mark.usefixtures("steady_latency")


def _search(project: Path, rows: list[dict[str, Any]], *settings: str) -> dict[str, Any]:
    """Search on these rows; the results."""
    file = project / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return _run(project, "--data.path", str(file), "--teacher.fine_tune.epochs", "12", *settings)


def _run(project: Path, *settings: str) -> dict[str, Any]:
    """A short search; the results."""
    short = ("--data.labels", "null", "--search.episodes", "1", "--search.candidates", "2")
    assert cli.main(["search", "--config", str(project / "recipe.yaml"), *short, *settings]) == 0
    return read_json(project / "run" / "results.json")


STRANGER = """
import json

folder, head, task, texts = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])

import numpy as np
import onnxruntime
import torch
import transformers

from transformers.pipelines import SUPPORTED_TASKS

inputs = transformers.AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt")
with torch.inference_mode():
    wanted = getattr(transformers, head).from_pretrained(folder)(**inputs)
session = onnxruntime.InferenceSession(folder + "/onnx/model.onnx")
given = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
for each in session.get_outputs():
    found = session.run([each.name], given)[0]
    assert np.abs(found - wanted[each.name].numpy()).max() < 1e-5, each.name
given = dict(zip(("question", "context"), texts)) if task == "question-answering" else {"inputs": texts[0]}
# Transformers 5 has no pipeline for question answering.
answer = transformers.pipeline(task, model=folder)(**given) if task in SUPPORTED_TASKS else None
exec(sys.stdin.read())  # what the card says
print(json.dumps(answer, default=float))
"""


@pytest.fixture
def answer(tiny_project: Path, stranger: Callable[..., str]) -> Callable[..., Any]:
    """A stock pipeline's answer, where there is one, in a process without hf_kdnas.

    There ONNX gives the same logits, and what the card says runs.
    """
    student = tiny_project / "run" / "student"

    def ask(head: str, task: str, texts: list[str]) -> Any:
        said = (student / "README.md").read_text().split("```python")[1].split("```")[0]
        shown = stranger(
            STRANGER,
            *(str(student), head, task, json.dumps(texts)),
            stdin=said.replace('"tiny"', repr(str(student))),
            cwd=student.parent,
        )
        return json.loads(shown.splitlines()[-1])

    return ask


def _texts(count: int) -> Iterator[list[str]]:
    draw = random.Random(0)
    for _ in range(count):
        words = draw.choices(OTHER, k=draw.randint(2, 9)) + draw.choices(GOOD + BAD, k=draw.randint(0, 2))
        draw.shuffle(words)
        yield words


def _check(project: Path, results: dict[str, Any], kind: str, task: str, head: str) -> ModelCard:
    """What is the same for all kinds; the card."""
    student = project / "run" / "student"
    assert AutoConfig.from_pretrained(student).architectures == [f"BertFor{head}" if head else "BertModel"]
    for name in ("model.onnx", "model_int8.onnx"):
        assert (student / "onnx" / name).stat().st_size > 0
    assert results["student"]["export_difference"] < 1e-4
    assert results["student"]["quality"] > 0.5 * results["teacher"]["quality"] > 0
    assert results["student"]["int8"]["quality"] > 0
    assert kind in (project / "run" / "report.html").read_text(encoding="utf-8")
    card = ModelCard.load(student / "README.md")
    tasks = {card.data.pipeline_tag, *(each.task_type for each in card.data.eval_results)}
    assert tasks == {task}
    return card


def test_multi_label_classification(tiny_project: Path, answer: Callable[..., Any]) -> None:
    rows = [
        {
            "text": " ".join(words),
            "label": [name for name, part in (("praise", GOOD), ("blame", BAD)) if {*words} & {*part}],
        }
        for words in _texts(240)
    ]
    results = _search(tiny_project, rows)
    assert results["task"]["kind"] == "multi_label_classification"
    assert results["student"]["metrics"].keys() == {"f1", "accuracy"}
    card = _check(
        tiny_project, results, "multi label classification", "text-classification", "SequenceClassification"
    )
    assert "top_k=None" in card.text
    answer("AutoModelForSequenceClassification", "text-classification", ["the film was so superb"])
    config = AutoConfig.from_pretrained(tiny_project / "run" / "student")
    assert config.problem_type == "multi_label_classification"
    assert set(config.label2id) == {"praise", "blame"}


def test_regression(tiny_project: Path, answer: Callable[..., Any]) -> None:
    scores = {**dict.fromkeys(GOOD, 1.0), **dict.fromkeys(BAD, -1.0)}
    rows = [
        {"text": " ".join(words), "label": sum(scores.get(word, 0.0) for word in words)}
        for words in _texts(240)
    ]
    results = _search(tiny_project, rows)
    assert results["task"]["kind"] == "regression"
    assert results["student"]["metrics"].keys() == {"pearson", "spearman"}
    card = _check(tiny_project, results, "regression", "text-classification", "SequenceClassification")
    assert 'function_to_apply="none"' in card.text
    answer("AutoModelForSequenceClassification", "text-classification", ["the film was so superb"])
    config = AutoConfig.from_pretrained(tiny_project / "run" / "student")
    assert (config.problem_type, config.num_labels) == ("regression", 1)


def test_token_classification(tiny_project: Path, answer: Callable[..., Any]) -> None:
    tags = {word: tag for part, tag in ((GOOD, "B-PRO"), (BAD, "B-CON")) for word in part}
    rows = [{"tokens": words, "ner_tags": [tags.get(word, "O") for word in words]} for words in _texts(200)]
    results = _search(tiny_project, rows, "--data.task", "token-classification", "--data.text", "[]")
    task = "token-classification"
    card = _check(tiny_project, results, task, task, "TokenClassification")
    assert results["task"]["labels"] == ["B-CON", "B-PRO", "O"]
    assert 'pipeline("token-classification"' in card.text
    found = answer("AutoModelForTokenClassification", task, ["the film was so superb"])
    assert {each["entity"] for each in found} <= set(results["task"]["labels"])


def test_question_answering(tiny_project: Path, answer: Callable[..., Any]) -> None:
    rows = []
    for words in _texts(200):
        word = next((word for word in words if word in GOOD + BAD), words[0])
        context = " ".join(words)
        answers = {"text": [word], "answer_start": [context.index(word)]}
        rows.append({"question": "was it good", "context": context, "answers": answers})
    task = "question-answering"
    more = ("--data.task", task, "--data.text", "[]", "--data.max_length", "14", "--data.stride", "3")
    results = _search(tiny_project, rows, *more, "--search.proxy.epochs", "3")
    card = _check(tiny_project, results, task, task, "QuestionAnswering")
    assert results["task"]["rows"]["train"] == 128
    assert "AutoModelForQuestionAnswering" in card.text
    texts = ["was it good", "the film was so superb"]
    found = answer("AutoModelForQuestionAnswering", task, texts)
    assert found is None or found["answer"] in texts[1]


def _train_to_fill(folder: Path, texts: list[str]) -> None:
    """A teacher that finds some of the hidden words."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForMaskedLM(BertConfig.from_pretrained(folder))
    masking = Masking(tokenizer.mask_token_id, len(tokenizer), tuple(tokenizer.all_special_ids), 0.3)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    for _ in range(100):
        ids, labels = masking(batch["input_ids"], batch["attention_mask"])
        model(input_ids=ids, attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)


def _lines(project: Path) -> list[str]:
    """Two texts again and again, in a file of lines."""
    lines = [" ".join(OTHER[: 6 + index % 2]) for index in range(60)]
    (project / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    return lines


UNLABELLED = ("--teacher.fine_tune", "null")


def _to_fill(project: Path) -> tuple[str, ...]:
    """Settings for filling in words, of which the teacher finds some."""
    _train_to_fill(project / "base", _lines(project))
    data = ("--data.path", str(project / "lines.txt"), "--data.task", "fill-mask")
    return (*UNLABELLED, *data, "--data.mlm_probability", "0.3")


def test_fill_mask(tiny_project: Path, answer: Callable[..., Any]) -> None:
    results = _run(
        tiny_project,
        *_to_fill(tiny_project),
        "--distillation.objectives",
        "{mlm: {}, hidden: {}, task: {}}",
        "--distillation.training.epochs",
        "60",
        "--distillation.training.learning_rate",
        "5e-3",
        "--search.constraints.retained",
        "0.6",
    )
    card = _check(tiny_project, results, "fill-mask", "fill-mask", "MaskedLM")
    assert results["teacher"]["quality"] > 0.5
    assert "fill.tokenizer.mask_token" in card.text
    found = answer("AutoModelForMaskedLM", "fill-mask", ["the film [MASK] plot"])
    assert found[0]["token_str"]


def test_candidates_may_be_rewarded_for_their_hidden_states(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their losses choose the finalists, and the metric alone whatever comes later."""
    lost, scored = [], []
    score = Stages.score

    def noting_losses(*arguments: Any, **options: Any) -> dict[str, float]:
        losses = train_alone(*arguments, **options)
        lost.append(losses["hidden"])
        return losses

    def noting_scores(stages: Stages, model: Any) -> float:
        scored.append(score(stages, model))
        return scored[-1]

    monkeypatch.setattr(mini_kd, "train_alone", noting_losses)
    monkeypatch.setattr(Stages, "score", noting_scores)
    results = _run(
        tiny_project,
        *_to_fill(tiny_project),
        *("--distillation.objectives", "{mlm: {}, hidden: {}}"),
        *("--search.quality", "hidden_states", "--search.alpha", "-1"),
        *("--search.constraints.retained", "2"),  # of the metric, which candidates don't have
        *("--search.candidates", "3", "--search.finalists", "2", "--search.baselines", "[]"),
    )
    assert [each["quality"] for each in results["candidates"]] == [1 - loss for loss in lost]
    assert [each["selection_quality"] for each in results["finalists"]] == scored[1:]  # behind the teacher's
    best = sorted(results["candidates"], key=lambda each: -each["reward"])
    names = [each["architecture"] for each in best[:2]]
    assert [each["architecture"] for each in results["finalists"]] == names
    assert [each["proxy_quality"] for each in results["finalists"]] == [each["quality"] for each in best[:2]]


def test_sentence_similarity(tiny_project: Path, answer: Callable[..., Any]) -> None:
    pytest.importorskip("sentence_transformers")  # what the card says
    _lines(tiny_project)
    results = _run(
        tiny_project,
        *UNLABELLED,
        "--data.path",
        str(tiny_project / "lines.txt"),
        "--data.task",
        "sentence-similarity",
        "--distillation.objectives",
        "{sentence: {}, hidden: {}}",
    )
    assert results["teacher"]["quality"] == pytest.approx(1.0)
    card = _check(tiny_project, results, "sentence-similarity", "sentence-similarity", "")
    assert card.data.library_name == "sentence-transformers"
    answer("AutoModel", "sentence-similarity", ["the film was good"])
