"""Numbers as a reader wants them."""

from __future__ import annotations

import pytest

from hf_kdnas.report import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (formats.score(0.83416), "0.8342"),
        (formats.percent(0.9796), "98.0 %"),
        (formats.milliseconds(3.914), "3.91 ms"),
        (formats.milliseconds(0.0834), "0.083 ms"),
        (formats.milliseconds(1234.5), "1234 ms"),
        (formats.times(3.914), "3.91 ×"),  # noqa: RUF001
        (formats.count(22_713_986), "22.7 M"),
        (formats.count(1_500_000_000), "1.5 G"),
        (formats.count(1500), "1.5 k"),
        (formats.count(12), "12"),
        (formats.duration(4.24), "4.2 s"),
        (formats.duration(725), "12 min 05 s"),
        (formats.duration(3599.6), "1 h 00 min"),
        (formats.duration(3900), "1 h 05 min"),
    ],
)
def test_formats(value: str, text: str) -> None:
    assert value.replace("\N{NO-BREAK SPACE}", " ") == text


def test_a_number_and_its_unit_stay_on_one_line() -> None:
    assert " " not in formats.percent(0.5) + formats.milliseconds(5) + formats.times(2) + formats.count(1e6)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_what_is_not_known_is_a_dash(name: str) -> None:
    assert formats.FORMATS[name](None) == formats.NOTHING
    assert formats.FORMATS[name](float("nan")) == formats.NOTHING
