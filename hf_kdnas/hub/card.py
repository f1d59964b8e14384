"""The model card of a student, from results.json alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_kdnas.families.exact_bert import EXACT_BERT
from hf_kdnas.hub.merge import TAG, write_card
from hf_kdnas.report import view
from hf_kdnas.report.formats import FORMATS
from hf_kdnas.resources import resource_dir

# By workflow.
TEMPLATES = {"search": "kd_nas.md.jinja", "distill": "distillation.md.jinja"}

# The Hub's names of our metrics.
HUB_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}

TAGS = [TAG, "knowledge-distillation", "onnx"]
SEARCH_TAG = "neural-architecture-search"

# Kinds of tasks that are named as their pipelines are; the others are text classification.
_PIPELINES = ("token-classification", "question-answering", "fill-mask", "sentence-similarity")

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_FILES = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".bz2", ".gz", ".xz", ".zip", ".zst"}


def render_card(run_dir: Path) -> Path:
    """Write `README.md` into a run's folder and into its `student/`, where that is there.

    Everything in it comes from `results.json`, so that it can be made again at any time; what a
    person added to the files stays (see `merge_cards`).

    Args:
        run_dir: Folder of a run.

    Returns:
        The file in the run's folder.

    Raises:
        InvalidInput: If the run has no results.json.
    """
    card = card_text(view.load_results(run_dir))
    if (run_dir / "student").is_dir():
        write_card(run_dir / "student" / "README.md", card)
    path = run_dir / "README.md"
    write_card(path, card)
    return path


def card_text(results: Mapping[str, Any], repo_id: str | None = None) -> str:
    """The card: metadata for the Hub, then Markdown.

    Args:
        results: What results.json holds.
        repo_id: The repository that it is for; None where there is none yet.
    """
    environment = Environment(
        loader=FileSystemLoader(resource_dir("model_cards")),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FORMATS, cell=_cell, options=_options)
    return environment.get_template(TEMPLATES[results["workflow"]]).render(
        metadata=card_data(results).to_yaml().strip(),
        results=results,
        repo_id=repo_id or results["name"],
        recipe=yaml.safe_load(results["recipe"]),
        teacher_name=_teacher_name(results),
        adapter_name=_adapter_name(results),
        dataset_name=_dataset_name(results),
        models=view.rows(results),
        view=view,
        pipeline=_pipeline(results),
        purpose=_purpose(results["task"]),
        usage=_usage(results["task"]),
        exact=results["student"]["model_type"] in EXACT_BERT.model_types,
    )


def card_data(results: Mapping[str, Any]) -> ModelCardData:
    """The metadata; what isn't known (language, licence) is left out.

    Args:
        results: What results.json holds.
    """
    dataset, _ = _hub_dataset(results)
    return ModelCardData(
        model_name=results["name"],
        base_model=_hub_teacher(results),
        datasets=dataset,
        library_name="sentence-transformers"
        if _pipeline(results) == "sentence-similarity"
        else "transformers",
        pipeline_tag=_pipeline(results),
        metrics=[_hub_metric(name) for name in results["student"]["metrics"]],
        tags=[*TAGS, SEARCH_TAG] if results["workflow"] == "search" else TAGS,
        eval_results=_eval_results(results),
    )


def _pipeline(results: Mapping[str, Any]) -> str:
    """The pipeline that runs the student; the kinds of classification share one."""
    kind = results["task"]["kind"]
    return kind if kind in _PIPELINES else "text-classification"


def _purpose(task: Mapping[str, Any]) -> str:
    """What the student does, in words."""
    words = {"fill-mask": "masked language modelling", "sentence-similarity": "sentence embeddings"}
    if task["kind"] in _PIPELINES:
        return words.get(task["kind"], str(task["kind"].replace("-", " ")))
    kinds = {"regression": "regression", "multi_label_classification": "multi-label classification"}
    texts = "pairs of texts" if len(task["columns"]) > 2 else "texts"
    return f"{kinds.get(task['kind'], 'classification')} of {texts}"


def _usage(task: Mapping[str, Any]) -> dict[str, str]:
    """How a pipeline is called: a variable's name, and the arguments."""
    if task["kind"] == "token-classification":
        return {"name": "tag", "arguments": '"A text with names.", aggregation_strategy="first"'}
    if task["kind"] == "fill-mask":
        return {"name": "fill", "arguments": 'f"A {fill.tokenizer.mask_token} text."'}
    options = {"regression": ', function_to_apply="none"', "multi_label_classification": ", top_k=None"}
    pair = len(task["columns"]) > 2
    texts = '{"text": "A first text.", "text_pair": "A second text."}' if pair else '"A text."'
    return {"name": "classify", "arguments": f"{texts}{options.get(task['kind'], '')}"}


