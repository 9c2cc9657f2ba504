"""The client's machine dies before any of its disk operations; what the next mount must find.

Killed process: exactly what was acknowledged, and perhaps the one operation under way. Lost power: all
that fsync promised, whatever the disk made of the rest; never bytes that a file did not have.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio

from gridfs.assembly import Parts
from tests.simulation.filesystem import OPTIONS, Client, Shell, gauges, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.runner import chance

Tree = dict[str, bytes | None]
"""Path -> content, None for a folder."""


@dataclass
class Story:
    """What a file system was told, one operation a step, and what it acknowledged."""

    pause_s: float = 0.0
    """Between steps; longer ones let uploads, shipping and commits come between."""
    states: list[Tree] = field(default_factory=lambda: [{}])
    """After each step begun, in order; the first is empty."""
    acknowledged: int = 0
    """Index of the last state whose step has returned."""
    synced: dict[str, int] = field(default_factory=dict)
    """Path -> the last state in which an fsync of it returned."""
    named: int = 0
    """The last state whose names are in the grid: that of the last fsync of anything."""
    stream: random.Random = field(default_factory=lambda: chance(1, "story"))
    shell: Shell = field(init=False)

    async def play(self, parts: Parts) -> None:
        self.begin(parts)
        await self.mkdir("d")
        await self.make("d/a")
        await self.write("d/a", 0, 3000)
        await self.fsync("d/a")
        await self.write("d/a", 1000, 1000)
        await self.make("new")
        await self.write("new", 0, 5000)
        await self.write("new", 2000, 10)
        await self.fsync("new")
        await self.rename("new", "d/a")
        await self.write("d/a", 4000, 3000)
        await self.truncate("d/a", 2500)
        await self.truncate("d/a", 6000)
        await self.fsync("d/a")
        await self.make("unsynced")
        await self.write("unsynced", 0, 4000)
        await self.rename("unsynced", "d/a")
        await self.write("d/a", 0, 100)
        await self.make("big")
        await self.write("big", 100, 70_000)
        await self.fsync("big")
        await self.write("big", 65_000, 2_000)
        await self.clone("big", "twin")
        await self.write("big", 66_000, 100)
        await self.write("twin", 66_050, 100)
        await self.truncate("twin", 66_500)
        await self.fsync("twin")
        await self.clone("d", "e")
        await self.write("e/a", 50, 200)
        await self.clone("d", "past", read_only=True)
        await self.write("d/a", 20, 60)
        await self.fsync("e/a")
        await self.remove_snapshot("past")
        await self.unlink("d/a")
        await self.rmdir("d")
        await self.drain()

    def begin(self, parts: Parts) -> None:
        """The steps from here on are told to this file system."""
        self.shell = Shell(parts)

    async def step(
        self, change: Callable[[Tree], object], act: Callable[[], object | Awaitable[object]]
    ) -> None:
        tree = dict(self.states[-1])
        change(tree)
        self.states.append(tree)
        result = act()
        if isinstance(result, Awaitable):
            await result
        self.acknowledged = len(self.states) - 1
        await trio.sleep(self.pause_s)

    async def write(self, path: str, offset: int, size: int) -> None:
        data = self.stream.randbytes(size)

        def change(tree: Tree) -> None:
            old = tree[path]
            assert old is not None
            old = old.ljust(offset, b"\0")
            tree[path] = old[:offset] + data + old[offset + size :]

        await self.step(change, lambda: self.shell.write(path, data, offset))

    async def truncate(self, path: str, size: int) -> None:
        await self.step(
            lambda tree: tree.update({path: (tree[path] or b"")[:size].ljust(size, b"\0")}),
            lambda: self.shell.truncate(path, size),
        )

    async def make(self, path: str) -> None:
        await self.step(lambda tree: tree.update({path: b""}), lambda: self.shell.create(path))

    async def mkdir(self, path: str) -> None:
        await self.step(lambda tree: tree.update({path: None}), lambda: self.shell.mkdir(path))

    async def unlink(self, path: str) -> None:
        await self.step(lambda tree: tree.pop(path), lambda: self.shell.unlink(path))

    async def rmdir(self, path: str) -> None:
        await self.step(lambda tree: tree.pop(path), lambda: self.shell.rmdir(path))

    async def rename(self, source: str, target: str) -> None:
        def change(tree: Tree) -> None:
            tree[target] = tree.pop(source)
            self.synced.pop(source, None)  # that name may be there or not; the other stays bound

        await self.step(change, lambda: self.shell.rename(source, target))

    async def clone(self, source: str, target: str, *, read_only: bool = False) -> None:
        def change(tree: Tree) -> None:
            for path in [path for path in tree if f"{path}/".startswith(f"{source}/")]:
                tree[target + path.removeprefix(source)] = tree[path]

        await self.step(change, lambda: self.shell.clone(source, target, read_only=read_only))

    async def remove_snapshot(self, folder: str) -> None:
        def change(tree: Tree) -> None:
            for path in [path for path in tree if f"{path}/".startswith(f"{folder}/")]:
                del tree[path]

        await self.step(change, lambda: self.shell.rmdir(folder))

    async def fsync(self, path: str) -> None:
        await self.shell.fsync(path)
        self.synced[path] = self.named = len(self.states) - 1
        await trio.sleep(self.pause_s)

    async def drain(self) -> None:
        await self.shell.files.drain()
        last = self.states[-1]
        self.synced = {path: len(self.states) - 1 for path in last if last[path] is not None}
        self.named = len(self.states) - 1

    def check_killed(self, found: Tree) -> None:
        """All that was acknowledged, and perhaps the operation under way."""
        assert found in self.states[self.acknowledged :], describe(found, self.states)

    def check_power_lost(self, found: Tree) -> None:
        """What was synced is there, or what came in its place later."""
        names = [set(tree) for tree in self.states[self.named :]]
        assert set(found) in names, (sorted(found), [sorted(each) for each in names])
        for path, since in self.synced.items():
            later = [tree[path] for tree in self.states[since:] if path in tree]
            if len(later) == len(self.states) - since:
                content = found[path]
                assert content is not None
                versions = [content for content in later if content is not None]
                assert is_blend(content, versions), (path, since, len(content))


def is_blend(content: bytes, versions: list[bytes]) -> bool:
    """Whether each byte is that of one of the versions of the file; past the first, zeros may stand."""
    size_min, size_max = min(map(len, versions)), max(map(len, versions))
    if not size_min <= len(content) <= size_max:
        return False
    if any(content == version for version in versions):
        return True
    for position, byte in enumerate(content):
        seen = {version[position] for version in versions if position < len(version)}
        if position >= size_min:
            seen.add(0)
        if byte not in seen:
            return False
    return True


def describe(found: Tree, states: list[Tree]) -> str:
    def short(tree: Tree) -> dict[str, object]:
        return {path: data if data is None else (len(data), data[:4].hex()) for path, data in tree.items()}

    return "\n".join([f"found {short(found)}", *(f"{i}: {short(tree)}" for i, tree in enumerate(states))])


async def look(parts: Parts) -> Tree:
    return await Shell(parts).tree()


async def go_on(parts: Parts) -> None:
    """One more change, and everything into the grid."""
    shell = Shell(parts)
    found = await shell.tree()
    await shell.write("further", b"f" * 1000)
    await parts.files.drain()
    assert set(gauges(parts).values()) == {0}, gauges(parts)
    assert parts.log.metadata.check() == []
    assert await shell.tree() == {**found, "further": b"f" * 1000}


@dataclass(frozen=True)
class Plan:
    """How the client dies."""

    how: str
    """kill or power."""
    pause_s: float = 0.0
    fsync: str = "grid"
    again_at: int = 0
    """Before this disk operation of the next mount it dies again, in the same way; 0: it does not."""


async def crash(world: World, plan: Plan, at: int) -> bool:
    """The client dies before disk operation `at` of a story; whether there was one."""
    options = dataclasses.replace(OPTIONS, fsync=plan.fsync)
    client = Client(world, await start_servers(world))
    client.create()
    story = Story(plan.pause_s)
    strike = client.kill_at if plan.how == "kill" else client.cut_power_at
    strike(at)

    async def play(parts: Parts) -> bool:
        await story.play(parts)
        return True

    finished = await client.session(play, options)
    if plan.again_at:
        strike(plan.again_at)
        await client.session(look, options)
    strike(0)
    found = await client.session(look, options)
    assert found is not None
    if plan.how == "kill":
        story.check_killed(found)
    else:
        story.check_power_lost(found)
    await client.session(go_on, options)
    assert await client.session(look, options) == {**found, "further": b"f" * 1000}
    return not finished


def sweep(seed: int, plan: Plan, first: int, step: int) -> int:
    """Every `step`th crash point until a run ends untouched; how many there were."""
    at = first
    while run_world(seed, crash, plan, at).result:
        at += step
    return at


PLANS = [
    Plan("kill"),
    Plan("kill", pause_s=3),
    Plan("kill", pause_s=0.7, again_at=7),
    Plan("power"),
    Plan("power", pause_s=3),
    Plan("power", pause_s=0.7, fsync="spool"),
    Plan("power", pause_s=3, again_at=60),
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_client_that_dies_keeps_what_it_promised(plan: Plan) -> None:
    index = PLANS.index(plan)
    step = 71 if plan.pause_s > 1 else 29  # longer pauses, more disk operations
    assert sweep(index, plan, first=1 + index, step=step) > 90


@pytest.mark.parametrize("seed", range(12))
def test_power_lost_right_after_the_first_fsync_of_the_first_mount(seed: int) -> None:
    """The newest record must be known as our own, whatever the disk kept of the spool."""

    async def scenario(world: World) -> None:
        client = Client(world, await start_servers(world))
        client.create()

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("file", b"x" * 3000)
            await shell.fsync("file")
            await shell.write("file", b"y" * 10, 3000)
            world.crash(client.node)

        await client.session(work)
        found = await client.session(look)
        assert found is not None
        content = found["file"]
        assert content is not None
        assert content[:3000] == b"x" * 3000
        assert content[3000:] in (b"", bytes(10), b"y" * 10)

    run_world(seed, scenario)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_client_that_dies_before_any_of_its_disk_operations_keeps_what_it_promised(
    plan: Plan, seed: int
) -> None:
    """Every crash point of a plan, a third of them with each seed."""
    assert sweep(seed, plan, first=1 + seed, step=3) > 90
