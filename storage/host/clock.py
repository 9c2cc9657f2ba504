"""The machine's wall clock."""

from __future__ import annotations

import time


class SystemClock:
    """`WallClock` of the operating system."""

    def now_ns(self) -> int:
        return time.time_ns()
