"""The service: what each request does to the shares and head logs of one server.

It knows accounts and messages, not connections. Between awaits: pins are taken and given back by the same
`ReadPlan`; everything else that is shared lies in the backend and the head logs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from storage.backends.port import IncomingShare, Lease, ShareBackend, ShareKey, SyncPolicy
from storage.errors import Refused, StorageError
from storage.headlog import HeadLogs
from storage.identity import Account
from storage.pages import PagePool
from storage.ports import Offload
from storage.putbody import PutBody
from storage.readplan import COPIED_SIZE_MAX, ColdReads, Loading, PageCache, ReadPlan
from storage.version import __version__
from storage.wire import messages as wire
from storage.wire.heads import claim_of, entry_of, record_of, said_of

_READING: tuple[type[wire.Request], ...] = (
    wire.Readv,
    wire.Have,
    wire.HeadRead,
    wire.HeadLook,
    wire.Info,
)
_ALLOWED: dict[str, tuple[type[wire.Request], ...]] = {"read": _READING, "repair": (*_READING, wire.Put)}
"""Requests by rights; what is not named may do everything."""


class Service:
    """One server's shares and head logs, as requests see them."""

    def __init__(
        self,
        backend: ShareBackend,
        heads: HeadLogs,
        offload: Offload,
        page_cache: PageCache,
        pages: PagePool,
        sync_policy: SyncPolicy,
        copied_size_max: int = COPIED_SIZE_MAX,
    ) -> None:
        self._backend = backend
        self._heads = heads
        self._pages = pages
        self._cold = ColdReads(page_cache, offload, copied_size_max)
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
        plan = ReadPlan(self._backend, self._pages)
        try:
            for share in request.shares:
                plan.add(share)
        except BaseException:
            plan.close()
            raise
        return plan

    def prepare(self, plan: ReadPlan) -> Loading | None:
        """See `ColdReads.prepare`."""
        return self._cold.prepare(plan)

    async def put(self, account: Account, body: PutBody) -> wire.FlagsReply:
        """Store. Raises Corrupt, and nothing of the vector is stored, where a share is wrong."""
        request = body.request
        lease = Lease(request.file_system, account.name, request.epoch, request.sequence)
        incoming = [
            IncomingShare(ShareKey(share.pack_id, share.number), [data], lease)
            for share, data in zip(request.shares, body.verified(), strict=True)
        ]
        return wire.FlagsReply(await self._backend.store(incoming))

    def append(
        self,
        request: wire.HeadAppend,
        keys: Collection[bytes],
        settled: Callable[[StorageError | None], None],
    ) -> Callable[[], bool]:
        """See `HeadLogs.append_nowait`."""
        return self._heads.append_nowait(request.log, list(map(record_of, request.entries)), settled, keys)

    async def perform(self, account: Account, request: wire.AnyRequest) -> wire.Reply:
        """Everything else without a body."""
        match request:
            case wire.Have():
                return wire.FlagsReply(await self._have(account, request))
            case wire.Release():
                lease = Lease(request.file_system, account.name, request.epoch, request.sequence)
                return wire.FlagsReply(await self._backend.release(_keys(request.keys), lease))
            case wire.Leased(file_system, after, limit):
                last = None if after is None else ShareKey(after.pack_id, after.number)
                keys = self._backend.leased((file_system, account.name), last, limit)
                return wire.KeysReply([wire.Key(key.pack_id, key.number) for key in keys])
            case wire.HeadClaim():
                promised, holder, newest = await self._heads.claim(claim_of(request))
                return wire.ClaimReply(promised, holder, None if newest is None else entry_of(newest))
            case wire.HeadRead(log, after, limit_bytes):
                stamp = None if after is None else (after.epoch, after.sequence)
                return wire.RecordsReply(list(map(entry_of, self._heads.read(log, stamp, limit_bytes))))
            case wire.HeadTrim(log, before, signature):
                await self._heads.trim(log, (before.epoch, before.sequence), signature)
                return wire.DoneReply()
            case wire.HeadLook(log):
                standing = self._heads.look(log)
                return wire.StandingReply(None if standing is None else said_of(standing))
            case wire.HeadDrop(log, epoch, signature):
                await self._heads.drop(log, epoch, signature)
                return wire.DoneReply()
            case wire.Info():
                return self._info()
        raise Refused("this request is not asked so")

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


def _keys(keys: Sequence[wire.Key]) -> list[ShareKey]:
    return [ShareKey(key.pack_id, key.number) for key in keys]
