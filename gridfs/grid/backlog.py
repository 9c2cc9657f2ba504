"""Backlog: head records that one head server is still to be sent, one message for all of them. Pure.

Each names the hash of the one before it. A server may lack records: readers ask several. So what grows too
long while a server hangs is cut at its old end.
"""

from __future__ import annotations

from storage.format.head import RECORD_OVERHEAD, HeadRecord
from storage.wire.messages import HEAD_APPEND_MAX

FULL_COUNT = 16
"""Records that are not gathered any longer: more would save next to nothing."""
FULL_BYTES = 64 << 10
BYTES_MAX = 2 * FULL_BYTES
"""Encoded records of one message; a longest one fits beside what is not full yet."""


class Backlog:
    """What one server lacks."""

    __slots__ = ("_size_bytes", "is_busy", "records", "unanswered")

    def __init__(self) -> None:
        self.records: list[HeadRecord] = []
        """Oldest first."""
        self._size_bytes = 0
        self.is_busy = False
        """Whether a task sends what is here, and what comes meanwhile behind it."""
        self.unanswered = 0
        """Messages that it has not answered."""

    def put(self, record: HeadRecord) -> None:
        """The server lacks this one, too."""
        if self.records:
            if self.records[-1] == record:
                return
            if record.previous != self.records[-1].record_hash():
                self.take()
        self.records.append(record)
        self._size_bytes += _size(record)
        while len(self.records) > HEAD_APPEND_MAX or self._size_bytes > BYTES_MAX:
            self._size_bytes -= _size(self.records.pop(0))

    def take(self) -> list[HeadRecord]:
        """All of it: the server lacks nothing from here on."""
        records, self.records, self._size_bytes = self.records, [], 0
        return records

    @property
    def is_full(self) -> bool:
        return len(self.records) >= FULL_COUNT or self._size_bytes >= FULL_BYTES


def _size(record: HeadRecord) -> int:
    return RECORD_OVERHEAD + len(record.payload)
