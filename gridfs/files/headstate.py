"""What this client remembers of the head log, kept in the metadata."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gridfs.meta.operations import PackRecord
from gridfs.meta.store import Metadata
from storage.format.head import GENESIS

STATE_VALUE = "head"
JOURNALS_VALUE = "journals"
"""Kept apart from the state, which is written with every record and must stay small."""


class HeadState(msgspec.Struct, array_like=True):
    """Where the head log of this mount stands."""

    epoch: int
    mount_id: bytes
    sequence: int = 0
    previous: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)] = GENESIS
    shipped: int = 0
    gathered: int = 0
    emptied: int = 0
    """Number up to which the outbox was emptied."""

    @property
    def stamp(self) -> tuple[int, int]:
        """(epoch, sequence) under which leases are asserted."""
        return self.epoch, self.sequence


def load_head_state(metadata: Metadata) -> HeadState:
    """What the last mount saved, or a fresh state."""
    stored = metadata.get_value(STATE_VALUE)
    return HeadState(0, bytes(16)) if stored is None else msgspec.msgpack.decode(stored, type=HeadState)


def load_journals(metadata: Metadata) -> list[PackRecord]:
    """The journal packs that the last mount knew of, oldest first."""
    stored = metadata.get_value(JOURNALS_VALUE)
    return [] if stored is None else msgspec.msgpack.decode(stored, type=list[PackRecord])


def save_head_state(metadata: Metadata, state: HeadState) -> None:
    metadata.set_value(STATE_VALUE, msgspec.msgpack.encode(state))


def save_journals(metadata: Metadata, journals: list[PackRecord]) -> None:
    metadata.set_value(JOURNALS_VALUE, msgspec.msgpack.encode(journals))
