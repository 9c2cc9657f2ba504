"""`gridfs recover`: a file system on a machine that has nothing of it but the recovery key."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trio

from gridfs.assembly import connected
from gridfs.cli.unlock import protect, read_printed
from gridfs.codec.keys import RecoveryKey
from gridfs.exits import (
    FAILED,
    GRID_UNREACHABLE,
    NO_SUCH_FILE_SYSTEM,
    CommandError,
    sole,
)
from gridfs.files.finding import Found
from gridfs.grid.roster import Roster, parse_roster
from gridfs.host.home import folder_of, new_home, write_private
from gridfs.recovering import Plan, Rebuilt, find, plan, rebuild
from storage.client import StorageClient
from storage.ports import Machine
from storage.system import system_machine


@dataclass(frozen=True, slots=True)
class RecoverRequest:
    """The command's options."""

    name: str
    servers: Path
    recovery_key_file: Path
    accept_older: bool
    new_keys: bool
    passphrase_command: str


def recover_filesystem(request: RecoverRequest) -> None:
    """Recover, or raise with nothing left behind on this machine."""
    logging.getLogger().addHandler(logging.NullHandler())  # what a mount would warn of is meant here
    folder = folder_of(request.name)
    if folder.exists():
        raise CommandError(f"{folder} exists already; choose another name, or `gridfs forget` it", FAILED)
    recovery = read_printed(request.recovery_key_file, RecoveryKey.parse)
    text = request.servers.read_text(errors="replace")
    roster = parse_roster(text)
    machine = system_machine()

    async def run() -> tuple[Plan, Rebuilt, str]:
        async with connected(machine, roster) as clients:
            return await _recover(request, folder, machine, roster, text, recovery, clients)

    try:
        made, rebuilt, protection = trio.run(run)
    except BaseExceptionGroup as group:
        raise sole(group) from None
    _report(folder, made, rebuilt, protection, request)


async def _recover(
    request: RecoverRequest,
    folder: Path,
    machine: Machine,
    roster: Roster,
    servers: str,
    recovery: RecoveryKey,
    clients: dict[bytes, StorageClient],
) -> tuple[Plan, Rebuilt, str]:
    """Returns what was made, and how the keys are protected, in words."""
    found, silent = await find(clients, recovery)
    if found is None:
        raise _nothing(roster, silent, request)
    if found.lacking("quorum") is not None and not request.accept_older:
        raise CommandError(_too_few(found, silent, roster), GRID_UNREACHABLE)
    print(f"found {_describe(found)}", flush=True)
    made = plan(
        found,
        silent,
        roster,
        recovery,
        machine.entropy,
        new_keys=request.new_keys,
        gives_up=request.accept_older,
        passphrase_command=request.passphrase_command,
    )
    # May ask on the terminal, and all wait for that: nothing else is to be done.
    key_file, protection = protect(made.tree.master, request.passphrase_command, machine.entropy)
    with new_home(folder) as draft:
        write_private(draft.config_path, made.config.encode().encode())
        write_private(draft.servers_path, servers.encode())
        write_private(draft.key_path, key_file)
        rebuilt = await rebuild(
            machine,
            clients,
            found,
            made,
            roster,
            draft.database_path,
            draft.spool_path,
            root_uid=os.getuid(),
            root_gid=os.getgid(),
        )
    return made, rebuilt, protection


def _report(
    folder: Path,
    made: Plan,
    rebuilt: Rebuilt,
    protection: str,
    request: RecoverRequest,
) -> None:
    print(
        f"recovered {folder}: {rebuilt.files} files, {rebuilt.directories} directories, {rebuilt.bytes} "
        f"bytes; {rebuilt.operations} operations, {rebuilt.read_bytes} bytes read in {rebuilt.seconds:.1f} s"
    )
    print(protection)
    if made.is_successor:
        print("all machines with older keys are shut out; the recovery key stays the same")
    elif not rebuilt.is_taken_over:
        print(
            "too few head servers answer to write: the file system is read from this machine until they do, "
            "and it takes over when it is mounted then"
        )
    print(f"gridfs mount {request.name} MOUNTPOINT mounts it")


def _describe(found: Found) -> str:
    """Which state was found, in words."""
    record, time = found.record, found.newest_time
    when = ""
    if time is not None:
        when = f" of {datetime.fromtimestamp(time / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"record {record.epoch}.{record.sequence}{when}, {found.body.last} operations"


def _too_few(found: Found, silent: Mapping[bytes, str], roster: Roster) -> str:
    """Why head servers that are silent are in the way."""
    unseen, lacking = found.lacking("seeing"), found.lacking("quorum")
    assert lacking is not None
    heads = unseen or lacking
    away = [roster.name(server) for server in heads.servers if server not in found.answered]
    names = ", ".join(away[:6]) + (f" and {len(away) - 6} more" if len(away) > 6 else "")
    heard = heads.count(found.answered)
    if unseen is not None:
        needed = heads.needed("seeing")
        why = f"but there may be a newer state: {heard} of the {needed} head servers needed answer"
        ways = "start them, or give up what they have with --accept-older"
    else:
        why = f"the newest, but to go on from it {heads.quorum} head servers are needed, and {heard} answer"
        ways = "start them, or put others in their place with --accept-older"
    return f"found {_describe(found)}, {why}; silent: {names}; {ways}"


def _nothing(roster: Roster, silent: Mapping[bytes, str], request: RecoverRequest) -> CommandError:
    if len(silent) == len(roster):
        reasons = "; ".join(f"{roster.name(server)}: {why}" for server, why in list(silent.items())[:3])
        return CommandError(f"none of the {len(roster)} servers answers ({reasons})", GRID_UNREACHABLE)
    there = len(roster) - len(silent)
    if silent:
        names = ", ".join(roster.name(server) for server in list(silent)[:6])
        return CommandError(
            f"the {there} servers that answer know no file system of this recovery key; silent: {names}",
            GRID_UNREACHABLE,
        )
    return CommandError(
        f"the servers know no file system of this recovery key: is {request.recovery_key_file} the right "
        f"one, and does {request.servers} list the right servers? (one that was never written is not there)",
        NO_SUCH_FILE_SYSTEM,
    )
