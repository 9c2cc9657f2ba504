"""How much the grid still takes, from what its servers say of their space; asked now and then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import trio

from gridfs.grid.roster import ServerId
from storage.client import ServerInfo
from storage.errors import StorageError
from storage.ports import Space


class InfoClient(Protocol):
    """The part of a storage client that tells about its server."""

    async def info(self) -> ServerInfo: ...


@dataclass(frozen=True, slots=True)
class CapacityConfig:
    k: int
    n: int
    every_s: float = 20.0
    again_s: float = 2.0
    """Sooner, where a server did not answer."""
    deadline_s: float = 5.0


class Capacity:
    """Asks all servers in the background; `space` is the last sum in bytes of user data."""

    def __init__(self, clients: Mapping[ServerId, InfoClient], config: CapacityConfig) -> None:
        self._clients = clients
        self._config = config
        self.infos: dict[ServerId, ServerInfo] = {}
        """What each server said last; servers that did not answer last time are left out."""

    @property
    def space(self) -> Space:
        """Bytes of user data: what the servers have, divided by the expansion n/k."""
        k, n = self._config.k, self._config.n
        total = sum(info.space.total for info in self.infos.values())
        free = sum(info.space.free for info in self.infos.values())
        return Space(total * k // n, free * k // n)

    async def ask(self) -> None:
        """Ask every server once; returns when all answered or the deadline passed."""

        async def one(server: ServerId, client: InfoClient) -> None:
            try:
                with trio.fail_after(self._config.deadline_s):
                    self.infos[server] = await client.info()
            except (StorageError, trio.TooSlowError):
                self.infos.pop(server, None)

        async with trio.open_nursery() as nursery:
            for server, client in self._clients.items():
                nursery.start_soon(one, server, client)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask at the start and then every so often, until cancelled."""
        task_status.started()
        while True:
            await self.ask()
            complete = len(self.infos) == len(self._clients)
            await trio.sleep(self._config.every_s if complete else self._config.again_s)
