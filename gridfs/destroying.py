"""Destroying a file system: every share that this account leases for it is released, then its head logs end.

Only the owner of the newest epoch may: `own` claims it again. From then on the shares go, server by server,
and with the last share of a server its head log; so a destruction that was cut short, or met servers that are
away, is taken up by doing it again. The servers are asked what they hold, not the metadata: what an upload
left behind that was never committed goes too.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from gridfs.assembly import connected, head_keys
from gridfs.codec.headkeys import HeadKeys
from gridfs.codec.keys import KeyTree
from gridfs.config import Config
from gridfs.files.claiming import TakenOver
from gridfs.files.headstate import HeadState
from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.heads import HeadServers
from gridfs.grid.roster import Roster
from storage.client import StorageClient
from storage.errors import StorageError
from storage.format.head import drop_signed_bytes
from storage.leases import STAMP_MAX
from storage.ports import Machine

KEYS_PER_STEP = 1024
LAST_STAMP = (STAMP_MAX, STAMP_MAX)
"""Above every lease: nothing will be asserted any more."""


@dataclass(slots=True)
class Released:
    """What became of one server's part."""

    shares: int = 0
    trouble: str = ""
    """Why something is left there; empty: nothing is."""


async def own(
    machine: Machine, config: Config, tree: KeyTree, roster: Roster, state: HeadState, *, begun: bool
) -> None:
    """Make sure that nobody else writes the file system, as far as the head servers tell.

    `begun`: a destruction was begun before, so some of them may have nothing any more. Raises TakenOver,
    NotEnoughServers.
    """
    keys = head_keys(config, tree)
    async with connected(machine, roster) as clients:
        heads = HeadServers(clients, state.heads or config.head_list, roster, keys.log, keys.verifier())
        heads.use(heads.now, state.leaving)
        claim = await heads.claim(keys.claim(_epoch(keys, state), state.mount_id))
    newest = claim.newest
    is_ours = newest is None or newest.mount_id in state.runs or newest.record_hash() == state.previous
    if claim.refused or not is_ours:
        raise TakenOver("another machine has taken this file system over: it is not destroyed from here")
    if not begun and not claim.is_heard:
        needed = heads.now.needed("seeing")
        raise NotEnoughServers("asking the head servers", claim.promises, needed)


async def release(
    machine: Machine, config: Config, tree: KeyTree, roster: Roster, state: HeadState
) -> dict[bytes, Released]:
    """Release everything on every server that answers; what became of it, by server id. Idempotent."""
    keys = head_keys(config, tree)
    results = {server.server_id: Released() for server in roster}

    async def one(client: StorageClient, result: Released) -> None:
        try:
            await _release_shares(client, config.file_system, result)
            await _end_log(client, keys, state)
        except StorageError as error:
            result.trouble = str(error)

    async with connected(machine, roster) as clients, trio.open_nursery() as nursery:
        for server, client in clients.items():
            nursery.start_soon(one, client, results[server])
    for server in (state.heads or config.head_list).servers:
        if server not in results:
            results[server] = Released(trouble="it is not in the servers file")
    return results


async def _release_shares(client: StorageClient, file_system: bytes, result: Released) -> None:
    after: tuple[bytes, int] | None = None
    while leased := await client.leased(file_system, after, KEYS_PER_STEP):
        gone = await client.release(leased, file_system, LAST_STAMP)
        result.shares += sum(gone)
        after = leased[-1]


async def _end_log(client: StorageClient, keys: HeadKeys, state: HeadState) -> None:
    if await client.head_look(keys.log) is None:
        return
    epoch = _epoch(keys, state)
    # Who was away when the epoch was claimed must promise it before it takes its end from us.
    await client.head_claim(keys.claim(epoch, state.mount_id))
    await client.head_drop(keys.log, epoch, keys.sign(drop_signed_bytes(keys.log, epoch)))


def _epoch(keys: HeadKeys, state: HeadState) -> int:
    return max(state.epoch, keys.epoch_floor)
