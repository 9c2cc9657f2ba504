"""Pace: how long one server's answers take, told from its recent ones. Pure; times are handed in.

Answers are kept by the size of what had to travel, in classes a factor of four apart, the newest SAMPLES of
each. `usual_s` is the time that 95 of 100 of them stayed within. A size that was never asked is judged by
the nearest class that was: a smaller one's time grows with the bytes, a larger one's is enough as it is.
"""

from __future__ import annotations

SAMPLES = 64
"""Answers kept of each class."""
SAMPLES_MIN = 5
"""Fewer tell nothing yet."""
SETTLE_EVERY = 8
"""New answers of a class after which its time is worked out again; at the beginning after each."""
PART = 0.95
FEW = 8
"""From so many on the slowest does not count in any case: it may be the one that opened the connection."""

CLASSES = 8
CLASS_FACTOR = 4
FIRST_CLASS_BYTES = 8192
"""The first class: everything below. The last has no upper end."""


def size_class(size_bytes: int) -> int:
    """The class of a size, from 0."""
    above = (size_bytes // FIRST_CLASS_BYTES).bit_length()
    return min((above + 1) // 2, CLASSES - 1)


def within(samples: list[float]) -> float:
    """The least of the samples that PART of them, or all but one, do not exceed."""
    left_out = max(int(len(samples) * (1 - PART)), len(samples) >= FEW)
    return sorted(samples)[-1 - left_out]


class Pace:
    """One server's answers."""

    __slots__ = ("_counts", "_samples", "_usual")

    def __init__(self) -> None:
        self._samples: list[list[float]] = [[] for _ in range(CLASSES)]
        self._counts = [0] * CLASSES
        self._usual: list[float | None] = [None] * CLASSES

    def note(self, size_bytes: int, seconds: float) -> None:
        """An answer came `seconds` after it was asked, when `size_bytes` had to travel, its own included.

        So does one that had not come by then: a server whose answers were never waited for would else seem
        as quick as it once was.
        """
        index = size_class(size_bytes)
        samples, count = self._samples[index], self._counts[index]
        if len(samples) < SAMPLES:
            samples.append(seconds)
        else:
            samples[count % SAMPLES] = seconds
        self._counts[index] = count = count + 1
        if count >= SAMPLES_MIN and (count <= 2 * SETTLE_EVERY or not count % SETTLE_EVERY):
            self._usual[index] = within(samples)

    def usual_s(self, size_bytes: int) -> float | None:
        """What 95 of 100 answers of this size take at most, in seconds; None while too little is known."""
        index = size_class(size_bytes)
        usual = self._usual
        if usual[index] is not None:
            return usual[index]
        smaller = next((i for i in range(index - 1, -1, -1) if usual[i] is not None), None)
        larger = next((i for i in range(index + 1, CLASSES) if usual[i] is not None), None)
        guesses = [] if larger is None else [usual[larger] or 0.0]
        if smaller is not None:
            guesses.append((usual[smaller] or 0.0) * float(CLASS_FACTOR) ** (index - smaller))
        return min(guesses, default=None)
