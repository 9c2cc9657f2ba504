"""The service: what each request does to the shares and head logs of one server.

It knows accounts and messages, not connections. Between awaits: pins are taken and given back by the same
`ReadPlan`; everything else that is shared lies in the backend and the head logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from storage.backends.port import IncomingShare, Lease, Piece, ShareBackend, ShareKey, SyncPolicy
from storage.errors import Refused
from storage.format.share import verify_share
from storage.headlog import HeadLogs, HeadRecord
from storage.identity import Account
from storage.ports import File, Offload
from storage.version import __version__
from storage.wire import messages as wire
from storage.wire.body import FileRange, Part

INLINE_VERIFY_SIZE_MAX = 256 * 1024
"""Bytes of shares hashed in the loop (40 us); more go to a thread."""
COPIED_SIZE_MAX = 64 * 1024
"""Answers up to this size are copied and leave with their header in one system call."""
_READING: tuple[type[wire.Request], ...] = (wire.Readv, wire.Have, wire.HeadRead, wire.Info)
_ALLOWED: dict[str, tuple[type[wire.Request], ...]] = {"read": _READING, "repair": (*_READING, wire.Put)}
"""Requests by rights; what is not named may do everything."""


class PageCache(Protocol):
    """What is known of the memory between a file and its disk."""

    def is_resident(self, file: File, offset: int, length: int) -> bool:
        """Whether the range can be sent without waiting for the disk. Never waits."""

    def load(self, file: File, offset: int, length: int) -> None:
        """Make it so. Waits: run it through `Offload`."""


class ReadPlan:
    """The answer to a readv: lengths, and where the bytes lie. Pins its shares until `close`."""

    __slots__ = ("_backend", "_pieces", "lengths", "parts", "size", "whole")

    def __init__(self, backend: ShareBackend) -> None:
        self._backend = backend
        self._pieces: list[Piece] = []
        self.lengths: list[int] = []
        """Bytes per span, in the order asked."""
        self.parts: list[Part] = []
        """The bytes, neighbours joined."""
        self.size = 0
        self.whole = True
        """Whether every span is as long as asked."""

    def add(self, share: wire.ShareRead) -> None:
        """Take one share's ranges up."""
        piece = self._backend.pin(ShareKey(share.pack_id, share.number))
        held = 0
        if piece is not None:
            self._pieces.append(piece)
            held = piece.length
        ranges = iter(share.ranges)
        for offset, length in zip(ranges, ranges, strict=True):
            got = max(0, min(length, held - offset))
            self.lengths.append(got)
            if got < length:
                self.whole = False
            if got and piece is not None:
                self._add_range(FileRange(piece.file, piece.offset + offset, got))

    def copy(self) -> None:
        """Read the bytes into memory and let the shares go."""
        buffer = bytearray(self.size)
        view = memoryview(buffer)
        for part in self.parts:
            assert isinstance(part, FileRange)
            count = part.file.read_into(view[: part.length], part.offset)
            if count < part.length:
                raise OSError(0, "a share is shorter than its index says")
            view = view[part.length :]
        self.parts = [buffer] if self.size else []
        self.close()

    def close(self) -> None:
        """Idempotent."""
        while self._pieces:
            self._backend.unpin(self._pieces.pop())

    def _add_range(self, wanted: FileRange) -> None:
        self.size += wanted.length
        last = self.parts[-1] if self.parts else None
        if (
            isinstance(last, FileRange)
            and last.file is wanted.file
            and last.offset + last.length == wanted.offset
        ):
            self.parts[-1] = FileRange(last.file, last.offset, last.length + wanted.length)
        else:
            self.parts.append(wanted)


