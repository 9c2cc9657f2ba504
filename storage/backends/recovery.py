"""Opening a share directory: the index follows the log to its end, and files follow the index.

After a clean stop there is nothing to follow. After a crash the log's tail is applied where the index has
not followed it yet, and looked at from where removals are known to be durable, to do them again. An index
that is missing, unfinished or unreadable is made anew from all volumes and files. Synchronous: runs in a
worker thread before anything else uses the directory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from storage.appendfile import disk_error
from storage.backends.changes import Kind
from storage.backends.index import NAME as INDEX_NAME
from storage.backends.index import Logged, Place, Position, ShareIndex
from storage.backends.marker import claim_directory
from storage.backends.port import ShareKey
from storage.backends.sharefiles import ShareFiles
from storage.backends.volumes import Volumes
from storage.errors import Corrupt
from storage.ports import Disk

_LOGGER = logging.getLogger(__name__)
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class OpenDirectory:
    """A share directory in one piece; its index still has to be checkpointed."""

    index: ShareIndex
    volumes: Volumes
    files: ShareFiles

    def close(self) -> None:
        self.index.close()
        self.volumes.close()


def open_directory(disk: Disk, directory: str, server_id: bytes, volume_size_max: int) -> OpenDirectory:
    """Open and recover, or make a new one.

    Raises Refused (another server's, an unknown version), Conflict (in use), Corrupt, Unavailable, Exhausted.
    """
    try:
        claim_directory(disk, directory, server_id)
        files = ShareFiles(disk, directory)
        files.open()
        index = _open_index(disk, directory)
        volumes = Volumes(disk, directory, volume_size_max)
        opened = OpenDirectory(index, volumes, files)
        try:
            volumes.open()
            positions = index.position()
            volumes.settle(positions[0] if positions else Position(0, 0))
            _Recovery(opened).run()
            volumes.begin()
            index.complete(volumes.position)
            disk.sync_directory(directory)
        except BaseException:
            opened.close()
            raise
    except OSError as error:
        raise disk_error(error, f"open {directory}") from error
    return opened


def _open_index(disk: Disk, directory: str) -> ShareIndex:
    try:
        return ShareIndex(disk, directory)
    except Corrupt as error:
        _LOGGER.error("%s; it is made anew from volumes and files", error)
    for name in disk.names(directory):
        if name.startswith(INDEX_NAME):
            disk.remove(f"{directory}/{name}")
    return ShareIndex(disk, directory)


class _Recovery:
    def __init__(self, opened: OpenDirectory) -> None:
        self._index = opened.index
        self._volumes = opened.volumes
        self._files = opened.files
        self._released: dict[ShareKey, None] = {}

    def run(self) -> None:
        positions = self._index.position()
        if positions is None:
            self._follow(Position(0, 0), Position(0, 0))
            self._drop_missing()
            self._find_strays()
            self._index.purge_leases()
        else:
            followed, safe = positions
            self._follow(followed, safe)
        # Only now: a share that was released and put again has its newer file under the same name.
        for key in self._released:
            if self._index.place(key) is None:
                self._files.remove(key)

    def _follow(self, followed: Position, safe: Position) -> None:
        chunk: list[Logged] = []
        reached = followed
        for logged, behind in self._volumes.replay(min(safe, followed)):
            if logged.change.kind == Kind.RELEASE:
                self._released[logged.change.key] = None
            if behind <= followed:
                continue
            chunk.append(logged)
            reached = behind
            if len(chunk) == _CHUNK:
                self._index.apply(chunk, reached)
                chunk = []
        self._index.apply(chunk, reached)

    def _drop_missing(self) -> None:
        sizes = ((key, length, self._files.size(key)) for key, length in self._index.own_files())
        for key in [key for key, length, size in sizes if size != length]:
            _LOGGER.error("share %s.%d is lost: its file is missing", key.pack_id.hex()[:16], key.number)
            self._index.forget(key)

    def _find_strays(self) -> None:
        """Files that no entry speaks of: kept if they verify, though nobody is known to need them."""
        for key, size in self._files.found():
            if key in self._released or self._index.place(key) is not None:
                continue
            if self._files.verifies(key):
                self._index.put(key, Place(0, 0, size))
            else:
                self._files.remove(key)
