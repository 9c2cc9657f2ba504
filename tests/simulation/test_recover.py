"""Recovery on a machine that has nothing, with and without new keys, and the death of anything meanwhile.

Whatever dies at whatever moment of a recovery: what the old machine had synced is found by the next recovery,
and once one has returned the old machine writes nothing any more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from gridfs.assembly import MountOptions, Parts, connected, head_keys, open_filesystem
from gridfs.codec.keys import KeyTree, RecoveryKey
from gridfs.config import Config
from gridfs.exits import CommandError, sole
from gridfs.files import checkpointing, journal
from gridfs.files.claiming import RISE_MAX, ShutOut, TakenOver
from gridfs.grid.errors import GridError, NotEnoughServers
from gridfs.grid.heads import HeadServers
from gridfs.grid.roster import Roster
from gridfs.recovering import Rebuilt, find, plan, rebuild
from storage.errors import Conflict, StorageError, Unavailable
from storage.format.head import EPOCH_BITS, generation_of
from storage.identity import Account
from storage.ports import Machine
from storage.service import Service
from storage.wire import messages as wire
from tests.simulation import filesystem
from tests.simulation.filesystem import DATABASE, HOME, OPTIONS, SPOOL, Client, Servers, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.platter import MachineDead, Platter
from tests.simulation.test_filesystem_crash import go_on, look

# SQLite, whose machine dies while it makes a database, cannot close what it opened, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

RECOVERY = RecoveryKey(bytes(range(32)))
Tree = dict[str, bytes | None]
QUICK = dataclasses.replace(OPTIONS, grid_timeout_s=5.0)
TAKEOVER = dataclasses.replace(QUICK, takeover=True)


class Computer(Client):
    """A machine with a folder of the file system, made by `create` or by a recovery."""

    def __init__(self, world: World, servers: Servers, name: str) -> None:
        super().__init__(world, servers, name)
        self.config: Config = servers.config
        self.tree = KeyTree(RECOVERY.master)

    def opened(self, machine: Machine, options: MountOptions = OPTIONS) -> Any:
        return open_filesystem(machine, self.config, self.servers.roster, self.tree, DATABASE, SPOOL, options)

    def create_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(filesystem, "KEYS", self.tree)
            self.create()


@dataclass
class Stage:
    """A grid, the machine that has the file system, and what it has synced."""

    world: World
    servers: Servers
    old: Computer
    synced: Tree = field(default_factory=dict)
    machines: int = 0

    async def recover(
        self,
        *,
        new_keys: bool = False,
        gives_up: bool = False,
        strike: Callable[[Computer], None] = lambda machine: None,
    ) -> Computer | None:
        """Recover on a machine that has nothing; None if it died before it was done.

        `strike(machine)` is called before it begins. What fails on a living machine is raised.
        """
        self.machines += 1
        made = Computer(self.world, self.servers, f"machine{self.machines}")
        done: list[Rebuilt] = []
        failures: list[BaseException] = []
        ended = trio.Event()

        async def program(machine: Machine, *, task_status: trio.TaskStatus[Any]) -> None:
            task_status.started()
            try:
                machine.disk.make_directory(HOME)
                roster = self.servers.roster
                async with connected(machine, roster) as clients:
                    found, silent = await find(clients, RECOVERY)
                    if found is None:
                        raise Unavailable(f"{len(silent)} servers are silent")
                    decided = plan(
                        found,
                        silent,
                        roster,
                        RECOVERY,
                        machine.entropy,
                        new_keys=new_keys,
                        gives_up=gives_up,
                    )
                    made.config, made.tree = decided.config, decided.tree
                    rebuilt = await rebuild(machine, clients, found, decided, roster, DATABASE, SPOOL)
                for directory in (HOME, "/home", "/"):
                    machine.disk.sync_directory(directory)
                done.append(rebuilt)
            except Exception as error:
                if made.node.machine is not machine:
                    raise
                failures.append(sole(error))
            finally:
                ended.set()

        strike(made)
        try:
            await self.world.start(made.node, program)
            await ended.wait()
        except MachineDead:
            return None
        while made.node.is_up:
            await trio.lowlevel.checkpoint()
        made.cut_power_at(0)
        if failures:
            raise failures[0]
        return made if done else None


async def prepare(world: World, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A file system with all that a recovery has to bring together: packs, journal packs, data in records."""
    servers = await start_servers(world)
    first = KeyTree(RECOVERY.master)
    config = dataclasses.replace(
        servers.config, recovery_public=RECOVERY.public, first_key=first.verifying_key
    )
    servers = dataclasses.replace(servers, config=config)
    old = Computer(world, servers, "old")
    old.create_own(monkeypatch)
    stage = Stage(world, servers, old)

    async def work(parts: Parts) -> Tree:
        shell = Shell(parts)
        shell.mkdir("folder")
        for number in range(30):
            await shell.write(f"folder/{number}", b"%d" % number * 50 * number)
            if number % 10 == 0:
                await shell.fsync(f"folder/{number}")
        await shell.write("large", bytes(range(256)) * 2000)
        await shell.files.sync()
        await shell.write("little", b"in the record alone")
        await shell.fsync("little")
        return await shell.tree()

    stage.synced = await old.session(work) or {}
    return stage


