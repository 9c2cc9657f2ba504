"""Bugs to plant: each takes one rule out of the real code, and a checker must notice.

    with BUGS["no fsync"].planted():
        ...

`seed`: a run that notices it. `checkers`: which of the rules may be the first to. `weights`: what has to
happen more often than usual, so that one run is enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import trio

from gridfs.config import Config
from gridfs.files.barriers import Barriers
from gridfs.files.claiming import Claimer
from gridfs.files.dirty import DirtyData
from gridfs.files.history import History
from gridfs.files.journal import Journal
from gridfs.files.spool import Replayed, Spool
from gridfs.files.writer import Writer
from gridfs.grid import placement
from gridfs.grid.uploader import Receipt
from storage.appendfile import AppendBatch, AppendFile
from storage.backends.sharefiles import ShareFiles, WrittenFile
from storage.errors import StorageError
from storage.groupcommit import GroupCommit
from storage.headlog.state import Claim, Staged
from tests.simulation.chaos.plan import ENDINGS, Weights

Patch = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Bug:
    """One of them."""

    planted: Patch
    seed: int
    checkers: frozenset[str]
    weights: Weights = field(default_factory=Weights)


BUGS: dict[str, Bug] = {}


Register = Callable[[Callable[[], Iterator[None]]], Patch]


def bug(name: str, seed: int, *checkers: str, weights: Weights | None = None) -> Register:
    """Register a generator function: what is before its yield plants the bug."""

    def register(function: Callable[[], Iterator[None]]) -> Patch:
        planted = contextlib.contextmanager(function)
        BUGS[name] = Bug(planted, seed, frozenset(checkers), weights or Weights())
        return planted

    return register


@bug("no fsync", 2, "durable")
def no_fsync() -> Iterator[None]:
    """A server's volumes and head logs are never synced."""
    write = AppendFile.write

    def unsynced(self: AppendFile, batch: AppendBatch, *, sync: bool) -> None:
        write(self, batch, sync=False)

    with mock.patch.object(AppendFile, "write", unsynced):
        yield


@bug("acknowledge before fsync", 2, "durable")
def acknowledge_before_fsync() -> Iterator[None]:
    """A head server answers, and syncs afterwards."""
    settle = GroupCommit._settle

    async def early(self: GroupCommit[Any, Any], batch: list[Any]) -> None:
        if self._commit.__qualname__.startswith("HeadLogs"):
            for ticket in batch:
                if not isinstance(ticket.operation, Claim) and not ticket.settled:
                    ticket.succeed(None)
            await trio.sleep(0.2)
        with contextlib.suppress(StorageError):
            await settle(self, batch)

    def never(self: GroupCommit[Any, Any], ticket: object) -> bool:
        return False

    with (
        mock.patch.object(GroupCommit, "_settle", early),
        mock.patch.object(GroupCommit, "_commit_alone", never),
    ):
        yield


@bug("W-1", 10, "durable")
def quorum_less_one() -> Iterator[None]:
    """One head server fewer than W is enough."""
    real = Config.quorum

    def less(self: Config) -> int:
        assert real.fget is not None
        return max(1, int(real.fget(self)) - 1)

    with mock.patch.object(Config, "quorum", property(less)):
        yield


@bug("commit metadata before the pack", 6, "liveness", "reads", "synced bytes")
def commit_before_pack() -> Iterator[None]:
    """The metadata has the extents of a pack that is only on its way."""
    upload = Writer._upload

    async def early(self: Writer, sealed: Any) -> Receipt:
        uploader: Any = self._uploader
        servers = placement.order(sealed.pack_id, uploader._roster)
        trio.lowlevel.spawn_system_task(_later, upload, self, sealed)
        stored = sealed.geometry.stored_numbers()
        places = [servers[i] if i in stored else None for i in range(sealed.geometry.n)]
        return Receipt(tuple(places), ())

    with mock.patch.object(Writer, "_upload", early):
        yield


async def _later(upload: Any, writer: Writer, sealed: Any) -> None:
    with contextlib.suppress(Exception):
        await trio.sleep(0.5)
        await upload(writer, sealed)


@bug("record before the pack", 2, "synced bytes")
def record_before_pack() -> Iterator[None]:
    """fsync sends its record without waiting for the data's pack."""

    async def hasty(self: Journal, ino: int, number: int) -> None:
        self._check_owner()
        await self.shipped(number)

    with mock.patch.object(Journal, "synced", hasty):
        yield


@bug("reused key", 2, "nonces")
def reused_key() -> Iterator[None]:
    """All shared packs have the same key."""
    prepare = Writer._prepare

    def same(self: Writer, flight: Any) -> None:
        prepare(self, flight)
        if flight.key is not None:
            flight.key = bytes(32)

    with mock.patch.object(Writer, "_prepare", same):
        yield


@bug("no directory fsync", 2, "durable")
def no_directory_fsync() -> Iterator[None]:
    """A server syncs the files of shares, and not their names."""

    def files_only(self: ShareFiles, shares: list[WrittenFile]) -> None:
        for share in shares:
            share.file.sync()

    with mock.patch.object(ShareFiles, "sync", files_only):
        yield


@bug("swallowed EIO", 10, "durable")
def swallowed_error() -> Iterator[None]:
    """A server whose disk fails says that all is well."""
    write = AppendFile.write

    def optimistic(self: AppendFile, batch: AppendBatch, *, sync: bool) -> None:
        with contextlib.suppress(StorageError):
            write(self, batch, sync=sync)

    with mock.patch.object(AppendFile, "write", optimistic):
        yield


TAKEOVERS = Weights(endings={**ENDINGS, "takeover": 60})


@bug("equal epochs accepted", 15, "synced names", "two writers", weights=TAKEOVERS)
def equal_epochs() -> Iterator[None]:
    """An epoch is promised to whoever asks for it, also to a second mount."""
    claim = Staged.claim

    def generous(self: Staged, wanted: Claim) -> bool:
        if wanted.epoch == self.epoch and wanted.mount_id != self.mount_id:
            self.mount_id = wanted.mount_id
            return True
        return claim(self, wanted)

    with mock.patch.object(Staged, "claim", generous):
        yield


@bug("ancestor check left out", 7, "takeover")
def no_ancestor_check() -> Iterator[None]:
    """A client goes on from its own state, whatever another has written since."""

    async def descends(*_: Any) -> bool:
        return True

    with (
        mock.patch.object(Claimer, "_check_stranger", return_value=None),
        mock.patch.object(History, "descends", descends),
    ):
        yield


@bug("replay out of order", 2, "prefix")
def replay_out_of_order() -> Iterator[None]:
    """The last records of the spool come first."""
    replay = Spool.open

    def reversed_(self: Spool, applied: int) -> Iterator[Replayed]:
        yield from sorted(replay(self, applied), key=lambda record: -record.number)

    with mock.patch.object(Spool, "open", reversed_):
        yield


@bug("rename before its data", 2, "synced bytes")
def rename_before_data() -> Iterator[None]:
    """A name that takes another's place does not wait for its bytes."""
    with (
        mock.patch.object(Barriers, "hold", return_value=None),
        mock.patch.object(DirtyData, "renamed", return_value=None),
    ):
        yield
