"""`gridfs clone` and `gridfs snapshot`: the daemon prepares the copy, an ordinary system call names it.

So the kernel checks whether the caller may make the name, and knows of it from the first moment.
"""

from __future__ import annotations

import ctypes
import os
import stat

from gridfs.control import client as control
from gridfs.exits import CommandError
from gridfs.host import mounts


def make_clone(source: str, target: str, *, read_only: bool) -> None:
    """Copy a file or a tree inside one mount. Raises CommandError or OSError where it cannot be made."""
    found = os.lstat(source)
    if read_only and not stat.S_ISDIR(found.st_mode):
        raise CommandError(f"{source} is not a directory")
    target = target.rstrip("/") or "/"
    if os.path.lexists(target):
        raise CommandError(f"{target} is there already")
    parent, name = os.path.split(target)
    parent = parent or "."
    home = mounts.home_around(parent)
    directory = os.stat(parent)
    if found.st_dev != directory.st_dev:
        raise CommandError(f"{source} does not lie in the mount of {target}")
    _write_back(parent)
    request = {
        "source": found.st_ino,
        "parent": directory.st_ino,
        "name": os.fsencode(name).hex(),
        "read_only": read_only,
    }
    answers = control.ask(home, "clone", timeout_s=None, **request)
    try:
        answer = next(answers, {"error": "the mount daemon ended"})
        if "error" in answer:
            raise CommandError(f"{target}: {answer['error']}")
        _name(target, found)
    finally:
        answers.close()


def delete_snapshot(path: str) -> None:
    """Remove a snapshot with all below it, in one step. Raises CommandError for anything else."""
    path = path.rstrip("/") or "/"
    home = mounts.home_around(os.path.dirname(path) or ".")
    found = os.lstat(path)
    for answer in control.ask(home, "inode", ino=found.st_ino):
        if not stat.S_ISDIR(found.st_mode) or not answer.get("read_only"):
            raise CommandError(f"{path} is not a snapshot")
    os.rmdir(path)


def _write_back(directory: str) -> None:
    """Let the kernel send what programs wrote and it still holds; it is not waited for."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    finally:
        os.close(descriptor)


def _name(target: str, source: os.stat_result) -> None:
    """The call that makes a name of the source's type; what it finds there is the clone."""
    if stat.S_ISDIR(source.st_mode):
        os.mkdir(target)
    elif stat.S_ISLNK(source.st_mode):
        os.symlink("clone", target)
    else:
        os.mknod(target, stat.S_IFMT(source.st_mode) | 0o600, source.st_rdev)
