"""What is refused before a SuperLM is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertForMaskedLM

from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe import load_recipe
from hf_kdnas.superlm import plan as plan_module
from hf_kdnas.superlm.plan import plan_superlm

REFUSED = {
    "publishing at the end": (
        ["push_to_hub=true"],
        r"push_to_hub: got True; SuperLMs are not published, their students are.*kdnas publish FOLDER",
    ),
    "a space wider than its teacher": (
        ["superlm.spaces={wide: {hidden_size: [32, 64], num_attention_heads: [4]}}"],
        r"superlm\.spaces\.wide: got 'hidden_size 64'; no member may be wider.* the teacher, 3L-32H-64F",
    ),
    "a space wider than its teacher throughout": (
        ["superlm.spaces={wide: {hidden_size: [64], num_attention_heads: [4]}}"],
        r"superlm\.spaces\.wide: got 'hidden_size 64'; no member may be wider.* the teacher, 3L-32H-64F",
    ),
    "a space deeper than its teacher throughout": (
        ["superlm.spaces={deep: {num_hidden_layers: [4]}}"],
        r"superlm\.spaces\.deep: got 'num_hidden_layers 4'; no member may be wider or deeper",
    ),
    "a space deeper than its teacher": (
        ["superlm.spaces={deep: {num_hidden_layers: [3, 4]}}"],
        r"superlm\.spaces\.deep: got 'num_hidden_layers 4'; no member may be wider or deeper",
    ),
    "a preset of another teacher": (
        ["superlm.spaces={tiny: {preset: autodistil-tiny}}"],
        r"superlm\.spaces\.tiny: got '4L-128H.*no member may be wider or deeper",
    ),
    "heads that a stock config can't hold": (
        ["superlm.spaces={odd: {hidden_size: [32], num_attention_heads: [5]}}"],
        r"superlm\.spaces\.odd\.num_attention_heads: got 5; must divide a hidden size out of \[32\]",
    ),
    "heads of which a stock config can't hold some": (
        ["superlm.spaces={odd: {hidden_size: [32], num_attention_heads: [4, 5]}}"],
        r"superlm\.spaces\.odd\.num_attention_heads: got 5; must divide a hidden size out of \[32\]",
    ),
    "an unknown dimension": (
        ["superlm.spaces={odd: {layers: [1]}}"],
        r"superlm\.spaces\.odd\.layers: got \[1\]; there is no such key; superlm\.spaces\.odd has preset",
    ),
    "relation heads that don't divide": (
        ["superlm.relation_heads=5"],
        r"superlm\.relation_heads: got 5; must divide the attention width.*allowed are 1, 2, 4, 8",
    ),
    "relation heads of the objective itself that don't divide": (
        ["superlm.relation_heads=null", "superlm.objectives.relations.relation_heads=16"],
        r"superlm\.relation_heads: got 16; must divide the attention width.*does not divide 24",
    ),
    "relation heads that are no number": (
        ["superlm.relation_heads=null", "superlm.objectives.relations.relation_heads=many"],
        r"superlm\.relation_heads: got 'many'; must divide",
    ),
    "a signal that needs a map of its own": (
        ["superlm.objectives={hidden: {}}", "superlm.initialisation=random", "superlm.relation_heads=null"],
        r"superlm\.objectives: got 'hidden'; no map can be learned or searched",
    ),
    "a map that is searched": (
        ["superlm.objectives={hidden: {layers: searched}}", "superlm.relation_heads=null"],
        r"superlm\.objectives: got 'hidden'; no map can be learned or searched",
    ),
    "an objective of single students": (
        ["superlm.objectives={direct_relations: {}}"],
        r"superlm\.objectives: got 'direct_relations'; a SuperLM learns from relations, attention, hidden, ",
    ),
    "nothing to rank by": (
        ["superlm.objectives={mlm: {}}"],
        r"superlm\.objectives: got 'mlm'; members are ranked by relations, hidden or attention",
    ),
    "output terms without a head": (
        ["superlm.objectives={relations: {}, mlm: {}}"],
        r"teacher\.model.*must have a task head \(\.\.\.ForMaskedLM\)",
    ),
    "more partitions than widths": (
        ["superlm.spaces={}", "superlm.partitions=9"],
        r"superlm\.partitions: got 9.*has 1 to 4 sub-spaces",
    ),
    "partitions beside spaces": (
        ["superlm.partitions=2"],
        r"superlm\.partitions: got 2; cuts spaces from the teacher, where superlm\.spaces gives none",
    ),
    "rows of a text that is streamed": (
        ["data.limit=100"],
        r"data\.limit: got 100; the text of a SuperLM is streamed as it is",
    ),
    "two columns of text": (
        ["data.text=[a, b]"],
        r"data\.text: got \['a', 'b'\]; the text of a SuperLM is one column",
    ),
    "a teacher to fine-tune": (
        ["teacher.fine_tune={epochs: 3}"],
        r"teacher\.fine_tune: got .*epochs=3.*; a SuperLM learns from the teacher as it is",
    ),
    "the training of a single student": (
        ["distillation.training.learning_rate=1e-3"],
        r"distillation: got .*learning_rate=0\.001.*; a SuperLM is trained as superlm\.training and",
    ),
    "a tracker": (["report_to=[tensorboard]"], r"report_to: got \['tensorboard'\]; .*history\.json alone"),
    "the space of a search": (
        ["space.max_parameters=1000"],
        r"space: got .*max_parameters=1000.*; the spaces of SuperLMs are superlm\.spaces or",
    ),
    "a share of rows that are not cut": (
        ["data.reporting_fraction=0.5"],
        r"data\.reporting_fraction: got 0\.5; the text of a SuperLM is streamed as it is",
    ),
    "a constraint of a search": (
        ["search.constraints.latency_ms=1"],
        r"search: got .*; members are ranked, then pulled by options of extract",
    ),
    "relation heads that no objective reads": (
        ["superlm.objectives={attention: {}}"],
        r"superlm\.relation_heads: got 4; no objective has any",
    ),
    "relation heads in two places": (
        ["superlm.objectives.relations.relation_heads=2"],
        r"superlm\.relation_heads: got 4; the objective relations has its own, 2",
    ),
    "an activation that there is not": (
        ["superlm.spaces.narrow.hidden_act=[gellu]"],
        r"superlm\.spaces\.narrow\.hidden_act: got 'gellu'.*Did you mean gelu",
    ),
    "sizes that are no numbers": (
        ["superlm.spaces.narrow.num_hidden_layers=[one]"],
        r"superlm\.spaces\.narrow\.num_hidden_layers.*; its type is",
    ),
    "a limit that is no number": (
        ["superlm.spaces.narrow.max_parameters=few"],
        r"superlm\.spaces\.narrow\.max_parameters: got 'few'; its type is",
    ),
    "a space of no name": (
        ["superlm.spaces={1: {hidden_size: [16]}}"],
        r"superlm\.spaces: got 1; may hold letters",
    ),
    "a space outside the run": (
        ["superlm.spaces={../../zz: {hidden_size: [16]}}"],
        r"superlm\.spaces: got '\.\./\.\./zz'; may hold letters",
    ),
    "no section": (["superlm=null"], r"superlm: got 'nothing'; this recipe has no such section"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_recipes_are_refused_before_any_work(recipe_file: Path, overrides, message) -> None:
    with pytest.raises(InvalidInput, match=message):
        plan_superlm(load_recipe(str(recipe_file), overrides))


def test_hiding_tokens_needs_a_mask_token(
    recipe_file: Path, tiny_bert_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    BertForMaskedLM(tiny_bert_config).save_pretrained(recipe_file.parent / "teacher")
    original = plan_module.load_tokenizer

    def without_mask(*arguments, **options):
        tokenizer = original(*arguments, **options)
        tokenizer.mask_token = None
        return tokenizer

    monkeypatch.setattr(plan_module, "load_tokenizer", without_mask)
    plan_superlm(load_recipe(str(recipe_file)))
    with pytest.raises(InvalidInput, match="mlm hides tokens, and the teacher's tokenizer has no mask token"):
        plan_superlm(load_recipe(str(recipe_file), ["superlm.objectives={relations: {loss: mse}, mlm: {}}"]))


def test_spaces_are_cut_from_the_teacher_where_none_is_named(recipe_file: Path) -> None:
    plan = plan_superlm(load_recipe(str(recipe_file), ["superlm.spaces={}", "superlm.partitions=2"]))
    assert list(plan.spaces) == ["space-1", "space-2"]
    widths = [{member.hidden_size for member in space} for space in plan.spaces.values()]
    assert max(widths[0]) < min(widths[1])


def test_spaces_may_be_larger_than_the_teacher_where_first_weights_are_drawn(recipe_file: Path) -> None:
    larger = "{large: {num_hidden_layers: [4], hidden_size: [32, 64], num_attention_heads: [4]}}"
    recipe = load_recipe(str(recipe_file), [f"superlm.spaces={larger}", "superlm.initialisation=random"])
    members = list(plan_superlm(recipe).spaces["large"])
    assert {member.num_hidden_layers for member in members} == {4}
    assert {member.hidden_size for member in members} == {32, 64}


def test_relations_have_one_number_of_heads_and_the_teachers_last_layer(recipe_file: Path) -> None:
    plan = plan_superlm(load_recipe(str(recipe_file), ["superlm.relation_heads=null"]))
    assert plan.objectives["relations"] == {"loss": "mse", "teacher_layer": 3, "relation_heads": 8}
    given = ["superlm.relation_heads=null", "superlm.objectives.relations.relation_heads=2"]
    assert plan_superlm(load_recipe(str(recipe_file), given)).objectives["relations"]["relation_heads"] == 2
    own = plan_superlm(load_recipe(str(recipe_file), ["superlm.objectives.relations.teacher_layer=2"]))
    assert own.objectives["relations"]["teacher_layer"] == 2


@pytest.mark.parametrize(
    ("objectives", "ranked_by"),
    [
        ("{hidden: {}, relations: {loss: mse, weight: {from: 0.0, to: 1.0}}}", "relations"),
        ("{hidden: {}, relations: {weight: 0}, attention: {weight: 2.0}}", "attention"),
        ("{hidden: {weight: 0.1}}", "hidden"),
    ],
)
def test_members_are_ranked_by_self_attention_alone_whatever_its_weight(
    recipe_file: Path, objectives: str, ranked_by: str
) -> None:
    settings = [f"superlm.objectives={objectives}", "superlm.relation_heads=null"]
    plan = plan_superlm(load_recipe(str(recipe_file), settings))
    assert list(plan.ranking_objectives) == [ranked_by]
    assert "weight" not in plan.ranking_objectives[ranked_by]


def test_windows_are_no_longer_than_the_teacher_takes(recipe_file: Path) -> None:
    assert plan_superlm(load_recipe(str(recipe_file), ["data.max_length=512"])).length == 64
