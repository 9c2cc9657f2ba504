"""Worker threads, bounded, and what is not worth one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import trio

from storage.ports import Brief

T = TypeVar("T")

REMEMBERED = 16
"""Calls of a kind by which the next are judged."""
BRIEF_S = {Brief.READ: 0.001, Brief.SYNC: 0.01, Brief.LONGER_READ: 0.003, Brief.LARGE_READ: 0.012}
"""A kind is brief while most calls took no longer. A hop costs 0.1 ms of CPU, and on a busy processor a call
that slept waits some milliseconds for its turn. Syncs are made one after the other anyway, reads need not."""
LONG_S = 0.05
"""A call that took this long sends the next ones away at once."""


class ThreadOffload:
    """`Offload` on trio's worker threads, at most `threads_max` at once; further calls wait their turn."""

    def __init__(self, threads_max: int = 8) -> None:
        self._limiter = trio.CapacityLimiter(threads_max)
        self._recent = {kind: _Recent(limit_s) for kind, limit_s in BRIEF_S.items()}

    async def run(self, function: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)

    def is_brief(self, kind: Brief) -> bool:
        return self._recent[kind].is_brief

    def run_here(self, kind: Brief, function: Callable[..., T], *args: object) -> T:
        began = time.perf_counter()
        try:
            return function(*args)
        finally:
            self._recent[kind].note(time.perf_counter() - began)

    async def run_brief(self, kind: Brief, function: Callable[..., T], *args: object) -> T:
        if self.is_brief(kind):
            return self.run_here(kind, function, *args)
        return await self.run(self.run_here, kind, function, *args)


class _Recent:
    """How the last calls of one kind went. Noted in any thread."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._are_slow = deque([0] * REMEMBERED, REMEMBERED)
        """Of each call 1 where it was slow; REMEMBERED where it was long."""
        self._slow = 0
        """Their sum."""
        self.is_brief = True

    def note(self, took_s: float) -> None:
        is_slow = 0 if took_s <= self._limit_s else 1 if took_s < LONG_S else REMEMBERED
        self._slow += is_slow - self._are_slow[0]
        self._are_slow.append(is_slow)
        self.is_brief = 2 * self._slow < REMEMBERED
