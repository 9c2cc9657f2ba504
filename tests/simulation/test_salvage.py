"""What is on a machine alone: told without keys, and written out whole or in pieces, grid or no grid."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from gridfs.assembly import Parts
from gridfs.exporting import Exported, export_spool
from gridfs.files.leftover import Leftover, leftover
from gridfs.files.salvage import Atlas, merged
from gridfs.meta.rows import Entry
from storage.ports import Disk
from tests.simulation.filesystem import DATABASE, KEYS, OPTIONS, SPOOL, Client, Servers, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.test_filesystem_crash import go_on, look

OUT = "/out"
QUICK = dataclasses.replace(OPTIONS, grid_timeout_s=5.0)


@dataclasses.dataclass
class Stage:
    world: World
    servers: Servers
    client: Client

    def down(self, count: int = 6) -> None:
        for node in self.servers.nodes[:count]:
            self.world.kill(node)

    async def up(self) -> None:
        await self.servers.restart(*[node for node in self.servers.nodes if not node.is_up])

    def contents(self, directory: str) -> dict[str, bytes]:
        """Of every file in a directory of the client's disk."""
        disk = self.world.boot(self.client.node).disk
        try:
            return dict(read_all(disk, directory))
        finally:
            self.world.kill(self.client.node)

    def left(self) -> Leftover:
        disk = self.world.boot(self.client.node).disk
        try:
            return leftover(disk, DATABASE, SPOOL)
        finally:
            self.world.kill(self.client.node)

    async def export(
        self, target: str = OUT, **options: bool
    ) -> tuple[Exported, dict[str, Any], dict[str, bytes]]:
        """What was done, the manifest's lines by path (or slot and inode), and all files that were written.

        The local state must be the same before and after.
        """
        before = self.contents(SPOOL), self.left()
        machine = self.world.boot(self.client.node)
        try:
            done = await export_spool(machine, DATABASE, SPOOL, KEYS, self.servers.roster, target, **options)
            files = dict(read_all(machine.disk, target))
        finally:
            self.world.kill(self.client.node)
        assert (self.contents(SPOOL), self.left()) == before
        lines = [json.loads(line) for line in files.pop("manifest.jsonl").splitlines()]
        manifest = {
            f"{line['slot']}/{line.get('ino')}" if "slot" in line else line["path"]: line for line in lines
        }
        assert len(manifest) == len(lines)
        return done, manifest, files


def read_all(disk: Disk, directory: str) -> list[tuple[str, bytes]]:
    found = []
    for name in disk.names(directory):
        path = f"{directory}/{name}"
        try:
            file = disk.open(path, writable=False)
        except IsADirectoryError:
            found += [(f"{name}/{below}", data) for below, data in read_all(disk, path)]
            continue
        data = bytearray(file.size())
        file.read_into(memoryview(data), 0)
        file.close()
        found.append((name, bytes(data)))
    return found


