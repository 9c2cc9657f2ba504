"""Machines that come to a file system: the first, which makes it, and those that have nothing but its
recovery key, as `gridfs create` and `gridfs recover` do it."""

from __future__ import annotations

import dataclasses
from typing import Any

import trio

from gridfs.assembly import connected
from gridfs.codec.keys import KeyTree, RecoveryKey
from gridfs.exits import sole
from gridfs.recovering import find, plan, rebuild
from storage.errors import StorageError, Unavailable
from storage.ports import Machine
from tests.simulation.filesystem import DATABASE, HOME, SPOOL, Client, Servers
from tests.simulation.machine import World
from tests.simulation.platter import Directory, MachineDead

RECOVERY = RecoveryKey(bytes(range(32)))
FIRST = KeyTree(RECOVERY.master)


class NothingThere(StorageError):
    """The servers that answer do not know the file system."""

    def __init__(self, silent: int) -> None:
        super().__init__(f"{silent} servers are silent, the others know nothing")
        self.silent = silent


def with_recovery_key(servers: Servers) -> Servers:
    """The grid, with a file system on it that has a recovery key."""
    config = dataclasses.replace(
        servers.config, recovery_public=RECOVERY.public, first_key=FIRST.verifying_key
    )
    return dataclasses.replace(servers, config=config)


def first_client(world: World, servers: Servers, name: str) -> Client:
    """The machine on which the file system is made."""
    client = Client(world, servers, name)
    make_anew(client)
    return client


def make_anew(client: Client) -> None:
    """A file system of which the grid knows nothing."""
    client.node.platter.root = Directory()
    client.tree = FIRST
    try:
        client.create()
    finally:
        client.world.kill(client.node)


async def recover(client: Client, *, new_keys: bool) -> bool | None:
    """Recover on a machine, from nothing: what an earlier attempt left is removed first.

    Returns whether the file system was taken over; None if the machine died. What fails on a living machine
    is raised, and then nothing of it counts.
    """
    node, servers = client.node, client.servers
    node.platter.root = Directory()
    ended = trio.Event()
    taken: list[bool] = []
    failures: list[BaseException] = []

    async def program(machine: Machine, *, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started()
        try:
            machine.disk.make_directory(HOME)
            roster = servers.roster
            async with connected(machine, roster) as clients:
                found, silent = await find(clients, RECOVERY)
                if found is None:
                    raise NothingThere(len(silent))
                if found.lacking("seeing") is not None:
                    raise Unavailable(f"{len(silent)} servers are silent")
                made = plan(found, silent, roster, RECOVERY, machine.entropy, new_keys=new_keys)
                rebuilt = await rebuild(machine, clients, found, made, roster, DATABASE, SPOOL)
            for directory in (HOME, "/home", "/"):
                machine.disk.sync_directory(directory)
            client.config, client.tree, client.former = made.config, made.tree, made.former
            taken.append(rebuilt.is_taken_over)
        except Exception as error:
            if node.machine is not machine:
                raise
            failures.append(sole(error))
        finally:
            ended.set()

    try:
        await client.world.start(node, program)
        await ended.wait()
    except MachineDead:
        return None
    while node.is_up:
        await trio.lowlevel.checkpoint()
    for error in failures:
        raise error
    return taken[0] if taken else None
