"""What of a run's results is nobody else's business."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from hf_kdnas.hub.record import shareable, shareable_results


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("/home/ada/models/mine", "<local>/mine"),
        ("~/models/mine", "<local>/mine"),
        (r"C:\models\mine", "<local>/mine"),
        ("org/model", "org/model"),
        ("data/reviews.csv", "data/reviews.csv"),
        ("package:a/b", "package:a/b"),
        ("postgresql://ada:secret@host/studies", "postgresql://host/studies"),
        ("postgresql://ada:se@cret@host/studies", "postgresql://host/studies"),
        ("postgresql://host/studies?user=ada&password=secret", "postgresql://host/studies?"),
        ("see hf_abcdefgh12345 there", "see hf_... there"),
        ("a / b", "a / b"),
        ("/", "/"),
    ],
)
def test_texts(text: str, shared: str) -> None:
    assert shareable([{"a": (text,)}]) == [{"a": [shared]}]


def test_secrets_and_the_recipe(results: dict[str, Any]) -> None:
    recipe = {
        "output_dir": "/home/ada/runs/mine",
        "search": {"storage": "postgresql://ada:secret@host/studies", "finalists": 2},
        "distillation": {"training": {"training_arguments": {"hub_token": "secret"}}},
    }
    results["recipe"] = yaml.safe_dump(recipe)
    results["teacher"]["model"] = "/home/ada/models/mine"
    shared = shareable_results(results)
    for word in ("secret", "/home", "ada@", "ada:"):
        assert word not in str(shared)
    assert yaml.safe_load(shared["recipe"])["search"]["finalists"] == 2
    assert shared["student"] == results["student"]
