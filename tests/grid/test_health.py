"""Health: how long an answer may take, who is demoted, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.grid.health import PEERS_EVERY, HealthBook, HealthConfig
from gridfs.grid.pace import SAMPLES_MIN

CONFIG = HealthConfig(
    first_s=2.0,
    deadline_s_min=0.01,
    deadline_s_max=4.0,
    bytes_per_s_min=1000.0,
    own=1.0,
    peers=3.0,
    races_lost_max=3,
    late_s=1.0,
    failed_s=1.0,
    lied_s=30.0,
    demotion_s_max=8.0,
)
A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def told(book: HealthBook, server: bytes, seconds: float, size: int = 0, times: int = PEERS_EVERY) -> None:
    for _ in range(times):
        book.answered(server, size, seconds, in_time=True)


# ---- how long


def test_while_nothing_is_known_a_deadline_has_a_base_and_a_pace() -> None:
    assert HealthBook(CONFIG).deadline_s(A, 0) == 2.0
    assert HealthBook(CONFIG).deadline_s(A, 3000) == 5.0


def test_a_server_is_measured_by_itself() -> None:
    book = HealthBook(CONFIG)
    for server, seconds in ((A, 0.1), (B, 0.2), (C, 0.25)):
        told(book, server, seconds)
    assert book.deadline_s(A, 0) == pytest.approx(0.1)
    assert book.deadline_s(B, 0) == pytest.approx(0.2)
    assert book.deadline_s(b"new" * 8, 0) == pytest.approx(3 * 0.2), "one that nobody knows, by the others"


def test_one_that_was_always_slow_is_measured_by_the_others() -> None:
    book = HealthBook(CONFIG)
    for server, seconds in ((A, 0.1), (B, 0.1), (C, 2.0)):
        told(book, server, seconds)
    assert book.deadline_s(C, 0) == pytest.approx(0.3)


def test_a_large_request_gets_more_time() -> None:
    book = HealthBook(CONFIG)
    for size in (1000, CONFIG.large_bytes):
        told(book, A, 0.1, size)
    assert book.deadline_s(A, 1000) == pytest.approx(0.1)
    assert book.deadline_s(A, CONFIG.large_bytes) == pytest.approx(0.2)


def test_a_deadline_has_bounds() -> None:
    book = HealthBook(CONFIG)
    told(book, A, 1e-6)
    assert book.deadline_s(A, 0) == 0.01
    told(book, B, 100.0)
    told(book, A, 100.0)
    assert book.deadline_s(B, 0) == 4.0
    assert book.deadline_s(B, 1000) == 5.0


@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 10**8), st.floats(0, 1e4)), max_size=300),
    st.sampled_from([A, B, C]),
    st.integers(0, 10**8),
)
def test_whatever_was_answered_a_deadline_stays_within_its_bounds(
    answers: list[tuple[bytes, int, float]], server: bytes, size: int
) -> None:
    book = HealthBook(CONFIG)
    for who, how_much, seconds in answers:
        book.answered(who, how_much, seconds, in_time=True)
        deadline = book.deadline_s(server, size)
        slowest = size / CONFIG.bytes_per_s_min
        assert CONFIG.deadline_s_min <= deadline <= max(CONFIG.first_s, CONFIG.deadline_s_max) + slowest


def test_a_long_silence_is_told_by_the_deadline_and_by_the_clock() -> None:
    book = HealthBook(HealthConfig(overdue=16.0, overdue_s=2.0))
    assert not book.is_overdue(0.03, 0.47)
    assert book.is_overdue(0.03, 0.48)
    assert not book.is_overdue(0.5, 1.9)
    assert book.is_overdue(0.5, 2.0)
    assert not book.is_overdue(3.0, 5.9)
    assert book.is_overdue(3.0, 6.0)


# ---- whom not to ask first


def test_a_failure_demotes_for_a_while_that_doubles() -> None:
    book = HealthBook(CONFIG)
    now, pauses = 100.0, []
    for _ in range(5):
        book.failed(A, now)
        start = now
        while book.demoted(now):
            assert book.is_demoted(A, now)
            now += 0.5
        pauses.append(now - start)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert not book.is_demoted(A, now)


def test_failures_together_are_one() -> None:
    book = HealthBook(CONFIG)
    for _ in range(10):
        book.failed(A, 0.0)
    assert book.demoted(0.9) == {A}
    assert book.demoted(1.0) == frozenset()


def test_a_server_that_is_overtaken_again_and_again_is_demoted() -> None:
    book = HealthBook(CONFIG)
    for asked_at in (0.0, 2.0, 4.0):
        assert not book.demoted(asked_at)
        book.overtaken(A, 0, asked_at, asked_at + 1)
    assert book.demoted(5.0) == {A}
    assert book.demoted(6.0) == frozenset()
    book.overtaken(A, 0, 6.0, 7.0)
    assert book.demoted(8.9) == {A}, "from now on each time, and longer"


def test_requests_that_were_late_together_lost_one_race() -> None:
    book = HealthBook(CONFIG)
    for _ in range(10):
        book.overtaken(A, 0, 0.0, 1.0)
    assert not book.demoted(1.0)


def test_a_long_silence_demotes_at_once() -> None:
    book = HealthBook(CONFIG)
    book.overdue(A, 0.0)
    assert book.demoted(0.9) == {A}


def test_only_an_answer_in_time_makes_up_for_what_was() -> None:
    book = HealthBook(CONFIG)
    book.failed(A, 0.0)
    book.answered(A, 0, 5.0, in_time=False)
    assert book.demoted(0.0) == {A}
    book.answered(A, 0, 0.1, in_time=True)
    assert book.demoted(0.0) == frozenset()
    book.failed(A, 0.0)
    assert book.demoted(1.0) == frozenset(), "counted from the beginning again"
    book.answered(B, 0, 0.1, in_time=True)


def test_an_answer_between_makes_races_lost_begin_again() -> None:
    book = HealthBook(CONFIG)
    for asked_at in range(0, 40, 2):
        book.overtaken(A, 0, asked_at, asked_at + 1.0)
        if asked_at % 4:
            book.answered(A, 0, 0.1, in_time=True)
    assert not book.demoted(0.0)


def test_an_answer_does_not_make_a_liar_honest() -> None:
    book = HealthBook(CONFIG)
    book.lied(A, 0.0)
    book.answered(A, 0, 0.1, in_time=True)
    assert book.demoted(29.0) == {A}
    assert book.is_demoted(A, 29.0)
    assert book.demoted(30.0) == frozenset()


def test_a_server_that_was_never_waited_for_is_not_taken_for_quick() -> None:
    """Its answers take 0.5 s since some time; others are quicker each time and nobody ever sees one."""
    book = HealthBook(CONFIG)
    told(book, A, 0.1)
    told(book, B, 0.3)
    for turn in range(PEERS_EVERY):
        begin = turn * 10.0
        deadline = book.deadline_s(A, 0)
        if deadline + 0.3 >= 0.5:
            break
        book.overtaken(A, 0, begin, begin + deadline + 0.3)
    assert book.deadline_s(A, 0) + 0.3 >= 0.5


def test_few_answers_tell_nothing() -> None:
    book = HealthBook(CONFIG)
    told(book, A, 0.1, times=SAMPLES_MIN - 1)
    assert book.deadline_s(A, 0) == CONFIG.first_s
    told(book, A, 0.1, times=1)
    assert book.deadline_s(A, 0) == pytest.approx(0.1)
