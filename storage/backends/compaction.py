"""Compaction: a volume of which more than half is dead is carried over, as far as it is needed, and removed.

It works in slices between commits. Carried entries are ordinary entries at the end of the newest volume; the
index then points there. The old volume goes only after the index is durable, so a crash at any point leaves
either both copies or the new one, and the next start takes up the same volume again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from storage.appendfile import AppendBatch
from storage.backends.changes import Change, Kind
from storage.backends.index import Logged, Place, ShareIndex
from storage.backends.volumes import Volumes
from storage.format.entry import FILE_HEADER_SIZE, Entry
from storage.leases import Lease
from storage.ports import Buffer, Offload

SLICE_BYTES = 4 * 1024 * 1024


class Compactor:
    """Decides what to carry over, and carries it. Only the committing task may use it."""

    def __init__(self, index: ShareIndex, volumes: Volumes, offload: Offload) -> None:
        self._index = index
        self._volumes = volumes
        self._offload = offload
        self._number: int | None = None
        self._offset = FILE_HEADER_SIZE

    def choose(self) -> int | None:
        """The volume under way, or the next one that is more than half dead; never the newest."""
        if self._number is None:
            active = self._volumes.active.number
            for number, dead in self._index.dead_bytes().items():
                size = self._volumes.sizes.get(number, 0)
                if number != active and dead * 2 > size > 0:
                    self._number, self._offset = number, FILE_HEADER_SIZE
                    break
        return self._number

    async def slice(self) -> bool:
        """Carry over a slice of the chosen volume; True once nothing in it is needed any more.

        Raises Exhausted, Unavailable or OSError; then it may be tried again.
        """
        assert self._number is not None, "chosen before"
        entries = await self._offload.run(self._volumes.read_slice, self._number, self._offset, SLICE_BYTES)
        if not entries:
            return True
        carried = [item for entry, payload in entries for item in self._carry(entry, payload)]
        if carried:
            logged = await self._offload.run(log_changes, self._volumes, carried, True)
            self._index.apply(logged, self._volumes.position)
        self._offset = entries[-1][0].end
        return False

    async def finish(self) -> int:
        """Remove the volume, the index being durable; returns its number."""
        assert self._number is not None, "chosen before"
        number, self._number = self._number, None
        await self._offload.run(self._volumes.remove, number)
        self._index.forget_volume(number)
        return number

    def _carry(self, entry: Entry, payload: bytearray | None) -> list[tuple[Change, Sequence[Buffer]]]:
        assert self._number is not None
        change = Change.decode(entry.kind, entry.fields)
        place = self._index.place(change.key)
        if change.kind == Kind.RELEASE:
            # An older volume may still hold what this took away; only the making anew of an index asks.
            needed = place is None and self._number != min(self._volumes.sizes)
            return [(change, ())] if needed else []
        here = Place(self._number, entry.payload_offset, entry.payload_length)
        lease = self._current(change)
        if change.kind == Kind.SHARE and place == here:
            if payload is None:
                self._index.forget(change.key)
                return []
            return [(replace(change, lease=lease), [payload])]
        return [(Change(Kind.LEASE, change.key, lease), ())] if lease else []

    def _current(self, change: Change) -> Lease | None:
        if change.lease is None:
            return None
        stamp = self._index.state(change.key).leases.get(change.lease.holder)
        return Lease(*change.lease.holder, *stamp) if stamp else None


def log_changes(
    volumes: Volumes, changes: Sequence[tuple[Change, Sequence[Buffer]]], sync: bool
) -> list[Logged]:
    """Append changes to the newest volume in one write. In a worker thread.

    Raises Exhausted or Unavailable (then nothing of it stays), or OSError where no new volume can begin.
    """
    volumes.make_room()
    batch: AppendBatch = volumes.active.batch()
    number = volumes.active.number
    logged = []
    for change, payload in changes:
        entry = batch.add(change.kind, change.encode(), payload)
        logged.append(Logged(change, number, entry.payload_offset))
    volumes.write(batch, sync=sync)
    return logged
