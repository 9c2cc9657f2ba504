"""What the metadata tests share: a sealer that shows whether it was used, and short ways to operations."""

from __future__ import annotations

import stat
from pathlib import Path

from gridfs.meta.operations import ExtentRecord, Make, Operation, PackRecord
from gridfs.meta.store import ROOT, Metadata
from storage.errors import Corrupt

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755
SERVERS = [bytes([number]) * 32 for number in range(1, 7)]


class MaskSealer:
    """Not a cipher: it only makes sure that sealed bytes differ from plain ones and are told apart."""

    def seal(self, data: bytes) -> bytes:
        return b"sealed" + bytes(byte ^ 0x5A for byte in data)

    def open(self, data: bytes) -> bytes:
        if data[:6] != b"sealed":
            raise Corrupt("not sealed by this key")
        return bytes(byte ^ 0x5A for byte in data[6:])


class Driver:
    """A store with a counter of operations, so that a test reads as a list of changes."""

    def __init__(self, path: Path, sealer: MaskSealer | None = None, vfs: str | None = None) -> None:
        self.path = str(path)
        self.vfs = vfs
        self.store = Metadata.create(self.path, sealer or MaskSealer(), vfs=vfs, time=1)
        self.number = 0

    def do(self, operation: Operation) -> int:
        self.number += 1
        self.store.apply(self.number, operation)
        return self.number

    def make(self, name: bytes, mode: int = FILE, parent: int = ROOT, target: bytes = b"") -> int:
        ino = self.store.reserve_inode()
        self.do(Make(ino, parent, name, mode, 10, 20, 0, target, 100))
        return ino

    def reopen(self) -> None:
        self.store.close()
        self.store = Metadata.open(self.path, MaskSealer(), vfs=self.vfs)

    def refused(self, operation: Operation) -> str:
        """Apply what must not fit; the state may not change. Returns the reason."""
        before = self.picture()
        try:
            self.store.apply(self.number + 1, operation)
        except Corrupt as error:
            assert self.picture() == before
            return str(error)
        raise AssertionError(f"{operation} was taken")

    def picture(self) -> object:
        """Everything that the store shows of its tree."""
        store = self.store
        names = {}
        found = [ROOT, *store.orphans()]
        for directory in found:
            names[directory] = store.entries(directory, 0, 10_000)
            found += [entry.ino for entry in names[directory] if stat.S_ISDIR(entry.mode)]
        inodes = {entry.ino for entries in names.values() for entry in entries} | set(found)
        return (
            store.applied,
            store.totals(),
            names,
            {ino: store.inode(ino) for ino in inodes},
            {ino: store.extents(ino, 0, 1 << 60) for ino in inodes},
            {ino: [(name, store.xattr(ino, name)) for name in store.xattrs(ino)] for ino in inodes},
            store.outbox(0, 1 << 30),
        )


def pack_record(mark: int, **changes: object) -> PackRecord:
    """A 4-of-6 pack whose id and key follow from `mark`."""
    fields: dict[str, object] = {
        "pack_id": mark.to_bytes(32, "big"),
        "k": 4,
        "n": 6,
        "stream_length": 1 << 20,
        "key": bytes([mark % 251]) * 32,
        "convergent": False,
        "places": list(SERVERS),
        "missing": [],
        "kind": 0,
    }
    return PackRecord(**(fields | changes))  # type: ignore[arg-type]


def extent_record(ino: int, start: int, length: int, frozen: int, **changes: int) -> ExtentRecord:
    """An extent over a whole run of its own."""
    fields = {"pack": 0, "run": 0, "run_offset": 0, "run_length": length, "skip": 0}
    return ExtentRecord(ino=ino, start=start, length=length, frozen=frozen, **(fields | changes))
