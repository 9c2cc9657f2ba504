"""Larger shares: files of their own, in a fan-out of two levels by pack id.

A share is first written whole and synced in `incoming`; an entry in a volume then commits it, and only then
it is renamed to its place. A crash between the last two is mended by the next start, so the many fan-out
directories need no sync of their own before a share is acknowledged, only before the index forgets to look
again (`sync_touched`). With 65536 directories, ten million shares are some 150 names in each.

Synchronous; what writes belongs in a worker thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storage.backends.port import ShareKey
from storage.ports import Buffer, Disk, File


@dataclass(slots=True)
class Incoming:
    """A share written beside its place."""

    key: ShareKey
    serial: int
    path: str
    file: File


class ShareFiles:
    """The fan-out and the incoming directory below one backend directory."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self._incoming = f"{directory}/incoming"
        self._root = f"{directory}/shares"
        self._touched: dict[str, None] = {}
        self._leftovers: dict[str, None] = {}

    def open(self) -> None:
        """Make both directories where missing, and see what a crash left in `incoming`."""
        self._disk.make_directory(self._incoming)
        self._disk.make_directory(self._root)
        self._leftovers = dict.fromkeys(self._disk.names(self._incoming))

    def path(self, key: ShareKey) -> str:
        """Where a share's file belongs."""
        name = key.pack_id.hex()
        return f"{self._root}/{name[:2]}/{name[2:4]}/{name}.{key.number}"

    def is_leftover(self, key: ShareKey, serial: int) -> bool:
        """Whether this incoming file was there when the directory was opened."""
        return _incoming_name(key, serial) in self._leftovers

    def write_incoming(self, key: ShareKey, serial: int, parts: Sequence[Buffer]) -> Incoming:
        """Write a share, not synced yet. Raises OSError, and leaves nothing then."""
        # Its later directory is made now, so that nothing that needs room is left for after the commit.
        self._disk.make_directory(self._parent(key))
        path = f"{self._incoming}/{_incoming_name(key, serial)}"
        file = self._disk.open(path, create=True)
        try:
            file.resize(0)
            file.write_at(parts, 0)
        except BaseException:
            file.close()
            self._disk.remove(path)
            raise
        return Incoming(key, serial, path, file)

    def sync_incoming(self, shares: Sequence[Incoming]) -> None:
        """Make written shares durable, with one sync of their directory. Raises OSError."""
        for share in shares:
            share.file.sync()
        if shares:
            self._disk.sync_directory(self._incoming)

    def place(self, share: Incoming) -> None:
        """Give a committed share its name. Raises OSError."""
        share.file.close()
        self._disk.replace(share.path, self.path(share.key))
        self._touch(share.key)

    def discard(self, share: Incoming) -> None:
        """Remove a share that was not committed; nothing happens where it was."""
        share.file.close()
        try:
            self._disk.remove(share.path)
        except OSError:
            # Placed meanwhile, or a failing disk: the next start empties the directory.
            return

    def remove(self, key: ShareKey) -> None:
        """Remove a placed share; its release is in the log already. Idempotent. Raises OSError."""
        try:
            self._disk.remove(self.path(key))
        except FileNotFoundError:
            return
        self._touch(key)

    def adopt(self, key: ShareKey, serial: int | None, length: int) -> bool:
        """After a crash: whether a committed share is there; a leftover of this serial gets its name."""
        if self._size(self.path(key)) == length:
            self._touch(key)
            return True
        if serial is None:
            return False
        source = f"{self._incoming}/{_incoming_name(key, serial)}"
        if self._size(source) != length:
            return False
        self._disk.make_directory(self._parent(key))
        self._disk.replace(source, self.path(key))
        self._touch(key)
        return True

    def _size(self, path: str) -> int | None:
        try:
            file = self._disk.open(path, writable=False)
        except FileNotFoundError:
            return None
        try:
            return file.size()
        finally:
            file.close()

    def clear_incoming(self) -> int:
        """Remove what no commit speaks of; returns how many files that were."""
        names = self._disk.names(self._incoming)
        for name in names:
            self._disk.remove(f"{self._incoming}/{name}")
        return len(names)

    def placed(self) -> Iterator[tuple[ShareKey, int]]:
        """Every share in the fan-out with its size: for making the index anew."""
        for first in self._disk.names(self._root):
            for second in self._disk.names(f"{self._root}/{first}"):
                for name in self._disk.names(f"{self._root}/{first}/{second}"):
                    key = _parse(name)
                    size = self._size(self.path(key)) if key else None
                    if key and size is not None:
                        yield key, size

    @property
    def touched(self) -> int:
        """Directories whose changes are not known to be durable."""
        return len(self._touched)

    def sync_touched(self) -> None:
        """Make renames and removals durable. Raises OSError; then all are tried again next time."""
        directories: dict[str, None] = {self._root: None} if self._touched else {}
        for leaf in self._touched:
            directories[leaf.rpartition("/")[0]] = None
            directories[leaf] = None
        for directory in directories:
            self._disk.sync_directory(directory)
        self._touched.clear()

    def _parent(self, key: ShareKey) -> str:
        return self.path(key).rpartition("/")[0]

    def _touch(self, key: ShareKey) -> None:
        self._touched[self._parent(key)] = None


def _incoming_name(key: ShareKey, serial: int) -> str:
    return f"{key.pack_id.hex()}.{key.number}.{serial}"


def _parse(name: str) -> ShareKey | None:
    pack, _, number = name.partition(".")
    try:
        key = ShareKey(bytes.fromhex(pack), int(number))
    except ValueError:
        return None
    return key if len(key.pack_id) == 32 and 0 <= key.number < 256 else None
