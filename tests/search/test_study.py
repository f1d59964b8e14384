from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.search.study import (
    ask_episode,
    ask_member,
    finished_candidates,
    open_study,
    tell_baseline,
    tell_candidate,
    tell_rejected,
    tried_architectures,
)
from hf_kdnas.space import SearchSpace

sys.path.insert(0, str(Path(__file__).parent))
from searching import SPACE, ask, run_episode, tell


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "search" / "study.log"


def test_what_was_told_is_found_again(journal):
    study = open_study(journal, "search")
    (trial, shape), *_ = ask(study, "random")
    told = tell_candidate(study, trial, quality=0.8, latency_ms=3.0, ratio=0.25, reward=0.82, episode=4)
    assert finished_candidates(open_study(journal, "search")) == [told]
    assert (told.number, told.episode, told.architecture) == (trial.number, 4, shape)
    assert (told.quality, told.latency_ms, told.ratio, told.reward) == (0.8, 3.0, 0.25, 0.82)
    assert (told.state, told.predicted_reward, told.reason) == ("complete", None, None)


def test_a_rejected_candidate_keeps_its_latency(journal):
    study = open_study(journal, "search")
    (trial, shape), *_ = ask(study, "random")
    told = tell_rejected(study, trial, "speedup", SimpleNamespace(median_ms=9.0, ratio=0.9), 2)
    assert finished_candidates(study) == [told]
    assert (told.architecture, told.latency_ms, told.ratio, told.episode) == (shape, 9.0, 0.9, 2)
    assert (told.state, told.reason, told.quality, told.reward) == ("pruned", "speedup", None, None)


def test_a_quality_that_is_not_a_number_is_a_rejection(journal):
    study = open_study(journal, "search")
    (trial, _), *_ = ask(study, "random")
    told = tell_candidate(study, trial, quality=math.nan, latency_ms=3.0, ratio=0.25, reward=0.1, episode=0)
    assert (told.state, told.reason, told.reward) == ("pruned", "quality", None)


def test_quality_is_maximised_and_latency_minimised(journal):
    study = open_study(journal, "search")
    run_episode(study, "random", 0)
    best = {trial.number for trial in study.best_trials}
    candidates = finished_candidates(study)
    fastest = min(candidates, key=lambda each: (each.latency_ms, -each.quality))
    finest = max(candidates, key=lambda each: (each.quality, -each.latency_ms))
    assert {fastest.number, finest.number} <= best


def test_a_member_can_be_asked_for(journal):
    study = open_study(journal, "search")
    shape = next(iter(SPACE))
    trial = ask_member(study, SPACE, shape, 0.75)
    assert SPACE.architecture(trial.params) == shape
    assert tried_architectures(study) == {shape}
    assert tell(study, trial, shape, 0).predicted_reward == 0.75


OUTSIDE = Architecture.parse("6L-768H-3072F-12A-gelu")


def test_a_hand_crafted_shape_is_kept_once_and_is_no_candidate(journal):
    study = open_study(journal, "search")
    for quality in (0.9, 0.1):
        tell_baseline(study, "distilbert", OUTSIDE, quality=quality, latency_ms=30.0, ratio=0.5)
    (trial,) = open_study(journal, "search").trials
    assert (trial.state, trial.values, trial.params) == (TrialState.COMPLETE, [0.9, 30.0], {})
    assert trial.user_attrs == {
        "baseline": "distilbert",
        "architecture": OUTSIDE.key,
        "latency_ms": 30.0,
        "ratio": 0.5,
    }
    assert finished_candidates(study) == []
    assert tried_architectures(study) == set()


def test_a_hand_crafted_shape_without_a_quality_is_kept_as_pruned(journal):
    study = open_study(journal, "search")
    tell_baseline(study, "distilbert", OUTSIDE, quality=math.nan, latency_ms=30.0, ratio=0.5)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED]


def test_trials_of_an_interrupted_launch_are_given_up(journal):
    study = open_study(journal, "search")
    asked = {shape for _, shape in ask(study, "random")}
    assert tried_architectures(study) == asked
    again = open_study(journal, "search")
    assert {trial.state for trial in again.trials} == {TrialState.FAIL}
    assert tried_architectures(again) == set()
    assert finished_candidates(again) == []


