"""Larger shares: files of their own, in a fan-out of two levels by pack id.

A share is written whole and synced in `incoming`; an entry in a volume then commits it, and it is read from
there until `settle` renames a whole lot of them to their places and syncs those directories, before the index
forgets to look again. So an acknowledged share costs one sync of its own and a part of one of `incoming`.
`incoming` is never synced between the renames and the sync of their targets: that could make a
name's removal durable before its addition. With 65536 directories, ten million shares are some 150 names
in each.

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
    committed: bool = False


class ShareFiles:
    """The fan-out and the incoming directory below one backend directory."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self._incoming = f"{directory}/incoming"
        self._root = f"{directory}/shares"
        self._unsettled: dict[ShareKey, Incoming] = {}
        self._touched: dict[str, None] = {}
        self._moved = False
        self._leftovers: dict[str, None] = {}

    def open(self) -> None:
        """Make both directories where missing, and see what a crash left in `incoming`."""
        self._disk.make_directory(self._incoming)
        self._disk.make_directory(self._root)
        self._leftovers = dict.fromkeys(self._disk.names(self._incoming))

    def path(self, key: ShareKey) -> str:
        """Where a committed share's file is now; a settling meanwhile may move it to its `place`."""
        unsettled = self._unsettled.get(key)
        return unsettled.path if unsettled else self.place(key)

    def place(self, key: ShareKey) -> str:
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
        if shares and self._moved:
            # A settling failed half-way.
            self.sync_touched()
        for share in shares:
            share.file.sync()
        if shares:
            self._disk.sync_directory(self._incoming)

    def commit(self, share: Incoming) -> None:
        """Note that an entry commits this share."""
        share.file.close()
        share.committed = True
        self._unsettled[share.key] = share

    def settle(self) -> list[str]:
        """Move committed shares to their places, durably; returns the paths that they left.

        Raises OSError; then it may be called again.
        """
        left = []
        for key, share in list(self._unsettled.items()):
            self._moved = True
            self._disk.replace(share.path, self.place(key))
            self._touch(key)
            del self._unsettled[key]
            left.append(share.path)
        self.sync_touched()
        return left

    def discard(self, share: Incoming) -> None:
        """Remove a share that was not committed; nothing happens where it was."""
        if share.committed:
            return
        share.file.close()
        try:
            self._disk.remove(share.path)
        except OSError:
            # A failing disk: the next start empties the directory.
            return

    def remove(self, key: ShareKey) -> None:
        """Remove a committed share; its release is in the log already. Idempotent. Raises OSError."""
        unsettled = self._unsettled.pop(key, None)
        try:
            self._disk.remove(unsettled.path if unsettled else self.place(key))
        except FileNotFoundError:
            return
        if not unsettled:
            self._touch(key)

    def adopt(self, key: ShareKey, serial: int | None, length: int) -> bool:
        """After a crash: whether a committed share is there; a leftover of this serial gets its name."""
        if self._size(self.place(key)) == length:
            self._touch(key)
            return True
        if serial is None:
            return False
        source = f"{self._incoming}/{_incoming_name(key, serial)}"
        if self._size(source) != length:
            return False
        self._disk.make_directory(self._parent(key))
        self._disk.replace(source, self.place(key))
        self._moved = True
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
                    size = self._size(self.place(key)) if key else None
                    if key and size is not None:
                        yield key, size

    @property
    def unsettled(self) -> int:
        """Directories whose changes are not known to be durable, and files that are to move."""
        return len(self._touched) + len(self._unsettled)

    def sync_touched(self) -> None:
        """Make renames and removals durable. Raises OSError; then all are tried again next time."""
        directories: dict[str, None] = {self._root: None} if self._touched else {}
        for leaf in self._touched:
            directories[leaf.rpartition("/")[0]] = None
            directories[leaf] = None
        for directory in directories:
            self._disk.sync_directory(directory)
        self._touched.clear()
        self._moved = False

    def _parent(self, key: ShareKey) -> str:
        return self.place(key).rpartition("/")[0]

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
