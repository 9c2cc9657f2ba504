"""gridfs clone and gridfs snapshot on a mount: what programs see at once, later, and after a kill."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import MakeFileSystem
from tests.mount.support import assert_one_line, content, contents_of, shell, wait_until
from tests.processes import MountedFileSystem

MIB = 1 << 20
LIBRARY = Path(json.__file__).parent.parent


@pytest.fixture
def tree(place: Path) -> Path:
    """One of everything, and a few hundred files."""
    tree = place / "tree"
    tree.mkdir()
    for name in ("json", "email", "encodings"):
        shutil.copytree(LIBRARY / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    os.link(tree / "json" / "decoder.py", tree / "hard")
    (tree / "link").symlink_to("json/decoder.py")
    os.mkfifo(tree / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(tree)
        listener.bind("socket")
        os.chdir("/")
    (tree / "large").write_bytes(content("large", 3 * MIB))
    with (tree / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    os.setxattr(tree / "large", "user.x", b"value")
    os.chmod(tree / "large", 0o4700)
    os.utime(tree / "json", ns=(5, 6))
    os.utime(tree, ns=(7, 8))
    return tree


def assert_same(one: Path, other: Path) -> None:
    """Contents, modes, owners, times, hard links and extended attributes, by rsync's word."""
    command = ("rsync", "-aHX", "--specials", "--checksum", "--dry-run", "--itemize-changes", "--delete")
    assert shell(*command, "--exclude=sparse", f"{one}/", f"{other}/").stdout == ""
    assert os.stat(one / "sparse").st_size == os.stat(other / "sparse").st_size
    assert os.stat(other / "hard").st_ino == os.stat(other / "json" / "decoder.py").st_ino
    for name in ("", "json"):
        assert os.stat(one / name).st_mtime_ns == os.stat(other / name).st_mtime_ns


def test_clone_of_a_tree(tools: MountedFileSystem, tree: Path) -> None:
    copy = tree.parent / "copy"
    assert not copy.exists()  # which the kernel remembers
    tools.command("clone", tree, copy)
    assert_same(tree, copy)
    (copy / "json" / "decoder.py").write_text("changed\n")
    (tree / "large").write_bytes(b"other")
    (tree / "email" / "new").write_text("new\n")
    assert (copy / "hard").read_text() == "changed\n"
    assert (tree / "hard").read_text() != "changed\n"
    for _ in range(2):
        assert (copy / "large").read_bytes() == content("large", 3 * MIB)
        assert not (copy / "email" / "new").exists()
        assert os.stat(copy).st_nlink == 5
        tools.remount()
    assert_same(tools.path / copy.relative_to(tools.path), copy)


def test_clone_of_one_thing_of_each_kind(tools: MountedFileSystem, tree: Path) -> None:
    for name in ("large", "link", "fifo", "socket", "sparse"):
        copy = tree.parent / name
        with pytest.raises(FileNotFoundError):
            os.lstat(copy)
        tools.command("clone", tree / name, copy)
        one, other = os.lstat(tree / name), os.lstat(copy)
        assert (one.st_mode, one.st_size, one.st_mtime_ns) == (
            other.st_mode,
            other.st_size,
            other.st_mtime_ns,
        )
        assert one.st_ino != other.st_ino
    assert os.readlink(tree.parent / "link") == "json/decoder.py"
    assert (tree.parent / "large").read_bytes() == content("large", 3 * MIB)
    assert os.getxattr(tree.parent / "large", "user.x") == b"value"


def test_a_clone_has_what_an_open_file_was_told(tools: MountedFileSystem, place: Path) -> None:
    with (place / "file").open("wb", buffering=0) as file:
        file.write(content("open", 2 * MIB))
        tools.command("clone", place / "file", place / "clone")
        file.write(b"more")
        assert (place / "clone").read_bytes() == content("open", 2 * MIB)


def test_a_clone_of_what_is_stored_takes_no_room(tools: MountedFileSystem, place: Path) -> None:
    (place / "file").write_bytes(content("stored", 5 * MIB))
    tools.sync()
    stored = tools.status()["bytes_stored"]
    for number in range(5):
        tools.command("clone", place / "file", place / f"clone-{number}")
    tools.sync()
    assert tools.status()["bytes_stored"] == stored
    assert os.stat(place / "clone-4").st_blocks == os.stat(place / "file").st_blocks == 5 * MIB // 512
    (place / "file").unlink()
    tools.remount()
    assert (place / "clone-4").read_bytes() == content("stored", 5 * MIB)


