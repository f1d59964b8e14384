from __future__ import annotations

import random

from hf_kdnas.pareto import pareto_front


def front(points):
    return pareto_front(points, lambda point: point)


def test_front_goes_from_the_fastest_to_the_best():
    assert front([(0.9, 30.0), (0.7, 10.0), (0.8, 20.0)]) == [(0.7, 10.0), (0.8, 20.0), (0.9, 30.0)]


def test_beaten_items_are_left_out():
    assert front([(0.8, 10.0), (0.8, 12.0), (0.7, 10.0), (0.6, 20.0)]) == [(0.8, 10.0)]


def test_of_equal_items_the_first_stays():
    items = [("a", 0.8, 10.0), ("b", 0.8, 10.0)]
    assert pareto_front(items, lambda item: item[1:]) == [("a", 0.8, 10.0)]


def test_front_is_what_comparing_all_pairs_gives():
    rng = random.Random(0)
    points = list({(rng.randrange(12) / 10, float(rng.randrange(12))) for _ in range(60)})
    beaten = {
        (quality, latency)
        for quality, latency in points
        if any((q >= quality and t < latency) or (q > quality and t <= latency) for q, t in points)
    }
    assert set(front(points)) == set(points) - beaten


def test_nothing_has_an_empty_front():
    assert front([]) == []
