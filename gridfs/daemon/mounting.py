"""A mount daemon: the file system, its FUSE session and its control socket, from mount to the last byte.

The session ends when the mount point is unmounted, by whatever means, or on SIGTERM. The daemon then
goes on until everything is in the grid, or a new mount asks it to leave the rest to the spool.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import trio

from gridfs.assembly import MountOptions, Parts, follow_filesystem, open_filesystem
from gridfs.codec.keys import KeyTree, ReadTree
from gridfs.config import Config
from gridfs.control.server import ControlServer
from gridfs.daemon.report import mount_report
from gridfs.exits import sole
from gridfs.fuse.session import Session, SessionConfig, tune_allocator
from gridfs.grid.roster import Roster
from gridfs.host.home import Home
from gridfs.upkeep.headlist import changed
from storage.system import system_machine

logger = logging.getLogger(__name__)

REFUSAL_S_MAX = 1.0
"""How long a mount waits to hear which servers refuse it; one that hangs is none of them."""


@dataclass(frozen=True, slots=True)
class MountRequest:
    """All a daemon needs; gathered before it goes into the background."""

    home: Home
    config: Config
    roster: Roster
    keys: KeyTree | ReadTree
    mountpoint: str
    options: MountOptions


def run_daemon(request: MountRequest, ready: Callable[[list[str]], None]) -> None:
    """Mount and serve until unmounted and drained. `ready` is called once it is mounted, with warnings.

    Raises what `open_filesystem` raises, and RuntimeError where libfuse cannot mount.
    """
    tune_allocator()
    try:
        trio.run(_run, request, ready, strict_exception_groups=False)
    except BaseExceptionGroup as group:
        raise sole(group) from None


def _opened(request: MountRequest) -> AbstractAsyncContextManager[Parts]:
    home, keys = request.home, request.keys
    where = (home.database_path, home.spool_path, request.options)
    machine = system_machine()
    if isinstance(keys, ReadTree):
        return follow_filesystem(machine, request.config, request.roster, keys, *where)
    return open_filesystem(machine, request.config, request.roster, keys, *where)


async def _run(request: MountRequest, ready: Callable[[list[str]], None]) -> None:
    home = request.home
    async with _opened(request) as parts:
        session = Session(
            parts.files,
            SessionConfig(
                mountpoint=request.mountpoint,
                source=str(home.folder),
                read_only=request.options.read_only,
                allow_other=request.options.allow_other,
                attr_timeout_s=request.options.attr_timeout_s,
                atime=request.options.atime,
                acl=request.options.acl,
                own_init=request.options.own_init,
            ),
        )
        state = {"mounted": True}

        def status() -> dict[str, Any]:
            report = mount_report(parts, request, mounted=state["mounted"])
            return report | {"init": session.init, "calls": session.statistics()}

        async def change_heads(add: list[str], remove: list[str]) -> None:
            parts.files.require_writable()
            now = changed(request.config, parts.roster, parts.heads.now, add, remove)
            await parts.journal.change_heads(now)

        control = ControlServer(home, parts.files, status, change_heads)
        async with trio.open_nursery() as nursery:
            await nursery.start(control.run)
            await session.open()
            if parts.following is not None:
                parts.following.changed = session.forget
            home.note_holder(request.mountpoint)
            nursery.start_soon(_stop_on_signal, session)
            try:
                async with trio.open_nursery() as serving:
                    await serving.start(session.serve)
                    logger.info("mounted at %s by process %d", request.mountpoint, os.getpid())
                    ready(await _refusals(parts))
            finally:
                session.close()
                state["mounted"] = False
            logger.info("unmounted; %d bytes are left to upload", parts.files.dirty_bytes)
            if not request.options.read_only:
                await _drain(parts, control)
            nursery.cancel_scope.cancel()
    logger.info("ended")


async def _refusals(parts: Parts) -> list[str]:
    """Servers that are there and not for us: unlike one that is down, somebody has to look after it."""
    with trio.move_on_after(REFUSAL_S_MAX):
        await parts.capacity.ask()
    states = {server_id: client.state for server_id, client in parts.clients.items()}
    return [
        f"{parts.roster.name(server_id)}: {state}; mounted without it"
        for server_id, state in states.items()
        if state.startswith("refused")
    ]


async def _drain(parts: Parts, control: ControlServer) -> None:
    parts.debts.end()
    async with trio.open_nursery() as nursery:

        async def leave() -> None:
            await control.yielded.wait()
            logger.info("a new mount takes over what is left")
            nursery.cancel_scope.cancel()

        nursery.start_soon(leave)
        await parts.files.drain()
        nursery.cancel_scope.cancel()


async def _stop_on_signal(session: Session) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            logger.info("signal %d: unmounting", number)
            session.stop()
