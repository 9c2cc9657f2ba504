"""Puts one server together: backend, head logs, service, a session per connection. On any machine."""

from __future__ import annotations

import logging
import os.path
from dataclasses import dataclass

import trio

from storage.backends.disk import DiskBackend, DiskConfig
from storage.headlog import HeadLogs
from storage.identity import SHARES_DIRECTORY, load_or_create_identity, record_address
from storage.pages import PagePool
from storage.ports import Address, ByteStream, Machine
from storage.server.admission import Admission
from storage.server.config import ServerConfig, ServerStatistics
from storage.server.session import Session
from storage.service import Service
from storage.transport.link import FrameReceiver
from storage.transport.residency import SystemPageCache
from storage.wire.url import Access

log = logging.getLogger(__name__)

HEADS_DIRECTORY = "heads"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that listens."""

    access: Access
    """Its public URL: address and key."""
    statistics: ServerStatistics


async def run_server(
    machine: Machine,
    directory: str,
    address: Address,
    config: ServerConfig | None = None,
    *,
    task_status: trio.TaskStatus[RunningServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `directory` (absolute; made where it is missing) at `address` until cancelled.

    Started when it listens. Raises Refused where the directory is of another version or server or the address
    cannot be used, Conflict where another server has either.
    """
    config = config or ServerConfig()
    identity = load_or_create_identity(machine.disk, machine.entropy, directory)
    statistics = ServerStatistics()
    backend = DiskBackend(
        machine.disk,
        machine.offload,
        os.path.join(directory, SHARES_DIRECTORY),
        identity.server_id,
        DiskConfig(sync=config.sync_policy, capacity_bytes=config.capacity_bytes),
    )
    heads = HeadLogs(machine.disk, machine.offload, os.path.join(directory, HEADS_DIRECTORY))
    pages = PagePool(config.kept_memory_bytes)
    service = Service(
        backend,
        heads,
        machine.offload,
        SystemPageCache(),
        pages,
        config.sync_policy,
        config.copied_size_max,
    )
    admission = Admission(identity, machine.disk, directory, machine.entropy)

    async def handle(stream: ByteStream) -> None:
        await _serve_connection(stream, admission, service, config, statistics, pages)

    try:
        async with trio.open_nursery() as keepers:
            await keepers.start(backend.run)
            await keepers.start(heads.run)
            # Connections end before what they use: the inner nursery is left first.
            async with trio.open_nursery() as listeners:
                listening: Address = await listeners.start(
                    machine.network.serve, address, identity.signing_key, handle
                )
                record_address(machine.disk, directory, listening)
                access = Access(identity.server_id, listening)
                task_status.started(RunningServer(access, statistics))
    except BaseExceptionGroup as group:
        raise _sole(group) from group


def _sole(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What was raised, without the wrapping of nurseries, where it is one thing."""
    if len(group.exceptions) > 1:
        return group
    only = group.exceptions[0]
    return _sole(only) if isinstance(only, BaseExceptionGroup) else only


async def _serve_connection(
    stream: ByteStream,
    admission: Admission,
    service: Service,
    config: ServerConfig,
    statistics: ServerStatistics,
    pages: PagePool,
) -> None:
    """One connection from its hello to its end. Errors are the network's to log."""
    if statistics.strangers >= config.strangers_max:
        statistics.turned_away += 1
        return
    receiver = FrameReceiver(stream, config.stall_s)
    statistics.strangers += 1
    is_known = False

    def known() -> None:
        nonlocal is_known
        is_known = True
        statistics.strangers -= 1
        statistics.connections += 1

    try:
        guest = await admission.admit(stream, receiver, config.hello_s)
        if guest is not None:
            await Session(stream, receiver, guest, known, service, config, statistics, pages).run()
    finally:
        if is_known:
            statistics.connections -= 1
        else:
            statistics.strangers -= 1
            statistics.turned_away += 1
            log.info("a connection was closed: its hello failed")
