"""Trained SuperLMs in a folder, as what students are cut from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.given_superlm import find_superlms
from hf_kdnas.run import write_json

SMALL, LARGE = Architecture(2, 16, 4, 32), Architecture(3, 24, 4, 64)


@pytest.fixture
def run(tmp_path: Path, tiny_bert_config) -> Path:
    """The folder of a run with two SuperLMs, the larger one first by name."""
    for name, shape in (("a", LARGE), ("b", SMALL)):
        torch.manual_seed(len(shape.key))
        superlm = AutoModel.from_config(shape.apply_to(tiny_bert_config))
        superlm.save_pretrained(tmp_path / "spaces" / name / "superlm")
    write_json(tmp_path / "settings.json", {"superlm.layers": "last"})
    return tmp_path


def test_a_runs_superlms_and_its_layer_choice_are_found(run: Path, tiny_bert_config) -> None:
    found = find_superlms(str(run), tiny_bert_config)
    assert set(found.shapes.values()) == {SMALL, LARGE}
    assert found.layers == "last"
    one = find_superlms(str(run / "spaces" / "b" / "superlm"), tiny_bert_config)
    assert (list(one.shapes.values()), one.layers) == ([SMALL], "last")


def test_a_training_that_has_not_finished_is_refused(run: Path, tiny_bert_config) -> None:
    (run / "spaces" / "b" / "superlm").rename(run / "spaces" / "b" / "start")
    with pytest.raises(InvalidInput, match="the training of b has not finished"):
        find_superlms(str(run), tiny_bert_config)
    assert find_superlms(str(run / "spaces" / "a" / "superlm"), tiny_bert_config).shapes


def test_any_other_encoder_is_cut_as_the_paper_does(run: Path, tiny_bert_config) -> None:
    (run / "spaces" / "b" / "superlm").rename(run / "encoder")
    found = find_superlms(str(run / "encoder"), tiny_bert_config)
    assert (list(found.shapes.values()), found.layers) == ([SMALL], "alternate")


def test_they_are_loaded_as_the_teachers_class_from_small_to_large(
    run: Path, tiny_bert_config, make_model
) -> None:
    tiny_bert_config.id2label = {0: "rotten", 1: "fresh"}
    teacher = make_model(tiny_bert_config)
    loaded = find_superlms(str(run), tiny_bert_config).load(teacher, seed=0)
    assert [Architecture.from_config(each.config) for each in loaded] == [SMALL, LARGE]
    assert {type(each) for each in loaded} == {type(teacher)}
    assert loaded[0].config.id2label == {0: "rotten", 1: "fresh"}
    saved = AutoModel.from_pretrained(run / "spaces" / "b" / "superlm").state_dict()
    for name, tensor in loaded[0].bert.state_dict().items():
        torch.testing.assert_close(tensor, saved[name], rtol=0, atol=0)


def test_a_head_that_it_lacks_is_drawn_by_the_seed_alone(run: Path, tiny_bert_config, make_model) -> None:
    teacher, heads = make_model(tiny_bert_config), []
    for drawn_before, seed in ((1, 0), (2, 0), (2, 5)):
        torch.manual_seed(drawn_before)
        expected = torch.rand(1, generator=torch.Generator().manual_seed(drawn_before))
        heads.append(find_superlms(str(run), tiny_bert_config).load(teacher, seed)[0].classifier.weight)
        assert torch.equal(torch.rand(1), expected)  # and nothing else is drawn otherwise
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_masked_lm_head_that_it_has_is_kept(tmp_path: Path, tiny_bert_config) -> None:
    superlm = AutoModelForMaskedLM.from_config(SMALL.apply_to(tiny_bert_config))
    superlm.save_pretrained(tmp_path)
    teacher = AutoModelForMaskedLM.from_config(tiny_bert_config)
    [loaded] = find_superlms(str(tmp_path), tiny_bert_config).load(teacher, seed=1)
    dense = loaded.cls.predictions.transform.dense.weight
    assert torch.equal(dense, superlm.cls.predictions.transform.dense.weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 50}, r"vocab_size 50.*the teacher's vocab_size is 120"),
        ({"max_position_embeddings": 32}, r"max_position_embeddings 32.*is 64"),
    ],
)
def test_other_embeddings_are_refused(
    tmp_path: Path, tiny_bert_config, fields: dict[str, int], message: str
) -> None:
    AutoModel.from_config(BertConfig(**tiny_bert_config.to_dict() | fields)).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match=r"distillation\.superlm.*" + message):
        find_superlms(str(tmp_path), tiny_bert_config)


def test_another_type_is_refused(tmp_path: Path, tiny_bert_config, tiny_roberta_config) -> None:
    AutoModel.from_config(tiny_roberta_config).save_pretrained(tmp_path)
    message = r"distillation\.superlm.*model_type roberta.*the teacher's model_type is bert"
    with pytest.raises(InvalidInput, match=message):
        find_superlms(str(tmp_path), tiny_bert_config)


def test_embeddings_of_another_width_are_refused(tmp_path: Path) -> None:
    from transformers import ElectraConfig

    sizes = {"vocab_size": 120, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    AutoModel.from_config(ElectraConfig(**sizes, hidden_size=32, embedding_size=8)).save_pretrained(tmp_path)
    teacher = ElectraConfig(**sizes, hidden_size=32, embedding_size=16)
    with pytest.raises(InvalidInput, match=r"embedding_size 8.*the teacher's embedding_size is 16"):
        find_superlms(str(tmp_path), teacher)


@pytest.mark.parametrize("there", ["nothing", "no weights", "weights cut off"])
def test_a_folder_without_a_model_is_refused(run: Path, tiny_bert_config, there: str) -> None:
    folder = run / "spaces" / "b" / "superlm"
    weights = folder / "model.safetensors"
    if there == "weights cut off":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        for path in [weights] if there == "no weights" else folder.iterdir():
            path.unlink()
    with pytest.raises(InvalidInput, match=r"distillation\.superlm"):
        find_superlms(str(folder), tiny_bert_config)


def test_weights_of_other_names_are_refused(run: Path, tiny_bert_config, make_model) -> None:
    """Transformers would draw the encoder without a word."""
    from safetensors.torch import load_file, save_file

    weights = run / "spaces" / "b" / "superlm" / "model.safetensors"
    save_file(
        {f"wrapped.{name}": each for name, each in load_file(weights).items()}, weights, {"format": "pt"}
    )
    teacher = make_model(tiny_bert_config)
    with pytest.raises(InvalidInput, match=r"distillation\.superlm.*no weights for bert\.encoder"):
        find_superlms(str(run), tiny_bert_config).load(teacher, seed=0)


def test_a_head_for_other_labels_gives_way(tmp_path: Path, tiny_bert_config, make_model) -> None:
    teacher = make_model(tiny_bert_config)
    config = BertConfig(**tiny_bert_config.to_dict() | {"num_labels": 3, "id2label": None, "label2id": None})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    [loaded] = find_superlms(str(tmp_path), tiny_bert_config).load(teacher, seed=0)
    assert loaded.classifier.out_features == 2
