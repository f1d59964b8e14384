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


@pytest.mark.parametrize("quality", [0.0, -0.1])
def test_a_teacher_of_no_quality_divides_nothing(results: dict[str, Any], quality: float) -> None:
    results["teacher"]["quality"] = quality
    results["retained"] = None
    assert {row.retained for row in view.rows(results)} == {None}
    assert f"of its teacher, which has none to keep: {quality:.4f}" in view.verdict(results)


def test_intervals_of_a_ratio_become_those_of_the_speed_up(results: dict[str, Any]) -> None:
    results["student"]["latency"] |= {"ratio": 0.25, "ratio_interval": [0.2, 0.5]}
    teacher, student = view.timings(results)[:2]
    assert student.speedup == 4
    assert student.speedup_interval == "2.00 to 5.00"
    assert (teacher.interval, teacher.speedup_interval) == ("–", "–")  # noqa: RUF001


def test_int8_may_be_missing_or_slower(results: dict[str, Any]) -> None:
    assert "times as fast as the fp32 one" in view.int8_text(results)
    results["student"]["int8"]["speedup"] = results["speedup"] / 2
    assert "slower (0.50 times the speed) than the fp32 one" in view.int8_text(results)
    files = len(view.timings(results))
    results["student"]["int8"] = None
    assert view.int8_text(results) == ""
    assert len(view.timings(results)) == files - 1


def test_what_onnx_runtime_is_worth(results: dict[str, Any]) -> None:
    results["student"]["pytorch"]["ratio"] = 1.5 / results["speedup"]
    assert view.pytorch_text(results) == "Here ONNX Runtime runs the student 1.50 times as fast as PyTorch."
    assert view.timings(results)[-1].name == "student, fp32, in PyTorch"
    results["student"]["pytorch"]["ratio"] = 0.5 / results["speedup"]
    assert "slower (0.50 times the speed) than PyTorch" in view.pytorch_text(results)
    del results["student"]["pytorch"]  # as in results of older versions
    assert view.pytorch_text(results) == ""
    assert "PyTorch" not in view.timings(results)[-1].name


def test_stages_are_drawn_in_parts_of_the_costliest(results: dict[str, Any]) -> None:
    results["seconds"] = {"teacher": 10.0, "search": 40.0}
    assert [(bar.stage, bar.width) for bar in view.bars(results)] == [("teacher", 25.0), ("search", 100.0)]
    assert view.total_seconds(results) == 50.0


def test_a_search_without_a_random_one_claims_nothing(results: dict[str, Any]) -> None:
    assert "did not run: nothing is known" in view.search_text(results)


def test_what_distillation_was_worth_is_known_from_the_same_student_without_it(
    results: dict[str, Any],
) -> None:
    signals, labels = {"objectives": {"logits": {}}}, {"objectives": {"task": {}}}
    for comparison in ([], [signals]):
        results["comparison"] = comparison
        assert "nothing is known about what distillation was worth" in view.distillation_text(results)
    results["comparison"] = [signals, labels]
    assert view.distillation_text(results) == ""
    results["comparison"], results["distillation"] = [], labels
    assert view.distillation_text(results) == ""


def test_what_is_special_about_the_training_is_said(results: dict[str, Any]) -> None:
    assert view.training_text(results) == ""
    results["distillation"]["training"]["dropout"] = 0.0
    assert view.training_text(results) == "Their dropout was 0 meanwhile."
    results["distillation"]["augmentation"] = {"copies": 2, "replaced": 0.08}
    text = view.training_text(results)
    assert "from 2 made texts, the beginning of one row and the end of another with 8% of" in text
    assert text.endswith("Their dropout was 0 meanwhile.")


def test_a_random_search_is_compared_with(results: dict[str, Any]) -> None:
    results["random_baseline"] = {"architecture": "3L", "quality": 0.8272, "speedup": 3.0, "reward": 0.9}
    assert "found 3L" in view.search_text(results)
    assert "difference of -0.0100" in view.search_text(results)
    assert "it is 0.8402 against the random search's 0.9000" in view.search_text(results)


def plain(text: str) -> str:
    """A text without no-break spaces."""
    return " ".join(text.split())


def test_a_slower_hand_crafted_shape_may_score_better(results: dict[str, Any]) -> None:
    text = plain(view.hand_crafted_text(results))
    assert text.startswith("All hand-crafted shapes are slower than the winner: of them, every-second-layer")
    assert "0.8213 at 1.97 ×) is the best, against the winner's 0.8172" in text  # noqa: RUF001
    assert "reward" not in text


def test_hand_crafted_shapes_that_are_no_slower_come_first(results: dict[str, Any]) -> None:
    slower, faster = results["baselines"]
    slower["quality"] = 0.99
    faster["speedup"] = 5.0
    text = plain(view.hand_crafted_text(results))
    assert text.startswith(
        "Of the hand-crafted shapes that are no slower, tinybert (4L-312H-1200F-12A-gelu, 0.8124"
    )
    assert "Of the slower ones, every-second-layer" in text
    results["baselines"] = [faster]
    assert "slower ones" not in view.hand_crafted_text(results)
    results["baselines"] = []
    assert view.hand_crafted_text(results) == ""


def test_a_hand_crafted_shape_of_higher_reward_is_told(results: dict[str, Any]) -> None:
    results["baselines"][1]["reward"] = 0.9
    assert "tinybert would have come before it (0.9000 against 0.8402" in view.hand_crafted_text(results)


def test_how_far_chance_moves_an_accuracy(results: dict[str, Any]) -> None:
    results["task"]["rows"]["reporting"] = 872
    results["student"]["quality"] = 0.9
    assert "0.9000 is known to ± 0.0200" in view.noise_text(results)
    results["student"]["quality"] = 1.0
    assert "± 0.0000" not in view.noise_text(results)
    results["task"]["metric"] = "matthews"
    assert view.noise_text(results) == ""


def test_when_it_was_made(results: dict[str, Any]) -> None:
    assert view.created_text(results) == "2026-11-21 08:00 UTC"


def test_how_well_the_controller_ranked() -> None:
    assert "correlation is 0.50" in view.prediction_text([(0.1, 1.0), (0.2, 3.0), (0.3, 2.0)])
    assert view.prediction_text([]) == ""
    assert view.prediction_text([(0.1, 1.0), (0.2, 3.0)]) == ""
    assert view.prediction_text([(0.1, 1.0), (0.1, 2.0), (0.1, 3.0)]) == ""


def test_only_what_was_predicted_and_measured_is_compared(results: dict[str, Any]) -> None:
    known = len(view.predictions(results))
    first = next(each for each in results["candidates"] if each["predicted_reward"] is not None)
    first["reward"] = None
    assert len(view.predictions(results)) == known - 1 == 7


def test_constraints(results: dict[str, Any]) -> None:
    assert "meets the recipe's constraints: speed-up of at least 2.50" in view.constraints_text(results)
    assert "measured again" not in view.constraints_text(results)
    measured = {**results, "speedup": 2.41}
    assert "its own file, measured again, came out at 2.41" in view.constraints_text(measured)
    ceiling = {**results["constraints"], "latency_ms": 1.0}
    assert "came out at" in view.constraints_text({**results, "constraints": ceiling})
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
