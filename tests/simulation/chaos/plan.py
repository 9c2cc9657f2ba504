"""What happens in a run, drawn from its seed: shape and limits of a file system, operations, faults. Pure.

Operations and faults are data. What only the run knows (which files are there, which servers may fail just
now) they choose from by chance of their own, whose seed is their `draw`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from tests.simulation.pipe import Link
from tests.simulation.runner import chance

T = TypeVar("T")

OPERATIONS_MIN = 200
FAULTS_MIN = 20
SESSIONS_MAX = 40


@dataclass(frozen=True, slots=True)
class Shape:
    """How data is spread."""

    k: int
    n: int
    happy: int

    @property
    def quorum(self) -> int:
        """W. Told here once more, so that the real one is checked."""
        return max(self.happy, self.n // 2 + 1)

    @property
    def lost_for_reads(self) -> int:
        """Servers that may be of no use while reads must go on, of what was stored with debts."""
        return self.happy - self.k

    @property
    def lost_for_syncs(self) -> int:
        return self.n - self.quorum


SHAPES = [
    (Shape(4, 6, 5), 6), (Shape(2, 4, 3), 3), (Shape(2, 5, 3), 3), (Shape(3, 6, 4), 3), (Shape(1, 3, 2), 2),
    (Shape(2, 3, 2), 1), (Shape(3, 5, 5), 1), (Shape(5, 7, 6), 1), (Shape(1, 1, 1), 1),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the client and its servers, small ones, so that what they bring about happens often."""

    memory_bytes: int
    spool_bytes: int
    slot_bytes: int
    gather_bytes: int
    journal_bytes: int
    carried_bytes: int
    own_pack_bytes: int
    idle_s: float
    durable_every_s: float
    operations_max: int
    volume_bytes: int
    garbage_bytes: int
    small_share_bytes: int
    segment_cache_bytes: int
    gathered_inodes: int
    journal_packs: int
    """After which a checkpoint is due."""
    checkpoint_bytes: int
    """Of journal packs, the same."""
    part_bytes: int
    """Of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of one program."""

    kind: str
    task: int
    draw: int
    """Seed of what it chooses: files, names, bytes."""
    pause_s: float
    """Before it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong, once `after` operations of its session are done."""

    kind: str
    after: int
    draw: int
    delay_s: float
    lasts_s: float


@dataclass(frozen=True, slots=True)
class Ending:
    """How a session of the client ends."""

    kind: str
    trigger: str
    """At its end; or before, at a disk operation or message of its machine, or right after an fsync."""
    at: int
    draw: int


@dataclass(frozen=True, slots=True)
class Session:
    """From one mount to the next."""

    operations: tuple[Op, ...]
    faults: tuple[Fault, ...]
    ending: Ending

    @property
    def tasks(self) -> int:
        return max(op.task for op in self.operations) + 1


OPERATIONS: Mapping[str, int] = {
    "make": 10, "write": 26, "append": 6, "overwrite": 10, "large": 3, "read": 12, "truncate": 6,
    "rename": 5, "replace": 7, "exchange": 2, "link": 3, "unlink": 4, "symlink": 2, "mkdir": 4, "rmdir": 2,
    "set_xattr": 3, "remove_xattr": 1, "chmod": 3, "utimens": 2, "clone": 2, "clone_tree": 1,
    "snapshot": 1, "drop_snapshot": 1, "fsync": 16, "fsync_directory": 3, "sync": 1, "save": 4, "nap": 4,
    "use_unlinked": 2, "look": 1,
}  # fmt: skip

FAULTS: Mapping[str, int] = {
    "server_crash": 6, "server_kill": 3, "server_silence": 3, "server_hang": 4, "server_deaf": 2,
    "server_mute": 2, "server_slow": 3, "server_reset": 3, "clog": 5, "server_disk_error": 4,
    "server_disk_full": 2, "grid_power_cut": 2, "rot": 2, "lie": 4, "rollback": 1, "client_reset": 2,
    "client_disk_error": 3, "client_disk_full": 2, "clock": 3,
}  # fmt: skip