def test_a_shared_database_keeps_the_running_trials_of_others(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    first = open_study(url, "search")
    mine = {shape for _, shape in ask(first, "random", seed=1)}
    second = open_study(url, "search")
    theirs = {shape for _, shape in ask(second, "random", seed=1)}
    assert len(mine) == len(theirs) == 6
    assert not mine & theirs


@pytest.mark.parametrize("torn", [b'{"op_code":4,"worker_id":"x', b'{"op_code"\x00\x00\n', b"\x00" * 40])
def test_a_torn_last_line_is_cut_back(journal, torn):
    study = open_study(journal, "search")
    run_episode(study, "random", 0)
    whole, content = finished_candidates(study), journal.read_bytes()
    journal.write_bytes(content + torn)
    again = open_study(journal, "search")
    assert journal.read_bytes().startswith(content + b'{"op_code":0,')
    assert finished_candidates(again) == whole
    run_episode(again, "random", 1)
    assert len(finished_candidates(open_study(journal, "search"))) == 12


def test_a_journal_cut_anywhere_can_be_gone_on_with(journal, tmp_path):
    run_episode(open_study(journal, "search"), "random", 0)
    content, counts = journal.read_bytes(), []
    for length in range(0, len(content), 997):
        cut = tmp_path / f"cut-{length}.log"
        cut.write_bytes(content[:length])
        study = open_study(cut, "search")
        counts.append(len(finished_candidates(study)))
        run_episode(study, "random", 1, candidates=2)
        assert len(finished_candidates(open_study(cut, "search"))) == counts[-1] + 2
    # What lies before the cut is kept.
    assert counts == sorted(counts)
    assert counts[-1] >= 4


def test_a_lock_left_behind_is_removed(journal):
    journal.parent.mkdir()
    lock = Path(f"{journal}.lock")
    lock.touch()
    run_episode(open_study(journal, "search"), "random", 0, candidates=1)
    assert not lock.exists()


def test_studies_of_other_names_share_a_journal(journal):
    run_episode(open_study(journal, "search"), "random", 0)
    assert finished_candidates(open_study(journal, "baseline")) == []


def test_candidates_of_an_episode_are_distinct_where_the_sampler_repeats_itself(journal):
    class Stubborn(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, param_name, param_distribution):
            return param_distribution.choices[0]

    study = open_study(journal, "search")
    asked = [shape for _, shape in ask_episode(study, SPACE, 5, Stubborn())]
    assert asked[0] == SPACE.architecture({name: values[0] for name, values in SPACE.dimensions.items()})
    assert len(set(asked)) == 5
    assert all(shape in SPACE for shape in asked)


def test_illegal_draws_are_answered_without_training(journal):
    class Illegal(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, param_name, param_distribution):
            return {"hidden_size": 32, "num_attention_heads": 3}.get(
                param_name, param_distribution.choices[0]
            )

    study = open_study(journal, "search")
    ((trial, shape),) = ask_episode(study, SPACE, 1, Illegal())
    assert shape in SPACE
    assert SPACE.architecture(trial.params) == shape
    others = [each for each in study.trials if each.number != trial.number]
    assert others
    assert {each.state for each in others} == {TrialState.FAIL}


def test_fewer_are_asked_when_the_space_is_exhausted(journal):
    study = open_study(journal, "search")
    space = SPACE.restricted({"small": lambda member: member.num_hidden_layers < 2})
    assert len(ask(study, "random", candidates=len(space) - 2, space=space)) == len(space) - 2
    assert len(ask(study, "random", candidates=9, space=space)) == 2
    assert ask(study, "random", candidates=9, space=space) == []


@pytest.mark.parametrize(
    "begin", [lambda study: run_episode(study, "random", 0), lambda study: ask(study, "random")]
)
def test_a_study_over_other_dimensions_is_refused(journal, begin):
    begin(open_study(journal, "search"))
    wider = SearchSpace({**SPACE.dimensions, "hidden_size": (24, 32, 48, 64)})
    with pytest.raises(InvalidInput, match=r"space\.hidden_size.*begun over"):
        ask(open_study(journal, "search"), "random", space=wider)


def test_opening_says_nothing(journal):
    script = "import sys; from hf_kdnas.search.study import open_study; open_study(sys.argv[1], 'search')"
    shown = subprocess.run(
        [sys.executable, "-c", script, str(journal)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stderr == ""


def test_telling_gives_back_what_is_kept(journal):
    study = open_study(journal, "search")
    told = [tell(study, trial, shape, 0) for trial, shape in ask(study, "random")]
    assert told == finished_candidates(study)
