"""A pause of all changes: while a tree is being cloned, so that the clone shows one moment of it.

Reads go on. Whoever is about to change something waits with `over` while `is_on`; there must be no
await between that and the change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Pause:
    """On while at least one holder has it."""

    def __init__(self) -> None:
        self._holders = 0
        self._over = trio.Event()

    @property
    def is_on(self) -> bool:
        return self._holders > 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Changes wait until the block is left."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._over.set()
                self._over = trio.Event()

    async def over(self) -> None:
        """Wait until nobody holds it."""
        while self._holders:
            await self._over.wait()
