"""Recovering a file system on a machine that has nothing: from the recovery key to a folder that mounts.

`plan` decides, from what was found in the grid, what the folder's configuration and keys will be. `rebuild`
claims an epoch, makes the metadata from the checkpoint and reads what lies behind it, all at once and on the
connections that found it; then the folder is opened as a mount would open it, adopts the newest record and is
rolled forward, and a record of its own that stands for itself takes the file system over.

With new keys that record is the first one sealed and signed with them. Until it is on a quorum of head
servers nothing of the recovery is kept on this machine, and it can be done again from the start: the
succession, which came with the claim, carries every master key since the first, so whatever record is the
newest then, of whatever generation, the recovery key opens it. `gridfs/files/SPEC.md` has the crash analysis.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import trio

from gridfs.assembly import Grid, LocalSealer, MountOptions, Parts, head_keys, reach, run_filesystem
from gridfs.codec.headkeys import HeadKeys
from gridfs.codec.keys import KeyTree, RecoveryKey
from gridfs.config import Config
from gridfs.exits import LOCKED, CommandError, sole
from gridfs.files.claiming import TakenOver, is_settled
from gridfs.files.finding import Found, ask, config_of, judge
from gridfs.files.headstate import NOBODY, HeadState, load_head_state, save_head_state
from gridfs.files.rebuilding import Owner, make_database
from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.heads import Claim
from gridfs.grid.roster import Roster
from gridfs.meta.store import Metadata
from storage.client import StorageClient
from storage.ports import Entropy, Machine

BEGIN_S_MAX = 60.0
"""How long a recovery waits for the quorum to take its first record."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recovered file system will be on this machine."""

    config: Config
    tree: KeyTree
    former: tuple[KeyTree, ...]
    epoch: int
    """The first claim is one above."""
    is_successor: bool
    """Whether these are new keys, that shut out all machines with the old ones."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came back."""

    files: int
    directories: int
    bytes: int
    operations: int
    read_bytes: int
    """Bytes of shares read from the servers."""
    seconds: float
    is_taken_over: bool
    """Whether a quorum of head servers has this machine's first record."""


async def find(
    clients: Mapping[bytes, StorageClient], recovery: RecoveryKey
) -> tuple[Found | None, Mapping[bytes, str]]:
    """The newest record that can be found, and which servers are silent and why."""
    answers = await ask(clients, recovery.log)
    return judge(answers, recovery), answers.silent


def plan(
    found: Found,
    silent: Mapping[bytes, str],
    roster: Roster,
    recovery: RecoveryKey,
    entropy: Entropy,
    *,
    new_keys: bool = False,
    gives_up: bool = False,
    passphrase_command: str = "",
) -> Plan:
    """Decide what becomes of what was found. Raises NotEnoughServers.

    `gives_up`: silent head servers are given up where the others are too few to write, and servers that
    answer take their place. So they are where too few answered to be sure that what was found is the newest:
    then somebody has decided to take it for that.
    """
    body = found.body
    heads, list_generation = body.heads.servers, body.heads.generation
    if found.lacking("quorum" if gives_up else "seeing") is not None:
        heads, list_generation = _other_heads(found, silent, roster), list_generation + 1
    elif new_keys and (lacking := found.lacking("quorum")) is not None:
        have = lacking.count(found.answered)
        raise NotEnoughServers("giving the file system new keys", have, lacking.quorum)
    tree, former, succession, epoch = found.tree, found.former, found.succession, found.epoch
    if new_keys:
        former, tree, epoch = (*former, tree), KeyTree(entropy.token(32)), 0
        masters = [*found.masters, tree.master]
        succession = recovery.endorse(found.next_generation, masters, entropy.token(12))
    config = replace(
        config_of(body, KeyTree(recovery.master).verifying_key, recovery.public),
        head_servers=heads,
        head_generation=list_generation,
        passphrase_command=passphrase_command,
        succession=succession,
    )
    return Plan(config, tree, former, epoch, is_successor=new_keys)


