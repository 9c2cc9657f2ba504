"""The clock for the times of inodes: never behind what the kernel stamped last.

With its write-back cache the kernel stamps writes, and tells at close. Its clock may be some
milliseconds ahead of the one that a program can read (multigrain timestamps); without care a file made
now would look older than one that was written before.
"""

from __future__ import annotations

from storage.ports import WallClock

AHEAD_NS_MAX = 20_000_000
"""Two ticks of the slowest timer. What is further ahead was stamped before the clock was set back."""


class Stamps:
    """A `WallClock` that follows the kernel's."""

    def __init__(self, clock: WallClock) -> None:
        self._clock = clock
        self._latest = 0

    def now_ns(self) -> int:
        now = self._clock.now_ns()
        return self._latest if now < self._latest <= now + AHEAD_NS_MAX else now

    def seen(self, ctime: int) -> None:
        """The kernel stamped an inode with this change time."""
        self._latest = max(self._latest, ctime)
