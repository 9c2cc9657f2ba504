"""`gridfs mount`: check everything, take the lock, go into the background, report."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import replace

from gridfs.assembly import MountOptions
from gridfs.cli.reach import happiest
from gridfs.cli.unlock import read_printed, unlock
from gridfs.codec.keys import KeyTree, ReadKey, ReadTree
from gridfs.config import Config
from gridfs.control import client as control
from gridfs.daemon.background import daemonize
from gridfs.daemon.mounting import MountRequest
from gridfs.exits import FAILED, LOCKED, NOT_ENOUGH_SERVERS, USAGE, CommandError
from gridfs.grid.roster import Roster, parse_roster
from gridfs.host import mounts
from gridfs.host.home import AlreadyLocked, Home

IGNORED = frozenset(
    (
        "rw",
        "auto",
        "noauto",
        "nofail",
        "_netdev",
        "defaults",
        "user",
        "nouser",
        "users",
        "exec",
        "suid",
        "dev",
    )
)
IGNORED_PREFIXES = ("x-", "comment=")
HANDOVER_S = 30.0
FOLLOWER_S = 1.0
"""How long the kernel keeps names and attributes that others change."""
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def mount_filesystem(name: str, mountpoint: str, options: list[str], *, foreground: bool) -> None:
    """Mount; returns once it is mounted, or with `foreground` once it is unmounted and drained."""
    chosen = parse_options(",".join(options))
    home = Home.find(name)
    config = home.config()
    if home.destroying_path.exists():
        raise CommandError(f"{home.folder} is being destroyed; `gridfs destroy` finishes it")
    roster = parse_roster(home.servers_path.read_text(errors="replace"))
    place = mounts.resolve(mountpoint)
    _check_fuse(chosen)
    keys: KeyTree | ReadTree
    if home.is_follower:
        keys = read_printed(home.read_key_path, ReadKey.parse).tree
        chosen = replace(chosen, read_only=True, attr_timeout_s=min(chosen.attr_timeout_s, FOLLOWER_S))
    else:
        _check_count(home, config, roster)
        keys = KeyTree(unlock(home, config).master)
    _lock(home)
    try:
        _clear_mountpoint(home, place)
        request = MountRequest(home, config, roster, keys, place, chosen)
        daemonize(request, foreground=foreground)
    finally:
        home.unlock()


def parse_options(text: str) -> MountOptions:
    """The words of `-o`. Raises CommandError (usage) for unknown ones."""
    values: dict[str, object] = {"allow_other": os.geteuid() == 0}
    for word in filter(None, text.split(",")):
        name, _, value = word.partition("=")
        match name:
            case "ro":
                values["read_only"] = True
            case "allow_other":
                values["allow_other"] = True
            case "takeover":
                values["takeover"] = True
            case "fsync" if value in ("grid", "spool"):
                values["fsync"] = value
            case "relatime" | "noatime":
                values["atime"] = name == "relatime"
            case "acl" | "noacl":
                values["acl"] = name == "acl"
            case "measure" if value in ("single", "copying"):
                values["measure"] = value
            case "init" if value in ("own", "libfuse"):
                values["own_init"] = value == "own"
            case "attr_timeout" | "grid_timeout":
                values[f"{name}_s"] = _seconds(name, value)
            case "memory" | "spool":
                values[f"{name}_bytes"] = _bytes(name, value)
            case _ if word not in IGNORED and not word.startswith(IGNORED_PREFIXES):
                raise CommandError(f"unknown mount option {word!r}; `gridfs mount --help` lists them", USAGE)
            case _:
                pass
    return MountOptions(**values)  # type: ignore[arg-type]


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise CommandError(f"{name} takes seconds from 0 to 86400, not {value!r}", USAGE)
    return seconds


def _bytes(name: str, value: str) -> int:
    unit = UNITS.get(value[-1:].upper(), 1)
    try:
        size = int(value[:-1] if unit > 1 else value) * unit
    except ValueError:
        size = 0
    if size < 32 << 20:
        raise CommandError(f"{name} takes bytes, at least 32M, not {value!r}", USAGE)
    return size


def _check_count(home: Home, config: Config, roster: Roster) -> None:
    if happiest(config.k, config.n, len(roster), config.shares_per_server) < config.happy:
        raise CommandError(
            f"the {len(roster)} servers in {home.servers_path} are fewer than happy = {config.happy} needs",
            NOT_ENOUGH_SERVERS,
        )


def _check_fuse(options: MountOptions) -> None:
    if not os.path.exists("/dev/fuse"):
        raise CommandError(
            "there is no /dev/fuse: load the fuse module, or start the container with `--device /dev/fuse "
            "--cap-add SYS_ADMIN`",
            FAILED,
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise CommandError("/dev/fuse may not be used by this user", FAILED)
    if options.allow_other and os.geteuid() != 0:
        try:
            with open("/etc/fuse.conf") as file:
                allowed = any(line.split("#")[0].strip() == "user_allow_other" for line in file)
        except OSError:
            allowed = False
        if not allowed:
            raise CommandError(
                "allow_other needs the line `user_allow_other` in /etc/fuse.conf, which root can add", USAGE
            )


def _lock(home: Home) -> None:
    """Take the lock; from a daemon that was unmounted and only drains, by asking it to leave."""
    deadline = time.monotonic() + HANDOVER_S
    while True:
        try:
            home.lock()
        except AlreadyLocked:
            if time.monotonic() > deadline or not _hands_over(home):
                raise
            time.sleep(0.05)
        else:
            return


def _hands_over(home: Home) -> bool:
    try:
        status = control.status(home)
        if status.get("mounted"):
            return False
        return any(answer.get("ok") for answer in control.ask(home, "yield"))
    except control.NoDaemon:
        return True  # it is just starting or ending: the lock tells


def _clear_mountpoint(home: Home, mountpoint: str) -> None:
    """The place must be a directory with nothing mounted; a dead mount of ours is detached first."""
    found = mounts.mounted_at(mountpoint)
    if found is not None:
        # We hold the lock, so a mount of this file system has no daemon any more.
        if found.kind != mounts.TYPE or found.source != str(home.folder):
            raise CommandError(f"{found.source} is mounted at {mountpoint} already", LOCKED)
        mounts.unmount(mountpoint, lazy=True)
    try:
        mode = os.stat(mountpoint).st_mode
    except FileNotFoundError:
        raise CommandError(f"the mount point {mountpoint} does not exist; make the directory first") from None
    if not stat.S_ISDIR(mode):
        raise CommandError(f"the mount point {mountpoint} is not a directory")
