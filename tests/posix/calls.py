"""What cases are made of: calls whose outcome can be compared, and the world seen through stat.

A case runs with a fresh directory of its own as the working directory, so all names here are relative;
that also lets ordinary users in, whom the directories above would stop.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Answer = Any
"""What a case returns: numbers, text, bytes, and lists, tuples and dictionaries of them."""

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
AT_FDCWD = -100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
OLD = 1_000_000_000 * 10**9
"""A time long ago, in nanoseconds: what times are set to before a call that may change them."""

_libc = ctypes.CDLL(None, use_errno=True)


# ---- outcomes ---------------------------------------------------------------------------------------


def outcome(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a call returns ("ok" for None), or the name of its errno."""
    try:
        result = call(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok" if result is None else result


def opened(path: str | bytes, flags: int, mode: int = 0o666, **named: Any) -> None:
    """Open and close."""
    os.close(os.open(path, flags, mode, **named))


@contextlib.contextmanager
def handle(path: str | bytes, flags: int, mode: int = 0o666) -> Iterator[int]:
    """An open file descriptor."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def put(path: str | bytes, data: bytes = b"content", mode: int | None = None) -> None:
    """A file with `data`, closed; of exactly `mode`, if one is given."""
    with handle(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        write_all(file, data)
    if mode is not None:
        os.chmod(path, mode)


def write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def get(path: str | bytes) -> bytes:
    """A file's content."""
    with open(path, "rb") as file:
        return file.read()


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def renameat2(old: str | bytes, new: str | bytes, flags: int) -> None:
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_long))


def utimensat(path: str | bytes, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """Times as (seconds, nanoseconds), where UTIME_NOW and UTIME_OMIT may stand for nanoseconds."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def fallocate(file: int, mode: int, offset: int, length: int) -> None:
    _checked(_libc.fallocate(file, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


# ---- users ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class User:
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Supplementary ones."""


ALICE = User(65533, 65533)
BOB = User(65532, 65532)
CAROL = User(65531, 65531, (65533, 65540))
"""In Alice's group too."""


@contextlib.contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Be an ordinary user, real and effective; only the saved ids remember root."""
    groups = os.getgroups()
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, 0)
    os.setresuid(user.uid, user.uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


# ---- looking ----------------------------------------------------------------------------------------


def about(path: str | bytes | int, *fields: str) -> dict[str, Any]:
    """Fields of lstat (fstat of a descriptor) that are the same on every file system."""
    seen = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    result: dict[str, Any] = {
        "type": stat.filemode(seen.st_mode)[0],
        "mode": oct(stat.S_IMODE(seen.st_mode)),
        "links": seen.st_nlink,
        "owner": (seen.st_uid, seen.st_gid),
        # What a directory's size means is its file system's business.
        "size": None if stat.S_ISDIR(seen.st_mode) else seen.st_size,
        "device": seen.st_rdev,
    }
    return {name: result[name] for name in fields} if fields else result


def tree(top: str = ".") -> dict[str, Any]:
    """Everything below the working directory, by name: attributes, targets, contents."""
    result: dict[str, Any] = {}
    for directory, directories, files in os.walk(top):
        for name in sorted(directories + files):
            path = os.path.join(directory, name)
            seen = about(path)
            if seen["type"] == "l":
                seen["target"] = os.readlink(path)
            elif seen["type"] == "-":
                seen["content"] = get(path)
            result[path] = seen
    return result


# ---- times ------------------------------------------------------------------------------------------


def changed_times(call: Callable[[], Any], *watched: str | int) -> dict[str, Any]:
    """Which of atime, mtime and ctime a call changes, as letters, per watched name or descriptor.

    A name that the call makes shows "new", one that it removes "gone". A time that changes must become
    now: an older one shows as "A", "M" or "C".
    """
    for name in watched:
        with contextlib.suppress(FileNotFoundError):
            _set_old(name)
    before = {name: _times(name) for name in watched}
    latest = max((times[2] for times in before.values() if times), default=0)
    start = _after(latest)
    result: dict[str, Any] = {"outcome": outcome(call)}
    for name in watched:
        result[str(name)] = _difference(before[name], _times(name), start)
    return result


def _set_old(name: str | int) -> None:
    if isinstance(name, int):
        os.utime(name, ns=(OLD, OLD))
    else:
        os.utime(name, ns=(OLD, OLD), follow_symlinks=False)


def _times(name: str | int) -> tuple[int, int, int] | None:
    try:
        seen = os.fstat(name) if isinstance(name, int) else os.lstat(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return seen.st_atime_ns, seen.st_mtime_ns, seen.st_ctime_ns


CLOCK_REALTIME_COARSE = 5
"""The kernel stamps inodes with this clock, which moves at its timer's ticks."""


def _after(moment: int) -> int:
    """Wait until the clock that stamps inodes has passed `moment`; returns its time."""
    while (now := time.clock_gettime_ns(CLOCK_REALTIME_COARSE)) <= moment:
        os.sched_yield()
    return now


def _difference(before: tuple[int, int, int] | None, after: tuple[int, int, int] | None, start: int) -> str:
    if after is None:
        return "gone" if before else "absent"
    if before is None:
        return "new"
    letters = ""
    for letter, old, new in zip("amc", before, after, strict=True):
        if old != new:
            letters += letter if new >= start else letter.upper()
    return letters


def in_child(action: Callable[[], Any]) -> Any:
    """Run `action` in a process of its own; returns its outcome, if that is text."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            os.write(writing, str(outcome(action)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


def each(calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Outcomes of several calls by name."""
    return {name: outcome(call) for name, call in calls.items()}


# ---- kinds of objects -------------------------------------------------------------------------------


def _full(name: str) -> None:
    os.mkdir(name)
    put(f"{name}/inside")


def _link_to(kind: str, name: str) -> None:
    KINDS[kind](f"{name}-target")
    os.symlink(f"{name}-target", name)


KINDS: dict[str, Callable[[str], None]] = {
    "file": put,
    "empty": os.mkdir,
    "full": _full,
    "link-file": functools.partial(_link_to, "file"),
    "link-directory": functools.partial(_link_to, "full"),
    "link-nowhere": lambda name: os.symlink("nowhere", name),
    "fifo": os.mkfifo,
    "socket": lambda name: os.mknod(name, stat.S_IFSOCK | 0o644),
    "character": lambda name: os.mknod(name, stat.S_IFCHR | 0o644, os.makedev(1, 3)),
    "block": lambda name: os.mknod(name, stat.S_IFBLK | 0o644, os.makedev(7, 250)),
}
"""What a name can be, as makers of one."""
ROOT_KINDS = ("character", "block")
"""Only root makes these."""


def kinds() -> list[str]:
    """The kinds that this user can make."""
    return [kind for kind in KINDS if os.geteuid() == 0 or kind not in ROOT_KINDS]
