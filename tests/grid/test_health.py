"""Health: who is demoted, for how long, and how long an answer may take."""

from __future__ import annotations

from gridfs.grid.health import HealthBook, HealthConfig

CONFIG = HealthConfig(
    deadline_s=2.0, bytes_per_s_min=1000.0, failed_s=1.0, hung_s=5.0, lied_s=30.0, demotion_s_max=8.0
)
A, B = b"a" * 32, b"b" * 32


def test_a_deadline_has_a_base_and_a_pace() -> None:
    assert HealthBook(CONFIG).deadline_s(0) == 2.0
    assert HealthBook(CONFIG).deadline_s(3000) == 5.0


def test_a_failure_demotes_for_a_while_that_doubles() -> None:
    book = HealthBook(CONFIG)
    now, pauses = 100.0, []
    for _ in range(5):
        book.failed(A, now, hung=False)
        start = now
        while book.demoted(now):
            now += 0.5
        pauses.append(now - start)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_failures_together_are_one() -> None:
    book = HealthBook(CONFIG)
    for _ in range(10):
        book.failed(A, 0.0, hung=False)
    assert book.demoted(0.9) == {A}
    assert book.demoted(1.0) == frozenset()


def test_a_missed_deadline_weighs_more() -> None:
    book = HealthBook(CONFIG)
    book.failed(A, 0.0, hung=True)
    book.failed(B, 0.0, hung=False)
    assert book.demoted(0.5) == {A, B}
    assert book.demoted(4.9) == {A}


def test_an_answer_rehabilitates() -> None:
    book = HealthBook(CONFIG)
    book.failed(A, 0.0, hung=True)
    book.worked(A)
    assert book.demoted(0.0) == frozenset()
    book.failed(A, 0.0, hung=False)
    assert book.demoted(1.0) == frozenset(), "counted from the beginning again"
    book.worked(B)


def test_an_answer_does_not_make_a_liar_honest() -> None:
    book = HealthBook(CONFIG)
    book.lied(A, 0.0)
    book.worked(A)
    assert book.demoted(29.0) == {A}
    assert book.demoted(30.0) == frozenset()
