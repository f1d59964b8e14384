"""Members' losses on held-out text, against students of their own, each beside its teacher's signals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.errors import InvalidInput
from hf_kdnas.processes import join_processes
from hf_kdnas.progress import Narrator
from hf_kdnas.recipe import load_recipe
from hf_kdnas.run import RunFolder, read_json, write_json
from hf_kdnas.superlm import ranking
from hf_kdnas.superlm.model import SuperLM
from hf_kdnas.superlm.plan import plan_superlm
from hf_kdnas.superlm.run import SuperLMRun

OBJECTIVES = [
    "{relations: {loss: mse}}",
    "{relations: {}}",
    "{hidden: {layers: last}}",
    "{attention: {softmax: true}}",
]


@pytest.fixture
def make_run(recipe_file, tmp_path):
    def make(objectives: str) -> tuple[SuperLMRun, SuperLM]:
        heads = 4 if "relations" in objectives else "null"
        settings = [f"superlm.objectives={objectives}", f"superlm.relation_heads={heads}"]
        recipe = load_recipe(str(recipe_file), settings)
        run = SuperLMRun(plan_superlm(recipe), RunFolder(tmp_path / "run"), join_processes())
        run._prepare()
        return run, SuperLM(run._load(run._space("wide") / "start"), run.section.layers)

    return make


@torch.no_grad()
def own_loss(run: SuperLMRun, superlm: SuperLM, member) -> float:
    held_out, student = run.held_out, superlm.extract(member).eval()
    criterion, total = held_out.losses[member], 0.0
    for batch in held_out.batches():
        signals = forward_signals(student, Capture(student, criterion.student_signals), batch)
        loss, _ = criterion(signals, batch["teacher"], batch, criterion.counts(batch))
        total += float(loss) * len(batch["input_ids"])
    return total / len(held_out.windows)


@pytest.mark.parametrize("objectives", OBJECTIVES)
def test_losses_are_those_of_students_on_their_own(make_run, objectives) -> None:
    run, superlm = make_run(objectives)
    members = list(run.plan.spaces["wide"])
    found = run.held_out.mean_losses(superlm, members)
    assert len(set(found)) == len(members)
    # a divergence of nearly equal distributions is what float32 leaves of terms far larger than itself
    wanted = [own_loss(run, superlm, member) for member in members]
    assert found == pytest.approx(wanted, rel=1e-4)
    assert wanted != pytest.approx(wanted[::-1], rel=1e-3)


def test_members_are_compared_by_relations_alone(make_run) -> None:
    """Not by the sum with hidden states, nor by a weight that is 0 when the training begins."""
    run, superlm = make_run(OBJECTIVES[0])
    both, _ = make_run("{relations: {loss: mse, weight: {from: 0.0, to: 3.0}}, hidden: {weight: 5.0}}")
    members = list(run.plan.spaces["wide"])
    found = both.held_out.mean_losses(superlm, members)
    assert found == pytest.approx(run.held_out.mean_losses(superlm, members), rel=1e-6)


def ranked(run: SuperLMRun, superlm: SuperLM, folder: Path) -> list[ranking.Member]:
    return ranking.rank_space(
        "wide",
        run.plan.spaces["wide"],
        superlm,
        run.held_out,
        folder,
        parameters=run.plan.parameters,
        length=run.plan.length,
        processes=run.processes,
        narrator=Narrator(False),
    )


def test_a_superlm_of_no_finite_losses_is_not_ranked(make_run, tmp_path) -> None:
    run, superlm = make_run(OBJECTIVES[0])
    with torch.no_grad():
        next(superlm.model.parameters()).fill_(torch.nan)
    with pytest.raises(
        InvalidInput, match=r"superlm\.spaces\.wide.*loss of 2L-24H-64F-4A-gelu that is not fin"
    ):
        ranked(run, superlm, tmp_path / "ranking")


def test_a_ranking_goes_on_with_what_is_known(make_run, monkeypatch, tmp_path) -> None:
    run, superlm = make_run(OBJECTIVES[0])
    space, folder = run.plan.spaces["wide"], tmp_path / "ranking"
    first, *others = space
    write_json(folder / "losses-1.json", {first.key: 0.25})
    monkeypatch.setattr(ranking, "TOGETHER", 2)
    members = ranked(run, superlm, folder)
    losses = {member.architecture: member.loss for member in members}
    assert losses.pop(first) == 0.25
    assert losses == dict(zip(others, run.held_out.mean_losses(superlm, others), strict=True))
    assert read_json(folder / "losses-0.json").keys() == {member.key for member in space}
