"""What the report says, given results.json."""

from __future__ import annotations

from typing import Any

import pytest

from hf_kdnas.report import view


def test_models_come_in_the_order_of_the_table(results: dict[str, Any]) -> None:
    results["random_baseline"] = results["baselines"][1]
    results["finalists"].reverse()
    rows = view.rows(results)
    assert [row.role for row in rows] == [
        *("teacher", "winner", "finalist"),
        *("hand-crafted", "hand-crafted", "random search"),
    ]
    assert rows[0].speedup == 1
    assert rows[1].architecture == results["student"]["architecture"]
    assert rows[1].retained == pytest.approx(results["student"]["quality"] / results["teacher"]["quality"])


def test_a_teacher_of_no_quality_divides_nothing(results: dict[str, Any]) -> None:
    results["teacher"]["quality"] = 0.0
    assert {row.retained for row in view.rows(results)} == {None}


def test_intervals_of_a_ratio_become_those_of_the_speed_up(results: dict[str, Any]) -> None:
    results["student"]["latency"] |= {"ratio": 0.25, "ratio_interval": [0.2, 0.5]}
    student = view.timings(results)[1]
    assert student.speedup == 4
    assert student.speedup_interval == "2.00 to 5.00"


def test_int8_may_be_missing_or_slower(results: dict[str, Any]) -> None:
    assert "times as fast as the fp32 one" in view.int8_text(results)
    results["student"]["int8"]["speedup"] = results["speedup"] / 2
    assert "slower (0.50 times the speed) than the fp32 one" in view.int8_text(results)
    results["student"]["int8"] = None
    assert view.int8_text(results) == ""
    assert len(view.timings(results)) == 2


def test_stages_are_not_counted_twice(results: dict[str, Any]) -> None:
    results["seconds"] = {"teacher": 10.0, "search": 40.0, "total": 50.0}
    assert [(bar.stage, bar.width) for bar in view.bars(results)] == [("teacher", 25.0), ("search", 100.0)]
    assert view.total_seconds(results) == 50
    results["seconds"] = {}
    assert view.total_seconds(results) == 0


def test_a_search_without_a_random_one_claims_nothing(results: dict[str, Any]) -> None:
    assert "did not run: nothing is known" in view.search_text(results)


def test_a_random_search_is_compared_with(results: dict[str, Any]) -> None:
    results["random_baseline"] = {"architecture": "3L", "quality": 0.8272, "speedup": 3.0}
    assert "found 3L" in view.search_text(results)
    assert "difference of -0.0100" in view.search_text(results)


def test_the_best_hand_crafted_shape_that_is_no_slower(results: dict[str, Any]) -> None:
    assert view.hand_crafted_text(results) == "All hand-crafted shapes are slower than the winner."
    slower, faster = results["baselines"]
    slower["quality"] = 0.99
    faster["speedup"] = 5.0
    assert "tinybert" in view.hand_crafted_text(results)
    assert "every-second-layer" not in view.hand_crafted_text(results)
    results["baselines"] = []
    assert view.hand_crafted_text(results) == ""


def test_constraints(results: dict[str, Any]) -> None:
    assert "meets the recipe's constraints: speed-up of at least 2.50" in view.constraints_text(results)
    results["constraints_met"] = False
    results["constraints"]["parameters"] = 5_000_000
    text = view.constraints_text(results)
    assert text.startswith("No finalist met")
    assert "parameters, at most 5,000,000" in text
    results["constraints"] = dict.fromkeys(results["constraints"])
    assert view.constraints_text(results) == ""


def test_the_rank_correlation(results: dict[str, Any]) -> None:
    assert "not known" in view.proxy_text(results)
    results["proxy_rank_correlation"] = 0.5
    assert "0.50" in view.proxy_text(results)
