"""The model card of a student, from results.json alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_kdnas.families.exact_bert import EXACT_BERT
from hf_kdnas.hub.merge import TAG, write_card
from hf_kdnas.hub.sources import (
    adapter_name,
    base_model,
    dataset_name,
    hub_dataset,
    licence,
    teacher_name,
    teacher_revision,
)
from hf_kdnas.report import view
from hf_kdnas.report.formats import FORMATS
from hf_kdnas.report.plots import pareto_picture
from hf_kdnas.resources import resource_dir
from hf_kdnas.run import write_bytes

# By workflow.
TEMPLATES = {
    "search": "kd_nas.md.jinja",
    "distill": "distillation.md.jinja",
    "homotopic": "homotopic.md.jinja",
}

# The Hub's names of our metrics.
HUB_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}

TAGS = [TAG, "distillation", "knowledge-distillation", "onnx"]
# Where objectives, and narrowing, are from. Those without a paper of their own are left out.
CITATIONS = {
    "logits": "Output distributions: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531).",
    "homotopic": "Narrowing while distilling: [HomoDistil](https://arxiv.org/abs/2302.09632).",
    "relations": "Relations of queries, keys and values: [MiniLMv2](https://arxiv.org/abs/2012.15828).",
}

SEARCH_TAG = "neural-architecture-search"

# Kinds of tasks that are named as their pipelines are; the others are text classification.
_PIPELINES = ("token-classification", "question-answering", "fill-mask", "sentence-similarity")


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
    results = view.load_results(run_dir)
    card, pictures = card_text(results), card_pictures(results)
    for folder in (run_dir, run_dir / "student"):
        if folder.is_dir():
            write_card(folder / "README.md", card)
            for name, content in pictures.items():
                write_bytes(folder / name, content)
    return run_dir / "README.md"


def card_pictures(results: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures that a card shows, by name.

    Args:
        results: What results.json holds.
    """
    if results["workflow"] != "search":
        return {}
    return {"pareto.png": pareto_picture(results, view.rows(results))}


def card_text(results: Mapping[str, Any], repo_id: str | None = None) -> str:
    """The card: metadata for the Hub, then Markdown.

    Args:
        results: What results.json holds.
        repo_id: The repository that it is for; None where there is none yet.
    """
    template = card_environment().get_template(TEMPLATES[results["workflow"]])
    return template.render(
        metadata=card_data(results).to_yaml().strip(),
        results=results,
        repo_id=repo_id or results["name"],
        recipe=yaml.safe_load(results["recipe"]),
        teacher_name=teacher_name(results),
        teacher_revision=teacher_revision(results),
        licence=licence(results),
        citations=citations(
            [*results["distillation"]["objectives"], *(["homotopic"] if results.get("homotopic") else [])]
        ),
        adapter_name=adapter_name(results),
        dataset_name=dataset_name(results),
        models=view.rows(results),
        view=view,
        pipeline=_pipeline(results),
        purpose=_purpose(results["task"]),
        usage=_usage(results["task"]),
        exact=results["student"]["model_type"] in EXACT_BERT.model_types,
    )


def card_environment() -> Environment:
    """What templates of cards are rendered in."""
    environment = Environment(
        loader=FileSystemLoader(resource_dir("model_cards")),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FORMATS, cell=_cell, options=_options, ordinal=_ordinal)
    return environment


def card_data(results: Mapping[str, Any]) -> ModelCardData:
    """The metadata; what isn't known (language, licence) is left out.

    Args:
        results: What results.json holds.
    """
    dataset, _ = hub_dataset(results)
    return ModelCardData(
        model_name=results["name"],
        **base_model(results),
        **licence(results),
        datasets=dataset,
        library_name="sentence-transformers"
        if _pipeline(results) == "sentence-similarity"
        else "transformers",
        pipeline_tag=_pipeline(results),
        metrics=[_hub_metric(name) for name in results["student"]["metrics"]],
        tags=[*TAGS, SEARCH_TAG] if results["workflow"] == "search" else TAGS,
        eval_results=_eval_results(results),
    )


def citations(objectives: Iterable[str]) -> list[str]:
    """Where the parts of a distillation are from, as Markdown.

    Args:
        objectives: Names of its objectives, and `homotopic` where students were narrowed.
    """
    return [CITATIONS[name] for name in objectives if name in CITATIONS]


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
    dataset, configuration = hub_dataset(results)
    data = yaml.safe_load(results["recipe"]).get("data", {})
    name = dataset_name(results)
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


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _ordinal(number: int) -> str:
    """A place: `1st`, `12th`."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _options(options: Mapping[str, Any]) -> str:
    """Options in words: ` (weight 1.0, layers uniform)`, or nothing."""
    words = ", ".join(f"{name} {value}" for name, value in options.items())
    return f" ({words})" if words else ""
