"""The model card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_kdnas.errors import InvalidInput
from hf_kdnas.hub.card import card_data, card_text, render_card
from hf_kdnas.hub.sources import is_hub_id, teacher_licence
from hf_kdnas.recipe import TeacherSection

KNOWN_KEYS = {
    *("base_model", "base_model_relation", "datasets", "library_name", "license", "metrics"),
    *("model-index", "pipeline_tag", "tags"),
}


def sst2(results: dict[str, Any]) -> dict[str, Any]:
    """The same run on data of the Hub."""
    recipe = {"data": {"path": "data:glue/sst2", "name": None, "reporting_split": "validation"}}
    results["task"]["dataset"] = "data:glue/sst2"
    return results | {"recipe": yaml.safe_dump(recipe)}


def test_it_lies_in_the_run_and_in_the_student(tmp_path: Path, results: dict[str, Any]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    assert render_card(tmp_path) == tmp_path / "README.md"
    assert not (tmp_path / "student").exists()
    (tmp_path / "student").mkdir()
    render_card(tmp_path)
    card = ModelCard.load(tmp_path / "student" / "README.md")
    assert card.text.strip().startswith("# made-up")
    assert (tmp_path / "README.md").read_text() == (tmp_path / "student" / "README.md").read_text()
    assert "](pareto.png)" in card.text
    assert (tmp_path / "student" / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_the_metadata_are_what_the_hub_takes(results: dict[str, Any]) -> None:
    card = ModelCard(card_text(sst2(results)))
    data = card.data.to_dict()
    assert set(data) <= KNOWN_KEYS
    assert data["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert data["base_model_relation"] == "finetune"
    assert data["license"] == "apache-2.0"
    assert {"kdnas", "distillation", "neural-architecture-search", "onnx"} <= set(data["tags"])
    assert data["datasets"] == "nyu-mll/glue"
    assert data["pipeline_tag"] == "text-classification"
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == (
        "nyu-mll/glue",
        "sst2",
        "validation",
    )
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.8172)


def test_metrics_have_the_hubs_names(results: dict[str, Any]) -> None:
    results["student"]["metrics"] = {
        "pearson": 0.9,
        "spearman": 0.8,
        "matthews": 0.7,
        "mine.metrics:Own": 0.6,
    }
    assert card_data(results).metrics == ["pearsonr", "spearmanr", "matthews_correlation", "Own"]


def test_paths_on_somebodys_disk_stay_there(tmp_path: Path, results: dict[str, Any]) -> None:
    teacher = tmp_path / "teachers" / "mine"
    results["teacher"] |= {"base_model": None, "model": str(teacher)}
    results["recipe"] = yaml.safe_dump({"data": {"path": str(tmp_path / "data" / "reviews.csv")}})
    results["task"]["dataset"] = str(tmp_path / "data" / "reviews.csv")
    text = card_text(results)
    assert str(tmp_path) not in text
    assert "distilled from **mine**" in text
    data = ModelCard(text).data
    assert data.base_model is None
    assert "base_model_relation" not in data.to_dict()
    assert data.datasets is None
    assert data.eval_results[0].dataset_type == "reviews"


@pytest.mark.parametrize("name", ["org/model", "bert-base-uncased", "nyu-mll/glue"])
def test_hub_ids(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name",
    ["package:a/b", "/abs/model", "./model", "../model", "~/model", "a/b/c", "data/reviews.csv", "", "."],
)
def test_paths_are_no_hub_ids(name: str) -> None:
    assert not is_hub_id(name)


def test_a_folder_that_is_there_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "teachers" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("teachers/mine")


def test_its_words(results: dict[str, Any]) -> None:
    text = card_text(results).replace("\N{NO-BREAK SPACE}", " ")
    assert "More information needed" not in text
    assert "keeps 98.0 % of its teacher's accuracy at 2.82 times its speed" in text
    assert "12" in re.search(r"tried (\d+)", text)[0]  # type: ignore[index]
    assert "logits (weight 1.0, temperature 2.0); hidden (weight 1.0, layers uniform)." in text
    assert "nothing is known about what the search itself was worth" in text
    assert "nothing is known about what distillation was worth" in text
    assert "2303.09639" in text
    assert "\n\n\n" not in text
    assert not re.search(r"[ \t]+$", text, re.MULTILINE)


def test_tables_have_the_columns_that_their_heads_say(results: dict[str, Any]) -> None:
    results["baselines"][0]["name"] = "a|b"
    for int8 in (results["student"]["int8"], None):
        results["student"]["int8"] = int8
        tables = re.findall(r"(?:^\|.*\|$\n)+", card_text(results), re.MULTILINE)
        assert len(tables) == 3
        for table in tables:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_pairs_and_regressions_are_called_otherwise(results: dict[str, Any]) -> None:
    results["task"] |= {"kind": "regression", "columns": ["a", "b", "score"], "labels": []}
    text = card_text(results)
    assert '"text_pair": "A second text."}, function_to_apply="none"' in text
    assert "Labels:" not in text


def test_a_teacher_of_no_quality_divides_nothing(results: dict[str, Any]) -> None:
    results["teacher"]["quality"] = 0.0
    assert "| retained | |" in card_text(results)


def test_the_code_in_it_is_python(results: dict[str, Any]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", card_text(results), re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("kind", "loads"),
    [("classification", 1), ("question-answering", 2), ("sentence-similarity", 1), ("fill-mask", 1)],
)
def test_a_model_with_code_of_its_own_says_so(results: dict[str, Any], kind: str, loads: int) -> None:
    results["task"]["kind"] = kind
    assert "trust_remote_code" not in card_text(results)
    results["student"]["model_type"] = "exact-bert"
    text = card_text(results)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]  # type: ignore[index]
    compile(code, "card", "exec")
    assert code.count("trust_remote_code=True)") == loads
    assert "It is a stock" not in text
    assert "`optimum-cli` exports stock models alone" in text


def test_unmet_constraints_and_other_samplers(results: dict[str, Any]) -> None:
    results["constraints_met"] = False
    results["search"]["sampler"] = "tpe"
    text = card_text(results)
    assert "No finalist met the recipe's constraints" in text
    assert "KD-NAS" not in text


def test_a_run_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no results\.json"):
        render_card(tmp_path)


def test_the_name_in_the_code_is_a_string(results: dict[str, Any]) -> None:
    results["name"] = 'a "quoted" name'
    for code in re.findall(r"```python\n(.*?)```", card_text(results), re.DOTALL):
        compile(code, "card", "exec")


def test_the_licence_is_the_teachers(tmp_path: Path, results: dict[str, Any]) -> None:
    section = TeacherSection(model=str(tmp_path))
    assert teacher_licence(section) == {}
    for front, found in {
        "license: other\nlicense_name: mine\nlicense_link: LICENSE": {
            "license": "other",
            "license_name": "mine",
            "license_link": "LICENSE",
        },
        "license: mit": {"license": "mit"},
        "license: [mit, other]": {},
        "license: [mit": {},
        "- a": {},
    }.items():
        (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A teacher\n")
        assert teacher_licence(section) == found
    results["teacher"]["license"] = {"license": "mit"}
    assert "The licence above is the teacher's." in card_text(results)
    results["teacher"]["license"] = {}
    assert "license" not in card_data(results).to_dict()
    assert "Licences of the teacher and of the data may bind it" in card_text(results)


def test_results_of_older_versions_have_a_card_too(results: dict[str, Any]) -> None:
    del results["teacher"]["license"], results["teacher"]["commit"]
    assert "license" not in card_data(results).to_dict()
    assert "# made-up" in card_text(results)


def test_made_texts_are_told_of(results: dict[str, Any]) -> None:
    assert "made text" not in card_text(results)
    results["distillation"]["augmentation"] = {"copies": 1, "replaced": 0.1}
    told = "- **Training**: For each training row students also learned from one made text, "
    assert told in card_text(results)


def test_the_teachers_revision_is_named(results: dict[str, Any]) -> None:
    results["teacher"] |= {"revision": "v2", "commit": None}
    assert "(6L-384H-1536F-12A-gelu, revision v2)" in card_text(results)
    results["teacher"]["commit"] = "0123456789abcdef" * 2
    assert "revision 0123456789ab)" in card_text(results)


def test_so_is_the_adapters(results: dict[str, Any]) -> None:
    results["teacher"] |= {"adapter": "org/lora", "adapter_revision": "v2", "adapter_commit": None}
    assert "with the adapter org/lora (revision v2) merged" in card_text(results)
    results["teacher"]["adapter_commit"] = "0123456789abcdef" * 2
    assert "org/lora (revision 0123456789ab) merged" in card_text(results)


def test_methods_are_cited(results: dict[str, Any]) -> None:
    results["search"]["sampler"] = "tpe"
    text = card_text(results)
    assert "arxiv.org/abs/1503.02531" in text
    assert "2012.15828" not in text
    results["distillation"]["objectives"] = {"relations": {}}
    assert "arxiv.org/abs/2012.15828" in card_text(results)
    results["distillation"]["objectives"] = {"hidden": {}}
    assert "## Citation" not in card_text(results)


def test_how_long_students_were_trained_and_what_they_take(results: dict[str, Any]) -> None:
    training = results["distillation"]["training"]
    for changes, said in (
        ({"epochs": 1}, "(1 epoch,"),
        ({"training_arguments": {"max_steps": 500}}, "(500 steps,"),
    ):
        assert said in card_text(
            results | {"distillation": results["distillation"] | {"training": training | changes}}
        )
    student = results["student"] | {"max_length": 512}
    assert "batches of any size and up to 512 tokens a row." in card_text(results | {"student": student})


def test_how_many_architectures_are_fast_enough(results: dict[str, Any]) -> None:
    space = results["space"] | {"size": 1200, "reachable": 300}
    assert "of 1,200 architectures (300 of them fast enough) the sampler" in card_text(
        results | {"space": space}
    )


def test_a_random_search_is_not_compared_with_itself(results: dict[str, Any]) -> None:
    text = card_text(results | {"search": results["search"] | {"sampler": "random"}, "random_baseline": None})
    assert "drawn at random" in text
    assert "did not run" not in text


def test_files_of_a_type_are_no_data_set_of_the_hub(results: dict[str, Any]) -> None:
    recipe = yaml.safe_dump({"data": {"path": "csv", "data_files": {"train": "rows.csv"}}})
    assert card_data(results | {"recipe": recipe}).datasets is None
