"""What head logs hold and what an operation would change: decided here, without I/O.

`HeadLog` is committed state. `Staged` lays the operations of one batch over it, so that the second append of
a batch sees the first; its changes reach the `HeadLog` by `adopt`, after the batch is durable.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from storage.errors import Conflict
from storage.format.head import NO_MOUNT, RECORD_OVERHEAD, HeadRecord, Succession, generation_of
from storage.leases import Stamp


class Claim(NamedTuple):
    log: bytes
    verifying_key: bytes
    epoch: int
    mount_id: bytes
    succession: Succession | None = None
    """How the log came to the verifying key, if that is not its first."""

    @property
    def generation(self) -> int:
        return self.succession.generation if self.succession else 0


class Append(NamedTuple):
    log: bytes
    record: HeadRecord


class Trim(NamedTuple):
    log: bytes
    before: Stamp


class Drop(NamedTuple):
    log: bytes
    epoch: int


Operation = Claim | Append | Trim | Drop
"""What becomes one entry of the file."""


class Appends(NamedTuple):
    """Records that come together, each naming the one before it: all are kept, or none."""

    log: bytes
    records: Sequence[HeadRecord]


Submitted = Claim | Appends | Trim | Drop


class Slot(NamedTuple):
    """Where a record lies in the file."""

    epoch: int
    sequence: int
    offset: int
    """Offset of the encoded record, not of its entry."""
    length: int

    @property
    def stamp(self) -> Stamp:
        return self.epoch, self.sequence


@dataclass(slots=True)
class HeadLog:
    """Committed state of one log."""

    name: bytes
    verifying_key: bytes
    """To which the log belongs now."""
    epoch: int
    """Promised; lower ones are refused."""
    mount_id: bytes
    """The mount to which the epoch was promised."""
    succession: Succession | None = None
    """How the log came to its key; None while that is the first one."""
    slots: list[Slot] = field(default_factory=list)
    """Records that are kept, by rising stamp."""
    record_bytes: int = 0

    @property
    def newest(self) -> Slot | None:
        return self.slots[-1] if self.slots else None

    def claim(self, claim: Claim) -> None:
        """Promise an epoch, which has been decided."""
        self.verifying_key, self.succession = claim.verifying_key, claim.succession
        self.epoch, self.mount_id = claim.epoch, claim.mount_id

    def find(self, stamp: Stamp) -> Slot | None:
        index = bisect_left(self.slots, stamp)
        return self.slots[index] if index < len(self.slots) and self.slots[index].stamp == stamp else None

    def keep(self, slot: Slot) -> None:
        """Take a record in; one that does not rise above the newest is dropped."""
        if not self.slots or slot[:2] > self.slots[-1][:2]:
            self.slots.append(slot)
            self.record_bytes += slot.length

    def trim(self, before: Stamp) -> None:
        """Drop records below a stamp, never the newest one."""
        end = min(bisect_left(self.slots, before), len(self.slots) - 1)
        if end > 0:
            self.record_bytes -= sum(slot.length for slot in self.slots[:end])
            del self.slots[:end]


class Staged:
    """One log during one batch: committed state, or none yet, and what was accepted since."""

    def __init__(self, log: HeadLog | None) -> None:
        self.log = log
        self.epoch = log.epoch if log else -1
        self.mount_id = log.mount_id if log else NO_MOUNT
        self.added: list[HeadRecord] = []
        self.count = len(log.slots) if log else 0
        """Of records, those of the batch included."""
        self.size_bytes = log.record_bytes if log else 0
        """Bytes of these, encoded."""
        self.created = False

    def claim(self, claim: Claim) -> bool:
        """Promise an epoch; False where it was promised to this mount before. Raises Conflict.

        The epochs of a generation are above those of the one before, so an older key loses by its epoch.
        """
        if claim.generation < generation_of(max(self.epoch, 0)):
            raise Conflict(
                f"this head log belongs to a successor of that key, of generation {generation_of(self.epoch)}"
            )
        if claim.epoch < self.epoch:
            raise Conflict(f"epoch {self.epoch} was promised, {claim.epoch} is older")
        if claim.epoch == self.epoch:
            if claim.mount_id != self.mount_id:
                raise Conflict(f"epoch {self.epoch} was promised to another mount")
            return False
        self.created = self.created or self.log is None
        self.epoch, self.mount_id = claim.epoch, claim.mount_id
        return True

    def append(self, record: HeadRecord) -> Slot | HeadRecord | None:
        """None: accepted as new. Otherwise the record kept under this stamp, to be compared by the caller.

        Raises Conflict where the promise is another's or the stamp is below the newest and not kept.
        """
        if record.epoch != self.epoch:
            raise Conflict(f"record of epoch {record.epoch}, but {self.epoch} is promised")
        if record.mount_id not in (NO_MOUNT, self.mount_id):
            raise Conflict(f"epoch {self.epoch} was promised to another mount")
        newest, stamp = self.newest_stamp, record.stamp
        if newest is None or stamp > newest:
            self.added.append(record)
            self.count += 1
            self.size_bytes += RECORD_OVERHEAD + len(record.payload)
            return None
        for added in self.added:
            if added.stamp == stamp:
                return added
        kept = self.log.find(stamp) if self.log else None
        if kept is None:
            raise Conflict(f"record {stamp} is older than the newest {newest}")
        return kept

    def take_back(self) -> None:
        """What was appended last is not kept after all."""
        record = self.added.pop()
        self.count -= 1
        self.size_bytes -= RECORD_OVERHEAD + len(record.payload)

    def drop(self, epoch: int) -> bool:
        """End the log; False where there is none. Raises Conflict where another epoch is promised."""
        if self.log is None and not self.created:
            return False
        if epoch != self.epoch:
            raise Conflict(f"epoch {self.epoch} was promised, and only its mount may end the log")
        self.log, self.created = None, False
        self.epoch, self.mount_id = -1, NO_MOUNT
        self.count = self.size_bytes = 0
        self.added.clear()
        return True

    @property
    def newest_stamp(self) -> Stamp | None:
        if self.added:
            return self.added[-1].stamp
        return self.log.slots[-1].stamp if self.log and self.log.slots else None
