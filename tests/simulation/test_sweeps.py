"""A death at every disk operation and every message of everything that matters; the acts are a table.

Who dies: the client's process (kill), its machine for a moment (power) or for good (burn, after which another
machine recovers the file system), one server, or all machines together (blackout). The default run takes
a thin sample of the points, the slow one all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import trio

from gridfs.assembly import Parts
from gridfs.codec.headlist import HeadList
from gridfs.files import checkpointing, journal
from gridfs.files.journal import TakenOver
from gridfs.grid.errors import GridError
from storage.errors import StorageError
from tests.simulation.chaos.arrival import first_client, recover, with_recovery_key
from tests.simulation.filesystem import OPTIONS, Client, Servers, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.test_filesystem_crash import Story, go_on, look

Play = Callable[[Story], Awaitable[None]]
TAKEOVER = dataclasses.replace(OPTIONS, takeover=True)
SMALL_JOURNALS: Mapping[tuple[Any, str], int] = {(journal, "GATHER_BYTES"): 700}
OFTEN: Mapping[tuple[Any, str], int] = {**SMALL_JOURNALS, (checkpointing, "JOURNAL_PACKS_MAX"): 1}


async def nothing(story: Story) -> None:
    pass


def has_journal_packs(parts: Parts) -> bool:
    return bool(parts.journal.base.journals)


def has_checkpoint(parts: Parts) -> bool:
    return parts.checkpointer.count > 0


@dataclass(frozen=True)
class Act:
    """What goes on when the death comes."""

    play: Play = nothing
    begin: Play = nothing
    """What is there before, in the grid."""
    on: str = "same"
    """Which machine plays: the same that began; another one, which takes over; one that recovered it."""
    from_mount: bool = False
    """The death may come from the mount on, and not just while it plays."""
    happens: Callable[[Parts], bool] = lambda parts: True
    """Whether what the act is for took place, when it was not disturbed."""
    limits: Mapping[tuple[Any, str], int] = field(default_factory=dict)


async def two_files(story: Story) -> None:
    await story.make("old")
    await story.write("old", 0, 3000)
    await story.make("large")
    await story.write("large", 0, 70_000)


async def write_and_fsync(story: Story) -> None:
    await story.make("new")
    await story.write("new", 0, 3000)
    await story.fsync("new")
    await story.write("old", 1000, 3000)
    await story.fsync("old")
    await story.write("large", 60_000, 30_000)
    await story.fsync("large")
    for offset in (0, 500, 1500, 2900):
        await story.write("new", offset, 200)
        await story.fsync("new")


async def truncate(story: Story) -> None:
    await story.truncate("old", 1000)
    await story.fsync("old")
    await story.truncate("large", 66_000)
    await story.truncate("large", 68_000)
    await story.fsync("large")
    for size in (500, 4000, 0, 100, 70_000):
        await story.truncate("old", size)
        await story.fsync("old")


async def rename_over(story: Story) -> None:
    await story.make("new")
    await story.write("new", 0, 5000)
    await story.rename("new", "old")
    await story.fsync("large")
    await story.make("newer")
    await story.write("newer", 0, 40_000)
    await story.fsync("newer")
    await story.rename("newer", "large")
    await story.fsync("large")


async def unlink(story: Story) -> None:
    await story.unlink("old")
    await story.fsync("large")
    await story.unlink("large")
    for name in ("a", "b", "c", "d"):
        await story.make(name)
        await story.write(name, 0, 200)
        await story.fsync(name)
        await story.unlink(name)
        await story.make(name)
        await story.fsync(name)


async def many_fsyncs(story: Story) -> None:
    for _ in range(6):
        name = f"{len(story.states)}-{'x' * 100}"
        await story.make(name)
        await story.write(name, 0, 300)
        await story.fsync(name)


async def fsyncs_and_rest(story: Story) -> None:
    await many_fsyncs(story)
    await trio.sleep(5)
    await story.write("old", 0, 10)
    await story.fsync("old")
    await trio.sleep(5)


async def change_heads(story: Story) -> None:
    """One of them leaves, and comes back."""
    parts = story.shell.parts
    all_of_them = parts.heads.now
    for servers in (all_of_them.servers[1:], all_of_them.servers):
        await story.write("old", 0, 100)
        now = parts.heads.now
        await parts.journal.change_heads(HeadList(servers, now.quorum, now.generation + 1))
        for offset in (50, 150):
            await story.write("old", offset, 100)
            await story.fsync("old")


async def much(story: Story) -> None:
    """Packs, journal packs, a checkpoint, and data in records."""
    await two_files(story)
    await fsyncs_and_rest(story)


ACTS: dict[str, Act] = {
    "write and fsync": Act(write_and_fsync, two_files),
    "truncate": Act(truncate, two_files),
    "rename over": Act(rename_over, two_files),
    "unlink": Act(unlink, two_files),
    "journal pack": Act(many_fsyncs, two_files, happens=has_journal_packs, limits=SMALL_JOURNALS),
    "checkpoint": Act(fsyncs_and_rest, two_files, happens=has_checkpoint, limits=OFTEN),
    "claim": Act(many_fsyncs, two_files, from_mount=True, limits=SMALL_JOURNALS),
    "takeover": Act(many_fsyncs, two_files, on="another", from_mount=True, limits=OFTEN),
    "change of head servers": Act(change_heads, two_files),
    "recover": Act(many_fsyncs, much, on="recovered", from_mount=True, limits=OFTEN),
}  # fmt: skip


@dataclass(frozen=True)
class Death:
    """Who dies, and what is counted until then."""

    who: str
    """kill, power and burn: the client, by what is left of it; server: one of them; blackout: all."""
    by: str = "operation"


DEATHS = [
    Death("kill"), Death("kill", "message"), Death("power"), Death("power", "message"),
    Death("burn", "message"), Death("server"), Death("server", "message"), Death("blackout"),
]  # fmt: skip

SAMPLE = {"kill": 307, "power": 283, "burn": 293, "server": 211, "blackout": 1501}
"""Steps of the default run."""


def before(noted: Callable[[str, str], None], count: Callable[[], None]) -> Callable[[str, str], None]:
    def both(operation: str, path: str) -> None:
        noted(operation, path)
        count()

    return both


class Stage:
    """One run of an act with one death."""

    def __init__(self, world: World, servers: Servers, act: Act, death: Death, at: int) -> None:
        self.world, self.servers, self.act, self.death, self.at = world, servers, act, death, at
        self.story = Story()
        self.struck = False
        self.left = 0
        self.first = first_client(world, servers, "first")

    async def run(self) -> bool:
        """Whether the death came; checks what is there afterwards."""
        await self.first.session(self._begin)
        client = self.first
        if self.act.on == "another":
            client = Client(self.world, self.servers, "second")
            client.config, client.tree = self.first.config, self.first.tree
            client.create()
        elif self.act.on == "recovered":
            client = Client(self.world, self.servers, "second")
        if self.act.from_mount:
            self._arm(client)
        await self._played(client)
        self._disarm()
        await self._all_up()
        played = client
        found, client = await self._look(client)
        if self.death.who == "kill" and client is played:
            self.story.check_killed(found)
        elif self.death.who == "server":
            assert found == self.story.states[-1]
        else:
            self.story.check_power_lost(found)
        await client.session(go_on, TAKEOVER)
        if client is not self.first:
            with pytest.raises(TakenOver):
                await self.first.session(look)
        return self.struck

    async def _begin(self, parts: Parts) -> None:
        self.story.begin(parts)
        await self.act.begin(self.story)
        await self.story.drain()

    async def _played(self, client: Client) -> None:
        if self.act.on == "recovered" and not await self._recovered(client):
            return
        options = OPTIONS if self.act.on == "same" else TAKEOVER

        async def play(parts: Parts) -> bool:
            if not self.act.from_mount:
                self._arm(client)
            self.story.begin(parts)
            await self.act.play(self.story)
            assert self.struck or self.act.happens(parts)
            return True

        try:
            finished = await client.session(play, options)
        except (GridError, StorageError, OSError):
            assert self.death.who == "blackout"
            return
        assert finished or self.struck

    async def _recovered(self, client: Client) -> bool:
        try:
            return await recover(client, new_keys=self.at % 2 == 0) is not None
        except (GridError, StorageError):
            assert self.death.who == "blackout"
            return False

    async def _look(self, client: Client) -> tuple[dict[str, bytes | None], Client]:
        """What the machine has, or where it burned or was not finished, one that recovers it."""
        is_lost = self.death.who == "burn" or (self.act.on == "recovered" and self.death.who != "server")
        if self.struck and is_lost:
            self.world.kill(client.node)
            client = Client(self.world, self.servers, "third")
            assert await recover(client, new_keys=False)
        found = await client.session(look, TAKEOVER)
        assert found is not None
        return found, client

    # ---- the death

    def _arm(self, client: Client) -> None:
        """Let it come before the disk operation or message `at` from now on."""
        servers = self.servers.nodes
        counted, dying = {
            "server": (servers[:1], servers[:1]),
            "blackout": ([*servers, client.node], [*servers, client.node]),
        }.get(self.death.who, ([client.node], [client.node]))
        strike = self.world.kill if self.death.who == "kill" else self.world.crash
        self.left = self.at

        def count() -> None:
            self.left -= 1
            if self.left == 0:
                self.struck = True
                for node in dying:
                    strike(node)

        for node in counted:
            if self.death.by == "message":
                node.before_message = count
            else:
                node.platter.before_operation = before(node.platter.before_operation, count)

    def _disarm(self) -> None:
        self.left = 0

    async def _all_up(self) -> None:
        for node in self.servers.nodes:
            if not node.is_up:
                await self.servers.restart(node)


async def scenario(world: World, act: Act, death: Death, at: int) -> bool:
    servers = with_recovery_key(await start_servers(world))
    return await Stage(world, servers, act, death, at).run()


def sweep(act: Act, death: Death, first: int, step: int) -> int:
    """Every `step`th point until a run is not disturbed any more; how many there are, about."""
    at = first
    with contextlib.ExitStack() as stack:
        for (owner, name), value in act.limits.items():
            stack.enter_context(mock.patch.object(owner, name, value))
        while run_world(at, scenario, act, death, at).result:
            at += step
    return at


@pytest.fixture(autouse=True)
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SQLite meets the dead machine's disk also while a connection is given up, when none is left to tell."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    yield
    gc.collect()


EVERYTHING = [
    pytest.param(act, death, id=f"{act}-{death.who}-{death.by}") for act in ACTS for death in DEATHS
]


@pytest.mark.parametrize(("name", "death"), EVERYTHING)
def test_a_death_in_the_middle_of_it(name: str, death: Death) -> None:
    first = 1 + (7 * list(ACTS).index(name) + 3 * DEATHS.index(death)) % 6
    assert sweep(ACTS[name], death, first, step=SAMPLE[death.who]) > first


@pytest.mark.slow
@pytest.mark.parametrize(("name", "death"), EVERYTHING)
def test_a_death_at_each_point_of_it(name: str, death: Death) -> None:
    assert sweep(ACTS[name], death, 1, step=1) > 10
