"""Appending to the head log: each record at once to so many head servers as make a quorum, and to the others
together with those before and behind it: one message and one write for all of them.

The promise is the same: an append is over once a quorum has the record. Those that are not needed lack the
newest ones for a moment, as a server does that is away for a moment. If one of the first fails, or is silent
for HEDGE_S, the others are sent what they lack at once.

Between awaits: a record is in a server's backlog, or on its way to it, or was answered; what one server is
sent leaves in the order of the records.
"""

from __future__ import annotations

import math
from collections.abc import Collection, KeysView, Mapping
from dataclasses import dataclass, field
from functools import partial

import trio

from gridfs.grid.backlog import Backlog
from gridfs.grid.headquorum import UNLISTED, HeadClient, HeadQuorum
from gridfs.grid.roster import ServerId
from storage.client import append_request
from storage.errors import Conflict, StorageError
from storage.headlog import HeadRecord

GATHER_S = 0.12
"""How long records are gathered for servers that are not needed for a quorum."""
HEDGE_S = 0.04
"""How long those that are needed may take before the others are asked."""
SLOWER_S = 0.02
"""Answers that take this much longer make a server one of those that are not needed."""


@dataclass(slots=True, eq=False)
class _Sending:
    """A record until it is known whether a quorum has it."""

    record: HeadRecord
    servers: KeysView[ServerId]
    """All that may take it."""
    began: float
    taken: dict[ServerId, None] = field(default_factory=dict)
    failed: dict[ServerId, str] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)
    decided: trio.Event = field(default_factory=trio.Event)


