"""Runs a coroutine on virtual time with the task order of every turn drawn from a seed, and traces it.

trio has no public way to seed its scheduler. The two private names that are needed (there since 2019;
pytest-trio uses them too) are touched in `deterministic_scheduling` only; a canary test fails if they
stop to work.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import apsw
import trio
import trio.testing
from trio._core import _run

T = TypeVar("T")


def chance(seed: int, *names: object) -> random.Random:
    """A stream of chance of its own for each (seed, names): drawing more from one moves no other."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))


@contextlib.contextmanager
def deterministic_scheduling(seed: int) -> Iterator[None]:
    """Within, trio orders the tasks of each turn by `seed`; its state is put back afterwards."""
    private: Any = _run
    scheduler: random.Random = private._r
    before = private._ALLOW_DETERMINISTIC_SCHEDULING, scheduler.getstate()
    private._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler.seed(seed)
    try:
        yield
    finally:
        private._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        scheduler.setstate(before[1])


class _SeededSqlite(apsw.VFS):
    """For a moment SQLite's default VFS: where its own generator takes its seed from."""

    def __init__(self, stream: random.Random) -> None:
        self._stream = stream
        super().__init__("simulation-seed", base="", makedefault=True)

    def xRandomness(self, numbytes: int) -> bytes:  # noqa: N802 - SQLite's name
        return self._stream.randbytes(numbytes)


def seed_sqlite(seed: int) -> None:
    """SQLite draws salts and names from one generator of the process: start it from the seed."""
    source = _SeededSqlite(chance(seed, "sqlite"))
    apsw.randomness(0)
    apsw.randomness(1)
    source.unregister()


def run_seeded(seed: int, function: Callable[..., Awaitable[T]], *args: object) -> T:
    """`trio.run` on a clock that jumps to the next deadline as soon as all tasks wait."""
    seed_sqlite(seed)
    with deterministic_scheduling(seed):
        return trio.run(function, *args, clock=trio.testing.MockClock(autojump_threshold=0))


class Trace:
    """What happened, in order: a running hash of all of it, and the last lines for a person."""

    LINES_MAX = 2000

    def __init__(self, listen: Callable[[str], None] | None = None) -> None:
        """`listen` is given each line."""
        self._listen = listen
        self._hash = hashlib.blake2b(digest_size=16)
        self._lines: list[str] = []
        self.count = 0

    def record(self, node: str, what: str, *details: object) -> None:
        """Note one event of a node. `details` must have a repr that is the same in every process."""
        line = f"{trio.current_time():.9f} {node} {what}"
        if details:
            line += f" {' '.join(map(repr, details))}"
        self._hash.update(line.encode() + b"\n")
        self.count += 1
        self._lines.append(line)
        if self._listen is not None:
            self._listen(line)
        if len(self._lines) >= 2 * self.LINES_MAX:
            del self._lines[: self.LINES_MAX]

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @property
    def last_lines(self) -> list[str]:
        """At most LINES_MAX of the newest events."""
        return self._lines[-self.LINES_MAX :]
