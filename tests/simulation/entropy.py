"""Chance, wall clock and threads of a simulated machine: all from the seed, nothing from the host."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import trio

from storage.ports import Brief

T = TypeVar("T")

EPOCH_NS = 1_800_000_000 * 10**9
"""Wall clock time at virtual time 0."""


class SimEntropy:
    """`ports.Entropy` from one stream of chance."""

    def __init__(self, stream: random.Random) -> None:
        self._stream = stream

    def token(self, size: int) -> bytes:
        return self._stream.randbytes(size)


class SimClock:
    """`ports.WallClock`: virtual time with an error of the machine's own, which a test may change."""

    def __init__(self, offset_ns: int = 0) -> None:
        self.offset_ns = offset_ns

    def now_ns(self) -> int:
        return EPOCH_NS + round(trio.current_time() * 1e9) + self.offset_ns


class InlineOffload:
    """`ports.Offload` in the loop itself: a real thread would race with the jumping clock.

    One checkpoint comes first, as with a thread: other tasks run before the function does. It is
    where cancellation and a crash strike; the function itself is never cut in two.
    """

    def __init__(self) -> None:
        self.calls = 0

    async def run(self, function: Callable[..., T], *args: object) -> T:
        await trio.lowlevel.checkpoint()
        self.calls += 1
        return function(*args)

    def is_brief(self, kind: Brief) -> bool:
        """By turns, so that both ways are seen."""
        return self.calls % 2 == 0

    def run_here(self, kind: Brief, function: Callable[..., T], *args: object) -> T:
        self.calls += 1
        return function(*args)

    async def run_brief(self, kind: Brief, function: Callable[..., T], *args: object) -> T:
        if self.is_brief(kind):
            return self.run_here(kind, function, *args)
        return await self.run(function, *args)
