"""`gridfs status`: of a mounted file system from its daemon, of another one from its folder and servers."""

from __future__ import annotations

import json
from typing import Any

import trio
from rich.console import Console
from rich.table import Table

from gridfs.assembly import connected
from gridfs.control import client as control
from gridfs.exits import CommandError
from gridfs.grid.capacity import Capacity, CapacityConfig
from gridfs.grid.roster import parse_roster
from gridfs.host import mounts
from gridfs.host.home import Home, NoSuchFileSystem
from storage.system import system_machine


def show_status(name: str, *, json_output: bool) -> None:
    """Print the status of a file system, given by its name or by where it is mounted."""
    home = find_home(name)
    try:
        values = control.status(home)
    except control.NoDaemon:
        values = trio.run(_offline, home)
    if json_output:
        print(json.dumps(values, indent=2))
    else:
        _print(values)


def find_home(name: str) -> Home:
    """The folder of a file system that is given by its name or by where it is mounted."""
    mounted = mounts.mounted_at(name)
    if mounted is not None and mounted.kind == mounts.TYPE:
        return Home.find(mounted.source)
    try:
        return Home.find(name)
    except NoSuchFileSystem:
        if mounted is not None:
            raise CommandError(f"{name} is a mount point, but not of gridfs") from None
        raise


async def _offline(home: Home) -> dict[str, Any]:
    """What can be said without a daemon: which servers answer."""
    config = home.config()
    roster = parse_roster(home.servers_path.read_text(errors="replace"))
    machine = system_machine()
    async with connected(machine, roster) as clients:
        capacity = Capacity(clients, CapacityConfig(config.k, config.n))
        await capacity.ask()
        states = {server_id: client.state for server_id, client in clients.items()}
    servers = []
    for server_id in clients:
        info = capacity.infos.get(server_id)
        servers.append(
            {
                "name": roster.name(server_id),
                "id": server_id.hex(),
                "state": "connected" if info else states[server_id],
                "shares": info.shares if info else None,
                "share_bytes": info.share_bytes if info else None,
                "free_bytes": info.space.free if info else None,
            }
        )
    return {
        "file_system": str(home.folder),
        "mountpoint": None,
        "mounted": False,
        "k": config.k,
        "n": config.n,
        "happy": config.happy,
        "quorum": config.quorum,
        "servers": servers,
        "health": f"not mounted; {len(capacity.infos)} of {len(roster)} servers answer",
        "space": {"total_bytes": capacity.space.total, "free_bytes": capacity.space.free},
    }


def _print(values: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    where = f"mounted at {values['mountpoint']}" if values["mounted"] else "not mounted"
    if not values["mounted"] and values.get("pid"):
        where = "unmounted, uploading what is left"
    console.print(f"{values['file_system']}: {where}", markup=False)
    console.print(f"  {values['k']}-of-{values['n']}, happy {values['happy']}, quorum {values['quorum']}")
    console.print(f"  {values['health']}", markup=False)
    space = values["space"]
    console.print(f"  space: {_size(space['free_bytes'])} free of {_size(space['total_bytes'])}")
    if "files" in values:
        console.print(
            f"  {values['files']} files, {values['directories']} directories, {_size(values['bytes'])}; "
            f"{values['packs']} packs"
        )
        console.print(
            f"  dirty {_size(values['dirty_bytes'])}, in flight {_size(values['in_flight_bytes'])}, "
            f"spool {_size(space['spool_bytes'])} of {_size(space['spool_limit_bytes'])}"
        )
    table = Table("server", "state", "shares", "stored", "free", box=None, pad_edge=False)
    for server in values["servers"]:
        shares = "-" if server["shares"] is None else str(server["shares"])
        stored, free = _size(server["share_bytes"]), _size(server["free_bytes"])
        table.add_row(server["name"], server["state"], shares, stored, free)
    console.print(table, markup=False)


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