ENDINGS: Mapping[str, int] = {
    "unmount": 3, "leave": 2, "kill": 6, "power": 6, "burn": 5, "takeover": 3, "old_disk": 2, "blackout": 3,
    "blackout_burn": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """How often what happens."""

    operations: Mapping[str, int] = field(default_factory=lambda: OPERATIONS)
    faults: Mapping[str, int] = field(default_factory=lambda: FAULTS)
    endings: Mapping[str, int] = field(default_factory=lambda: ENDINGS)


@dataclass(frozen=True, slots=True)
class Plan:
    """A run but for its sessions, which are drawn one by one."""

    seed: int
    shape: Shape
    limits: Limits
    link: Link
    fsync: str
    reckless: bool
    """More servers may fail at once than promises allow for. Then reads and fsync may fail or wait, but what
    they give must be right."""
    shared: bool
    """All tasks use all files; else each keeps to a folder of its own."""
    pause_s: float
    """Mean time between two operations of a task."""
    weights: Weights = field(default_factory=Weights)


def make_plan(seed: int, weights: Weights | None = None) -> Plan:
    stream = chance(seed, "plan")
    shape = _weighted(stream, SHAPES)
    slot = stream.choice([64 << 10, 256 << 10, 1 << 20])
    limits = Limits(
        memory_bytes=stream.choice([1 << 20, 4 << 20, 32 << 20]),
        spool_bytes=slot * stream.choice([8, 16, 64]),
        slot_bytes=slot,
        gather_bytes=stream.choice([3_000, 10_000, 40_000, 4 << 20]),
        journal_bytes=stream.choice([2_000, 20_000, 6 << 20]),
        carried_bytes=stream.choice([1_000, 16 << 10, 16 << 10]),
        own_pack_bytes=stream.choice([20_000, 100_000, 1 << 20]),
        idle_s=stream.choice([0.1, 1.0, 1.0]),
        durable_every_s=stream.choice([1.0, 5.0, 15.0]),
        operations_max=stream.choice([5, 100, 2000]),
        volume_bytes=stream.choice([100_000, 1 << 20, 256 << 20]),
        garbage_bytes=stream.choice([10_000, 100_000, 4 << 20]),
        small_share_bytes=stream.choice([3_000, 20_000, 64 << 10]),
        segment_cache_bytes=stream.choice([0, 200_000, 16 << 20]),
        gathered_inodes=stream.choice([2, 1024]),
        journal_packs=stream.choice([1, 2, 5, 128]),
        checkpoint_bytes=stream.choice([3_000, 30_000, 16 << 20]),
        part_bytes=stream.choice([500, 5_000, 1 << 20]),
    )
    link = Link(
        round_trip_s=stream.choice([0.001, 0.01, 0.01, 0.1]),
        bytes_per_s=stream.choice([5e6, 125e6]),
        window=stream.choice([128 << 10, 1 << 20]),
    )
    return Plan(
        seed=seed,
        shape=shape,
        limits=limits,
        link=link,
        fsync="spool" if stream.random() < 0.15 else "grid",
        reckless=stream.random() < 0.4,
        shared=stream.random() < 0.6,
        pause_s=stream.choice([0.05, 0.5, 2.0, 2.0]),
        weights=weights or Weights(),
    )


def make_session(plan: Plan, number: int) -> Session:
    """The session `number` of a run, from 0."""
    stream = chance(plan.seed, "session", number)
    count = stream.randint(25, 60)
    tasks = stream.choice([1, 1, 2, 3])
    weights = plan.weights
    operations = [
        Op(
            kind=_weighted(stream, weights.operations.items()),
            task=stream.randrange(tasks),
            draw=_draw(stream),
            pause_s=_pause(stream, plan.pause_s),
        )
        for _ in range(count)
    ]
    faults = [
        Fault(
            kind=_weighted(stream, weights.faults.items()),
            after=stream.randrange(count),
            draw=_draw(stream),
            delay_s=stream.choice([0.0, 0.003, 0.02, stream.random()]),
            lasts_s=stream.choice([0.05, 0.5, 3.0, 12.0, 40.0]) * (0.5 + stream.random()),
        )
        for _ in range(stream.randint(3, 6))
    ]
    ending = Ending(
        kind=_weighted(stream, weights.endings.items()),
        trigger=stream.choice(["end", "operation", "operation", "message", "message", "fsync", "fsync"]),
        at=stream.choice([stream.randint(1, 30), stream.randint(1, 200), stream.randint(1, 1000)]),
        draw=_draw(stream),
    )
    return Session(tuple(operations), tuple(sorted(faults, key=lambda fault: fault.after)), ending)


def _pause(stream: random.Random, mean_s: float) -> float:
    """Mostly none or a short one, now and then one in which everything comes to rest."""
    draw = stream.random()
    if draw < 0.35:
        return 0.0
    return 15.0 * mean_s * stream.random() if draw > 0.95 else mean_s * 2 * stream.random()


def _draw(stream: random.Random) -> int:
    return stream.randrange(1 << 40)


def _weighted(stream: random.Random, items: Iterable[tuple[T, int]]) -> T:
    pairs = list(items)
    return stream.choices([item for item, _ in pairs], [weight for _, weight in pairs])[0]
