"""Durations, sizes and ranges in words."""

from __future__ import annotations

import pytest

from fsseg.process.words import extent, size, span


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (720, "12 min"), (12240, "3.4 h"), (449280, "5.2 d")])
def test_spans_of_time_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "?"), (999, "1 kB"), (12_345, "12 kB"), (500e6, "500 MB"), (4.213e9, "4.21 GB")]
)
def test_sizes_have_a_unit_that_suits_them(count: float | None, text: str) -> None:
    assert size(count) == text


def test_a_range_names_both_ends_only_where_they_differ() -> None:
    assert extent(0.5, 1.0, "h") == "0.5-1.0 h"
    assert extent(3.0, 3.001, "GB") == "3.0 GB"
    assert extent(0.0, 80.0, "h", most_only=True) == "up to 80.0 h"
    assert extent(120.4, 240.0, "") == "120-240"
