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
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from platformdirs import user_data_path

from storage.errors import Refused

CONFIG_VERSION = 1


class NoSuchFileSystem(Exception):
    """There is no file system of that name. `str()` is one line for a person."""


class Locked(Exception):
    """Another process has it mounted. `str()` is one line for a person."""

    def __init__(self, name: str, holder: Holder | None) -> None:
        where = f" at {holder.mountpoint} by process {holder.pid}" if holder else ""
        super().__init__(f"{name} is mounted already{where}")
        self.holder = holder


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock."""

    pid: int
    mountpoint: str


@dataclass(frozen=True, slots=True)
class Config:
    """config.toml; `create` writes it, nothing changes it."""

    file_system: bytes
    """16 bytes that name it on the servers."""
    k: int
    n: int
    happy: int
    shares_per_server: int
    head_servers: tuple[bytes, ...]
    """Server ids that keep the head log."""
    recovery_public: bytes
    passphrase_command: str = ""
    """Command whose output is the passphrase; empty: ask on the terminal, if there is one at all."""
    version: int = field(default=CONFIG_VERSION)

    @property
    def quorum(self) -> int:
        """W: head servers that must hold a record. With several shares a server, `happy` counts shares."""
        majority = len(self.head_servers) // 2 + 1
        return max(self.happy, majority) if self.shares_per_server == 1 else majority

    def encode(self) -> str:
        """The text of config.toml."""
        lines = ["# A gridfs file system; written once by `gridfs create`.", f"version = {self.version}"]
        lines += [f"{name} = {getattr(self, name)}" for name in ("k", "n", "happy", "shares_per_server")]
        lines += [f'{name} = "{getattr(self, name).hex()}"' for name in ("file_system", "recovery_public")]
        lines.append(f"passphrase_command = {json.dumps(self.passphrase_command)}")
        servers = "".join(f'    "{server.hex()}",\n' for server in self.head_servers)
        return "\n".join(lines) + f"\nhead_servers = [\n{servers}]\n"

    @classmethod
    def parse(cls, text: str, where: str) -> Config:
        """Raises Refused with one line that says what is wrong and where."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Refused(f"{where} cannot be read: {error}") from None
        version = values.get("version")
        if version != CONFIG_VERSION:
            raise Refused(f"{where} has format version {version}; this gridfs reads {CONFIG_VERSION}")
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise Refused(f"{where}: unknown key {name!r}")
        try:
            config = cls(
                file_system=bytes.fromhex(values["file_system"]),
                k=int(values["k"]),
                n=int(values["n"]),
                happy=int(values["happy"]),
                shares_per_server=int(values["shares_per_server"]),
                head_servers=tuple(bytes.fromhex(server) for server in values["head_servers"]),
                recovery_public=bytes.fromhex(values["recovery_public"]),
                passphrase_command=str(values.get("passphrase_command", "")),
            )
        except KeyError as error:
            raise Refused(f"{where}: {error.args[0]} is missing") from None
        except (TypeError, ValueError) as error:
            raise Refused(f"{where}: {error}") from None
        if not 1 <= config.k <= config.happy <= config.n <= 256 or len(config.file_system) != 16:
            raise Refused(f"{where}: k, happy and n do not go together")
        return config


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
            raise NoSuchFileSystem(f"there is no file system {home.folder}; `gridfs create` makes one")
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
    def database_path(self) -> str:
        return str(self.folder / "meta.sqlite")

    @property
    def spool_path(self) -> str:
        return str(self.folder / "spool")

    @property
    def log_path(self) -> Path:
        return self.folder / "mount.log"

    def config(self) -> Config:
        return Config.parse(self.config_path.read_text(errors="replace"), str(self.config_path))

    # ---- the lock

    def lock(self) -> None:
        """Take the lock for this process and its children. Raises Locked."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Locked(str(self.folder), self.holder()) from None
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


def write_private(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    """Write a file of mode 0600 and make it durable. With `exclusive` FileExistsError if it is there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if exclusive else os.O_TRUNC)
    descriptor = os.open(path, flags, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
