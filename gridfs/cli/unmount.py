"""`gridfs umount` and `gridfs sync`: wait until everything is in the grid, showing what is left."""

from __future__ import annotations

import sys
import time

from gridfs.control import client as control
from gridfs.exits import LOCKED, CommandError
from gridfs.host import mounts
from gridfs.host.home import Home


class TakenOverElsewhere(CommandError):
    """What is left here cannot get into the grid: another machine writes this file system now."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, LOCKED)


def sync_filesystem(mountpoint: str) -> None:
    """Everything written so far is in the grid when this returns."""
    _sync(mounts.home_of(mountpoint))


def unmount_filesystem(mountpoint: str) -> None:
    """Flush, unmount, and wait for the daemon to end.

    A mount that was taken over is unmounted all the same; what it still held stays in the spool, and
    TakenOverElsewhere says so.
    """
    home = mounts.home_of(mountpoint)
    place = mounts.mounted_at(mountpoint)
    assert place is not None
    lost: TakenOverElsewhere | None = None
    try:
        _sync(home, unmounting=True)
    except control.NoDaemon:
        # A mount whose daemon was killed: what it acknowledged is in the spool.
        mounts.unmount(place.mountpoint, lazy=True)
        return
    except TakenOverElsewhere as error:
        lost = error
    mounts.unmount(place.mountpoint)
    shown = False
    while home.is_locked():
        try:
            left = control.status(home).get("dirty_bytes", 0)
        except control.NoDaemon:
            left = 0
        shown = _show(left, "", shown)
        time.sleep(0.05)
    _end(shown)
    if lost is not None:
        raise TakenOverElsewhere(
            f"unmounted, but not everything got into the grid: {lost}; it is in the spool, and "
            f"`gridfs spool export` gets it out"
        )


def _sync(home: Home, *, unmounting: bool = False) -> None:
    shown = False
    done = False
    for answer in control.ask(home, "sync", timeout_s=None, unmounting=unmounting):
        if "left" in answer:
            shown = _show(answer["left"], answer.get("trouble", ""), shown)
        elif "error" in answer:
            _end(shown)
            if answer.get("taken_over"):
                raise TakenOverElsewhere(answer["error"])
            raise CommandError(answer["error"])
        else:
            done = True
    _end(shown)
    if not done:
        raise control.NoDaemon(f"the mount daemon of {home.folder} ended")


def _show(left: int, trouble: str, shown: bool) -> bool:
    if not left and not trouble:
        return shown
    if sys.stderr.isatty():
        text = f"{left / 1e6:.1f} MB left{': ' + trouble if trouble else ''}"
        print(f"\r\x1b[K{text[:160]}", end="", file=sys.stderr, flush=True)
        return True
    return shown


def _end(shown: bool) -> None:
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
