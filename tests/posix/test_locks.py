"""flock and fcntl locks between processes of one machine."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Any

import pytest

from tests.posix.calls import Answer, handle, in_child, outcome, put
from tests.posix.stage import case

NOW = fcntl.LOCK_NB
F_OFD_SETLK = 37
LOCKS = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX}


@case
@pytest.mark.parametrize("way", ["flock", "lockf"])
@pytest.mark.parametrize("second", LOCKS)
@pytest.mark.parametrize("first", LOCKS)
def test_a_second_process_meets_a_lock(first: str, second: str, way: str) -> Answer:
    put("file")
    lock = getattr(fcntl, way)
    with handle("file", os.O_RDWR) as file:
        lock(file, LOCKS[first] | NOW)

        def other() -> str:
            with handle("file", os.O_RDWR) as mine:
                return str(outcome(lock, mine, LOCKS[second] | NOW))

        held = in_child(other)
        lock(file, fcntl.LOCK_UN)
        return held, in_child(other)


@case
@pytest.mark.parametrize(
    ("start", "length"), [(0, 10), (9, 1), (10, 10), (15, 0), (100, 1), (1 << 40, 5), (0, 0)]
)
def test_ranges(start: int, length: int) -> Answer:
    put("file", bytes(50))
    with handle("file", os.O_RDWR) as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        fcntl.lockf(file, fcntl.LOCK_EX, 5, 20)

        def other() -> str:
            with handle("file", os.O_RDWR) as mine:
                return str(outcome(fcntl.lockf, mine, fcntl.LOCK_EX | NOW, length, start))

        return in_child(other)


def asked(file: int, start: int, length: int) -> tuple[int, ...]:
    """Who holds a lock there, by F_GETLK: type, whence, start, length."""
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    return struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, request))[:4]


@case
@pytest.mark.parametrize("start", [0, 5, 20, 40])
def test_asking_who_holds_a_lock(start: int) -> Answer:
    put("file", bytes(50))
    with handle("file", os.O_RDWR) as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
        fcntl.lockf(file, fcntl.LOCK_SH, 5, 40)

        def other() -> str:
            with handle("file", os.O_RDWR) as mine:
                return str(asked(mine, start, 3))

        return in_child(other)


@case
def test_closing_any_handle_drops_the_locks_of_a_process() -> Answer:
    put("file")

    def other() -> str:
        with handle("file", os.O_RDWR) as mine:
            return str(outcome(fcntl.lockf, mine, fcntl.LOCK_EX | NOW))

    with handle("file", os.O_RDWR) as file:
        fcntl.lockf(file, fcntl.LOCK_EX | NOW)
        before = in_child(other)
        with handle("file", os.O_RDONLY):
            pass
        return before, in_child(other)


@case
def test_flock_belongs_to_the_open_file() -> Answer:
    put("file")
    with handle("file", os.O_RDONLY) as one, handle("file", os.O_RDONLY) as two:
        said: list[Any] = [outcome(fcntl.flock, one, fcntl.LOCK_EX | NOW)]
        said.append(outcome(fcntl.flock, two, fcntl.LOCK_SH | NOW))
        twin = os.dup(one)
        said.append(outcome(fcntl.flock, twin, fcntl.LOCK_SH | NOW))
        said.append(outcome(fcntl.flock, two, fcntl.LOCK_SH | NOW))
        os.close(twin)
        said.append(outcome(fcntl.flock, two, fcntl.LOCK_EX | NOW))
        fcntl.flock(one, fcntl.LOCK_UN)
        said.append(outcome(fcntl.flock, two, fcntl.LOCK_EX | NOW))
    return said


@case
def test_locks_of_open_files_by_fcntl() -> Answer:
    put("file")
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
    with handle("file", os.O_RDWR) as one, handle("file", os.O_RDWR) as two:
        return [
            outcome(lambda: fcntl.fcntl(one, F_OFD_SETLK, request) and "locked"),
            outcome(lambda: fcntl.fcntl(two, F_OFD_SETLK, request) and "locked"),
        ]


@case
def test_locks_go_with_their_process() -> Answer:
    put("file")

    def holder() -> str:
        file = os.open("file", os.O_RDWR)
        fcntl.lockf(file, fcntl.LOCK_EX | NOW)
        fcntl.flock(file, fcntl.LOCK_EX | NOW)
        return "held"

    held = in_child(holder)
    with handle("file", os.O_RDWR) as file:
        return (
            held,
            outcome(fcntl.lockf, file, fcntl.LOCK_EX | NOW),
            outcome(fcntl.flock, file, fcntl.LOCK_EX | NOW),
        )


@case
@pytest.mark.parametrize("way", ["flock", "lockf"])
@pytest.mark.parametrize("access", ["O_RDONLY", "O_WRONLY"])
@pytest.mark.parametrize("lock", LOCKS)
def test_what_a_lock_needs(lock: str, access: str, way: str) -> Answer:
    put("file")
    with handle("file", getattr(os, access)) as file:
        return outcome(getattr(fcntl, way), file, LOCKS[lock] | NOW)


@case
def test_waiting_for_a_lock() -> Answer:
    put("file")
    reading, writing = os.pipe()
    with handle("file", os.O_RDWR) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        pid = os.fork()
        if not pid:
            with handle("file", os.O_RDWR) as mine:
                fcntl.flock(mine, fcntl.LOCK_EX)
                os.write(writing, b"got it;")
            os._exit(0)
        os.write(writing, b"first;")
        fcntl.flock(file, fcntl.LOCK_UN)
        os.waitpid(pid, 0)
    said = os.read(reading, 100)
    os.close(reading)
    os.close(writing)
    return said


@case
def test_locks_and_unlinked_files() -> Answer:
    put("file")
    with handle("file", os.O_RDWR) as one, handle("file", os.O_RDWR) as two:
        os.unlink("file")
        return outcome(fcntl.flock, one, fcntl.LOCK_EX | NOW), outcome(fcntl.flock, two, fcntl.LOCK_EX | NOW)


@case
def test_leases() -> Answer:
    put("file")
    with handle("file", os.O_RDONLY) as file:
        return outcome(fcntl.fcntl, file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
