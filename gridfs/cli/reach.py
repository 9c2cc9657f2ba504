"""How happy so many servers can make a file system, asked before anything is created or mounted."""

from __future__ import annotations

from gridfs.grid.placement import assign, happiness
from storage.format.share import BLOCK_SIZE, Geometry


def happiest(k: int, n: int, servers: int, shares_per_server: int) -> int:
    """The largest `happy` that full packs reach on so many servers; less than k if not even k shares fit."""
    geometry = Geometry(k, n, k * BLOCK_SIZE)
    ids = [number.to_bytes(4, "big") for number in range(servers)]
    return happiness(geometry, assign(geometry, ids, shares_per_server))
