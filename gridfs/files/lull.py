"""A lull in changes: a moment at which every operation may be shipped, waited for first, then brought about.

Where names are given to data all the time faster than data reach the grid, operations behind the first of
them could wait for ever, and a checkpoint too. Then changes are held up for as long as it takes, a few
seconds at most, and again after some patience.
"""

from __future__ import annotations

from contextlib import ExitStack

import trio

from gridfs.files.pause import Pause

PATIENCE_S = 5.0
HELD_S_MAX = 5.0


class Lull:
    """Whether one is wanted, and since when."""

    def __init__(self, pause: Pause) -> None:
        self._pause = pause
        self._held = ExitStack()
        self._begun = trio.Event()
        self._wanted_since: float | None = None
        self._held_since: float | None = None

    @property
    def is_forced(self) -> bool:
        """Changes are held up."""
        return self._held_since is not None

    async def run(self) -> None:
        """Let changes go on when they were held up for long, whatever the one who wanted it waits for then.

        Until cancelled; ends a lull that is on.
        """
        try:
            while True:
                await self._begun.wait()
                self._begun = trio.Event()
                while self._held_since is not None:
                    await trio.sleep_until(self._held_since + HELD_S_MAX)
                    if self._held_since is not None and trio.current_time() >= self._held_since + HELD_S_MAX:
                        self.end()
        finally:
            self.end()

    def want(self, patience_s: float) -> None:
        """Something waits for a lull. Call this again and again, until `end`."""
        now = trio.current_time()
        if self._wanted_since is None:
            self._wanted_since = now
        if self._held_since is None and now >= self._wanted_since + patience_s:
            self._held.enter_context(self._pause.held())
            self._held_since = now
            self._begun.set()

    def end(self) -> None:
        """Nothing waits any more, or waiting has no sense now."""
        self._held.close()
        self._wanted_since = self._held_since = None