REFUSED: list[Callable[[Path], object]] = [
    lambda snap: (snap / "new").touch(),
    lambda snap: (snap / "json" / "new").mkdir(),
    lambda snap: (snap / "hard").open("r+b"),
    lambda snap: (snap / "hard").open("wb"),
    lambda snap: os.open(snap / "hard", os.O_RDONLY | os.O_TRUNC),
    lambda snap: os.truncate(snap / "hard", 0),
    lambda snap: (snap / "hard").unlink(),
    lambda snap: (snap / "json").rmdir(),
    lambda snap: (snap / "hard").rename(snap / "other"),
    lambda snap: (snap / "hard").rename(snap.parent / "other"),
    lambda snap: (snap.parent / "outside").rename(snap / "inside"),
    lambda snap: os.link(snap / "hard", snap.parent / "other"),
    lambda snap: os.link(snap.parent / "outside", snap / "inside"),
    lambda snap: (snap / "inside").symlink_to("x"),
    lambda snap: os.chmod(snap / "hard", 0o600),
    lambda snap: os.chown(snap, 1, 1),
    lambda snap: os.utime(snap / "hard"),
    lambda snap: os.setxattr(snap / "hard", "user.y", b""),
    lambda snap: os.removexattr(snap / "large", "user.x"),
]


def test_a_snapshot_is_read_only_until_it_is_removed_as_a_whole(tools: MountedFileSystem, tree: Path) -> None:
    snap, outside = tree.parent / "snap", tree.parent / "outside"
    outside.touch()
    tools.command("snapshot", tree, snap)
    before = contents_of(tree / "json")
    shutil.rmtree(tree / "json")
    for _ in range(2):
        for call in REFUSED:
            with pytest.raises(OSError, match="Read-only") as caught:
                call(snap)
            assert caught.value.errno == errno.EROFS
        assert shell("rm", "-rf", snap, good=(1,)).stderr
        assert contents_of(snap / "json") == before
        tools.remount()
    with (snap / "hard").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == before["decoder.py"]
        tools.command("clone", snap, tree.parent / "back")
        tools.command("snapshot", "--delete", snap)
        assert not snap.exists()
        assert mapped[:] == before["decoder.py"]
        assert file.read() == before["decoder.py"]
    assert contents_of(tree.parent / "back" / "json") == before
    (tree.parent / "back" / "json" / "new").touch()
    tools.command("snapshot", tree, snap)  # the name is free again
    snap.rmdir()


def test_what_cannot_be_cloned(tools: MountedFileSystem, tree: Path, tmp_path: Path) -> None:
    place = tree.parent
    (tmp_path / "elsewhere").touch()
    before = sorted(place.rglob("*"))
    for words, said in (
        (("clone", tree, tree / "large"), ("large", "there already")),
        (("clone", tree / "none", place / "new"), ("none", "No such file")),
        (("clone", tree, place / "none" / "new"), ("none", "No such file")),
        (("clone", tree, tmp_path / "new"), ("does not lie in a gridfs mount",)),
        (("clone", tmp_path / "elsewhere", place / "new"), ("does not lie in the mount of",)),
        (("clone", tree, place / ("n" * 256)), ("too long",)),
        (("clone", tree, tree / "large" / "new"), ("Not a directory",)),
        (("snapshot", tree / "large", place / "new"), ("not a directory",)),
        (("snapshot", "--delete", tree), ("not a snapshot",)),
        (("snapshot", "--delete", tree / "large"), ("not a snapshot",)),
        (("snapshot", "--delete", place / "none"), ("none", "No such file")),
    ):
        assert_one_line(tools.command(*words, good=(1,)), *said)
    for words in ((), ("one",)):
        assert_one_line(tools.command("snapshot", *words, good=(2,)), "DST")
        assert_one_line(tools.command("clone", *words, good=(2,)), "DST" if words else "SRC")
    assert sorted(place.rglob("*")) == before


SLOW = pytest.mark.slow


@pytest.mark.parametrize("part", [pytest.param(1, marks=SLOW), 4, pytest.param(9, marks=SLOW)])
def test_a_kill_while_a_tree_is_cloned(make_file_system: MakeFileSystem, part: int) -> None:
    """The name is there with all below it, or not at all, and nothing is left behind."""
    mounted = make_file_system()
    tree, copy = mounted.path / "tree", mounted.path / "copy"
    for folder in range(20):
        (tree / str(folder)).mkdir(parents=True)
        for number in range(100):
            (tree / str(folder) / str(number)).write_bytes(b"%d" % number)
    operations = mounted.status()["operations"]
    files = mounted.status()["files"]
    command = [Path(sys.executable).with_name("gridfs"), "clone", tree, copy]
    cloning = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: mounted.status()["operations"] > operations + 200 * part, "it is being cloned")
    mounted.kill_daemon()
    whole = cloning.wait() == 0
    mounted.mount()
    assert copy.exists() >= whole
    if copy.exists():
        assert contents_of(copy) == contents_of(tree)
    expected = 2 * files if copy.exists() else files
    wait_until(lambda: mounted.status()["files"] == expected, "what has no name is cleared away")
    mounted.remount()
    assert mounted.status()["files"] == expected
    assert sorted(os.listdir(mounted.path)) == (["copy", "tree"] if expected > files else ["tree"])
