"""The machine's wall clock."""

from __future__ import annotations

import time

CLOCK_REALTIME_COARSE = 5
"""Linux's clock that moves at the ticks of its timer; Python has no name for it."""


class SystemClock:
    """`WallClock` of the operating system: the clock with which Linux stamps inodes.

    With its write-back cache the kernel stamps writes itself. From a finer clock of ours a directory
    could look newer than a file that was written after it was made.
    """

    def now_ns(self) -> int:
        return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
