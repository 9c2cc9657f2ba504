"""Finding a file system in the grid with nothing but its recovery key: the newest record, and how sure it is.

The recovery key gives the first master key and the head log's name; successors' keys come with their
successions, sealed for it. Every server is asked how the log stands there; what that means is decided without
I/O, by DESIGN's rule: the newest valid record says who the head servers are and how many have to answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from gridfs.codec.headlist import HeadList, Need
from gridfs.codec.keys import KeyTree, ReadTree, RecoveryKey, WrongKey
from gridfs.config import Config
from gridfs.grid.headquorum import HeadClient
from gridfs.meta.operations import Commit, Drop, Operation, Retire, SetAttributes, Together, decode
from gridfs.meta.records import HeadBody, open_head
from storage.errors import Corrupt, Refused, StorageError
from storage.format.head import HeadRecord, HeadStanding, Succession, fits, generation_of

Tree = TypeVar("Tree", KeyTree, ReadTree)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the servers said about the head log."""

    standings: Mapping[bytes, HeadStanding | None]
    """By server id; None: the server answers and has no such log."""
    silent: Mapping[bytes, str]
    """Server id -> why it did not answer."""


@dataclass(frozen=True, slots=True)
class Found:
    """The newest that could be found of a file system."""

    record: HeadRecord
    body: HeadBody
    tree: KeyTree
    """Keys of the youngest generation."""
    succession: Succession | None
    """How that came to be; None for generation 0."""
    masters: tuple[bytes, ...]
    """Master keys of the successors up to now, oldest first."""
    former: tuple[KeyTree, ...]
    """Keys of all other generations."""
    epoch: int
    """The highest that any server has promised."""
    answered: frozenset[bytes]
    """Servers that did."""

    def lacking(self, need: Need) -> HeadList | None:
        """A list of head servers of which fewer answered than that; None if there is none."""
        lists = [each for each in (self.body.heads, self.body.leaving) if each is not None]
        return next((each for each in lists if each.count(self.answered) < each.needed(need)), None)

    @property
    def newest_time(self) -> int | None:
        """Nanoseconds since 1970 at which the newest operation in the record was made, if one says so."""
        times = [_time_of(decode(encoded)) for _, encoded in self.body.operations]
        return max((time for time in times if time is not None), default=None)

    @property
    def next_generation(self) -> int:
        """That of another successor."""
        known = self.succession.generation if self.succession else 0
        return max(known, generation_of(self.epoch)) + 1


async def ask(clients: Mapping[bytes, HeadClient], log: bytes) -> Answers:
    """Ask every server. Never fails: who does not answer is silent, for as long as its client waits."""
    standings: dict[bytes, HeadStanding | None] = {}
    silent: dict[bytes, str] = {}

    async def one(server: bytes, client: HeadClient) -> None:
        try:
            standings[server] = await client.head_look(log)
        except StorageError as error:
            silent[server] = str(error)

    async with trio.open_nursery() as nursery:
        for server, client in clients.items():
            nursery.start_soon(one, server, client)
    return Answers(standings, silent)


def judge(answers: Answers, recovery: RecoveryKey) -> Found | None:
    """The newest valid record; None if there is none. What does not verify is as if it were not there."""
    first = KeyTree(recovery.master)
    standings = [standing for standing in answers.standings.values() if standing is not None]
    lines: dict[Succession, tuple[bytes, ...]] = {}
    for standing in standings:
        if standing.succession is not None and standing.succession not in lines:
            try:
                lines[standing.succession] = tuple(recovery.masters(standing.succession))
            except WrongKey:
                continue
    trees = {first.master: first}
    for masters in lines.values():
        trees |= {master: KeyTree(master) for master in masters}
    newest = newest_of([standing.newest for standing in standings], list(trees.values()), recovery.log)
    if newest is None:
        return None
    record, body, writer = newest

    def rank(succession: Succession) -> tuple[int, bool, int]:
        # Of two successors of one generation one has written nothing: it was given up before that.
        promised = max(one.epoch for one in standings if one.succession == succession)
        return succession.generation, succession.verifying_key == writer.verifying_key, promised

    succession = max(lines, key=rank, default=None)
    masters = lines[succession] if succession else ()
    tree = trees[masters[-1]] if masters else first
    former = tuple(other for other in trees.values() if other.master != tree.master)
    epoch = max(standing.epoch for standing in standings)
    return Found(record, body, tree, succession, masters, former, epoch, frozenset(answers.standings))


def newest_of(
    records: Sequence[HeadRecord | None], trees: Sequence[Tree], log: bytes
) -> tuple[HeadRecord, HeadBody, Tree] | None:
    """The newest record that one of these keys signed and opens, with its body and those keys."""
    keys = [(tree.verifying_key, tree) for tree in trees]
    there = [record for record in records if record is not None]
    for record in sorted(there, key=lambda record: record.stamp, reverse=True):
        signed = record.signed_bytes(log)
        for verifying_key, tree in keys:
            if fits(verifying_key, record.signature, signed):
                try:
                    body = open_head(record.payload, tree.journal_key, record.epoch, record.sequence)
                except (Corrupt, Refused):
                    continue
                return record, body, tree
    return None


def config_of(body: HeadBody, first_key: bytes, recovery_public: bytes) -> Config:
    """The configuration of a file system, as a record tells it."""
    settings = body.settings
    return Config(
        file_system=settings.file_system,
        k=settings.k,
        n=settings.n,
        happy=settings.happy,
        shares_per_server=settings.shares_per_server,
        head_servers=body.heads.servers,
        recovery_public=recovery_public,
        first_key=first_key,
        head_generation=body.heads.generation,
    )


def _time_of(operation: Operation) -> int | None:
    if isinstance(operation, Together):
        return max((time for part in operation.parts if (time := _time_of(part)) is not None), default=None)
    if isinstance(operation, SetAttributes):
        return operation.ctime
    return None if isinstance(operation, Drop | Commit | Retire) else operation.time