def staged(story: Callable[[Stage], Awaitable[Any]], seed: int = 1) -> None:
    async def scenario(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()
        await story(Stage(world, servers, client))

    run_world(seed, scenario)


OLD = random.Random(1).randbytes(300_000)
NEW = random.Random(2).randbytes(50_000)
CHANGED = OLD[:100_000] + NEW + OLD[150_000:]


async def leave_dirty(stage: Stage) -> None:
    """A file that is in the grid, changed in the middle while the grid was away; a new one; names moved."""

    async def work(parts: Parts) -> None:
        shell = Shell(parts)
        shell.mkdir("folder")
        await shell.write("folder/old", OLD)
        await shell.write("untouched", b"u" * 1000)
        await shell.files.drain()
        stage.down()
        await shell.write("folder/old", NEW, 100_000)
        await shell.write("new", b"n" * 10_000)
        await shell.write("sparse", b"end", 3_000_000)
        shell.rename("folder/old", "moved")
        await shell.write("gone", b"never seen")
        shell.unlink("gone")
        shell.names.make(1, b"link", stat.S_IFLNK | 0o777, 1, 1, target=b"moved")
        await trio.sleep(1)
        stage.world.kill(stage.client.node)

    await stage.client.session(work)


def test_with_the_grid_every_file_is_whole() -> None:
    async def story(stage: Stage) -> None:
        await leave_dirty(stage)
        await stage.up()
        done, manifest, files = await stage.export()
        assert files == {
            "files/moved": CHANGED,
            "files/new": b"n" * 10_000,
            "files/sparse": bytes(3_000_000) + b"end",
        }
        assert (done.files, done.incomplete, done.grid_trouble) == (3, 0, "")
        assert set(manifest) == {"moved", "new", "sparse", "link"}
        assert manifest["moved"]["ranges"] == [[100_000, 150_000]]
        assert manifest["moved"]["missing"] == []
        assert manifest["moved"]["size"] == 300_000
        assert manifest["link"] | {"kind": "symlink", "target": "moved"} == manifest["link"]
        numbers = [number for line in manifest.values() for number in line["operations"]]
        assert len(numbers) >= 5

    staged(story)


def test_without_the_grid_what_is_here_is_written_and_the_rest_is_named() -> None:
    async def story(stage: Stage) -> None:
        await leave_dirty(stage)
        done, manifest, files = await stage.export()
        assert set(files) == {"incomplete/moved", "files/new", "files/sparse"}
        assert files["incomplete/moved"] == bytes(100_000) + NEW + bytes(150_000)
        assert files["files/new"] == b"n" * 10_000
        assert (done.files, done.incomplete) == (2, 1)
        assert done.grid_trouble
        assert manifest["moved"]["missing"] == [[0, 100_000], [150_000, 300_000]]
        assert manifest["moved"]["stored"] == "incomplete/moved"

    staged(story)


def test_what_was_drained_gives_an_empty_export() -> None:
    async def story(stage: Stage) -> None:
        await stage.client.session(go_on)
        assert not stage.left()
        done, manifest, files = await stage.export()
        assert (done, manifest, files) == (Exported(), {}, {})

    staged(story)


def test_data_that_is_in_records_only_is_exported_too() -> None:
    """It lies in the spool still, and in a pack nowhere."""

    async def story(stage: Stage) -> None:
        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("little", b"fsynced")
            await shell.fsync("little")
            stage.world.kill(stage.client.node)

        await stage.client.session(work)
        _, _, files = await stage.export()
        assert files == {"files/little": b"fsynced"}

    staged(story)


def test_slots_of_another_history_are_written_out_by_inode() -> None:
    async def story(stage: Stage) -> None:
        await leave_dirty(stage)
        machine = stage.world.boot(stage.client.node)
        name = next(name for name in machine.disk.names(SPOOL) if name.endswith(".spool"))
        machine.disk.replace(f"{SPOOL}/{name}", f"{SPOOL}/{name}.aside-1")
        stage.world.kill(stage.client.node)
        assert stage.left().aside == 1
        done, manifest, files = await stage.export()
        assert done.slots == 1
        by_path = {line.get("path"): line for line in manifest.values() if "slot" in line}
        slots = {key: data for key, data in files.items() if key.startswith("slots/")}
        assert slots[by_path["new"]["stored"]] == b"n" * 10_000
        assert by_path["sparse"]["ranges"] == [[3_000_000, 3_000_003]]
        assert slots[by_path["gone"]["stored"]] == b"never seen"
        # The metadata knows these files; their data was in that slot alone, and zeros are no whole file.
        assert manifest["new"]["missing"] == [[0, 10_000]]
        assert manifest["sparse"]["missing"] == [[3_000_000, 3_000_003]]
        assert (done.files, done.incomplete) == (0, 3)

    staged(story)


def test_what_was_set_aside_with_its_metadata_is_written_out_under_its_paths() -> None:
    """A copy of this folder went on elsewhere: then this one's own history is set aside, names and all."""

    async def story(stage: Stage) -> None:
        platter = stage.client.node.platter

        async def begin(parts: Parts) -> None:
            shell = Shell(parts)
            shell.mkdir("folder")
            await shell.write("folder/old", OLD)
            shell.mkdir("docs")
            await shell.write("docs/letter", b"first")
            await shell.files.drain()

        async def one_way(parts: Parts) -> None:
            shell = Shell(parts)
            stage.down()
            await shell.write("folder/old", NEW, 100_000)
            shell.mkdir("folder/more")
            await shell.write("folder/more/new", b"n" * 10_000)
            shell.rename("docs", "folder/docs")
            await trio.sleep(1)

        async def other_way(parts: Parts) -> None:
            await Shell(parts).write("other", OLD)
            await Shell(parts).files.drain()

        await stage.client.session(begin)
        copied = copy.deepcopy(platter.root)
        await stage.client.session(one_way)
        went = platter.root
        await stage.up()
        platter.root = copied
        await stage.client.session(other_way)
        platter.root = went
        found = await stage.client.session(look)
        assert found == {
            "folder": None,
            "folder/old": OLD,
            "docs": None,
            "docs/letter": b"first",
            "other": OLD,
        }
        left = stage.left()
        assert (left.bytes, left.operations) == (0, 0)
        assert left
        assert left.aside >= 1
        assert left.databases == 1
        assert "slots of the spool and 1 databases set aside" in str(left)
        done, manifest, files = await stage.export()
        assert done.slots == left.aside
        by_path = {line["path"]: line for line in manifest.values() if line.get("stored")}
        assert set(by_path) == {"folder/old", "folder/more/new"}
        assert by_path["folder/old"]["ranges"] == [[100_000, 150_000]]
        assert files[by_path["folder/old"]["stored"]] == bytes(100_000) + NEW
        assert files[by_path["folder/more/new"]["stored"]] == b"n" * 10_000
        assert "folder/docs" in {line.get("path") for line in manifest.values()}

    staged(story)


def test_paths_of_another_history() -> None:
    """Names that operations give come before what metadata know; what nobody knows is a question mark."""

    class Rows:
        def __init__(self, entries: dict[int, list[Entry]]) -> None:
            self.rows = entries

        def entries(self, parent: int, after_cookie: int, limit: int) -> list[Entry]:
            return [] if after_cookie else self.rows.get(parent, [])

    folder, file = stat.S_IFDIR, stat.S_IFREG
    past = Rows({1: [Entry(1, b"a", 10, folder)], 10: [Entry(1, b"b", 11, file)]})
    now = Rows({1: [Entry(1, b"z", 10, folder), Entry(2, b"other", 12, file)]})
    atlas = Atlas([past, now], [11, 12, 13])  # type: ignore[list-item]
    names = {20: (10, b"new"), 21: (99, b"lost"), 30: (31, b"x"), 31: (30, b"y"), 22: (1, b"top")}
    assert {ino: atlas.path(ino, names) for ino in (11, 12, 13, 20, 21, 22)} == {
        11: b"a/b",
        12: b"other",
        13: None,
        20: b"a/new",
        21: b"?/lost",
        22: b"top",
    }
    assert atlas.path(30, names) == b"?/y/x"  # a ring, in records that make no sense, ends


def test_with_all_everything_in_the_slots_is_written_out() -> None:
    """A grid that is lost for good: what was stored there may lie in the spool still."""

    async def story(stage: Stage) -> None:
        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("stored", OLD)
            await shell.files.drain()

        await stage.client.session(work)
        stage.down()
        _, _, files = await stage.export("/some")
        assert files == {}
        done, _, files = await stage.export("/all", everything=True)
        assert done.slots >= 1
        assert OLD in files.values()

    staged(story)


def test_a_target_in_use_is_not_written_over() -> None:
    async def story(stage: Stage) -> None:
        await leave_dirty(stage)
        await stage.export()
        with pytest.raises(FileExistsError):
            await stage.export()

    staged(story)


def test_what_is_left_is_exact_after_a_mount_that_ended_and_a_bound_after_a_kill() -> None:
    async def story(stage: Stage) -> None:
        async def write(parts: Parts) -> int:
            await Shell(parts).write("file", b"x" * 5000)
            return parts.log.number - parts.journal.up_to

        async def die(parts: Parts) -> None:
            await Shell(parts).write("other", b"y" * 700)
            await trio.sleep(1)
            stage.world.kill(stage.client.node)

        assert stage.left() == Leftover(0, 0, is_exact=True, aside=0)
        assert not stage.left()
        operations = await stage.client.session(write)
        assert stage.left() == Leftover(5000, operations or 0, is_exact=True, aside=0)
        assert operations == 2
        stage.down(2)
        await stage.client.session(die)
        left = stage.left()
        assert left.bytes >= 5700
        assert left.operations >= 4
        assert not left.is_exact
        assert str(left).startswith("at most")
        await stage.up()
        await stage.client.session(go_on)
        assert stage.left() == Leftover(0, 0, is_exact=True, aside=0)

    staged(story)


def test_ranges_are_merged() -> None:
    assert merged([(5, 9), (0, 2), (2, 4), (8, 12), (20, 20)]) == [(0, 4), (5, 12)]
    assert merged([]) == []
