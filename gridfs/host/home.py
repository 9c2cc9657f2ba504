"""A file system's folder on this machine: its configuration, keys, metadata, spool, log and lock.

config.toml   what the file system is            servers      access lines, mode 0600
key           the master key, wrapped            meta.sqlite  metadata up to `applied`
spool/        the operation log                  mount.log    what the daemon says
lock          who has it mounted                 control.sock how to talk to the daemon
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_data_path

from gridfs.config import Config
from gridfs.exits import LOCKED, NO_SUCH_FILE_SYSTEM, CommandError
from storage.ports import Disk


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock."""

    pid: int
    mountpoint: str


class NoSuchFileSystem(CommandError):
    """There is no file system of that name."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"there is no file system {folder}; `gridfs create` makes one", NO_SUCH_FILE_SYSTEM)


class AlreadyLocked(CommandError):
    """Another process has it mounted."""

    def __init__(self, name: str, holder: Holder | None) -> None:
        where = f" at {holder.mountpoint} by process {holder.pid}" if holder else ""
        super().__init__(f"{name} is mounted already{where}", LOCKED)
        self.holder = holder


def folder_of(name: str) -> Path:
    """Where NAME lies: itself where it contains a slash, else below $GRIDFS_HOME or the user's data."""
    if "/" in name:
        return Path(os.path.abspath(name))
    base = os.environ.get("GRIDFS_HOME")
    if base:
        return Path(os.path.abspath(base)) / name
    if os.geteuid() == 0 and not os.environ.get("XDG_DATA_HOME"):
        own = user_data_path("gridfs") / name
        return own if own.exists() else Path("/var/lib/gridfs") / name
    return user_data_path("gridfs") / name


def bases() -> list[Path]:
    """Where `folder_of` looks for names."""
    base = os.environ.get("GRIDFS_HOME")
    if base:
        return [Path(os.path.abspath(base))]
    own = user_data_path("gridfs")
    if os.geteuid() == 0 and not os.environ.get("XDG_DATA_HOME"):
        return [own, Path("/var/lib/gridfs")]
    return [own]


class Home:
    """One file system's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    @classmethod
    def find(cls, name: str) -> Home:
        """Raises NoSuchFileSystem where the folder has no configuration."""
        home = cls(folder_of(name))
        if not home.config_path.is_file():
            raise NoSuchFileSystem(home.folder)
        return home

    @property
    def config_path(self) -> Path:
        return self.folder / "config.toml"

    @property
    def servers_path(self) -> Path:
        return self.folder / "servers"

    @property
    def key_path(self) -> Path:
        return self.folder / "key"

    @property
    def read_key_path(self) -> Path:
        """In the place of a key file where a file system is only read."""
        return self.folder / "read-key"

    @property
    def is_follower(self) -> bool:
        return self.read_key_path.exists()

    @property
    def database_path(self) -> str:
        return str(self.folder / "meta.sqlite")

    @property
    def spool_path(self) -> str:
        return str(self.folder / "spool")

    @property
    def destroying_path(self) -> Path:
        """There from the moment on in which shares are being released for good."""
        return self.folder / "destroying"

    @property
    def log_path(self) -> Path:
        return self.folder / "mount.log"

    def config(self) -> Config:
        return Config.parse(self.config_path.read_text(errors="replace"), str(self.config_path))

    # ---- the lock

    def lock(self) -> None:
        """Take the lock for this process and its children. Raises AlreadyLocked."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyLocked(str(self.folder), self.holder()) from None
        self._lock = descriptor

    def note_holder(self, mountpoint: str) -> None:
        """Write into the lock who holds it."""
        assert self._lock is not None
        text = json.dumps({"pid": os.getpid(), "mountpoint": mountpoint}).encode()
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, text, 0)

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_locked(self) -> bool:
        try:
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def holder(self) -> Holder | None:
        """Who wrote itself into the lock last."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            values = json.loads((self.folder / "lock").read_text())
            return Holder(int(values["pid"]), str(values["mountpoint"]))
        return None

    # ---- the control socket

    @contextlib.contextmanager
    def control_address(self) -> Iterator[str]:
        """A path of at most 108 bytes for the control socket, however long the folder's own is."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}/control.sock"
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def new_home(folder: Path) -> Iterator[Home]:
    """A file system's folder in the making, beside its place; renamed to it at the end, durably.

    There is never half a file system: what fails in the block leaves nothing behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = Home(folder.with_name(f".{folder.name}.new-{os.getpid()}"))
    draft.folder.mkdir(mode=0o700)
    try:
        yield draft
        sync_directory(draft.folder)
        os.rename(draft.folder, folder)
        sync_directory(folder.parent)
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise


def sync_directory(path: Path) -> None:
    """Make creations, renames and removals in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold off other commands that change files of a folder, mounted or not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace_private(disk: Disk, path: str, data: bytes) -> None:
    """Put `data` (mode 0600) in the place of a file: after a crash the old or the new is there, whole."""
    new = f"{path}.new"
    file = disk.open(new, create=True)
    try:
        file.resize(0)
        file.write_at([data], 0)
        file.sync()
    finally:
        file.close()
    disk.replace(new, path)
    disk.sync_directory(os.path.dirname(path))


def write_private(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    """Write a file of mode 0600 and make it durable. With `exclusive` FileExistsError if it is there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if exclusive else os.O_TRUNC)
    descriptor = os.open(path, flags, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
