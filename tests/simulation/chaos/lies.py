"""Servers that lie: well-formed answers with wrong bytes in them, or with old or invented records."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import msgspec

from storage.identity import Account
from storage.readplan import ReadPlan
from storage.server import composition
from storage.service import Service
from storage.wire import messages as wire
from tests.simulation.platter import Platter

KINDS = ("forged", "swapped", "truncated", "missing", "old head", "no head", "forged head")
SEEN_MAX = 50


class Lies:
    """Who lies now, and how."""

    def __init__(self) -> None:
        self._told: dict[Platter, tuple[str, random.Random]] = {}
        self.count = 0
        """Answers that were false."""

    @contextlib.contextmanager
    def told_by(self, platter: Platter, kind: str, stream: random.Random) -> Iterator[None]:
        """Within, the server on this disk lies."""
        self._told[platter] = kind, stream
        try:
            yield
        finally:
            del self._told[platter]

    def of(self, platter: Platter) -> tuple[str, random.Random | None]:
        return self._told.get(platter, ("", None))

    @contextlib.contextmanager
    def possible(self) -> Iterator[None]:
        """Servers that start within may lie."""

        def make(backend: Any, *others: Any) -> Service:
            return LyingService(self, backend._disk.platter, backend, *others)

        with mock.patch.object(composition, "Service", make):
            yield


class LyingService(Service):
    """A server's service between the truth and the wire."""

    def __init__(self, lies: Lies, platter: Platter, *parts: Any) -> None:
        super().__init__(*parts)
        self._lies = lies
        self._platter = platter
        self._seen: list[tuple[bytes, int]] = []
        self._oldest: wire.HeadEntry | None = None

    def read(self, request: wire.Readv) -> ReadPlan:
        kind, stream = self._lies.of(self._platter)
        for share in request.shares:
            if len(self._seen) < SEEN_MAX:
                self._seen.append((share.pack_id, share.number))
        if stream is None or kind not in ("forged", "swapped", "truncated", "missing"):
            return super().read(request)
        self._lies.count += 1
        if kind == "swapped":
            others = [stream.choice(self._seen) for _ in request.shares]
            return super().read(
                wire.Readv(
                    [
                        wire.ShareRead(*other, share.ranges)
                        for other, share in zip(others, request.shares, strict=True)
                    ]
                )
            )
        plan = super().read(request)
        plan.copy()
        content = bytearray(plan.parts[0]) if plan.size else bytearray()  # type: ignore[arg-type]
        if kind == "forged":
            for _ in range(3 if content else 0):
                content[stream.randrange(len(content))] ^= stream.randrange(1, 256)
        else:
            cut = 0 if kind == "missing" else stream.randrange(max(1, plan.lengths[-1]))
            plan.whole = False
            if kind == "missing":
                plan.lengths = [0] * len(plan.lengths)
                content.clear()
            else:
                del content[len(content) - plan.lengths[-1] + cut :]
                plan.lengths[-1] = cut
        plan.size = len(content)
        plan.parts = [content] if content else []
        return plan

    async def perform(self, account: Account, request: wire.AnyRequest) -> wire.Reply:
        reply = await super().perform(account, request)
        kind, stream = self._lies.of(self._platter)
        if isinstance(reply, wire.ClaimReply):
            if self._oldest is None:
                self._oldest = reply.newest
            if kind == "no head":
                reply = replace_newest(reply, None)
            elif kind == "old head":
                reply = replace_newest(reply, self._oldest)
            elif kind == "forged head" and reply.newest is not None:
                reply = replace_newest(reply, _forged(reply.newest))
        elif isinstance(reply, wire.RecordsReply):
            if kind == "no head":
                reply = wire.RecordsReply([])
            elif kind == "old head":
                reply = wire.RecordsReply(reply.records[:1])
            elif kind == "forged head":
                reply = wire.RecordsReply([*map(_forged, reply.records)])
        else:
            return reply
        if stream is not None and "head" in kind:
            self._lies.count += 1
        return reply


def replace_newest(reply: wire.ClaimReply, newest: wire.HeadEntry | None) -> wire.ClaimReply:
    return msgspec.structs.replace(reply, newest=newest)


def _forged(entry: wire.HeadEntry) -> wire.HeadEntry:
    """A record that nobody signed, newer than the true one."""
    return msgspec.structs.replace(entry, epoch=entry.epoch + 1, sequence=entry.sequence + 1000)
