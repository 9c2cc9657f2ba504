"""What a batch changes: decided here from what is held, without I/O, and logged as entries of a volume.

A `Change` is an effect, not a request: it is logged only if it takes place, and applying the log again in
its order gives the same state. `BatchView` lets the operations of one batch see each other's effects
before any of them is durable.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from storage.backends.port import ShareKey
from storage.errors import Corrupt
from storage.format.entry import PREFIX_SIZE
from storage.leases import Holder, Lease, Stamp, releases, rises

_FIELDS = struct.Struct(">32sHBx16s16sQQQ")
BARE_ENTRY_SIZE = PREFIX_SIZE + _FIELDS.size
"""Bytes of an entry without payload."""
assert _FIELDS.size == 92
_NO_LEASE = Lease(bytes(16), bytes(16), 0, 0)


class Kind(IntEnum):
    """Kinds of volume entries."""

    SHARE = 1
    """The payload is the share; it now lies here."""
    FILE = 2
    """The share lies in a file of its own."""
    LEASE = 3
    """A lease was taken or renewed."""
    RELEASE = 4
    """A lease lower than this stamp was taken away, and the share with it if it was the last."""


@dataclass(frozen=True, slots=True)
class Change:
    """One effect on one share."""

    kind: Kind
    key: ShareKey
    lease: Lease | None
    length: int = 0
    """Bytes of the share, for SHARE and FILE."""

    def encode(self) -> bytes:
        """Fields of the entry."""
        return _FIELDS.pack(*self.key, self.lease is not None, *(self.lease or _NO_LEASE), self.length)

    @classmethod
    def decode(cls, kind: int, fields: bytes) -> Change:
        """Raises Corrupt for an unknown kind or other fields."""
        try:
            pack_id, number, leased, *lease, length = _FIELDS.unpack(fields)
            return cls(Kind(kind), ShareKey(pack_id, number), Lease(*lease) if leased else None, length)
        except (struct.error, ValueError) as error:
            raise Corrupt(f"volume entry of kind {kind}: {error}") from None


@dataclass(slots=True)
class ShareState:
    """Whether a share is here, and who holds leases on it."""

    present: bool = False
    leases: dict[Holder, Stamp] = field(default_factory=dict)


class BatchView:
    """Committed state under the effects of the operations planned so far."""

    def __init__(self, load: Callable[[ShareKey], ShareState]) -> None:
        self._load = load
        self._states: dict[ShareKey, ShareState] = {}

    def state(self, key: ShareKey) -> ShareState:
        if key not in self._states:
            self._states[key] = self._load(key)
        return self._states[key]

    def store(
        self, key: ShareKey, lease: Lease | None, length: int, *, own_file: bool
    ) -> tuple[bool, Change | None]:
        """(whether it is new, the effect)."""
        state = self.state(key)
        if state.present:
            return False, self.assert_lease(key, lease)[1] if lease else None
        state.present = True
        if lease:
            state.leases[lease.holder] = lease.stamp
        return True, Change(Kind.FILE if own_file else Kind.SHARE, key, lease, length)

    def assert_lease(self, key: ShareKey, lease: Lease) -> tuple[bool, Change | None]:
        """(whether the share is here, the effect)."""
        state = self.state(key)
        if not state.present or not rises(state.leases.get(lease.holder), lease.stamp):
            return state.present, None
        state.leases[lease.holder] = lease.stamp
        return True, Change(Kind.LEASE, key, lease)

    def release(self, key: ShareKey, lease: Lease) -> tuple[bool, Change | None]:
        """(whether the holder is left without a lease, the effect)."""
        state = self.state(key)
        held = state.leases.get(lease.holder)
        if not releases(held, lease.stamp):
            return held is None, None
        del state.leases[lease.holder]
        state.present = bool(state.leases)
        return True, Change(Kind.RELEASE, key, lease)
