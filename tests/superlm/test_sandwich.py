"""Which members a step trains."""

from __future__ import annotations

from hf_kdnas.architecture import Architecture
from hf_kdnas.space import SearchSpace
from hf_kdnas.superlm.sandwich import extremes, sandwich

SPACE = SearchSpace(
    {
        "num_hidden_layers": [1, 2, 3],
        "hidden_size": [16, 32],
        "num_attention_heads": [2, 4],
        "intermediate_size": [32, 64],
        "hidden_act": ["gelu"],
    }
)


def cost(member: Architecture) -> int:
    return member.num_hidden_layers * member.hidden_size * member.intermediate_size


def drawn(step: int, seed: int = 0, random_subnets: int = 2) -> list[Architecture]:
    largest, _, smallest = extremes(SPACE, cost)
    return sandwich(list(SPACE), largest, smallest, random_subnets=random_subnets, seed=seed, step=step)


def test_the_extremes_and_the_middle_are_those_by_parameters() -> None:
    largest, middle, smallest = extremes(SPACE, cost)
    ranked = sorted(map(cost, SPACE))
    assert (cost(largest), cost(middle), cost(smallest)) == (ranked[-1], ranked[len(ranked) // 2], ranked[0])


def test_a_step_has_the_extremes_first_and_others_besides() -> None:
    largest, _, smallest = extremes(SPACE, cost)
    for step in range(50):
        members = drawn(step)
        assert members[:2] == [largest, smallest]
        assert len(set(members)) == 4


def test_draws_follow_from_seed_and_step_and_reach_all_members() -> None:
    assert drawn(3) == drawn(3)
    assert {tuple(drawn(step)) for step in range(20)} != {tuple(drawn(step, seed=1)) for step in range(20)}
    assert {member for step in range(200) for member in drawn(step)} == set(SPACE)


def test_a_space_of_one_or_two_has_no_more_members_to_draw() -> None:
    only = next(iter(SPACE))
    assert sandwich([only], only, only, random_subnets=2, seed=0, step=0) == [only]
    assert len(drawn(0, random_subnets=100)) == len(SPACE)
