"""Credit: how much of something a connection may have outstanding, handed out fairly among its callers."""

from __future__ import annotations

from collections import deque

import trio

from storage.errors import StorageError
from storage.wire.frames import Traffic


class Credit:
    """A bounded amount. The most urgent class is served first, within a class the first to ask.

    Nobody overtakes within a class, so a large wish is not starved by small ones.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._waiting: tuple[deque[tuple[int, trio.Event]], ...] = tuple(deque() for _ in Traffic)
        self._failure: StorageError | None = None

    @property
    def free(self) -> int:
        return self._free

    async def acquire(self, amount: int, traffic: Traffic) -> None:
        """Take `amount`, at most the total; waits until it is free. Raises the failure after `close`.

        A checkpoint only where it waits. Cancelled, it has taken nothing.
        """
        assert 0 <= amount <= self._total
        if not amount:
            return
        if self.acquire_nowait(amount, traffic):
            return
        entry = (amount, trio.Event())
        queue = self._waiting[traffic]
        queue.append(entry)
        try:
            if self._failure is None:
                await entry[1].wait()
        except BaseException:
            if entry in queue:
                queue.remove(entry)
                self._grant()
            else:
                self.release(amount)
            raise
        if self._failure is not None:
            raise type(self._failure)(str(self._failure))

    def acquire_nowait(self, amount: int, traffic: Traffic) -> bool:
        """Take `amount` if that needs no waiting."""
        if self._failure is None and self._free >= amount and not any(self._waiting[: traffic + 1]):
            self._free -= amount
            return True
        return False

    def release(self, amount: int) -> None:
        """Give back what was taken."""
        self._free += amount
        if any(self._waiting):
            self._grant()

    def close(self, failure: StorageError) -> None:
        """Make everybody who waits, now or later, fail with this."""
        self._failure = failure
        for queue in self._waiting:
            for _, event in queue:
                event.set()
            queue.clear()

    def _grant(self) -> None:
        for queue in self._waiting:
            while queue:
                amount, event = queue[0]
                if amount > self._free:
                    return
                self._free -= amount
                queue.popleft()
                event.set()
