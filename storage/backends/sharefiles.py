"""Larger shares: files of their own, in a fan-out of two levels by pack id.

A file is written under its final name and made durable, name and all; an entry in a volume then commits it,
and the index makes it visible: a name alone means nothing. So nothing is ever renamed between directories,
which not every disk does in one step. With 4096 directories, ten million shares are some 2500 names in each,
and soon no put makes a directory any more, whose syncs cost more than those of the share.

A crash may leave a file that was never committed: the next put of that share replaces it, and making the
index anew removes it unless it verifies.

Synchronous; what touches the disk belongs in a worker thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storage.backends.port import ShareKey
from storage.errors import StorageError
from storage.format.share import ShareVerifier
from storage.ports import Buffer, Disk, File

_READ_SIZE = 1024 * 1024
_LEAVES = 4096


@dataclass(slots=True)
class WrittenFile:
    """A share that is written and not committed yet."""

    key: ShareKey
    file: File
    committed: bool = False


class ShareFiles:
    """The fan-out below one backend directory."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self._root = f"{directory}/shares"
        # One byte for each leaf directory that is known to be there durably.
        self._durable = bytearray(_LEAVES)
        self._touched: dict[str, None] = {}

    def open(self) -> None:
        """Make the root where missing. Raises OSError."""
        self._disk.make_directory(self._root)

    def path(self, key: ShareKey) -> str:
        """Where a share's file is."""
        return f"{self._parent(key)}/{key.pack_id.hex()}.{key.number}"

    def _parent(self, key: ShareKey) -> str:
        name = key.pack_id[:2].hex()
        return f"{self._root}/{name[0]}/{name[1:3]}"

    def write(self, key: ShareKey, parts: Sequence[Buffer]) -> WrittenFile:
        """Write a share that is not here; not durable yet. One at a time for each key.

        Raises OSError, and leaves nothing then.
        """
        self._disk.make_directory(self._parent(key))
        # Never over a file that is there: a reader may still hold the one that was released.
        with contextlib.suppress(FileNotFoundError):
            self._disk.remove(self.path(key))
        file = self._disk.open(self.path(key), create=True, exclusive=True)
        try:
            offset = 0
            for part in parts:
                offset += file.write_direct(part, offset)
        except BaseException:
            file.close()
            self._disk.remove(self.path(key))
            raise
        return WrittenFile(key, file)

    def sync(self, shares: Sequence[WrittenFile]) -> None:
        """Make written shares durable, their names and directories included. Raises OSError."""
        leaves: dict[str, None] = {}
        parents: dict[str, None] = {}
        for share in shares:
            share.file.sync()
            leaf = self._parent(share.key)
            leaves[leaf] = None
            if not self._durable[_leaf_number(share.key)]:
                parents[self._root] = None
                parents[leaf.rpartition("/")[0]] = None
        for directory in (*parents, *leaves):
            self._disk.sync_directory(directory)
        for share in shares:
            self._durable[_leaf_number(share.key)] = 1

    def discard(self, share: WrittenFile) -> None:
        """Close a written file, and remove it if it was not committed."""
        share.file.close()
        if share.committed:
            return
        try:
            self._disk.remove(self.path(share.key))
        except OSError:
            # A failing disk: the file means nothing, and the next put of the share replaces it.
            return

    def remove(self, key: ShareKey) -> None:
        """Remove a share; its release is in the log already. Idempotent. Raises OSError."""
        try:
            self._disk.remove(self.path(key))
        except FileNotFoundError:
            return
        self._touched[self._parent(key)] = None

    def size(self, key: ShareKey) -> int | None:
        """Bytes of a share's file; None where there is none. Raises OSError."""
        try:
            file = self._disk.open(self.path(key), writable=False)
        except FileNotFoundError:
            return None
        try:
            return file.size()
        finally:
            file.close()

    def verifies(self, key: ShareKey) -> bool:
        """Whether a file holds the whole share of its name. Raises OSError."""
        file = self._disk.open(self.path(key), writable=False)
        try:
            size = file.size()
            verifier = ShareVerifier(key.pack_id, key.number, size)
            buffer = memoryview(bytearray(_READ_SIZE))
            for offset in range(0, size, _READ_SIZE):
                verifier.feed(buffer[: file.read_into(buffer, offset)])
            verifier.finish()
        except StorageError:
            return False
        finally:
            file.close()
        return True

    def found(self) -> Iterator[tuple[ShareKey, int]]:
        """Every file of the fan-out that is named like a share, with its size. Raises OSError."""
        for first in self._disk.names(self._root):
            for second in self._disk.names(f"{self._root}/{first}"):
                for name in self._disk.names(f"{self._root}/{first}/{second}"):
                    key = _parse(name)
                    size = self.size(key) if key else None
                    if key and size is not None:
                        yield key, size

    @property
    def unsynced_removals(self) -> int:
        """Directories whose removals are not known to be durable."""
        return len(self._touched)

    def sync_removals(self) -> None:
        """Make removals durable. Raises OSError; then all are tried again next time."""
        for directory in self._touched:
            self._disk.sync_directory(directory)
        self._touched.clear()


def _leaf_number(key: ShareKey) -> int:
    """Of the directory of a share: the first three hexadecimal digits of its pack id."""
    return int.from_bytes(key.pack_id[:2], "big") >> 4


def _parse(name: str) -> ShareKey | None:
    pack, _, number = name.partition(".")
    try:
        key = ShareKey(bytes.fromhex(pack), int(number))
    except ValueError:
        return None
    return key if len(key.pack_id) == 32 and 0 <= key.number < 256 else None
