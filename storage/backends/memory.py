"""Shares in memory: the same rules without a disk, for tests and for servers that may forget."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from storage.backends.changes import BatchView, Kind, ShareState
from storage.backends.port import IncomingShare, Piece, ShareKey
from storage.backends.requests import check_keys, check_shares, share_length
from storage.errors import Exhausted, Unavailable
from storage.leases import Holder, Lease
from storage.ports import Buffer, Space


class MemoryFile:
    """A read-only `File` over bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def descriptor(self) -> int | None:
        return None

    def read_into(self, buffer: memoryview, offset: int) -> int:
        found = memoryview(self._data)[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found)

    def read_ready(self, buffer: memoryview, offset: int) -> int:
        return self.read_into(buffer, offset)

    def read_direct(self, buffer: memoryview, offset: int) -> int:
        return self.read_into(buffer, offset)

    def write_at(self, parts: Sequence[Buffer], offset: int) -> int:
        raise OSError(f"{sum(map(len, parts))} bytes at {offset}: a share is never written again")

    def write_through(self, parts: Sequence[Buffer], offset: int) -> int:
        return self.write_at(parts, offset)

    def write_direct(self, data: Buffer, offset: int) -> int:
        return self.write_at([data], offset)

    def sync(self) -> None:
        """Nothing to do."""

    def resize(self, size: int) -> None:
        raise OSError(f"resize to {size}: a share is never written again")

    def size(self) -> int:
        return len(self._data)

    def close(self) -> None:
        """Nothing to do."""


class MemoryBackend:
    """`ShareBackend` in memory; what it holds ends with it."""

    def __init__(self, capacity_bytes: int = 1 << 30) -> None:
        self._capacity = capacity_bytes
        self._files: dict[ShareKey, MemoryFile] = {}
        self._states: dict[ShareKey, ShareState] = {}
        self._bytes = 0
        self._running = False
        self._pins = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._running = True
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._running = False

    def _check_running(self) -> None:
        if not self._running:
            raise Unavailable("the backend is not running")

    def has(self, keys: Sequence[ShareKey]) -> list[bool]:
        self._check_running()
        return [key in self._files for key in keys]

    async def store(self, shares: Sequence[IncomingShare]) -> list[bool]:
        check_shares(shares)
        self._check_running()
        await trio.lowlevel.checkpoint()
        if sum(share_length(s) for s in shares if s.key not in self._files) > self.space().free:
            raise Exhausted("no room for shares")
        view = self._view()
        answers = []
        for share in shares:
            new, _ = view.store(share.key, share.lease, share_length(share), own_file=False)
            if new:
                self._states[share.key] = view.state(share.key)
                self._files[share.key] = MemoryFile(b"".join(share.parts))
                self._bytes += share_length(share)
            answers.append(new)
        return answers

    def pin(self, key: ShareKey) -> Piece | None:
        self._check_running()
        file = self._files.get(key)
        if file is None:
            return None
        self._pins += 1
        return Piece(file, 0, file.size())

    def unpin(self, piece: Piece) -> None:
        self._pins -= 1

    async def assert_leases(self, keys: Sequence[ShareKey], lease: Lease) -> list[bool]:
        check_keys(keys, lease)
        self._check_running()
        await trio.lowlevel.checkpoint()
        view = self._view()
        return [view.assert_lease(key, lease)[0] for key in keys]

    async def release(self, keys: Sequence[ShareKey], lease: Lease) -> list[bool]:
        check_keys(keys, lease)
        self._check_running()
        await trio.lowlevel.checkpoint()
        view = self._view()
        answers = []
        for key in keys:
            done, change = view.release(key, lease)
            if change and change.kind == Kind.RELEASE and not view.state(key).present:
                self._bytes -= self._files.pop(key).size()
                del self._states[key]
            answers.append(done)
        return answers

    def leased(self, holder: Holder, after: ShareKey | None, limit: int) -> list[ShareKey]:
        self._check_running()
        found = (key for key, state in self._states.items() if holder in state.leases)
        return sorted(key for key in found if after is None or key > after)[:limit]

    def space(self) -> Space:
        return Space(self._capacity, self._capacity - self._bytes)

    def counts(self) -> tuple[int, int]:
        self._check_running()
        return len(self._files), self._bytes

    def statistics(self) -> tuple[int, int]:
        """(open files kept for readers, pins held)."""
        return 0, self._pins

    def _view(self) -> BatchView:
        # Nothing can fail between deciding and doing here, so the view works on the committed state itself.
        return BatchView(lambda key: self._states.get(key) or ShareState())