class Service:
    """One server's shares and head logs, as requests see them."""

    def __init__(
        self,
        backend: ShareBackend,
        heads: HeadLogs,
        offload: Offload,
        page_cache: PageCache,
        sync_policy: SyncPolicy,
    ) -> None:
        self._backend = backend
        self._heads = heads
        self._offload = offload
        self._page_cache = page_cache
        self._sync_policy = sync_policy

    def check_rights(self, account: Account, request: wire.AnyRequest) -> None:
        """Raise Refused where the account may not ask this."""
        allowed = _ALLOWED.get(account.rights)
        if allowed is not None and not isinstance(request, allowed):
            asked = wire.request_name(request)
            raise Refused(
                f"this account may not do that: its rights are {account.rights!r}, asked was {asked}"
            )

    def read(self, request: wire.Readv) -> ReadPlan:
        """Find the shares. The caller closes the plan."""
        plan = ReadPlan(self._backend)
        try:
            for share in request.shares:
                plan.add(share)
        except BaseException:
            plan.close()
            raise
        return plan

    def cold_ranges(self, plan: ReadPlan) -> list[FileRange]:
        """Ranges of the plan that have to come from the disk first."""
        is_resident = self._page_cache.is_resident
        return [part for part in plan.parts if isinstance(part, FileRange) and not is_resident(*part)]

    async def load(self, ranges: Sequence[FileRange]) -> None:
        """Bring cold ranges into the page cache, away from the loop."""
        for wanted in ranges:
            await self._offload.run(self._page_cache.load, *wanted)

    async def put(self, account: Account, request: wire.Put, shares: Sequence[bytearray]) -> wire.FlagsReply:
        """Verify and store. Raises Corrupt, and nothing of the vector is stored, where a share is wrong."""
        keys = [ShareKey(share.pack_id, share.number) for share in request.shares]
        if sum(map(len, shares)) <= INLINE_VERIFY_SIZE_MAX:
            _verify(keys, shares)
        else:
            await self._offload.run(_verify, keys, shares)
        lease = Lease(request.file_system, account.name, request.epoch, request.sequence)
        incoming = [IncomingShare(key, [share], lease) for key, share in zip(keys, shares, strict=True)]
        return wire.FlagsReply(await self._backend.store(incoming))

    async def perform(self, account: Account, request: wire.AnyRequest) -> wire.Reply:
        """Everything without a body."""
        match request:
            case wire.Have():
                return wire.FlagsReply(await self._have(account, request))
            case wire.Release():
                lease = Lease(request.file_system, account.name, request.epoch, request.sequence)
                return wire.FlagsReply(await self._backend.release(_keys(request.keys), lease))
            case wire.HeadClaim(log, verifying_key, epoch, mount_id):
                promised, holder, newest = await self._heads.claim(log, verifying_key, epoch, mount_id)
                return wire.ClaimReply(promised, holder, None if newest is None else _entry(newest))
            case wire.HeadAppend(log, entry):
                await self._heads.append(log, _record(entry))
                return wire.DoneReply()
            case wire.HeadRead(log, after, limit_bytes):
                stamp = None if after is None else (after.epoch, after.sequence)
                return wire.RecordsReply(list(map(_entry, self._heads.read(log, stamp, limit_bytes))))
            case wire.HeadTrim(log, before, signature):
                await self._heads.trim(log, (before.epoch, before.sequence), signature)
                return wire.DoneReply()
            case wire.Info():
                return self._info()
        raise Refused("this request has a body of its own")

    async def _have(self, account: Account, request: wire.Have) -> list[bool]:
        keys = _keys(request.keys)
        if account.rights == "read":
            # Whoever may not store may not hold a lease either.
            return self._backend.has(keys)
        lease = Lease(request.file_system, account.name, request.epoch, request.sequence)
        return await self._backend.assert_leases(keys, lease)

    def _info(self) -> wire.InfoReply:
        space = self._backend.space()
        shares, share_bytes = self._backend.counts()
        return wire.InfoReply(
            __version__, self._sync_policy.value, space.total, space.free, shares, share_bytes
        )


def _verify(keys: Sequence[ShareKey], shares: Sequence[bytearray]) -> None:
    for key, share in zip(keys, shares, strict=True):
        verify_share(key.pack_id, key.number, share)


def _keys(keys: Sequence[wire.Key]) -> list[ShareKey]:
    return [ShareKey(key.pack_id, key.number) for key in keys]


def _record(entry: wire.HeadEntry) -> HeadRecord:
    return HeadRecord(
        entry.epoch, entry.sequence, entry.previous, entry.payload, entry.signature, entry.mount_id
    )


def _entry(record: HeadRecord) -> wire.HeadEntry:
    return wire.HeadEntry(
        record.epoch, record.sequence, record.previous, record.payload, record.signature, record.mount_id
    )
