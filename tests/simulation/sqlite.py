"""SQLite on a simulated disk: an apsw VFS, so that its pages are lost and torn as all others.

What it offers: rollback journals with SQLite's own five locks between the connections of one machine, and
WAL **only after `PRAGMA locking_mode=EXCLUSIVE`**: apsw lets no Python VFS bring shared memory, which WAL
needs between connections (`supports_shared_memory` says so). In exclusive mode the WAL's index is in
the heap and one connection has the database to itself; a second one gets SQLITE_BUSY. The pragma must be
the first statement of a connection: reading a WAL database without it is SQLITE_CANTOPEN, and
`PRAGMA journal_mode=WAL` on a new one answers with the old mode.

As SQLite's own VFS on Linux: the first sync of a new journal or WAL also syncs its directory; nothing
is promised of a write beyond the bytes written (SQLITE_IOCAP_POWERSAFE_OVERWRITE). Time is the simulated
machine's, and sleeping takes none.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import posixpath
from collections.abc import Iterator
from typing import Any

import apsw

from storage.ports import WallClock
from tests.simulation.disk import SimDisk, SimFile

_JULIAN_MS = 210_866_760_000_000
"""Milliseconds from SQLite's epoch to 1970."""
_JOURNALS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL
_serial = itertools.count()


@contextlib.contextmanager
def _as_sqlite(code: int) -> Iterator[None]:
    """An OSError of the disk becomes SQLite's: full, or an I/O error with the extended `code`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise apsw.FullError(str(error)) from error
        failure: Any = apsw.IOError(str(error))
        failure.extendedresult = code
        raise failure from error


class SimVFS(apsw.VFS):
    """Registered under a name of its own per boot; `SimDisk.sqlite_vfs` is that name."""

    supports_shared_memory = False

    def __init__(self, disk: SimDisk, clock: WallClock) -> None:
        self.name = f"simulation-{next(_serial)}"
        self._disk = disk
        self._clock = clock
        self._locks: dict[str, dict[int, int]] = {}
        super().__init__(self.name, base="")
        disk.vfs_name = self.name

    def xOpen(  # type: ignore[override]  # noqa: N802 - SQLite's names, here and below
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> SimVFSFile:
        wanted = flags[0]
        try:
            if name is None:
                return SimVFSFile(self._disk, self._disk.open_nameless(), "", {}, False)
            path = name.filename() if isinstance(name, apsw.URIFilename) else name
            is_new = not self._disk.exists(path)
            file = self._disk.open(
                path,
                create=bool(wanted & apsw.SQLITE_OPEN_CREATE),
                exclusive=bool(wanted & apsw.SQLITE_OPEN_EXCLUSIVE),
                writable=bool(wanted & apsw.SQLITE_OPEN_READWRITE),
            )
        except OSError as error:
            raise apsw.CantOpenError(str(error)) from error
        flags[1] = wanted
        locks = self._locks.setdefault(path, {})
        return SimVFSFile(self._disk, file, path, locks, is_new and bool(wanted & _JOURNALS))

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        missing = not self._disk.exists(filename)
        with _as_sqlite(apsw.SQLITE_IOERR_DELETE_NOENT if missing else apsw.SQLITE_IOERR_DELETE):
            self._disk.remove(filename)
            if syncdir:
                self._disk.sync_directory(posixpath.dirname(filename))

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        return self._disk.exists(pathname)

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return posixpath.normpath(name)

    def xCurrentTimeInt64(self) -> int:  # noqa: N802
        return self._clock.now_ns() // 1_000_000 + _JULIAN_MS

    def xCurrentTime(self) -> float:  # noqa: N802
        return self.xCurrentTimeInt64() / 86_400_000

    def xSleep(self, microseconds: int) -> int:  # noqa: N802
        return microseconds


class SimVFSFile:
    """What xOpen gives: apsw asks for these methods, not for its class."""

    def __init__(
        self, disk: SimDisk, file: SimFile, path: str, locks: dict[int, int], sync_directory: bool
    ) -> None:
        self._disk, self._file, self._path = disk, file, path
        self._locks = locks
        """Of all open files of this path: their key and level."""
        self._key = next(_serial)
        self._must_sync_directory = sync_directory

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        data = bytearray(amount)
        with _as_sqlite(apsw.SQLITE_IOERR_READ):
            got = self._file.read_into(memoryview(data), offset)
        return bytes(data[:got])

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        with _as_sqlite(apsw.SQLITE_IOERR_WRITE):
            self._file.write_at([data], offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        with _as_sqlite(apsw.SQLITE_IOERR_TRUNCATE):
            self._file.resize(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        with _as_sqlite(apsw.SQLITE_IOERR_FSYNC):
            self._file.sync()
            if self._must_sync_directory:
                self._disk.sync_directory(posixpath.dirname(self._path))
                self._must_sync_directory = False

    def xFileSize(self) -> int:  # noqa: N802
        with _as_sqlite(apsw.SQLITE_IOERR_FSTAT):
            return self._file.size()

    def xClose(self) -> None:  # noqa: N802
        self._locks.pop(self._key, None)
        self._file.close()

    def xLock(self, level: int) -> None:  # noqa: N802
        """Raise this file's lock; BusyError where another file's stands against it.

        BusyError too on a dead machine: then SQLite closes a WAL without a checkpoint. That would fail
        anyhow, but as an exception out of the collection of garbage, where nobody can catch it.
        """
        if not self._disk.is_alive:
            raise apsw.BusyError("the simulated machine crashed")
        others = max((held for key, held in self._locks.items() if key != self._key), default=0)
        if level <= self._locks.get(self._key, apsw.SQLITE_LOCK_NONE):
            return
        if level == apsw.SQLITE_LOCK_EXCLUSIVE and others == apsw.SQLITE_LOCK_SHARED:
            # New readers wait for the writer, who waits for those that are there.
            self._locks[self._key] = apsw.SQLITE_LOCK_PENDING
        allowed = {
            apsw.SQLITE_LOCK_SHARED: apsw.SQLITE_LOCK_RESERVED,
            apsw.SQLITE_LOCK_RESERVED: apsw.SQLITE_LOCK_SHARED,
            apsw.SQLITE_LOCK_EXCLUSIVE: apsw.SQLITE_LOCK_NONE,
        }[level]
        if others > allowed:
            raise apsw.BusyError("another connection holds the lock")
        self._locks[self._key] = level

    def xUnlock(self, level: int) -> None:  # noqa: N802
        if level == apsw.SQLITE_LOCK_NONE:
            self._locks.pop(self._key, None)
        else:
            self._locks[self._key] = level

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return any(held >= apsw.SQLITE_LOCK_RESERVED for held in self._locks.values())

    def xFileControl(self, op: int, ptr: int) -> bool:  # noqa: N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return 512

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE
