"""Pace: what 95 of 100 recent answers of one server stayed within, by their size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.grid.pace import (
    CLASS_FACTOR,
    CLASSES,
    FEW,
    FIRST_CLASS_BYTES,
    SAMPLES,
    SAMPLES_MIN,
    Pace,
    size_class,
)

SIZES = st.integers(0, 10**9)
SECONDS = st.floats(0, 1000)


def paced(answers: list[tuple[int, float]]) -> Pace:
    pace = Pace()
    for size, seconds in answers:
        pace.note(size, seconds)
    return pace


@given(SIZES, SIZES)
def test_classes_rise_with_the_size_and_a_factor_of_four_is_one_class(one: int, other: int) -> None:
    assert 0 <= size_class(min(one, other)) <= size_class(max(one, other)) < CLASSES
    if one >= FIRST_CLASS_BYTES and size_class(one) < CLASSES - 1:
        assert size_class(one * CLASS_FACTOR) == size_class(one) + 1


@given(st.lists(SECONDS, min_size=SAMPLES, max_size=3 * SAMPLES))
def test_of_the_newest_answers_at_least_95_of_100_stayed_within(times: list[float]) -> None:
    pace = Pace()
    for seconds in times[: len(times) // 8 * 8]:
        pace.note(1000, seconds)
    newest = times[: len(times) // 8 * 8][-SAMPLES:]
    usual = pace.usual_s(1000)
    assert usual is not None
    assert usual in newest
    assert sum(seconds <= usual for seconds in newest) >= 0.95 * SAMPLES
    assert sum(seconds < usual for seconds in newest) < 0.96 * SAMPLES


def test_it_learns_and_forgets() -> None:
    pace = paced([(100, 1.0)] * SAMPLES)
    assert pace.usual_s(0) == 1.0
    for _ in range(SAMPLES):
        pace.note(100, 0.1)
    assert pace.usual_s(0) == 0.1


def test_of_few_the_slowest_does_not_count() -> None:
    assert paced([(100, 3.0)] + [(100, 0.1)] * (FEW - 2)).usual_s(100) == 3.0
    assert paced([(100, 3.0)] + [(100, 0.1)] * (FEW - 1)).usual_s(100) == 0.1
    assert paced([(100, 3.0)] * 2 + [(100, 0.1)] * (FEW - 2)).usual_s(100) == 3.0


def test_one_outlier_among_many_does_not_count() -> None:
    assert paced([(100, 0.1)] * (SAMPLES - 2) + [(100, 9.0)] * 2).usual_s(100) == 0.1


@given(st.lists(st.tuples(SIZES, SECONDS), max_size=SAMPLES_MIN - 1), SIZES)
def test_too_few_answers_tell_nothing(answers: list[tuple[int, float]], size: int) -> None:
    assert paced(answers).usual_s(size) is None


def test_a_size_that_was_never_asked_is_judged_by_the_nearest() -> None:
    small = paced([(0, 0.01)] * SAMPLES_MIN)
    assert small.usual_s(FIRST_CLASS_BYTES) == pytest.approx(0.04)
    assert small.usual_s(16 * FIRST_CLASS_BYTES) == pytest.approx(0.01 * CLASS_FACTOR**3)
    large = paced([(10**9, 5.0)] * SAMPLES_MIN)
    assert large.usual_s(0) == 5.0
    both = paced([(0, 0.01)] * SAMPLES_MIN + [(10**9, 5.0)] * SAMPLES_MIN)
    assert both.usual_s(FIRST_CLASS_BYTES) == pytest.approx(0.04)
    assert both.usual_s(10**8) == 5.0
