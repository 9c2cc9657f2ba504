"""What `gridfs status` tells, as plain values and in words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gridfs.assembly import Parts

if TYPE_CHECKING:
    from gridfs.daemon.mounting import MountRequest


def mount_report(parts: Parts, request: MountRequest, *, mounted: bool) -> dict[str, Any]:
    """The whole state of a mount; every value can go into JSON. Documented in README's section on status."""
    config = request.config
    totals = parts.log.metadata.totals()
    uploads = parts.uploader.statistics()
    reads = parts.downloader.statistics()
    servers = [_server(parts, server.server_id) for server in parts.roster]
    return {
        "file_system": str(request.home.folder),
        "mountpoint": request.mountpoint,
        "mounted": mounted,
        "pid": os.getpid(),
        "k": config.k,
        "n": config.n,
        "happy": config.happy,
        "quorum": parts.heads.now.quorum,
        "heads": _heads(parts),
        "fsync": request.options.fsync,
        "servers": servers,
        "health": _health(parts, servers),
        "space": {
            "total_bytes": parts.capacity.space.total,
            "free_bytes": parts.capacity.space.free,
            "spool_bytes": parts.log.spool.disk_bytes,
            "spool_limit_bytes": request.options.spool_bytes,
        },
        "files": totals.files,
        "directories": totals.directories,
        "bytes": totals.bytes,
        "packs": totals.packs,
        "live_bytes": totals.live_bytes,
        "missing_shares": totals.missing_shares,
        "dirty_bytes": 0 if parts.following else parts.dirty.bytes,
        "following": _following(parts),
        "in_flight_bytes": parts.writer.sealed_bytes,
        "packs_in_flight": parts.writer.flights,
        "packs_stored": parts.writer.packs_stored,
        "packs_known": parts.writer.packs_known,
        "bytes_stored": parts.writer.bytes_stored,
        "operations": parts.log.number,
        "operations_shipped": parts.journal.up_to,
        "readv": _slots(reads.requests),
        "reads": _slots(reads.reads) | {"copied_bytes": parts.prefetcher.reader.copied_bytes},
        "hedging": _slots(reads.hedging),
        "uploads": _slots(uploads),
        "debts": _slots(parts.debts.statistics),
    }


def _following(parts: Parts) -> dict[str, Any] | None:
    if parts.following is None:
        return None
    return {"seconds_behind": parts.following.seconds_behind, "trouble": parts.following.trouble}


def _heads(parts: Parts) -> dict[str, Any]:
    heads, clients = parts.heads, parts.clients

    def state(server: bytes) -> str:
        return clients[server].state if server in clients else "not in the servers file"

    return {
        "generation": heads.now.generation,
        "quorum": heads.now.quorum,
        "servers": [
            {"name": parts.roster.name(server), "id": server.hex(), "state": state(server)}
            for server in heads.now.servers
        ],
        "leaving": [server.hex() for server in heads.leaving.servers] if heads.leaving else [],
    }


def _slots(record: object) -> dict[str, Any]:
    names = getattr(type(record), "__slots__", ())
    values = {name: getattr(record, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}


def _server(parts: Parts, server_id: bytes) -> dict[str, Any]:
    client = parts.clients[server_id]
    info = parts.capacity.infos.get(server_id)
    statistics = client.statistics()
    reads = parts.downloader.statistics()
    return {
        "name": parts.roster.name(server_id),
        "id": server_id.hex(),
        "state": client.state,
        "shares": info.shares if info else None,
        "share_bytes": info.share_bytes if info else None,
        "free_bytes": info.space.free if info else None,
        "sync": info.sync_policy if info else None,
        "requests": dict(statistics.requests),
        "bytes_in": statistics.bytes_in,
        "bytes_out": statistics.bytes_out,
        "avoided": server_id in reads.demoted,
        "shares_lacking": reads.reads.damaged.get(server_id, 0) - reads.reads.lied.get(server_id, 0),
        "shares_false": reads.reads.lied.get(server_id, 0),
        "records_forged": parts.heads.lied.get(server_id, 0),
    }


def _health(parts: Parts, servers: list[dict[str, Any]]) -> str:
    """One sentence: what works and what does not."""
    if parts.following is not None and parts.following.trouble is not None:
        return f"read-only, as it was {parts.following.seconds_behind:.0f} s ago: {parts.following.trouble}"
    taken = parts.journal.taken_over
    if taken:
        return f"read-only: {taken}"
    missing = parts.log.metadata.totals().missing_shares
    what = "1 share is" if missing == 1 else f"{missing} shares are"
    owed = f"; {what} owed, because servers were down when data was stored" if missing else ""
    liars = [server["name"] for server in servers if server["shares_false"] or server["records_forged"]]
    if liars:
        owed += f"; {', '.join(liars)} gave false data, which was not used: see the log"
    down = [server for server in servers if server["state"].startswith(("unreachable", "refused"))]
    names = ", ".join(server["name"] for server in down)
    trouble = parts.files.trouble()
    if trouble:
        without = f" (without {names})" if down else ""
        return f"writes wait in the spool{without}, {parts.dirty.bytes} bytes so far: {trouble}{owed}"
    if down:
        return f"reads and writes go on without {names}{owed}"
    return f"all servers answer{owed}"
