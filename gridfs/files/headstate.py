"""What this client remembers of the head log, kept in the metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec

from gridfs.codec.headlist import HeadList
from gridfs.meta.operations import PackRecord
from gridfs.meta.records import HeadBody, Journaled
from gridfs.meta.store import Metadata
from storage.format.head import GENESIS

STATE_VALUE = "head"
BASE_VALUE = "base"
"""Kept apart from the state, which is written with every record and must stay small."""

NOBODY = bytes(16)
CLIENT_SIZE = 8
RUNS_MAX = 64


class HeadState(msgspec.Struct, array_like=True):
    """Where the head log of this mount stands."""

    epoch: int
    mount_id: bytes
    """Of the last run: 8 bytes that stay as long as this folder, and 8 of the run."""
    sequence: int = 0
    previous: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)] = GENESIS
    shipped: int = 0
    gathered: int = 0
    """Number of the last operation in journal packs or in the checkpoint."""
    emptied: int = 0
    """Number up to which the outbox was emptied."""
    runs: list[bytes] = []
    """Mount ids under which records may have been written since the last one we know of."""
    heads: HeadList | None = None
    """Who keeps the head log, where that is known better than from the configuration."""
    leaving: HeadList | None = None
    """While that list changes: the one before."""
    recorded: int = 0
    """Epoch of the newest record that we know of; `sequence` is that record's, too."""

    @property
    def stamp(self) -> tuple[int, int]:
        """(epoch, sequence) under which leases are asserted."""
        return self.epoch, self.sequence

    @property
    def is_new(self) -> bool:
        """Whether this folder never claimed an epoch: nothing in it is its own."""
        return self.mount_id == NOBODY

    @property
    def client(self) -> bytes:
        """What all runs of this folder share, and of copies of it."""
        return self.mount_id[:CLIENT_SIZE]

    def begin_run(self, token: bytes) -> None:
        """A new run: another mount id. `token`: 16 random bytes. A copy of this folder that is mounted
        elsewhere gets another one, so that head servers never take the two for one."""
        client = token[:CLIENT_SIZE] if self.is_new else self.client
        self.mount_id = client + token[CLIENT_SIZE:]
        # Of very many, those that came last found no servers; one of the first has written the newest record.
        self.runs = [*self.runs[: RUNS_MAX - 1], self.mount_id]


@dataclass(frozen=True, slots=True)
class Base:
    """What head records rest on: the newest checkpoint, and the journal packs behind it."""

    checkpoint: PackRecord | None = None
    checkpointed: int = 0
    """Number of the last operation in the checkpoint."""
    journals: tuple[Journaled, ...] = ()
    """Oldest first."""

    @property
    def newest(self) -> PackRecord | None:
        return self.journals[-1].pack if self.journals else None

    @property
    def journal_bytes(self) -> int:
        return sum(journal.pack.stream_length for journal in self.journals)

    def with_journal(self, last: int, pack: PackRecord) -> Base:
        return replace(self, journals=(*self.journals, Journaled(last, pack)))

    def with_checkpoint(self, pack: PackRecord | None, number: int) -> Base:
        """The base on a newer checkpoint: journal packs that it covers are left out."""
        journals = tuple(journal for journal in self.journals if journal.last > number)
        return Base(pack, number, journals)

    @property
    def packs(self) -> list[bytes]:
        """Ids of its packs, without those that the checkpoint's root names."""
        roots = [self.checkpoint.pack_id] if self.checkpoint else []
        return roots + [journal.pack.pack_id for journal in self.journals]


def base_of(body: HeadBody, earlier: Sequence[Journaled]) -> Base:
    """What a record rests on. `earlier`: what its newest journal pack names."""
    journals = [*earlier, Journaled(body.gathered, body.journal)] if body.journal else []
    return Base(journals=tuple(journals)).with_checkpoint(body.checkpoint, body.checkpointed)


def load_head_state(metadata: Metadata) -> HeadState:
    """What the last mount saved, or a fresh state."""
    stored = metadata.get_value(STATE_VALUE)
    return HeadState(0, NOBODY) if stored is None else msgspec.msgpack.decode(stored, type=HeadState)


def load_base(metadata: Metadata) -> Base:
    """What records rested on when the last mount saved it."""
    stored = metadata.get_value(BASE_VALUE)
    return Base() if stored is None else msgspec.msgpack.decode(stored, type=Base)


def save_head_state(metadata: Metadata, state: HeadState) -> None:
    metadata.set_value(STATE_VALUE, msgspec.msgpack.encode(state))


def save_base(metadata: Metadata, base: Base) -> None:
    metadata.set_value(BASE_VALUE, msgspec.msgpack.encode(base))
