"""Surroundings: whether a large read that jumps brings along what lies around it.

A jump costs its round trips, whatever its length, so that on a quick line a whole MiB takes little more than
a part of it; and who reads here and there in large pieces often reads on, or the rest later. Each byte is
brought once at most, as the kernel keeps it. Whether it pays is told from what both kinds of jump took of
late. Pure; times are handed in.
"""

from __future__ import annotations

LARGE = 128 << 10
"""Bytes of a read that is large: what the kernel asks for at a time where nobody raised it."""
ROW = 1 << 20
"""What is brought are the rows that the read touches: bytes from one multiple of this to the next."""
COST_MAX = 4.0
"""A row may take so many times as long as a read alone: half of what it has more of such reads."""
LEARN = 2
"""Jumps of a mount that bring nothing else, before a first row is tried."""
AGAIN = 32
"""After so many jumps one more is made alone, or with its row, to see what that takes now."""
_WEIGHT = 1 / 4


class Surroundings:
    """What the jumps of one mount took."""

    def __init__(self) -> None:
        self._alone_s: float | None = None
        self._row_s: float | None = None
        self._jumps = 0

    def are_wanted(self) -> bool:
        """Whether the next large read that jumps is to bring its rows."""
        self._jumps += 1
        if self._jumps <= LEARN or self._alone_s is None:
            return False
        pays = self._row_s is None or self._row_s <= COST_MAX * self._alone_s
        return pays if self._jumps % AGAIN else not pays

    def took(self, seconds: float, *, brought: bool) -> None:
        """How long a large read that jumped took."""
        if brought:
            self._row_s = _mean(self._row_s, seconds)
        else:
            self._alone_s = _mean(self._alone_s, seconds)


def _mean(before: float | None, seconds: float) -> float:
    return seconds if before is None else before + (seconds - before) * _WEIGHT


def rows_of(start: int, end: int, size: int) -> tuple[int, int]:
    """The rows that [start, end) of a file of `size` bytes touches, as [low, high)."""
    return start // ROW * ROW, min(size, -(-end // ROW) * ROW)
