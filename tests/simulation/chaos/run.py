"""One run: sessions of clients on one grid, one after the other, each with faults and an ending, and at the
end the rest, in which everything must come right.

    result = run(17)            # the same for the same seed; result.failure tells what was broken
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import apsw
import trio

from gridfs.assembly import MountOptions, Parts
from gridfs.exits import CommandError
from gridfs.files.claiming import ShutOut, TakenOver
from gridfs.grid.errors import GridError
from storage.errors import StorageError
from storage.format.share import Geometry
from tests.simulation.chaos.arrival import NothingThere, first_client, make_anew, recover, with_recovery_key
from tests.simulation.chaos.checkers import Checkers
from tests.simulation.chaos.faults import Injector, serve
from tests.simulation.chaos.history import History, Violation, check_equal
from tests.simulation.chaos.lies import Lies
from tests.simulation.chaos.model import State
from tests.simulation.chaos.mount import PATIENCE_S, Mount, look
from tests.simulation.chaos.plan import (
    FAULTS_MIN,
    OPERATIONS_MIN,
    SESSIONS_MAX,
    Ending,
    Plan,
    Session,
    Weights,
    make_plan,
    make_session,
)
from tests.simulation.chaos.tuning import tuned
from tests.simulation.chaos.workload import Actor
from tests.simulation.filesystem import Client, gauges, start_servers
from tests.simulation.machine import Node, World, run_world
from tests.simulation.platter import Directory
from tests.simulation.runner import chance

LEFT, KILLED, POWER, ELSEWHERE = range(4)
"""What became of a client since it was last looked at, by what it may have lost."""
RETRY_S = 3.0
HARMLESS = ("unmount", "leave")
DEADLY = ("kill", "power", "burn", "old_disk", "blackout", "blackout_burn")
GHOSTS_S = 5000.0
CALM_S = 120.0
"""Time in which all gauges must come to zero."""


@dataclass(frozen=True)
class Result:
    """What a run gave."""

    seed: int
    plan: Plan
    digest: str
    """Hash of everything that happened; empty if it failed."""
    virtual_s: float
    operations: int
    faults: Counter[str]
    records: int
    packs: int
    checker: str = ""
    """The rule that was broken; empty if none was."""
    failure: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure


class Chaos:
    """The state of one run."""

    def __init__(self, plan: Plan, checkers: Checkers, lies: Lies) -> None:
        self.plan = plan
        self.checkers = checkers
        self.lies = lies
        self.operations = 0
        self.virtual_s = 0.0
        self.endings: Counter[str] = Counter()
        self.options = MountOptions(
            fsync=plan.fsync,
            memory_bytes=plan.limits.memory_bytes,
            spool_bytes=plan.limits.spool_bytes,
        )
        self._severity: dict[Mount, int] = {}
        self._images: dict[Mount, tuple[Directory, bytes]] = {}
        self._retired: list[Mount] = []
        self._promised_before = 0
        """Up to which state anything was promised before the last attempt to recover."""
        self._ghosts: list[trio.Event] = []

    @property
    def faults(self) -> Counter[str]:
        return self.injector.struck + self.endings

    async def run(self, world: World) -> None:
        self.world = world
        shape = self.plan.shape
        try:
            servers = await start_servers(world, shape.k, shape.n, shape.happy, serve)
            self.servers = with_recovery_key(servers)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                async with trio.open_nursery() as faults:
                    self.injector = Injector(world, self.plan, self.servers, self.lies, faults)
                    self.checkers.servers, self.checkers.injector = self.servers, self.injector
                    self.main = self._machine(History())
                    await self._sessions()
                    faults.cancel_scope.cancel()
                await self.injector.end()
                await self._rest()
                nursery.cancel_scope.cancel()
        finally:
            self.virtual_s = trio.current_time()

    async def _sessions(self) -> None:
        for number in range(SESSIONS_MAX):
            if self.operations >= OPERATIONS_MIN and self.faults.total() >= FAULTS_MIN:
                break
            session = make_session(self.plan, number)
            self.injector.plan_session(session.faults, number)
            await self._session(session, number)
            self.checkers.require_none()
        for over in self._ghosts:
            with trio.move_on_after(GHOSTS_S):
                await over.wait()
        if not all(over.is_set() for over in self._ghosts):
            raise Violation("liveness", "a client that was taken over does not come to an end")

    def _machine(self, history: History, severity: int = LEFT) -> Mount:
        """A new machine: the first makes the file system, the others recover it."""
        number = len(self.injector.clients)
        name = f"client{number}"
        make = Client if number else first_client
        client = make(self.world, self.servers, name)
        self.injector.clients.append(client.node)
        mount = Mount(self.world, client, history, is_recovered=not number)
        self._severity[mount] = severity
        return mount

    async def _recover(self, mount: Mount) -> None:
        """Nothing but the recovery key is there: go on from it, until that is done."""
        stream = chance(self.plan.seed, "recover", mount.name)
        begin = trio.current_time()
        while not mount.is_recovered:
            self._promised_before = mount.history.grid.named
            new_keys = stream.random() < 0.3
            if stream.random() < 0.3:
                strike = stream.choice([self.world.kill, self.world.crash])
                at = stream.choice([stream.randint(1, 40), stream.randint(1, 300)])
                which = stream.choice(["operation", "message"])
                mount.client.strike_at(strike, **{which: at})
            self.world.trace.record(mount.name, "recover", new_keys)
            try:
                taken = await self._recovered(mount, new_keys=new_keys)
            except (GridError, StorageError, OSError, apsw.Error, CommandError) as error:
                self._explain(mount, error, begin, began=False)
                await trio.sleep(RETRY_S)
            else:
                if taken is None:
                    self.endings["recovery died"] += 1
                else:
                    mount.is_recovered, mount.may_be_refused = True, not taken
            finally:
                mount.client.strike_at(self.world.kill)

    async def _recovered(self, mount: Mount, *, new_keys: bool) -> bool | None:
        """One attempt; whether the file system was taken over, None if the machine died."""
        try:
            return await recover(mount.client, new_keys=new_keys)
        except NothingThere as error:
            if error.silent:
                raise
            states = mount.history.states
            if states[self._promised_before].described != states[0].described:
                text = f"state {self._promised_before} was promised, and no server knows anything"
                raise Violation("synced names", text) from None
            mount.client.strike_at(self.world.kill)
            make_anew(mount.client)
            return False

    # ---- one session

    async def _session(self, session: Session, number: int) -> None:
        mount, ending = self.main, session.ending
        if mount.boot and chance(self.plan.seed, "image", number).random() < 0.4:
            self._images[mount] = copy.deepcopy(mount.client.node.platter.root), mount.identity
        self.world.trace.record("chaos", "session", number, ending.kind, ending.trigger, ending.at)
        if ending.kind == "takeover":
            self.endings[ending.kind] += 1
            await self._until_taken_over(mount, session)
            return
        await self._opened(mount, partial(self._play, mount, session))
        mount.client.strike_at(self.world.kill)
        mount.strike_at_sync = 0
        await self._after(mount, ending, number)

    async def _after(self, mount: Mount, ending: Ending, number: int) -> None:
        """What comes of the way in which the session ended."""
        if ending.kind not in HARMLESS:
            self.endings[ending.kind] += 1
        if mount.client.node.is_up:
            raise Violation("mount", "a client runs on after its session")
        mount.outbox_emptied()
        if ending.kind.startswith("blackout"):
            await self.injector.all_up()
        if ending.kind.endswith("burn"):
            self.main = self._machine(mount.history, ELSEWHERE)
        if ending.kind == "old_disk" and mount in self._images:
            image, identity = self._images[mount]
            mount.client.node.platter.root = copy.deepcopy(image)
            mount.may_be_refused = mount.may_be_refused or identity != mount.identity
            self._suffers(mount, ELSEWHERE)

    async def _until_taken_over(self, mount: Mount, session: Session) -> None:
        """Let the session run, and after some of its operations make another machine the one that goes on."""
        reached, over = trio.Event(), trio.Event()
        self._ghosts.append(over)
        stream = chance(self.plan.seed, "takeover", session.ending.draw)
        await self._recover(mount)
        image = copy.deepcopy(mount.client.node.platter.root) if stream.random() < 0.4 else None
        at = session.ending.at % len(session.operations)

        async def go_on() -> None:
            try:
                await self._opened(mount, partial(self._play, mount, session, at=at, reached=reached))
                mount.outbox_emptied()
                self._retired.append(mount)
            finally:
                over.set()
                reached.set()

        self._nursery.start_soon(go_on)
        await reached.wait()
        mount.is_contested = True
        self.main = self._machine(mount.history, ELSEWHERE)
        self.main.predecessor = mount
        if image is not None:
            # Somebody starts a copy of its disk, from before this session.
            self._become_copy(self.main, mount, image)

    def _become_copy(self, twin: Mount, of: Mount, image: Directory) -> None:
        self.world.trace.record(twin.name, "is a copy of", of.name)
        twin.client.node.platter.root = image
        twin.client.adopt(of.client)
        twin.is_recovered = twin.may_be_refused = True

    async def _opened(self, mount: Mount, work: Callable[[Parts], Awaitable[None]]) -> None:
        """Open a client until it opens, and let it work; returns when it has, or when its machine died."""
        await self._recover(mount)
        begin = trio.current_time()
        before = mount.boot
        options = self.options
        while True:
            try:
                await mount.client.session(work, options)
            except Violation:
                raise
            except TakenOver as error:
                if mount.is_contested:
                    return
                if not mount.may_be_refused or options.takeover or isinstance(error, ShutOut):
                    raise Violation("takeover", f"{mount.name} cannot be opened: {error}") from error
                options = dataclasses.replace(options, takeover=True)
            except (GridError, StorageError, OSError, apsw.Error) as error:
                if self._explain(mount, error, begin, began=mount.boot > before):
                    return
                await trio.sleep(RETRY_S)
            else:
                return

    def _explain(self, mount: Mount, error: Exception, begin: float, *, began: bool) -> bool:
        """A client did not open, or did not close well; whether its work was done."""
        now, name = trio.current_time(), mount.name
        self.world.trace.record(name, "ended with", type(error).__name__, str(error)[:200])
        if began and mount.boot == mount.client.node.boots:
            if mount.has_finished and self.injector.for_disk(name, now):
                return True
            raise Violation("mount", f"a mount ended by itself: {error!r}") from error
        if now - begin > PATIENCE_S:
            raise Violation("liveness", f"{name} does not open: {error!r}") from error
        nothing_promised = isinstance(error, NothingThere) and not self._promised_before
        excused = self.injector.for_syncs(name, begin) or self.injector.for_disk(name, begin)
        if not excused and not nothing_promised:
            raise Violation("availability", f"{name} does not open: {error!r}") from error
        return False

    async def _play(
        self,
        mount: Mount,
        session: Session,
        parts: Parts,
        *,
        at: int = -1,
        reached: trio.Event | None = None,
    ) -> None:
        """The work of a session. `reached` is set after `at` operations."""
        mount.begin(parts)
        if mount.predecessor is not None:
            await self._taken_over(mount, parts)
        await self.verify(mount)
        ending = session.ending
        if ending.kind in DEADLY:
            self._arm(mount, ending)
        done = 0

        async def program(task: int) -> None:
            nonlocal done
            actor = Actor(mount, self.plan, task, self.injector)
            for op in session.operations:
                if op.task != task:
                    continue
                was_done = await actor.do(op)
                self.operations += was_done
                done += 1
                self.checkers.require_none()
                self.injector.done(done)
                if done == at and reached is not None:
                    reached.set()
                if actor.fenced:
                    return

        async with trio.open_nursery() as nursery:
            for task in range(session.tasks):
                nursery.start_soon(program, task)
        if reached is not None:
            reached.set()
        mount.has_finished = True
        if ending.kind in DEADLY:
            mount.strike()
        elif ending.kind == "unmount":
            await self._drain(mount)

    async def _taken_over(self, mount: Mount, parts: Parts) -> None:
        """Until then the other machine may go on, and what it writes counts."""
        with trio.move_on_after(PATIENCE_S) as scope:
            await parts.journal.begun()
        mount.require_alive()
        if scope.cancelled_caught:
            raise Violation("liveness", f"{mount.name} has not taken over after {PATIENCE_S:g} s")

    async def _drain(self, mount: Mount) -> None:
        """As `gridfs umount` does."""
        assert mount.parts is not None
        begin = trio.current_time()
        mount.parts.debts.end()
        try:
            with trio.move_on_after(PATIENCE_S) as scope:
                await mount.parts.files.drain()
        except (StorageError, OSError) as error:
            mount.require_alive()
            if not self.injector.for_disk(mount.name, begin):
                raise Violation("availability", f"drain: {error!r}") from error
            return
        mount.require_alive()
        if scope.cancelled_caught:
            trouble = mount.parts.files.trouble()
            raise Violation(
                "liveness", f"not drained after {PATIENCE_S:g} s: {trouble} {gauges(mount.parts)}"
            )
        parts = mount.parts
        if parts.writer.unreadable and self.injector.for_disk(mount.name, begin):
            return
        if parts.log.number > mount.number:
            mount.promised(mount.history.last, None)
        await self._all_zero(lambda: gauges(parts), f"after a drain of {trio.current_time() - begin:g} s")

    async def _all_zero(self, read: Callable[[], dict[str, int]], when: str) -> None:
        """What goes on in the background, such as a checkpoint, comes to its end."""
        with trio.move_on_after(CALM_S):
            while any(read().values()):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.2)
            return
        left = {name: count for name, count in read().items() if count}
        raise Violation("gauges", f"{left} still {CALM_S:g} s {when}")

    # ---- endings

    def _arm(self, mount: Mount, ending: Ending) -> None:
        def strike() -> None:
            self._strike(mount, ending.kind)

        mount.strike = strike
        mount.strike_at_sync = 0
        if ending.trigger == "operation":
            mount.client.strike_at(lambda _: strike(), operation=ending.at)
        elif ending.trigger == "message":
            mount.client.strike_at(lambda _: strike(), message=ending.at)
        elif ending.trigger == "fsync":
            mount.strike_at_sync = 1 + ending.at % 4

    def _strike(self, mount: Mount, kind: str) -> None:
        """The client's machine dies now."""
        mount.dies()
        self.world.trace.record("chaos", kind)
        node: Node = mount.client.node
        if kind in ("kill", "old_disk"):
            self._suffers(mount, KILLED)
            self.world.kill(node)
        elif kind in ("power", "burn"):
            self._suffers(mount, POWER)
            self.world.crash(node)
        else:
            self._suffers(mount, POWER)
            self.injector.all_in_trouble()
            self.world.power_cut()

    def _suffers(self, mount: Mount, severity: int) -> None:
        self._severity[mount] = max(self._severity[mount], severity)

    # ---- looking

    async def verify(self, mount: Mount) -> None:
        """A client has opened: what it shows must be what its history allows for."""
        parts, history = mount.parts, mount.history
        assert parts is not None
        found = await look(parts)
        mount.require_alive()
        severity = self._severity[mount]
        if severity <= KILLED:
            history.check_killed(found)
        elif mount.predecessor is None:
            history.check_power_lost(found, same_machine=severity == POWER)
        else:
            # From now on the other one must not get anything acknowledged any more.
            mount.history = history.branch()
            mount.predecessor.fenced_at = mount.history.check_power_lost(found, same_machine=False)
            mount.predecessor = None
        self._severity[mount] = LEFT
        self.world.trace.record(mount.name, "verified", severity, mount.history.last)

    # ---- the end

    async def _rest(self) -> None:
        """Faults have stopped: everything comes to rest, and is all there, on any machine."""
        main = self.main

        async def settle(parts: Parts) -> None:
            main.begin(parts)
            await self.verify(main)
            # A machine that was taken over may go on only as long as the other one has written nothing.
            await Actor(main, self.plan, 0, self.injector).mark()
            await self._debts_are_paid(parts)
            await self._drain(main)
            await self._all_is_well(parts, main.history.now)

        await self._opened(main, settle)
        self.checkers.require_none()
        await self._check_servers()
        for mount in self._retired:
            await self._comes_back(mount, main.history.now)
        other = self._machine(History())
        placed: list[dict[int, bytes]] = []

        async def compare(parts: Parts) -> None:
            other.begin(parts)
            await self._all_is_well(parts, main.history.now)
            placed.extend(self._places(parts, main.history.now))

        await self._opened(other, compare)
        stopped = self._to_be_stopped(placed)
        for node in stopped:
            self.world.crash(node)
        self.world.trace.record("chaos", "stopped", [node.name for node in stopped])

        async def compare_again(parts: Parts) -> None:
            other.begin(parts)
            check_equal(await look(parts), main.history.now, "any k servers")

        await self._opened(other, compare_again)
        self.checkers.require_none()

    async def _all_is_well(self, parts: Parts, expected: State) -> None:
        check_equal(await look(parts), expected, "rest")
        if problems := parts.log.metadata.check():
            raise Violation("metadata", "; ".join(problems[:3]))
        if trouble := parts.files.trouble():
            raise Violation("rest", f"there is trouble left: {trouble}")

    async def _comes_back(self, mount: Mount, expected: State) -> None:
        """A machine that was taken over: it goes on only when it is told to, and from what the other wrote;
        if the file system was given new keys, not even then."""

        async def compare(parts: Parts) -> None:
            mount.begin(parts)
            check_equal(await look(parts), expected, "takeover")
            await self._debts_are_paid(parts)
            await self._drain(mount)

        was_mounted = mount.boot > 0
        self.world.trace.record(mount.name, "comes back", was_mounted)
        mount.is_contested = False
        newest = self.main.identity
        if was_mounted and mount.identity != newest:
            try:
                await mount.client.session(look, self.options)
            except TakenOver as error:
                self.world.trace.record(mount.name, "refused", type(error).__name__)
            else:
                raise Violation("takeover", f"{mount.name} comes back as if nothing had been written")
        if self._generation(mount) < self._generation(self.main):
            try:
                await mount.client.session(look, dataclasses.replace(self.options, takeover=True))
            except ShutOut:
                return
            raise Violation("takeover", f"{mount.name} has old keys and is let in")
        mount.may_be_refused = was_mounted
        await self._opened(mount, compare)

    def _generation(self, mount: Mount) -> int:
        succession = mount.client.config.succession
        return succession.generation if succession else 0

    async def _debts_are_paid(self, parts: Parts) -> None:
        """All servers are there: what is owed is placed without being asked for."""
        with trio.move_on_after(PATIENCE_S):
            while parts.log.metadata.totals().missing_shares:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(1)
            return
        owed = parts.log.metadata.totals().missing_shares
        raise Violation(
            "liveness", f"{owed} shares are owed after {PATIENCE_S:g} s: {parts.debts.statistics}"
        )

    async def _check_servers(self) -> None:
        def held() -> dict[str, int]:
            running = self.servers.running
            return {name: running[name].statistics.put_memory_bytes for name in sorted(running)}

        await self._all_zero(held, "after the last client left")

    def _places(self, parts: Parts, state: State) -> list[dict[int, bytes]]:
        """Of each pack that files lie in: share number -> the server that has it; empty shares have none."""
        metadata = parts.log.metadata
        refs = {
            extent.pack_ref: None
            for ino in state.paths.values()
            if state.nodes[ino].is_file
            for extent in metadata.extents(ino, 0, len(state.nodes[ino].data))
        }
        places: list[dict[int, bytes]] = []
        for ref in refs:
            pack = metadata.pack(ref)
            stored = Geometry(pack.k, pack.n, pack.stream_length).stored_numbers()
            empty = dict.fromkeys(set(range(pack.n)) - set(stored), b"")
            held = {number: place for number, place in enumerate(pack.places) if place is not None}
            places.append({**empty, **held})
        return places

    def _to_be_stopped(self, placed: list[dict[int, bytes]]) -> list[Node]:
        """Up to n-k servers without which everything can still be read, from what is not damaged."""
        shape = self.plan.shape
        stream = chance(self.plan.seed, "stopped")
        nodes = stream.sample(self.servers.nodes, min(shape.n - shape.k, shape.quorum - 1))
        names = {
            server.server_id: node.name
            for server, node in zip(self.servers.roster, self.servers.nodes, strict=True)
        }
        while nodes:
            gone = dict.fromkeys([*(node.name for node in nodes), *self.injector.damaged])
            if all(
                sum(names.get(place, "") not in gone for place in places.values()) >= shape.k
                for places in placed
            ):
                break
            nodes.pop()
        return nodes


