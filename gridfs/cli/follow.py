"""`gridfs key read` and `gridfs follow`: a machine that reads what another one writes, and can do no more."""

from __future__ import annotations

import time
from pathlib import Path

import trio

from gridfs.assembly import LocalSealer, connected
from gridfs.cli.unlock import read_printed, unlock
from gridfs.codec.keys import KeyTree, ReadKey, ReadTree
from gridfs.exits import FAILED, GRID_UNREACHABLE, NO_SUCH_FILE_SYSTEM, WRONG_KEY, CommandError
from gridfs.grid.roster import parse_roster
from gridfs.host.home import Home, folder_of, new_home, write_private
from gridfs.joining import Joined, join
from gridfs.meta.store import Metadata
from storage.system import system_machine


def write_read_key(name: str, output: Path) -> None:
    """Write the read key of a file system into a file that must not be there yet."""
    home = Home.find(name)
    config = home.config()
    tree = KeyTree(unlock(home, config).master)
    reading = ReadTree(tree.read_key, tree.verifying_key)
    key = ReadKey(reading, config.first_key or tree.verifying_key, config.recovery_public)
    try:
        write_private(output, (key.text() + "\n").encode(), exclusive=True)
    except FileExistsError:
        raise CommandError(f"{output} is there already; name another file", FAILED) from None
    print(f"{output}: with this and a servers file, `gridfs follow` reads everything, and writes nothing")


def follow_filesystem(name: str, servers: Path, read_key_file: Path) -> None:
    """Make the folder of a file system that is only read here, or raise with nothing left behind."""
    folder = folder_of(name)
    if folder.exists():
        raise CommandError(f"{folder} exists already; choose another name, or `gridfs forget` it", FAILED)
    key = read_printed(read_key_file, ReadKey.parse)
    text = servers.read_text(errors="replace")
    roster = parse_roster(text)
    machine = system_machine()

    async def ask() -> Joined:
        async with connected(machine, roster) as clients:
            return await join(clients, key)

    joined = trio.run(ask)
    if joined.has_newer_keys:
        raise CommandError(
            "the file system has new keys since this read key was written: ask for another (gridfs key read)",
            WRONG_KEY,
        )
    if joined.config is None:
        if joined.silent:
            there, away = len(roster) - len(joined.silent), len(joined.silent)
            raise CommandError(
                f"{there} servers answer and know no file system of this read key, {away} are silent",
                GRID_UNREACHABLE,
            )
        raise CommandError(
            "the servers know no file system of this read key (one that was never written is not there)",
            NO_SUCH_FILE_SYSTEM,
        )
    with new_home(folder) as draft:
        write_private(draft.config_path, joined.config.encode().encode())
        write_private(draft.servers_path, text.encode())
        write_private(draft.read_key_path, (key.text() + "\n").encode())
        sealer = LocalSealer(key.tree.local_key, machine.entropy)
        vfs = machine.disk.sqlite_vfs
        Metadata.create(draft.database_path, sealer, vfs=vfs, time=time.time_ns()).close()
        machine.disk.make_directory(draft.spool_path)
    print(f"made {folder} ({joined.config.k}-of-{joined.config.n}), to be read only")
    print(f"gridfs mount {name} MOUNTPOINT mounts it")
