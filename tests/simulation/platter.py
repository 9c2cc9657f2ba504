"""The medium of a simulated disk: what is durable, what is not yet, and what a crash makes of it.

A `Platter` outlives the crashes of its machine; `disk.SimDisk` is one boot's view of it, and the rules
are told there. Faults and the capacity are data, planted by a test.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

SECTOR = 512
UNLIMITED = 1 << 50


class View(Protocol):
    """One boot's view of the medium."""

    def freeze(self) -> None:
        """From now on every operation raises MachineDead."""


class MachineDead(OSError):
    """The machine of this disk crashed: an EIO for code that is dead and does not know it yet."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the simulated machine crashed")


@dataclass
class DiskFault:
    """Operations that fail: `count` of them, after `skip` others that match."""

    operation: str
    """open, read, write, sync, resize, replace, remove, make_directory, names or sync_directory."""
    error: int = errno.EIO
    """An errno; ENOSPC for a full disk."""
    path: str = ""
    """Matches paths that begin so."""
    skip: int = 0
    """How many matching operations still succeed first."""
    count: int = 1
    """How many fail then."""
    kept: float = 0.0
    """Part of the bytes of a failed write that is in the file all the same: less than 1."""
    forgets: bool = False
    """After a failed sync, what was not durable never is, although reads still see it: as the page cache of
    Linux takes its pages for clean. Else a later sync makes it durable."""

    def strikes(self, operation: str, path: str) -> bool:
        if self.count == 0 or operation != self.operation or not path.startswith(self.path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.count -= 1
        return True


class PlantedError(OSError):
    """What an operation raises that a `DiskFault` struck."""

    def __init__(self, fault: DiskFault, path: str) -> None:
        super().__init__(fault.error, os.strerror(fault.error), path)
        self.fault = fault


@dataclass(slots=True, eq=False)
class Inode:
    """A file: what reads see, what is durable, and the changes between, in order."""

    current: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, bytes written), or (size, None) for a resize."""

    def change(self, offset: int, data: bytes | None) -> None:
        _apply(self.current, offset, data)
        self.unsynced.append((offset, data))

    def sync(self) -> None:
        for offset, data in self.unsynced:
            _apply(self.durable, offset, data)
        self.unsynced.clear()

    def forget(self) -> None:
        """What is not durable will not be, whatever is synced later."""
        self.unsynced.clear()

    def crash(self, stream: random.Random) -> None:
        for offset, data in self.unsynced:
            fate = stream.choice(("drop", "keep", "tear"))
            if fate == "keep":
                _apply(self.durable, offset, data)
            elif fate == "tear" and data is not None:
                for start, end in sectors(offset, len(data)):
                    if stream.random() < 0.5:
                        _apply(self.durable, start, data[start - offset : end - offset])
        self.unsynced.clear()
        self.current = bytearray(self.durable)


@dataclass(slots=True, eq=False)
class Directory:
    """Names of a directory, now and durably; each unsynced step changes some names together."""

    current: dict[str, Inode | Directory] = field(default_factory=dict)
    durable: dict[str, Inode | Directory] = field(default_factory=dict)
    unsynced: list[dict[str, Inode | Directory | None]] = field(default_factory=list)
    """None takes the name away."""

    def change(self, step: dict[str, Inode | Directory | None]) -> None:
        _step(self.current, step)
        self.unsynced.append(step)

    def sync(self) -> None:
        for step in self.unsynced:
            _step(self.durable, step)
        self.unsynced.clear()

    def crash(self, stream: random.Random) -> None:
        """Settle what is left of this directory and of all below it."""
        for step in self.unsynced[: stream.randint(0, len(self.unsynced))]:
            _step(self.durable, step)
        self.unsynced.clear()
        self.current = dict(self.durable)
        for _, entry in sorted(self.current.items()):
            entry.crash(stream)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    size = offset if data is None else offset + len(data)
    if size > len(content):
        content.extend(bytes(size - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset:size] = data


def _step(names: dict[str, Inode | Directory], step: dict[str, Inode | Directory | None]) -> None:
    for name, entry in step.items():
        if entry is None:
            names.pop(name, None)
        else:
            names[name] = entry


def sectors(offset: int, length: int) -> list[tuple[int, int]]:
    """(start, end) of the parts of a range in each 512-byte sector of the file."""
    bounds = [offset, *range((offset // SECTOR + 1) * SECTOR, offset + length, SECTOR), offset + length]
    return list(itertools.pairwise(bounds)) if length else []


def _nothing(operation: str, path: str) -> None:
    """The default for `Platter.before_operation`."""


class Platter:
    """The medium of one machine, and the faults planted in it."""

    def __init__(self, stream: random.Random, capacity: int = UNLIMITED) -> None:
        self.root = Directory()
        self.faults: list[DiskFault] = []
        self.capacity = capacity
        """Bytes of file content that fit; a write beyond gets ENOSPC and changes nothing."""
        self.operations = 0
        """Operations begun so far, over all boots."""
        self.before_operation: Callable[[str, str], None] = _nothing
        """Called with (operation, path); may crash the machine, and then the operation does not happen."""
        self._stream = stream
        self._view: View | None = None

    def attach(self, view: View) -> None:
        """Take the view of a new boot; the one before it must have crashed or been shut down."""
        assert self._view is None, "booted twice"
        self._view = view

    def crash(self) -> None:
        """Power loss: freeze the view, then settle what was not synced. Idempotent."""
        if self._view is not None:
            self._view.freeze()
            self._view = None
            self.root.crash(self._stream)

    def shut_down(self) -> None:
        """The process ended and the machine goes on: nothing written is lost. Idempotent."""
        if self._view is not None:
            self._view.freeze()
            self._view = None

    def free(self) -> int:
        """Bytes that still fit."""
        return UNLIMITED if self.capacity == UNLIMITED else max(0, self.capacity - self.used())

    def used(self) -> int:
        """Bytes of all named files."""
        total, waiting = 0, [self.root]
        while waiting:
            for entry in waiting.pop().current.values():
                if isinstance(entry, Directory):
                    waiting.append(entry)
                else:
                    total += len(entry.current)
        return total

    def fail(self, operation: str, path: str) -> None:
        """Raise what is planted for this operation."""
        for fault in self.faults:
            if fault.strikes(operation, path):
                raise PlantedError(fault, path)
