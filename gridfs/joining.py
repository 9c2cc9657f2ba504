"""Joining a file system as a reader: from a read key and a list of servers to a configuration that mounts.

The folder that is made of it holds no key that signs anything; what is in the grid is read when it is
mounted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gridfs.codec.headkeys import HeadKeys
from gridfs.codec.keys import ReadKey
from gridfs.config import Config
from gridfs.files.finding import ask, config_of, newest_of
from gridfs.grid.headquorum import HeadClient


@dataclass(frozen=True, slots=True)
class Joined:
    """What the servers told a reader."""

    config: Config | None
    """None: no server that answers has a record that the read key opens."""
    has_newer_keys: bool
    """The recovery key has made a younger generation than the read key's."""
    silent: Mapping[bytes, str]
    """Server id -> why it did not answer."""


async def join(clients: Mapping[bytes, HeadClient], key: ReadKey) -> Joined:
    """Ask every server what the file system is. Never fails: who does not answer is silent."""
    answers = await ask(clients, key.log)
    standings = [standing for standing in answers.standings.values() if standing is not None]
    keys = HeadKeys(key.tree, key.first_key, key.recovery_public)
    newer = keys.are_replaced(standing.succession for standing in standings)
    found = newest_of([standing.newest for standing in standings], [key.tree], key.log)
    if found is None:
        return Joined(None, newer, answers.silent)
    _, body, _ = found
    config = config_of(body, key.first_key, key.recovery_public)
    return Joined(config, newer, answers.silent)
