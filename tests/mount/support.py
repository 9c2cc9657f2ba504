"""What acceptance tests share: waiting for a condition, contents to write, and trees to compare."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.processes import Completed, MountedFileSystem, run

WAIT_SECONDS_MAX = 60.0
POLL_SECONDS = 0.02
PIECE = 1 << 20


def wait_until(true: Callable[[], object], what: str, seconds: float = WAIT_SECONDS_MAX) -> None:
    """Poll until `true()` is true. AssertionError that says `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"after {seconds:g} s still not: {what}"
        time.sleep(POLL_SECONDS)


def content(seed: object, size: int) -> bytes:
    """Bytes that do not compress and that no other seed gives."""
    return random.Random(repr(seed)).randbytes(size)


def write_large(path: Path, size: int, seed: int) -> str:
    """Write `size` bytes of a kind of its own to a file; returns their SHA-256."""
    generator = random.Random(seed)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for low in range(0, size, PIECE):
            piece = generator.randbytes(min(PIECE, size - low))
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """What is to be the same of one name after a remount: kind, mode, owner, mtime, content."""
    status = path.lstat()
    result: dict[str, Any] = {
        "mode": oct(status.st_mode),
        "links": status.st_nlink,
        "ino": status.st_ino,
        "owner": (status.st_uid, status.st_gid),
        "mtime": status.st_mtime_ns,
        "rdev": status.st_rdev,
    }
    if stat.S_ISREG(status.st_mode):
        result |= {"size": status.st_size, "sha256": sha256(path)}
    if stat.S_ISLNK(status.st_mode):
        result["target"] = os.readlink(path)
    else:
        result["xattrs"] = {name: os.getxattr(path, name) for name in sorted(os.listxattr(path))}
    return result


def describe_tree(root: Path) -> dict[str, dict[str, Any]]:
    """`describe` of everything below `root`, by relative path."""
    # Not `rglob`: before Python 3.12 it fails at a symbolic link to a name that is too long.
    paths = (Path(top) / name for top, folders, files in os.walk(root) for name in folders + files)
    return {str(path.relative_to(root)): describe(path) for path in sorted(paths)}


def contents_of(root: Path) -> dict[str, bytes]:
    """The bytes of every regular file below `root`, by relative path."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def shell(*words: object, good: tuple[int, ...] = (0,), **options: Any) -> Completed:
    """A program, with a git and a locale that do not depend on whoever runs the tests."""
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **{
            f"GIT_{who}_{what}": "test@example.org"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    return run(
        [
            "env",
            *(f"{name}={value}" for name, value in environment.items() if name.startswith(("GIT_", "LC_"))),
            *(str(word) for word in words),
        ],
        good=good,
        **options,
    )


def drop_pages(root: Path) -> None:
    """Take every file below `root` out of the kernel's page cache, so that reads go to the grid."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def is_drained(file_system: MountedFileSystem) -> bool:
    """Whether everything is in the grid: data in packs, operations on the head servers."""
    report = file_system.status()
    return report["dirty_bytes"] == 0 and report["operations_shipped"] == report["operations"]


def assert_one_line(done: Completed, *words: str) -> None:
    """A command that failed said why in one line, with `words` in it, and showed no traceback."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("gridfs: "), done.stderr
    for word in words:
        assert word in lines[0], (word, lines[0])