@pytest.fixture(autouse=True)
def small_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the story above makes journal packs."""
    monkeypatch.setattr(journal, "GATHER_BYTES", 3000)


def staged(seed: int, monkeypatch: pytest.MonkeyPatch, story: Callable[..., Any], *args: object) -> Any:
    """Run `story(stage, *args)` in a world of its own."""

    async def scenario(world: World) -> Any:
        return await story(await prepare(world, monkeypatch), *args)

    return run_world(seed, scenario).result


async def cannot_write(machine: Computer) -> None:
    """Neither mounted anew nor by what it still has open."""

    async def write(parts: Parts) -> None:
        shell = Shell(parts)
        await shell.write("from the old one", b"x")
        await shell.fsync("from the old one")

    with pytest.raises((TakenOver, NotEnoughServers)):
        await machine.session(write, QUICK)


@pytest.mark.parametrize("new_keys", [False, True])
def test_everything_synced_is_back(monkeypatch: pytest.MonkeyPatch, new_keys: bool) -> None:
    async def story(stage: Stage) -> None:
        new = await stage.recover(new_keys=new_keys)
        assert new is not None
        assert await new.session(look) == stage.synced
        await new.session(go_on)
        assert await new.session(look) == {**stage.synced, "further": b"f" * 1000}
        again = await stage.recover()
        assert again is not None
        assert again.tree == new.tree
        assert again.config == new.config
        assert await again.session(look) == {**stage.synced, "further": b"f" * 1000}

    staged(1, monkeypatch, story)


def test_a_machine_with_old_keys_is_shut_out_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(stage: Stage) -> None:
        machines = [stage.old]
        for generation in (1, 2, 3):
            new = await stage.recover(new_keys=True)
            assert new is not None
            assert new.config.succession is not None
            assert new.config.succession.generation == generation
            for machine in machines:
                with pytest.raises(ShutOut, match="shut out"):
                    await machine.session(look, QUICK)
            assert await new.session(look) == stage.synced
            machines.append(new)
        assert len({machine.tree.master for machine in machines}) == 4
        assert len({machine.tree.convergence_secret for machine in machines}) == 4

    staged(2, monkeypatch, story)


def test_a_machine_that_has_to_give_way_does_not_disturb_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds operations of its own: it learns that another has written before it claims anything."""

    async def story(stage: Stage) -> None:
        async def alone(parts: Parts) -> None:
            shell = Shell(parts)
            for node in stage.servers.nodes:
                stage.world.kill(node)
            await shell.write("mine", b"m" * 100)
            await trio.sleep(1)
            stage.world.kill(stage.old.node)

        await stage.old.session(alone)
        await stage.servers.restart(*stage.servers.nodes)
        new = await stage.recover()
        assert new is not None

        async def write_on(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("theirs", b"t" * 100)
            await shell.fsync("theirs")
            with pytest.raises(TakenOver, match="another client has written"):
                await stage.old.session(look, QUICK)
            await shell.write("theirs", b"u" * 100)
            await shell.fsync("theirs")
            assert parts.journal.taken_over is None

        await new.session(write_on, QUICK)
        assert await new.session(look) == {**stage.synced, "theirs": b"u" * 100}

    staged(5, monkeypatch, story)


def test_without_new_keys_the_machines_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old machine may come back when it is told to, as any other with the keys."""

    async def story(stage: Stage) -> None:
        new = await stage.recover()
        assert new is not None
        await new.session(go_on)
        with pytest.raises(TakenOver, match="-o takeover"):
            await stage.old.session(look)
        assert await stage.old.session(look, TAKEOVER) == {**stage.synced, "further": b"f" * 1000}

    staged(3, monkeypatch, story)


@pytest.mark.parametrize("new_keys", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_mount_that_goes_on_writing_loses_nothing_it_was_promised(
    monkeypatch: pytest.MonkeyPatch, seed: int, new_keys: bool
) -> None:
    """It is refused from one moment on; all that it synced before is there afterwards."""

    async def story(stage: Stage) -> None:
        promised: Tree = {}
        taken = ""

        async def go_on_writing(parts: Parts) -> None:
            nonlocal taken
            shell = Shell(parts)
            number = 0
            while parts.journal.taken_over is None:
                name = f"late-{number}"
                content = b"%d" % number * 100
                try:
                    await shell.write(name, content)
                    await shell.fsync(name)
                    promised[name] = content
                except (OSError, StorageError, GridError, TakenOver):
                    break
                number += 1
            with trio.fail_after(60):
                while parts.journal.taken_over is None:  # noqa: ASYNC110 - it is the journal's own word
                    await trio.sleep(0.5)
            taken = parts.journal.taken_over
            with pytest.raises(OSError, match="Read-only"):
                await shell.write("late-0", b"never")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.old.session, go_on_writing, QUICK)
            await trio.sleep(0.5 + seed / 7)
            new = await stage.recover(new_keys=new_keys)
        assert new is not None
        assert len(promised) > 3
        assert ("shut out" if new_keys else "another client") in taken
        found = await new.session(look)
        assert found is not None
        assert found.items() >= {**stage.synced, **promised}.items()
        if new_keys:
            await cannot_write(stage.old)

    staged(seed, monkeypatch, story)


async def die_and_recover(
    stage: Stage, strike: Callable[[Computer], None], stop: Callable[[], None], first: bool, then: bool
) -> bool:
    """A recovery dies; what is there then? `first`, `then`: whether the two recoveries make new keys.

    Returns whether the first one died.
    """
    try:
        new = await stage.recover(new_keys=first, strike=strike)
    except (GridError, StorageError):
        new = None  # the servers died, and this machine gave up
    stop()
    died = new is None
    for node in stage.servers.nodes:
        if not node.is_up:
            await stage.servers.restart(node)
    expected: Tree = dict(stage.synced)
    if new is not None:
        assert await new.session(look) == expected
    else:
        # The old machine goes on, or is shut out: never both, and never neither with another recovery.
        async def write(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("meanwhile", b"m" * 500)
            await shell.fsync("meanwhile")

        try:
            await stage.old.session(write, TAKEOVER)
            expected["meanwhile"] = b"m" * 500
        except TakenOver:
            assert first
    again = await stage.recover(new_keys=then)
    assert again is not None
    assert await again.session(look) == expected
    await again.session(go_on)
    if then or (first and not died):
        with pytest.raises(ShutOut):
            await stage.old.session(look, QUICK)
    return died


def sweep_disk(seed: int, monkeypatch: pytest.MonkeyPatch, first: bool, then: bool, step: int) -> int:
    """Power lost before every `step`th disk operation of the recovering machine, until none is left."""
    at = 1 + seed % step
    while staged(
        seed,
        monkeypatch,
        die_and_recover,
        lambda machine, at=at: machine.cut_power_at(at),
        lambda: None,
        first,
        then,
    ):
        at += step
    return at


PAIRS = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize(("first", "then"), PAIRS)
def test_a_recovery_that_dies_is_done_again(monkeypatch: pytest.MonkeyPatch, first: bool, then: bool) -> None:
    assert sweep_disk(PAIRS.index((first, then)), monkeypatch, first, then, 23) > 60


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), PAIRS)
def test_a_recovery_that_dies_at_any_disk_operation_is_done_again(
    monkeypatch: pytest.MonkeyPatch, first: bool, then: bool
) -> None:
    assert sweep_disk(0, monkeypatch, first, then, 1) > 60


def sweep_time(seed: int, monkeypatch: pytest.MonkeyPatch, first: bool, then: bool, step_s: float) -> float:
    """The recovering machine dies at every `step_s`, so between any two messages, until it is done."""

    async def story(stage: Stage, at: float) -> bool:
        pending = trio.CancelScope()
        async with trio.open_nursery() as nursery:

            def strike(machine: Computer) -> None:
                async def later() -> None:
                    with pending:
                        await trio.sleep(at)
                        stage.world.crash(machine.node)

                nursery.start_soon(later)

            return await die_and_recover(stage, strike, pending.cancel, first, then)

    at = step_s * (1 + seed % 7) / 7
    while staged(seed, monkeypatch, story, at):
        at += step_s
    return at


@pytest.mark.parametrize(("first", "then"), PAIRS)
def test_a_recovery_that_dies_between_messages_is_done_again(
    monkeypatch: pytest.MonkeyPatch, first: bool, then: bool
) -> None:
    assert sweep_time(PAIRS.index((first, then)), monkeypatch, first, then, 0.011) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize(("first", "then"), PAIRS)
def test_a_recovery_that_dies_at_any_moment_is_done_again(
    monkeypatch: pytest.MonkeyPatch, first: bool, then: bool, seed: int
) -> None:
    assert sweep_time(seed, monkeypatch, first, then, 0.005) > 0.05


def sweep_servers(seed: int, monkeypatch: pytest.MonkeyPatch, step: int, victims: int) -> int:
    """Some servers lose power together before every `step`th of their disk operations."""

    async def story(stage: Stage, at: int) -> bool:
        nodes = stage.servers.nodes[seed % 3 : seed % 3 + victims]
        boots = [node.boots for node in nodes]

        def strike(machine: Computer) -> None:
            stage.world.cut_power_at(at, *nodes)

        def stop() -> None:
            stage.world.cut_power_at(0)

        await die_and_recover(stage, strike, stop, True, True)
        return [node.boots for node in nodes] != boots

    at = 1 + seed % step
    while staged(seed, monkeypatch, story, at):
        at += step
    return at


@pytest.mark.parametrize("victims", [1, 3, 6])
def test_servers_that_die_during_a_succession(monkeypatch: pytest.MonkeyPatch, victims: int) -> None:
    assert sweep_servers(victims, monkeypatch, 5, victims) > 5


@pytest.mark.parametrize("seed", range(12))
def test_recoveries_at_once_end_with_one_owner(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """They begin a few milliseconds after each other. One wins, or each gives way to the other; never two."""

    async def story(stage: Stage) -> None:
        made: list[Computer] = []
        refusals: list[str] = []

        async def one(delay_s: float) -> None:
            await trio.sleep(delay_s)
            try:
                new = await stage.recover(new_keys=True)
            except (CommandError, TakenOver) as error:
                refusals.append(str(error))
                return
            assert new is not None
            made.append(new)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(one, number * seed * 0.004)
        assert all("another" in words for words in refusals), refusals
        owners = []
        for machine in made:
            try:
                assert await machine.session(look, QUICK) == stage.synced
                owners.append(machine)
            except ShutOut:
                pass
        assert len(owners) == (1 if made else 0)
        last = await stage.recover(new_keys=True)
        assert last is not None
        assert await last.session(look) == stage.synced
        for machine in (stage.old, *made):
            with pytest.raises(ShutOut):
                await machine.session(look, QUICK)

    staged(seed, monkeypatch, story)


@pytest.mark.parametrize(("before", "checkpoints"), [(0, 0), (0, 1), (1, 1)])
def test_what_the_old_machine_writes_during_a_recovery_is_there(
    monkeypatch: pytest.MonkeyPatch, before: int, checkpoints: int
) -> None:
    """Between the look and the claim: what was read ahead of an older record is of no use, and not used."""
    monkeypatch.setattr(journal, "GATHER_BYTES", 4000)
    monkeypatch.setattr(checkpointing, "JOURNAL_PACKS_MAX", 2)

    async def story(stage: Stage) -> None:
        async with stage.old.mounted() as parts:
            shell = Shell(parts)
            await shell.write("before", b"b" * 3000)
            await shell.fsync("before")
            while parts.checkpointer.count < before:
                await shell.write("file", b"content")
                await shell.fsync("file")
            new = Computer(stage.world, stage.servers, "new")
            machine = stage.world.boot(new.node)
            machine.disk.make_directory(HOME)
            roster = stage.servers.roster
            async with connected(machine, roster) as clients:
                found, silent = await find(clients, RECOVERY)
                assert found is not None
                for number in range(3 + 200 * checkpoints):
                    name = f"during-{number}-{'x' * 60}"
                    await shell.write(name, b"%d" % number)
                    await shell.fsync(name)
                    if checkpoints and parts.checkpointer.count > before:
                        break
                assert parts.checkpointer.count == before + checkpoints
                expected = await shell.tree()
                decided = plan(found, silent, roster, RECOVERY, machine.entropy)
                new.config, new.tree = decided.config, decided.tree
                await rebuild(machine, clients, found, decided, roster, DATABASE, SPOOL)
            stage.world.kill(new.node)
            await shell.write("too late", b"l")
            with pytest.raises(Exception, match="another client"):
                await shell.fsync("too late")
        assert await new.session(look) == expected

    staged(5, monkeypatch, story)


@pytest.mark.parametrize("times", [1, 5, 1000])
def test_one_head_server_that_refuses_claims_stops_neither_recovery_nor_mount(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """It may have promised a higher epoch to somebody, and not have said so when it was asked; or it lies."""
    monkeypatch.setattr(journal, "GATHER_BYTES", 4000)
    monkeypatch.setattr(checkpointing, "JOURNAL_PACKS_MAX", 2)
    perform = Service.perform
    refused = 0

    async def stubborn(self: Any, account: Account, request: wire.AnyRequest) -> wire.Reply:
        nonlocal refused
        is_it = self._backend._disk.platter is platter
        if is_it and isinstance(request, wire.HeadClaim) and refused < times:
            refused += 1
            raise Conflict("epoch 2**39 is promised")
        return await perform(self, account, request)

    async def story(stage: Stage) -> int:
        nonlocal platter
        platter = stage.servers.nodes[5].platter

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            while not parts.checkpointer.count:
                await shell.write("file", b"content")
                await shell.fsync("file")

        await stage.old.session(work)
        monkeypatch.setattr(Service, "perform", stubborn)
        new = await stage.recover()
        assert new is not None
        assert refused
        found = await new.session(look)
        assert found == {**stage.synced, "file": b"content"}
        await cannot_write(stage.old)

        async def epoch(parts: Parts) -> int:
            return parts.journal.state.epoch

        return await new.session(epoch) or 0

    platter: Platter | None = None
    assert 0 < staged(6, monkeypatch, story) < 8 * RISE_MAX


# ---- who answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("down", range(7))
def test_a_newest_record_is_sure_with_enough_answers(monkeypatch: pytest.MonkeyPatch, down: int) -> None:
    """happy 5, so W is 5 and two of six answers are enough to see every record that five servers have."""

    async def story(stage: Stage) -> None:
        for node in stage.servers.nodes[:down]:
            stage.world.kill(node)
        machine = stage.world.boot(stage.world.add("looker"))
        async with connected(machine, stage.servers.roster) as clients:
            found, silent = await find(clients, RECOVERY)
        assert len(silent) == down
        if down == 6:
            assert found is None
            return
        assert found is not None
        assert (found.lacking("seeing") is None) == (down < 5)
        assert found.body.settings.k == 4
        if down < 5:
            plan(found, silent, stage.servers.roster, RECOVERY, machine.entropy)
        if down > 1:
            with pytest.raises(NotEnoughServers):
                plan(found, silent, stage.servers.roster, RECOVERY, machine.entropy, new_keys=True)

    staged(down, monkeypatch, story)


def test_head_servers_that_are_gone_for_good_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of six: the newest record is certain, but the other four are no quorum. Two new servers help."""

    async def story(stage: Stage) -> None:
        fresh = await start_servers(stage.world, prefix="t")
        for node in stage.servers.nodes[:2]:
            stage.world.kill(node)
        servers = (*stage.servers.roster.servers, *fresh.roster.servers[:2])
        numbered = [dataclasses.replace(server, index=index) for index, server in enumerate(servers)]
        roster = Roster(tuple(numbered))
        stage.servers = dataclasses.replace(stage.servers, roster=roster)
        with pytest.raises(NotEnoughServers, match="4 of the 5"):
            await stage.recover()
        new = await stage.recover(gives_up=True)
        assert new is not None
        assert new.config.head_generation == 2
        assert len(set(new.config.head_servers) & {server.server_id for server in servers[6:]}) == 2
        assert await new.session(look) == stage.synced

        async def go(parts: Parts) -> None:
            await Shell(parts).write("on", b"and on")
            await Shell(parts).fsync("on")

        await new.session(go)
        await stage.servers.restart(*stage.servers.nodes[:2])
        with pytest.raises(TakenOver):
            await stage.old.session(look, QUICK)
        assert (await new.session(look) or {})["on"] == b"and on"

    staged(9, monkeypatch, story)


def test_a_stranger_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(stage: Stage) -> None:
        machine = stage.world.boot(stage.world.add("looker"))
        async with connected(machine, stage.servers.roster) as clients:
            assert await find(clients, RecoveryKey(bytes(32))) == (None, {})

    staged(1, monkeypatch, story)


def test_epochs_of_a_successor_are_above_any_that_the_old_machine_can_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lost machine that claims the highest epoch it can stops others with its keys, never a successor."""

    async def story(stage: Stage) -> None:
        keys = head_keys(stage.old.config, stage.old.tree)
        machine = stage.world.boot(stage.world.add("thief"))
        async with connected(machine, stage.servers.roster) as clients:
            heads = HeadServers(clients, stage.old.config.head_list, stage.servers.roster, keys.log)
            claim = await heads.claim(keys.claim((1 << EPOCH_BITS) - 1, b"t" * 16))
            assert claim.promises == 6
        new = await stage.recover(new_keys=True)
        assert new is not None
        assert await new.session(look) == stage.synced

        async def epoch(parts: Parts) -> int:
            return parts.journal.state.epoch

        assert generation_of(await new.session(epoch) or 0) == 1

    staged(4, monkeypatch, story)