class HeadAppends:
    """The records of one head log on their way. `run` must be running while any is appended."""

    def __init__(self, clients: Mapping[ServerId, HeadClient], log: bytes, quorum: HeadQuorum) -> None:
        self._clients = clients
        self._log = log
        self._quorum = quorum
        self._nursery: trio.Nursery | None = None
        self._sending: _Sending | None = None
        self._backlogs: dict[ServerId, Backlog] = {}
        self._first: Collection[ServerId] | None = None
        """Who is asked at once; None until it is worked out anew."""
        self._before: Collection[ServerId] = ()
        """Who was, last."""
        self._gathers = trio.Event()
        self._flush_at = math.inf
        """When to send what is gathered."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send what is gathered when its time has come, until cancelled; then all of it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await self._gathers.wait()
                    self._gathers = trio.Event()
                    while self._flush_at < math.inf:
                        await trio.sleep(HEDGE_S)
                        now, sending = trio.current_time(), self._sending
                        if now >= self._flush_at or (sending and now >= sending.began + HEDGE_S):
                            self.flush()
            finally:
                self.flush()
                self._nursery = None

    async def append(self, record: HeadRecord) -> None:
        """Store a record on a quorum of servers. Raises Conflict if too few took it and any says that another
        epoch is promised there, else NotEnoughServers (it may be on some). One that is behind is no veto.

        Nobody waits for the others once a quorum has it. One at a time.
        """
        assert self._nursery is not None, "run must be running"
        servers = dict.fromkeys(self._quorum.servers)
        sending = self._sending = _Sending(record, servers.keys(), trio.current_time())
        try:
            for server in servers:
                if server in self._clients:
                    self._backlogs.setdefault(server, Backlog()).put(record)
                else:
                    sending.failed[server] = self._quorum.failed(server, UNLISTED)
            self._send_first()
            if len(sending.failed) < len(servers):
                await sending.decided.wait()
        finally:
            self._sending = None
        if not self._quorum.are("quorum", sending.taken):
            if sending.conflicts:
                raise sending.conflicts[0]
            what = f"head record {record.epoch}.{record.sequence}"
            self._quorum.require("quorum", sending.taken, what, list(sending.failed.values()))

    def flush(self) -> None:
        """Send what is gathered."""
        self._flush_at = math.inf
        self._first = None
        requests: dict[tuple[int, int], bytes] = {}
        for server in self._backlogs:
            self._send(server, requests)

    def forget(self) -> None:
        """Other servers are the head servers now."""
        servers = self._quorum.servers
        self._backlogs = {each: self._backlogs[each] for each in servers if each in self._backlogs}
        self._first = None

    def _send_first(self) -> None:
        if self._first is None:
            self._first = self._before = self._chosen()
        requests: dict[tuple[int, int], bytes] = {}
        for server in self._first:
            self._send(server, requests)
        backlogs = self._backlogs
        if any(backlogs[server].is_busy for server in self._first):
            self.flush()  # one of them may be away
        elif any(backlog.is_full and not backlog.is_busy for backlog in backlogs.values()):
            self.flush()
        elif self._flush_at == math.inf and len(self._first) < len(backlogs):
            self._flush_at = trio.current_time() + GATHER_S
            self._gathers.set()

    def _chosen(self) -> Collection[ServerId]:
        """Who is asked at once: a quorum of those that answer, the quickest, rather those that were before,
        whose memory is warm. All, where one of them would be a server that fails, or the list changes."""
        now, health = trio.current_time(), self._quorum.health

        def rank(server: ServerId) -> tuple[bool, bool, int, bool]:
            return (
                health.is_demoted(server, now),
                self._backlogs[server].unanswered > 0,
                int((health.usual_s(server, 0) or 0.0) / SLOWER_S).bit_length(),
                server not in self._before,
            )

        ranked = sorted(self._backlogs, key=rank)
        first = ranked[: self._quorum.now.quorum]
        is_sure = self._quorum.leaving is None and not any(health.is_demoted(each, now) for each in first)
        return first if is_sure else ranked

    def _send(self, server: ServerId, requests: dict[tuple[int, int], bytes]) -> None:
        """Send a server all that it lacks. `requests`: those that are made already, by their first and last
        sequence."""
        backlog = self._backlogs[server]
        if backlog.is_busy or not backlog.records or self._nursery is None:
            return
        records = backlog.take()
        key = (records[0].sequence, records[-1].sequence)
        request = requests.get(key)
        if request is None:
            request = requests[key] = append_request(self._log, records)
        backlog.is_busy = True
        backlog.unanswered += 1
        settled = partial(self._settled, server, self._sending_of(records), trio.current_time())
        if self._clients[server].head_append_nowait(request, settled):
            backlog.is_busy = False
        else:
            self._nursery.start_soon(self._deliver, server, backlog, records)

    async def _deliver(self, server: ServerId, backlog: Backlog, records: list[HeadRecord]) -> None:
        """The same where that has to wait; and then what has come meanwhile."""
        try:
            while records:
                began, sending = trio.current_time(), self._sending_of(records)
                error: StorageError | None = None
                try:
                    await self._clients[server].head_append(self._log, records)
                except StorageError as failure:
                    error = failure
                self._settled(server, sending, began, error)
                records = backlog.take()
                backlog.unanswered += bool(records)
        finally:
            backlog.is_busy = False

    def _sending_of(self, records: list[HeadRecord]) -> _Sending | None:
        """The append that waits for the last of these."""
        sending = self._sending
        return sending if sending is not None and sending.record is records[-1] else None

    def _settled(
        self, server: ServerId, sending: _Sending | None, began: float, error: StorageError | None
    ) -> None:
        """A server has taken what it was sent, or has not."""
        quorum = self._quorum
        if backlog := self._backlogs.get(server):
            backlog.unanswered -= 1
        reason = ""
        if error is None:
            quorum.took(server, began)
        else:
            reason = quorum.failed(server, error)
        if sending is None or sending.decided.is_set():
            return
        if error is None:
            sending.taken[server] = None
        else:
            sending.failed[server] = reason
            if isinstance(error, Conflict):
                sending.conflicts.append(error)
        taken, failed = sending.taken, sending.failed
        is_over = len(taken) + len(failed) == len(sending.servers)
        is_lost = bool(sending.conflicts) and not quorum.are("quorum", sending.servers - failed.keys())
        if is_over or is_lost or (len(taken) >= quorum.now.quorum and quorum.are("quorum", taken)):
            sending.decided.set()
        elif error is not None:
            self.flush()