def _other_heads(found: Found, silent: Mapping[bytes, str], roster: Roster) -> tuple[bytes, ...]:
    """Head servers in the place of those that are given up: servers that answer, the old ones first."""
    settings = found.body.settings
    there = [server.server_id for server in roster if server.server_id not in silent]
    wanted = settings.happy if settings.shares_per_server == 1 else 1
    if len(there) < wanted:
        raise NotEnoughServers("finding other head servers", len(there), wanted)
    there.sort(key=lambda server: server not in found.body.heads.servers)
    return tuple(there[: max(settings.n, 2 * settings.happy - 1)])


async def rebuild(
    machine: Machine,
    clients: dict[bytes, StorageClient],
    found: Found,
    plan: Plan,
    roster: Roster,
    database: str,
    spool_directory: str,
    *,
    root_uid: int = 0,
    root_gid: int = 0,
) -> Rebuilt:
    """Make the metadata, and take the file system over. `clients`: those that found it.

    Raises NotEnoughServers, also where new keys do not reach a quorum in time; CommandError where another
    recovery was quicker; what reading the grid raises. Nothing that was made counts then.
    """
    began = trio.current_time()
    keys = head_keys(plan.config, plan.tree, plan.former)
    sealer = LocalSealer(plan.tree.local_key, machine.entropy)
    owner = Owner(0o755, root_uid, root_gid, machine.clock.now_ns())
    state = HeadState(max(plan.epoch, keys.epoch_floor) + 1, NOBODY)
    state.begin_run(machine.entropy.token(16))
    machine.disk.make_directory(spool_directory)
    try:
        async with reach(plan.config, roster, keys, clients) as grid:
            if plan.config.head_generation == found.body.heads.generation:
                grid.heads.use(found.body.heads, found.body.leaving)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(grid.history.recall, found.record)
                making = (machine, grid.downloader, sealer, found.body, database, owner, plan.epoch)
                nursery.start_soon(make_database, *making)
                claim = await _claim(grid, keys, state)
            _note_claim(machine, sealer, database, state)
            options = MountOptions(takeover=True)
            running = run_filesystem(machine, plan.config, grid, database, spool_directory, options, claim)
            async with running as parts:
                return await _take_over(parts, plan, began)
    except (ExceptionGroup, TakenOver) as error:
        cause = sole(error)
        if isinstance(cause, TakenOver):
            cause = CommandError("another machine takes this file system over just now: try again", LOCKED)
        raise cause from None


async def _claim(grid: Grid, keys: HeadKeys, state: HeadState) -> Claim:
    """Claim the epoch in the state, or one above those that are promised to others. Without a quorum the
    machine that wrote last might go on. Raises NotEnoughServers; TakenOver where there are newer keys."""
    step = 1
    while True:
        claim = await grid.heads.claim(keys.claim(state.epoch, state.mount_id), patient=True)
        if is_settled(claim, step):
            break
        if any(keys.yields_to(standing.succession) for standing in await grid.heads.look()):
            raise TakenOver("another recovery has made new keys")
        state.epoch, step = state.epoch + step, step * 2
    grid.heads.require("quorum", claim.promised, "taking over from another client")
    return claim


def _note_claim(machine: Machine, sealer: LocalSealer, database: str, claimed: HeadState) -> None:
    """The epoch and the run under which the claim was made, beside what the checkpoint knows."""
    with closing(Metadata.open(database, sealer, vfs=machine.disk.sqlite_vfs)) as metadata:
        state = load_head_state(metadata)
        state.epoch, state.mount_id, state.runs = claimed.epoch, claimed.mount_id, claimed.runs
        save_head_state(metadata, state)
        metadata.commit()


async def _take_over(parts: Parts, plan: Plan, began: float) -> Rebuilt:
    is_begun = False
    if parts.journal.is_owner or plan.is_successor:
        with trio.move_on_after(BEGIN_S_MAX):
            await parts.journal.begun()
            is_begun = True
    if plan.is_successor and not is_begun:
        raise NotEnoughServers("giving the file system new keys", 0, plan.config.quorum)
    await parts.log.make_durable()
    totals = parts.log.metadata.totals()
    return Rebuilt(
        totals.files,
        totals.directories,
        totals.bytes,
        parts.log.number,
        sum(client.statistics().bytes_in for client in parts.clients.values()),
        trio.current_time() - began,
        is_begun,
    )
