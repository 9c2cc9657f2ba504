"""`gridfs create`: keys, configuration and an empty tree, after every server has answered."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import trio

from gridfs.assembly import LocalSealer, connected
from gridfs.cli.reach import happiest
from gridfs.cli.unlock import protect
from gridfs.codec.keys import KeyTree, RecoveryKey
from gridfs.config import Config
from gridfs.exits import FAILED, GRID_UNREACHABLE, NOT_ENOUGH_SERVERS, USAGE, CommandError
from gridfs.grid.capacity import Capacity, CapacityConfig
from gridfs.grid.roster import Roster, parse_roster
from gridfs.host.home import folder_of, new_home, write_private
from gridfs.meta.store import Metadata
from storage.ports import Machine
from storage.system import system_machine


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """The command's options."""

    name: str
    servers: Path
    k: int
    n: int
    happy: int | None
    """None: half way between what is needed and what the servers can give."""
    shares_per_server: int
    passphrase_command: str
    recovery_key_file: Path | None


def create_filesystem(request: CreateRequest) -> None:
    """Create, or raise with nothing left behind."""
    happy = request.k if request.happy is None else request.happy
    if not request.k <= happy <= request.n:
        raise CommandError(f"k <= happy <= n is needed, not {request.k}, {happy}, {request.n}", USAGE)
    folder = folder_of(request.name)
    if folder.exists():
        raise CommandError(f"{folder} exists already; choose another name, or remove it", FAILED)
    recovery_path = request.recovery_key_file or folder.with_name(folder.name + ".recovery-key")
    if recovery_path.exists():
        raise CommandError(f"{recovery_path} exists already and may belong to another file system", FAILED)
    text = request.servers.read_text(errors="replace")
    roster = parse_roster(text)
    best = happiest(request.k, request.n, len(roster), request.shares_per_server)
    if best < happy:
        raise CommandError(
            f"the {len(roster)} servers in {request.servers} are fewer than happy = {happy} needs: "
            f"add servers, or choose smaller numbers (now at most --happy {best})",
            NOT_ENOUGH_SERVERS,
        )
    if request.happy is None:
        happy = (request.k + best + 1) // 2
    machine = system_machine()
    trio.run(_ask_servers, machine, roster, request, happy)
    recovery = RecoveryKey(machine.entropy.token(32))
    config = Config(
        file_system=machine.entropy.token(16),
        k=request.k,
        n=request.n,
        happy=happy,
        shares_per_server=request.shares_per_server,
        head_servers=head_servers(roster, request.n, happy),
        recovery_public=recovery.public,
        passphrase_command=request.passphrase_command,
        first_key=KeyTree(recovery.master).verifying_key,
    )
    key_file, protection = protect(recovery.master, request.passphrase_command, machine.entropy)
    _write(folder, config, text, key_file, recovery, machine)
    try:
        write_private(recovery_path, (recovery.text() + "\n").encode(), exclusive=True)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    print(f"created {folder} ({request.k}-of-{request.n}, happy {happy}, {len(roster)} servers)")
    print(f"{protection}")
    print(f"recovery key: {recovery_path}")
    print("  Move it to a safe place away from this machine: with it and the servers file alone, everything")
    print("  can be had back; whoever has both can read everything. It is written only this once.")


def head_servers(roster: Roster, n: int, happy: int) -> tuple[bytes, ...]:
    """The servers that keep the head log: as many as add availability without raising the quorum."""
    count = min(len(roster), max(n, 2 * happy - 1))
    return tuple(server.server_id for server in list(roster)[:count])


async def _ask_servers(machine: Machine, roster: Roster, request: CreateRequest, happy: int) -> None:
    """Every server must be who it should be; enough of them must be there."""
    async with connected(machine, roster) as clients:
        capacity = Capacity(clients, CapacityConfig(request.k, request.n, deadline_s=10.0))
        await capacity.ask()
        states = {server_id: client.state for server_id, client in clients.items()}
    for server_id, state in states.items():
        if state.startswith("refused"):
            raise CommandError(f"{roster.name(server_id)}: {state}", FAILED)
    if happiest(request.k, request.n, len(capacity.infos), request.shares_per_server) < happy:
        silent = [f"{roster.name(i)}: {s}" for i, s in states.items() if i not in capacity.infos]
        raise CommandError(
            f"only {len(capacity.infos)} of {len(roster)} servers answer, too few for happy = {happy} "
            f"({'; '.join(silent[:3])})",
            GRID_UNREACHABLE,
        )


def _write(
    folder: Path, config: Config, servers: str, key_file: bytes, recovery: RecoveryKey, machine: Machine
) -> None:
    with new_home(folder) as draft:
        write_private(draft.config_path, config.encode().encode())
        write_private(draft.servers_path, servers.encode())
        write_private(draft.key_path, key_file)
        metadata = Metadata.create(
            draft.database_path,
            LocalSealer(KeyTree(recovery.master).local_key, machine.entropy),
            vfs=machine.disk.sqlite_vfs,
            root_mode=0o755,
            root_uid=os.getuid(),
            root_gid=os.getgid(),
            time=time.time_ns(),
        )
        metadata.close()
        machine.disk.make_directory(draft.spool_path)
