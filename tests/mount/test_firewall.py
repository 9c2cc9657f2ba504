"""An exception that nobody expects, in each FUSE handler in turn: EIO for the caller, a line in the log with
the traceback, and the mount lives."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import MakeFileSystem
from tests.mount.planted import PLANT, handler_names
from tests.mount.support import content, wait_until
from tests.processes import ROOT, MountedFileSystem, run

SILENT = ("flush", "release", "releasedir", "forget")
"""Calls whose answer no program waits for, or that come when a descriptor is closed."""


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "plant"
    directory.mkdir()
    monkeypatch.setenv(PLANT, str(directory))
    return directory


@pytest.fixture
def planted(make_file_system: MakeFileSystem, plant: Path) -> MountedFileSystem:
    """A file system, mounted by a daemon with faults to order; the kernel caches nothing of it."""
    made = make_file_system(mount=False)
    made.path.mkdir()
    words = [
        sys.executable,
        "-m",
        "tests.mount.planted",
        "mount",
        made.name,
        made.path,
        "-o",
        "attr_timeout=0",
    ]
    run(words, home=made.home, cwd=ROOT)
    return made


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def with_open(path: Path, flags: int, call: Callable[[int], object]) -> Callable[[], object]:
    """A call on a descriptor that is opened before the fault is planted, and closed after."""
    descriptor = os.open(path, flags)

    def begin() -> object:
        return call(descriptor)

    begin.descriptor = descriptor  # type: ignore[attr-defined]
    return begin


def written(descriptor: int) -> None:
    os.write(descriptor, b"some")
    os.fsync(descriptor)  # the kernel tells of a failed write here


def read_anew(descriptor: int) -> bytes:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return os.pread(descriptor, 100, 0)


def calls(root: Path) -> dict[str, Callable[[], object]]:
    """By handler: a system call that the kernel cannot answer without it."""
    file, folder, link = root / "file", root / "folder", root / "link"
    return {
        "lookup": lambda: os.stat(root / "nothing"),
        "getattr": with_open(file, os.O_RDONLY, os.fstat),
        "setattr": lambda: os.chmod(file, 0o600),
        "readlink": lambda: os.readlink(link),
        "statfs": lambda: os.statvfs(root),
        "mknod": lambda: os.mkfifo(root / "fifo"),
        "mkdir": lambda: os.mkdir(root / "made"),
        "symlink": lambda: os.symlink("file", root / "other link"),
        "link": lambda: os.link(file, root / "other name"),
        "unlink": lambda: os.unlink(root / "spare"),
        "rmdir": lambda: os.rmdir(root / "empty"),
        "rename": lambda: os.rename(root / "spare", root / "renamed"),
        "opendir": lambda: os.listdir(folder),
        "readdir": lambda: os.listdir(folder),
        "fsyncdir": with_open(folder, os.O_RDONLY | os.O_DIRECTORY, os.fsync),
        "open": lambda: os.open(file, os.O_RDONLY),
        "create": lambda: os.open(root / "new", os.O_CREAT | os.O_WRONLY, 0o644),
        "read": with_open(file, os.O_RDONLY, read_anew),
        "write": with_open(root / "spare", os.O_WRONLY, written),
        "fsync": with_open(file, os.O_WRONLY, os.fsync),
        "getxattr": lambda: os.getxattr(file, "user.some"),
        "listxattr": lambda: os.listxattr(file),
        "setxattr": lambda: os.setxattr(file, "user.other", b"value"),
        "removexattr": lambda: os.removexattr(file, "user.some"),
    }


def close(call: Callable[[], object]) -> None:
    descriptor = getattr(call, "descriptor", None)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def drive_silent(root: Path, name: str) -> None:
    """Make the kernel call a handler whose failure nobody is told, or at most the one who closes."""
    match name:
        case "flush" | "release":
            with contextlib.suppress(OSError), opened(root / "file", os.O_RDONLY):
                pass
        case "releasedir":
            with contextlib.suppress(OSError), opened(root / "folder", os.O_RDONLY | os.O_DIRECTORY):
                pass
        case "forget":
            (root / "forgotten").write_bytes(b"x")
            (root / "forgotten").unlink()


def test_a_fault_in_any_handler_is_one_failed_call(planted: MountedFileSystem, plant: Path) -> None:
    root = planted.path
    log = planted.home / planted.name / "mount.log"

    def failures(name: str) -> int:
        return log.read_text().count(f"in {name}\n")

    (plant / "flush").touch()
    with pytest.raises(OSError, match="Input/output error"), opened(root / "file", os.O_CREAT | os.O_WRONLY):
        pass
    (plant / "flush").unlink()
    assert failures("flush") == 1
    (root / "file").write_bytes(content("file", 5000))
    (root / "spare").write_bytes(b"spare")
    for name in ("folder", "empty"):
        (root / name).mkdir()
    (root / "link").symlink_to("file")
    os.setxattr(root / "file", "user.some", b"value")
    planted.sync()

    tried = calls(root)
    assert sorted((*tried, *SILENT)) == sorted(handler_names()), "every handler has its call"
    for name, call in tried.items():
        (plant / name).touch()
        try:
            with pytest.raises(OSError, match="Input/output error") as caught:
                call()
        finally:
            (plant / name).unlink()
        assert caught.value.errno == errno.EIO, name
        close(call)
        text = log.read_text()
        assert failures(name) >= 1, name
        assert f"{name} failed\nTraceback (most recent call last):" in text
        assert os.statvfs(root).f_bsize, name
    for name in ("release", "releasedir", "forget"):
        before = failures(name)
        (plant / name).touch()
        drive_silent(root, name)
        wait_until(lambda name=name, before=before: failures(name) > before, f"{name} fails")
        (plant / name).unlink()

    # All that failed works, and what was there is unharmed.
    (root / "after").write_bytes(content("after", 300_000))
    assert (root / "after").read_bytes() == content("after", 300_000)
    assert (root / "file").read_bytes() == content("file", 5000)
    for name, call in calls(root).items():
        if name not in ("lookup", "rename"):
            result = call()
            if name in ("open", "create"):
                os.close(result)  # type: ignore[arg-type]
        close(call)
    planted.umount()
    planted.mount()
    assert (root / "file").read_bytes() == content("file", 5000)
    assert sorted(path.name for path in root.iterdir()) == [
        "after", "fifo", "file", "folder", "link", "made", "new", "other link", "other name",
    ]  # fmt: skip
