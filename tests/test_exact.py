"""Exact shapes: stock BERTs but for the attention's width, loaded and sliced like any other model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertConfig, BertModel, RobertaConfig

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.capture import Capture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.exact import as_exact, exact_config
from hf_kdnas.modeling_exact_bert import (
    MODELS,
    ExactBertConfig,
    ExactBertForSequenceClassification,
    ExactBertModel,
)
from hf_kdnas.plan import make_space
from hf_kdnas.recipe import SpaceSection
from hf_kdnas.slicing import parameter_counter, slice_student
from hf_kdnas.space import SearchSpace

# Heads that don't divide the hidden size, and an attention wider than it.
SHAPE = Architecture(2, 20, 3, 40, head_size=8)

IDS = torch.randint(5, 120, (3, 12), generator=torch.Generator().manual_seed(0))
INPUTS = {"input_ids": IDS, "attention_mask": (torch.arange(12) < torch.tensor([[12], [5], [9]])).long()}


@pytest.fixture(params=MODELS)
def stock(request: pytest.FixtureRequest, tiny_bert_config: BertConfig):
    """A stock BERT with each head."""
    torch.manual_seed(0)
    return getattr(transformers, request.param).from_config(tiny_bert_config).eval()


@pytest.fixture
def teacher(tiny_bert_config: BertConfig, make_model):
    """A stock classifier as a model of the exact type."""
    return as_exact(make_model(tiny_bert_config))


def _config(**changes) -> ExactBertConfig:
    sizes = {"vocab_size": 120, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    return ExactBertConfig(**{**sizes, "hidden_size": 20, "head_size": 8, **changes})


def _outputs(model) -> list[torch.Tensor]:
    with torch.no_grad():
        output = model(**INPUTS)
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


def test_an_encoder_without_a_pooler(tiny_bert_config) -> None:
    stock = BertModel(tiny_bert_config, add_pooling_layer=False).eval()
    exact = as_exact(stock)
    assert exact.pooler is None
    torch.testing.assert_close(_outputs(exact), _outputs(stock), rtol=0, atol=0)


@pytest.mark.parametrize("head_size", [None, 8])
def test_with_the_stock_head_size_it_is_the_stock_model(stock, head_size: int | None) -> None:
    exact = as_exact(stock)
    assert type(exact).__name__ == f"Exact{type(stock).__name__}"
    assert not exact.training
    exact.config.head_size = head_size
    exact = type(exact)(exact.config).eval()
    exact.load_state_dict(stock.state_dict())
    assert [(name, each.shape) for name, each in exact.state_dict().items()] == [
        (name, each.shape) for name, each in stock.state_dict().items()
    ]
    for found, wanted in zip(_outputs(exact), _outputs(stock), strict=True):
        assert torch.equal(found, wanted)


def test_it_keeps_weights_precision_mode_and_labels(tiny_bert_config: BertConfig, make_model) -> None:
    tiny_bert_config.id2label = {0: "rotten", 1: "fresh"}
    stock = make_model(tiny_bert_config).double().train()
    exact = as_exact(stock)
    assert exact.dtype == torch.float64
    assert exact.training
    assert exact.config.id2label == {0: "rotten", 1: "fresh"}
    assert exact.config._attn_implementation == stock.config._attn_implementation
    for name, value in stock.state_dict().items():
        assert torch.equal(exact.state_dict()[name], value), name


def test_fused_and_eager_attention_agree() -> None:
    torch.manual_seed(0)
    eager, fused = (ExactBertModel(_config(attn_implementation=name)).eval() for name in ("eager", "sdpa"))
    assert (eager.config._attn_implementation, fused.config._attn_implementation) == ("eager", "sdpa")
    fused.load_state_dict(eager.state_dict())
    with torch.no_grad():
        found, wanted = (each(**INPUTS).last_hidden_state for each in (fused, eager))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert not torch.equal(found, wanted)  # two ways to compute it
    attentions = eager(**INPUTS, output_attentions=True).attentions
    assert [each.shape for each in attentions] == 2 * [(3, 3, 12, 12)]


def test_logits_of_attention_are_divided_by_the_root_of_its_own_head_size() -> None:
    model = ExactBertModel(_config(num_hidden_layers=1, attn_implementation="eager")).eval()
    own = model.encoder.layer[0].attention.self
    with torch.no_grad():
        states = model.embeddings(IDS)
        queries, keys = (each(states).view(3, 12, 3, 8).transpose(1, 2) for each in (own.query, own.key))
        wanted = (queries @ keys.mT / 8**0.5).softmax(-1)
        found = model(IDS, output_attentions=True).attentions[0]
    torch.testing.assert_close(found, wanted)


def test_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = ExactBertForSequenceClassification(_config(**dropout)).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model.zero_grad()
        model(**INPUTS, labels=torch.tensor([0, 1, 1])).loss.backward()
        gradients.append(model.bert.encoder.layer[0].attention.self.query.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_new_maps_are_drawn_like_stock_ones() -> None:
    torch.manual_seed(0)
    model = ExactBertModel(_config(hidden_size=120, head_size=50, initializer_range=0.05))
    for layer in model.encoder.layer:
        own = layer.attention.self
        for linear in (own.query, own.key, own.value, layer.attention.output.dense):
            assert linear.weight.std().item() == pytest.approx(0.05, rel=0.05)
            assert not linear.bias.any()
    assert model.encoder.layer[0].attention.output.dense.weight.shape == (120, 150)


def test_words_are_read_and_written_with_the_same_weights(tmp_path: Path) -> None:
    model = MODELS["AutoModelForMaskedLM"](_config())
    model.save_pretrained(tmp_path)
    for each in (model, type(model).from_pretrained(tmp_path)):
        assert each.cls.predictions.decoder.weight is each.bert.embeddings.word_embeddings.weight
        assert each.cls.predictions.decoder.bias is each.cls.predictions.bias
        assert type(each.bert) is ExactBertModel


def test_students_keep_the_leftmost_heads_whole(teacher) -> None:
    student = slice_student(teacher, SHAPE)
    assert type(student) is type(teacher)
    assert Architecture.from_config(student.config) == SHAPE
    assert student.num_parameters() == parameter_counter(type(teacher), teacher.config)(SHAPE)
    for layer, source in ((0, 0), (1, 1)):
        ours, theirs = (each.bert.encoder.layer for each in (student, teacher))
        own, whole = ours[layer].attention, theirs[source].attention
        for name in ("query", "key", "value"):
            found, wanted = getattr(own.self, name), getattr(whole.self, name)
            assert torch.equal(found.weight, wanted.weight[:24, :20])
            assert torch.equal(found.bias, wanted.bias[:24])
        assert torch.equal(own.output.dense.weight, whole.output.dense.weight[:20, :24])
    assert student(**INPUTS).logits.isfinite().all()


def test_its_queries_are_captured_at_their_own_width(teacher) -> None:
    student = slice_student(teacher, SHAPE)
    capture = Capture(student, {"query.2", "key.1", "value.1", "hidden.1"})
    with capture:
        student(**INPUTS)
    assert {name: value.shape[-1] for name, value in capture.signals.items()} == {
        "query.2": 24,
        "key.1": 24,
        "value.1": 24,
        "hidden.1": 20,
    }


def _members(name: str) -> tuple[Architecture, ...]:
    return SearchSpace.preset(name).members


# Smallest and largest members' parameters without a head, from their tensors.
SPACES = {
    "autodistil-tiny": (5_178_496, 13_503_952),
    "autodistil-small": (15_121_088, 33_823_136),
    "autodistil-base": (41_835_824, 83_293_568),
}


@pytest.mark.parametrize("name", SPACES)
def test_a_preset_keeps_the_papers_heads_for_a_teacher_of_the_exact_type_alone(name: str) -> None:
    section, base = SpaceSection(preset=name), BertConfig()
    exact = make_space(section, exact_config(base), "slice", lambda member: 0)
    assert exact.members == _members(name)
    assert {member.attention_head_size for member in exact} == {64}
    stock = make_space(section, base, "slice", lambda member: 0)
    assert {member.head_size for member in stock} == {None}


@pytest.mark.parametrize("name", SPACES)
def test_all_members_of_the_papers_spaces_fit_into_bert_base(name: str) -> None:
    base = exact_config(BertConfig())
    whole = Architecture.from_config(base)
    count = parameter_counter(ExactBertModel, base)
    assert len(_members(name)) == 256
    assert all(member.fits_into(whole) for member in _members(name))
    sizes = sorted((count(member), member) for member in _members(name))
    assert (sizes[0][0], sizes[-1][0]) == SPACES[name]
    for size, member in (sizes[0], sizes[100], sizes[-1]):
        assert _parameters(base, member) == size


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_all_members_of_the_papers_spaces_can_be_made(name: str) -> None:
    base = exact_config(BertConfig())
    count = parameter_counter(ExactBertModel, base)
    for member in _members(name):
        assert Architecture.from_config(member.apply_to(base)) == member
        assert _parameters(base, member) == count(member), member


def _parameters(base: ExactBertConfig, member: Architecture) -> int:
    with torch.device("meta"):
        return ExactBertModel(member.apply_to(base)).num_parameters()


# Loading

STRANGER = """
import json
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

