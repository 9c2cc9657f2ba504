"""The clock for the times of inodes."""

from __future__ import annotations

from gridfs.files.stamps import AHEAD_NS_MAX, Stamps


class Clock:
    """A `WallClock` that shows what it is told."""

    def __init__(self, now: int) -> None:
        self.now = now

    def now_ns(self) -> int:
        return self.now


def test_it_is_never_behind_what_the_kernel_stamped() -> None:
    clock = Clock(1000)
    stamps = Stamps(clock)
    assert stamps.now_ns() == 1000
    stamps.seen(1500)
    stamps.seen(1200)
    assert stamps.now_ns() == 1500
    clock.now = 1501
    assert stamps.now_ns() == 1501


def test_a_clock_that_was_set_back_is_followed() -> None:
    clock = Clock(10 * AHEAD_NS_MAX)
    stamps = Stamps(clock)
    stamps.seen(10 * AHEAD_NS_MAX)
    clock.now = 5
    assert stamps.now_ns() == 5
