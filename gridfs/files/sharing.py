"""An act that many wait for at a time: those who come while it is under way share the next one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


class Sharing:
    """At most one is under way."""

    def __init__(self, act: Callable[[], Awaitable[None]]) -> None:
        self._act = act
        self._begun = 0
        self._done = 0
        """The last that succeeded."""
        self._ended: trio.Event | None = None
        """Set when the one under way has ended, well or not."""

    async def done(self) -> None:
        """One that began after this call has succeeded when this returns. Raises what the act raises."""
        wanted = self._begun + 1
        while (ended := self._ended) is not None:
            await ended.wait()
            if self._done >= wanted:
                return
        self._begun = number = self._begun + 1
        self._ended = ended = trio.Event()
        try:
            await self._act()
            self._done = number
        finally:
            self._ended = None
            ended.set()
