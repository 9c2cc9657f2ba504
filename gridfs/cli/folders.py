"""`gridfs list` and `gridfs forget`: the file systems on this machine."""

from __future__ import annotations

import glob
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from gridfs.config import Config
from gridfs.control import client as control
from gridfs.exits import FAILED, LOCKED, CommandError, as_command_error
from gridfs.files.leftover import Leftover, leftover
from gridfs.host import mounts
from gridfs.host.home import Home, bases, sync_directory
from storage.system import system_machine


@dataclass(frozen=True, slots=True)
class Listed:
    """One file system on this machine."""

    name: str
    """As commands take it."""
    mountpoint: str | None
    state: str
    """mounted, uploading (unmounted, and its daemon goes on), not mounted, or what is wrong with it."""
    k: int | None = None
    n: int | None = None
    left_bytes: int | None = None
    """Bytes that are not in the grid yet; None: nobody knows."""
    left_is_exact: bool = True
    set_aside: str = ""
    """What was set aside and may not be in the grid, in words."""


def list_filesystems(*, json_output: bool) -> None:
    """Print every file system in the places where names are looked for, and those mounted from elsewhere."""
    mounted = {mount.source: mount.mountpoint for mount in mounts.mounted() if mount.kind == mounts.TYPE}
    found: dict[Path, str] = {}
    for base in bases():
        if base.is_dir():
            for path in sorted(base.iterdir()):
                if not path.name.startswith(".") and (path / "config.toml").is_file():
                    found.setdefault(path, path.name)
    for source in mounted:
        found.setdefault(Path(source), source)
    listed = [_look(name, Home(folder), mounted.get(str(folder))) for folder, name in found.items()]
    if json_output:
        print(json.dumps([asdict(each) for each in listed], indent=2))
        return
    rows = [("name", "mounted at", "shares", "not in the grid yet")]
    for each in listed:
        shape = "-" if each.k is None else f"{each.k}-of-{each.n}"
        rows.append((each.name, each.mountpoint or each.state, shape, _left(each)))
    # Not a table that is fitted to the terminal: paths are to be copied.
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def _left(listed: Listed) -> str:
    if listed.left_bytes is None:
        return "?"
    words = f"{'' if listed.left_is_exact else 'at most '}{listed.left_bytes} bytes"
    return f"{words}, {listed.set_aside}" if listed.set_aside else words


def _look(name: str, home: Home, mountpoint: str | None) -> Listed:
    try:
        config = home.config()
        if home.is_locked():
            return _look_at_daemon(name, home, mountpoint, config)
        left = _leftover(home)
        state = "its daemon is gone" if mountpoint else "not mounted"
        if home.destroying_path.exists():
            state = "being destroyed"
        return Listed(name, None, state, config.k, config.n, left.bytes, left.is_exact, left.set_aside)
    except Exception as error:
        known = as_command_error(error)
        if known is None:
            raise
        return Listed(name, mountpoint, str(known))


def _look_at_daemon(name: str, home: Home, mountpoint: str | None, config: Config) -> Listed:
    try:
        status = control.status(home)
    except control.NoDaemon:
        return Listed(name, mountpoint, "busy", config.k, config.n)
    is_mounted = status["mounted"]
    where, state = (mountpoint, "mounted") if is_mounted else (None, "uploading")
    return Listed(name, where, state, config.k, config.n, status["dirty_bytes"])


def _leftover(home: Home) -> Leftover:
    if home.is_follower:
        return Leftover(0, 0, is_exact=True, aside=0)
    return leftover(system_machine().disk, home.database_path, home.spool_path)


def forget_filesystem(name: str, *, force: bool) -> None:
    """Remove what this machine has of a file system; the grid keeps its part."""
    home = Home.find(name)
    home.lock()
    try:
        for mount in mounts.mounted():
            if mount.kind == mounts.TYPE and mount.source == str(home.folder):
                raise CommandError(f"{home.folder} is mounted at {mount.mountpoint}: unmount it", LOCKED)
        try:
            left: Leftover | None = _leftover(home)
        except Exception as error:
            if as_command_error(error) is None:
                raise
            left = None
        if not force and (left is None or left):
            what = "nobody can tell what" if left is None else str(left)
            raise CommandError(
                f"{what} of {home.folder} may not be in the grid yet: mount it until it is, get it out with "
                "`gridfs spool export`, or give it up with --force",
                FAILED,
            )
        remove_folder(home.folder)
    finally:
        home.unlock()
    print(f"{home.folder} is forgotten here, and in the grid still: with the recovery key, and only with it,")
    print(f"`gridfs recover {name} --servers FILE --recovery-key-file FILE` gets it back")


def remove_folder(folder: Path) -> None:
    """Remove a file system's folder: its name at once, durably, then what is in it, and what a call that was
    cut short has left of an earlier one."""
    gone = folder.with_name(f".{folder.name}.gone-{os.getpid()}")
    os.rename(folder, gone)
    sync_directory(folder.parent)
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.gone-*"):
        shutil.rmtree(left)