folder, again, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)  # Transformers 5 reads the config
inputs = tokenizer(texts, padding=True, return_tensors="pt")
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
with torch.inference_mode():
    found = {"trusted": model(**inputs).logits.tolist()}
    model.save_pretrained(again)  # as after fine-tuning
    model = AutoModelForSequenceClassification.from_pretrained(again, trust_remote_code=True)
    found["saved again"] = model(**inputs).logits.tolist()
classify = pipeline("text-classification", model=folder, trust_remote_code=True)
found["labels"] = [each["label"] for each in classify(texts)]
words = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)  # another head on its encoder
assert torch.equal(words.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)
assert words.bert.encoder.layer[0].attention.self.query.out_features == 24
print(json.dumps(found))
"""
USER = """
import json, sys
import torch
import hf_kdnas.exact
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder, again, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
found = {}
for way, options in (("registered", {}), ("registered, trusted", {"trust_remote_code": True})):
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    with torch.inference_mode():
        found[way] = model(**inputs).logits.tolist()
print(json.dumps(found))
"""
COMMAND = """
import json, sys
from hf_kdnas.recipe import TeacherSection
from hf_kdnas.teacher import load_config

print(json.dumps(load_config(TeacherSection(model=sys.argv[1]), "SequenceClassification").head_size))
"""

TEXTS = ["the film is great", "the plot was dull and the acting weak but not so long"]


@pytest.fixture
def student(teacher, tiny_tokenizer, tmp_path: Path) -> Path:
    """Folder of a student that no stock config can hold."""
    teacher.config.id2label = {0: "rotten", 1: "fresh"}
    slice_student(teacher, SHAPE).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def _given(student: Path) -> list[str]:
    return [str(student), str(student.parent / "again"), json.dumps(TEXTS)]


def _users(code: str, student: Path) -> str:
    """What a process prints that has hf_kdnas."""
    done = subprocess.run(
        [sys.executable, "-c", code, *_given(student)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": str(student.parent / "modules")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("with_the_package", [False, True])
def test_it_loads_with_its_own_code_and_with_the_packages(
    student: Path, tiny_tokenizer, stranger: Callable[..., str], with_the_package: bool
) -> None:
    model = ExactBertForSequenceClassification.from_pretrained(student).eval()
    with torch.inference_mode():
        wanted = model(**tiny_tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    if with_the_package:
        shown = _users(USER, student)
    else:
        modules = {"HF_MODULES_CACHE": str(student.parent / "modules")}
        shown = stranger(STRANGER, *_given(student), environment=modules)
    found = json.loads(shown.splitlines()[-1])
    labels = found.pop("labels", None)
    assert labels is None or labels == [model.config.id2label[index] for index in wanted.argmax(-1).tolist()]
    assert len(found) == 2
    for logits in found.values():
        torch.testing.assert_close(torch.tensor(logits), wanted, atol=1e-6, rtol=0)


def test_commands_know_the_type(student: Path) -> None:
    assert _users(COMMAND, student).splitlines()[-1] == "8"


def test_a_folder_holds_the_code_and_names_every_head(student: Path) -> None:
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"].keys() == {"AutoConfig", *MODELS}
    assert config["architectures"] == ["ExactBertForSequenceClassification"]
    for name in config["auto_map"].values():
        module, _, found = name.partition(".")
        assert f"class {found}(" in (student / f"{module}.py").read_text(encoding="utf-8")


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_size": 0}, "head_size: got 0; must be a positive whole number"),
        ({"head_size": -8}, "head_size: got -8"),
        ({"head_size": 8.0}, r"head_size: got 8\.0"),
        ({"head_size": None}, "head_size: got None; 3 heads don't divide hidden_size 20"),
        ({"is_decoder": True, "add_cross_attention": True}, "add_cross_attention: got True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: got 'relative_key'"),
    ],
)
def test_configs_that_no_model_can_be_made_of_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(**changes)


def test_a_field_that_was_set_later_is_looked_at_when_the_model_is_made() -> None:
    config = _config()
    config.head_size = None
    with pytest.raises(ValueError, match="3 heads don't divide hidden_size 20"):
        ExactBertModel(config)


def test_weights_of_other_heads_are_refused(student: Path) -> None:
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    (student / "config.json").write_text(json.dumps({**config, "head_size": 6}), encoding="utf-8")
    with pytest.raises(RuntimeError, match="mismatch"):
        ExactBertForSequenceClassification.from_pretrained(student)


def test_architectures_need_a_positive_head_size() -> None:
    with pytest.raises(InvalidInput, match="head_size: got 0; must be at least 1"):
        Architecture(2, 20, 3, 40, head_size=0)


def test_only_bert_has_an_exact_type(make_model, tiny_roberta_config: RobertaConfig) -> None:
    with pytest.raises(InvalidInput, match="model_type: got 'roberta'; exact shapes are those of bert"):
        exact_config(tiny_roberta_config)
    with pytest.raises(InvalidInput, match="RobertaForSequenceClassification"):
        as_exact(make_model(tiny_roberta_config))


def test_a_decoder_has_no_exact_type(tiny_bert_config: BertConfig) -> None:
    tiny_bert_config.is_decoder = tiny_bert_config.add_cross_attention = True
    with pytest.raises(InvalidInput, match="config: got 'bert'; must be a plain encoder's"):
        as_exact(BertModel(tiny_bert_config))