def run(
    seed: int,
    *,
    weights: Weights | None = None,
    planted: AbstractContextManager[object] | None = None,
    listen: Callable[[str], None] | None = None,
) -> Result:
    """One run of one seed. `planted`: a bug that is there while it runs. `listen` is given its trace."""
    plan = make_plan(seed, weights)
    checkers, lies = Checkers(plan), Lies()
    chaos = Chaos(plan, checkers, lies)
    digest, checker, failure = "", "", ""
    with contextlib.ExitStack() as stack:
        stack.enter_context(tuned(plan.limits))
        stack.enter_context(planted or nullcontext())
        stack.enter_context(lies.possible())
        stack.enter_context(checkers.watching())
        try:
            digest = run_world(seed, chaos.run, link=plan.link, listen=listen).digest
        except Exception as error:
            first = _first(error)
            checker = first.checker if isinstance(first, Violation) else "exception"
            cause = first.__cause__ if isinstance(first, Violation) else first
            lines = traceback.format_exception(_first(cause)) if cause else []
            failure = "".join([*lines, str(first)])
    return Result(
        seed=seed,
        plan=plan,
        digest=digest,
        virtual_s=chaos.virtual_s,
        operations=chaos.operations,
        faults=chaos.faults if hasattr(chaos, "injector") else Counter(),
        records=checkers.records,
        packs=checkers.packs,
        checker=checker,
        failure=failure,
    )


def _first(error: BaseException) -> BaseException:
    """What went wrong, out of the groups it came in: a broken promise before anything else."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    inner = [_first(each) for each in error.exceptions]
    return next((each for each in inner if isinstance(each, Violation)), inner[0])