def _eval_results(results: Mapping[str, Any]) -> list[EvalResult]:
    if _pipeline(results) == "sentence-similarity":
        return []  # likeness to the teacher is no evaluation on the data set
    dataset, configuration = _hub_dataset(results)
    data = yaml.safe_load(results["recipe"]).get("data", {})
    name = _dataset_name(results)
    return [
        EvalResult(
            task_type=_pipeline(results),
            dataset_type=dataset or name,
            dataset_name=name,
            dataset_config=configuration,
            dataset_split=data.get("reporting_split"),
            metric_type=_hub_metric(metric),
            metric_name=metric,
            metric_value=round(value, 6),
        )
        for metric, value in results["student"]["metrics"].items()
    ]


def _hub_metric(name: str) -> str:
    return HUB_METRICS.get(name, name.rpartition(":")[2].rpartition("/")[2])


def _hub_teacher(results: Mapping[str, Any]) -> str | None:
    """The teacher's Hub id, or None: a path on somebody's disk is never a `base_model`."""
    teacher = results["teacher"]
    names = (teacher["base_model"], teacher["model"])
    return next((name for name in names if name and is_hub_id(name)), None)


def _teacher_name(results: Mapping[str, Any]) -> str:
    """The teacher as a reader may know it: its Hub id, else the last part of its path."""
    return _hub_teacher(results) or PurePosixPath(results["teacher"]["model"].removeprefix("package:")).name


def _adapter_name(results: Mapping[str, Any]) -> str | None:
    """The adapter that was merged into the teacher, likewise; None where there was none."""
    adapter = results["teacher"]["adapter"]
    return adapter if adapter is None or is_hub_id(adapter) else PurePosixPath(adapter).name


def _hub_dataset(results: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The data set's Hub id and configuration, where it is on the Hub."""
    data = yaml.safe_load(results["recipe"]).get("data", {})
    path, configuration = data.get("path", ""), data.get("name")
    if path.startswith("data:glue/"):
        path, configuration = "nyu-mll/glue", path.removeprefix("data:glue/")
    return (path, configuration) if is_hub_id(path) else (None, None)


def _dataset_name(results: Mapping[str, Any]) -> str:
    """The data set as a reader may know it."""
    dataset, configuration = _hub_dataset(results)
    if dataset:
        return f"{dataset} ({configuration})" if configuration else dataset
    return PurePosixPath(results["task"]["dataset"]).name.split(".")[0]


def is_hub_id(name: str) -> bool:
    """Whether a recipe's model or data set is a repository on the Hub, not a path.

    Args:
        name: As the recipe says it.
    """
    looks_like_one = _HUB_ID.fullmatch(name) is not None and PurePosixPath(name).suffix not in _FILES
    return looks_like_one and not Path(name).exists()


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _options(options: Mapping[str, Any]) -> str:
    """Options in words: ` (weight 1.0, layers uniform)`, or nothing."""
    words = ", ".join(f"{name} {value}" for name, value in options.items())
    return f" ({words})" if words else ""
