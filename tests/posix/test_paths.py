"""Pathname resolution (XBD 4.16): what each call says of each kind of wrong path, and what it says first."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from tests.posix.calls import ALICE, Answer, acting_as, handle, outcome, put, renameat2, tree
from tests.posix.calls import RENAME_EXCHANGE as EXCHANGE
from tests.posix.calls import RENAME_NOREPLACE as NOREPLACE
from tests.posix.calls import opened as open_close
from tests.posix.stage import case

NAME_MAX, PATH_MAX = 255, 4096

CALLS: dict[str, Callable[[str], Any]] = {
    "access": lambda path: os.stat(path).st_size >= 0 and os.access(path, os.F_OK),
    "chdir": os.chdir,
    "chmod": lambda path: os.chmod(path, 0o640),
    "chown": lambda path: os.chown(path, -1, -1),
    "lchown": lambda path: os.lchown(path, os.getuid(), os.getgid()),
    "link-from": lambda path: os.link(path, "new", follow_symlinks=False),
    "link-to": lambda path: os.link("present", path),
    "listxattr": lambda path: str(os.listxattr(path)),
    "lstat": lambda path: oct(os.lstat(path).st_mode),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "open": lambda path: open_close(path, os.O_RDONLY | os.O_NONBLOCK),
    "open-create": lambda path: open_close(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK),
    "open-exclusive": lambda path: open_close(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "open-directory": lambda path: open_close(path, os.O_RDONLY | os.O_DIRECTORY),
    "open-nofollow": lambda path: open_close(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK),
    "readlink": os.readlink,
    "rename-from": lambda path: os.rename(path, "new"),
    "rename-to": lambda path: os.rename("present", path),
    "rename-noreplace": lambda path: renameat2("present", path, NOREPLACE),
    "rename-exchange": lambda path: renameat2("present", path, EXCHANGE),
    "rmdir": os.rmdir,
    "setxattr": lambda path: os.setxattr(path, "user.name", b"value"),
    "stat": lambda path: oct(os.stat(path).st_mode),
    "statvfs": lambda path: os.statvfs(path).f_namemax,
    "symlink": lambda path: os.symlink("target", path),
    "truncate": lambda path: os.truncate(path, 3),
    "unlink": os.unlink,
    "utimens": lambda path: os.utime(path, ns=(1, 2)),
}

PATHS: dict[str, str] = {
    "absent": "absent",
    "below-absent": "absent/name",
    "below-file": "file/name",
    "empty": "",
    "name-255": "n" * NAME_MAX,
    "name-256": "n" * (NAME_MAX + 1),
    "loop": "loop",
    "dangling": "dangling",
    "through-link": "link/inside",
    "file-slash": "file/",
    "absent-slash": "absent/",
    "directory-slash": "empty/",
    "link-slash": "link/",
    "dot": "empty/.",
    "dot-dot": "full/..",
    "present": "file",
}
ODD_PATHS: dict[str, str] = {
    "below-fifo": "fifo/name",
    "below-loop": "loop/name",
    "below-dangling": "dangling/name",
    "name-256-inside": "n" * (NAME_MAX + 1) + "/name",
    "name-256-below-file": "file/" + "n" * (NAME_MAX + 1),
    "path-4095": "./" * ((PATH_MAX - 2) // 2 - 2) + "absent",
    "path-4096": "./" * (PATH_MAX // 2 - 3) + "absent",
    "chain-of-40-links": "chain40",
    "chain-of-41-links": "chain41",
}
ODD_CALLS = ("lstat", "open-create", "mkdir", "rename-to", "rename-from", "link-to", "unlink", "truncate")


def world() -> None:
    """What the paths above go through."""
    for name in ("file", "present"):
        put(name, b"content")
    os.mkfifo("fifo")
    os.mkdir("empty")
    os.mkdir("full")
    put("full/inside", b"inside")
    os.symlink("full", "link")
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")


@case
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("call", CALLS)
def test_path(call: str, path: str) -> Answer:
    world()
    here = os.getcwd()
    said = outcome(CALLS[call], PATHS[path])
    os.chdir(here)
    return said, sorted(os.listdir())


@case
@pytest.mark.parametrize("path", ODD_PATHS)
@pytest.mark.parametrize("call", ODD_CALLS)
def test_odd_path(call: str, path: str) -> Answer:
    world()
    if path.startswith("chain"):
        os.symlink("file", "chain1")
        for number in range(2, 42):
            os.symlink(f"chain{number - 1}", f"chain{number}")
    said = outcome(CALLS[call], ODD_PATHS[path])
    return said, sorted(os.listdir())


@case(root=True)
@pytest.mark.parametrize("call", CALLS)
def test_search_permission_is_needed_on_the_way(call: str) -> Answer:
    os.chmod(".", 0o777)
    for name in ("present", "mine"):
        put(name, mode=0o666)
        os.chown(name, ALICE.uid, ALICE.gid)
    os.mkdir("closed")
    for name in ("name", "other"):
        put(f"closed/{name}", mode=0o666)
    os.chmod("closed", 0o644)
    with acting_as(ALICE):
        return [outcome(CALLS[call], path) for path in ("closed/name", "closed/absent", "closed/name/below")]


@case(root=True)
@pytest.mark.parametrize("call", CALLS)
def test_write_permission_is_needed_to_change_a_directory(call: str) -> Answer:
    put("present", mode=0o666)
    os.mkdir("shut", 0o755)
    put("shut/file", mode=0o666)
    os.mkdir("shut/directory")
    os.chmod(".", 0o777)
    said = []
    with handle(".", os.O_RDONLY) as here, acting_as(ALICE):
        for path in ("shut/absent", "shut/file", "shut/directory"):
            said.append(outcome(CALLS[call], path))
            os.fchdir(here)
    return said


DEEP = "d" * 250


@case
def test_a_path_deeper_than_path_max_is_reached_step_by_step() -> Answer:
    here = os.open(".", os.O_RDONLY)
    answer = []
    for _ in range(20):
        os.mkdir(DEEP)
        os.chdir(DEEP)
    put("file", b"deep down")
    answer.append(os.stat("file").st_size)
    os.unlink("file")
    os.fchdir(here)
    answer.append(outcome(os.readlink, "/".join([DEEP] * 20)))
    answer.append(outcome(os.readlink, "/".join([DEEP] * 16)))
    for _ in range(19):
        os.chdir(DEEP)
    for _ in range(19):
        os.rmdir(DEEP)
        os.chdir("..")
    os.rmdir(DEEP)
    os.close(here)
    return answer, os.listdir()


@case
def test_dot_dot_of_a_moved_directory() -> Answer:
    os.makedirs("a/inner/deep")
    os.mkdir("b")
    before = os.stat("a/inner/..").st_ino == os.stat("a").st_ino
    inner = os.open("a/inner", os.O_RDONLY)
    os.rename("a/inner", "b/inner")
    after = os.stat("b/inner/..").st_ino == os.stat("b").st_ino
    by_handle = os.stat("..", dir_fd=inner).st_ino == os.stat("b").st_ino
    two_up = os.stat("b/inner/deep/../..").st_ino == os.stat("b").st_ino
    listed = {entry.name for entry in os.scandir(inner)}
    os.close(inner)
    return before, after, by_handle, two_up, listed, tree()


@case
def test_dot_dot_after_an_exchange() -> Answer:
    os.makedirs("a/one")
    os.makedirs("b/two")
    renameat2("a/one", "b/two", EXCHANGE)
    same = [os.stat(f"{path}/..").st_ino == os.stat(path.split("/")[0]).st_ino for path in ("a/one", "b/two")]
    return same, tree()


NAMES: dict[str, bytes] = {
    "newline": b"a\nb",
    "control": bytes(range(1, 32)),
    "high": bytes(range(128, 256)),
    "latin1": b"\xe4\xf6\xfc",
    "utf8-composed": "\u00e9".encode(),
    "utf8-decomposed": "e\u0301".encode(),
    "half-surrogate": b"\xed\xa0\x80",
    "overlong": b"\xc0\xaf",
    "spaces": b"   ",
    "dots": b"...",
    "backslash": b"a\\b",
    "quotes": b"'\"`$(x)",
    "star": b"*?[a]",
    "dash": b"-rf",
    "upper": b"ABC",
    "ff": b"\xff" * NAME_MAX,
    "utf8-255": "\u00e9".encode() * 127 + b"x",
}


@case
@pytest.mark.parametrize("name", NAMES)
def test_any_byte_but_slash_and_nul_in_names(name: str) -> Answer:
    raw = NAMES[name]
    put(raw, raw)
    answer = [os.listdir(b"."), os.stat(raw).st_size, outcome(os.mkdir, raw)]
    answer.append(outcome(os.readlink, raw.swapcase()))
    os.symlink(raw, b"link")
    answer.append(os.readlink(b"link"))
    answer.append(os.stat(b"link").st_ino == os.stat(raw).st_ino)
    os.mkdir(b"directory")
    os.rename(raw, b"directory/" + raw)
    answer.append(os.listdir(b"directory"))
    os.unlink(b"directory/" + raw)
    os.rmdir(b"directory")
    return answer


@case
@pytest.mark.parametrize("length", [1, 59, 60, 255, 4000, 4094, 4095, 4096])
def test_length_of_a_link_target(length: int) -> Answer:
    target = "t" * length
    said = outcome(os.symlink, target, "link")
    if said != "ok":
        return said
    return os.readlink("link") == target, os.lstat("link").st_size, outcome(os.listdir, "link")


@case
@pytest.mark.parametrize("slashes", ["a//b", "a/./b", "./a/b", "a/../a/b", "a/b/.", "a///b//"])
def test_slashes_and_dots(slashes: str) -> Answer:
    os.makedirs("a/b")
    return oct(os.stat(slashes).st_mode), outcome(os.rmdir, slashes), os.listdir("a")


CREATORS: dict[str, Callable[[str], Any]] = {
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod-socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "mknod-file": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "symlink": functools.partial(os.symlink, "target"),
    "link": functools.partial(os.link, "present"),
    "open": functools.partial(open_close, flags=os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "rename": functools.partial(os.rename, "present"),
}


@case
@pytest.mark.parametrize("creator", CREATORS)
def test_nothing_is_made_in_a_removed_directory(creator: str) -> Answer:
    put("present")
    os.mkdir("gone")
    directory = os.open("gone", os.O_RDONLY)
    os.rmdir("gone")
    here = os.getcwd()
    put("spare")
    os.fchdir(directory)
    call = {
        "link": lambda: os.link(os.path.join(here, "present"), "name"),
        "rename": lambda: os.rename(os.path.join(here, "present"), "name"),
    }.get(creator, lambda: CREATORS[creator]("name"))
    said = [outcome(call), outcome(os.readlink, "name"), os.listdir("."), os.fstat(directory).st_nlink]
    os.chdir(here)
    os.close(directory)
    return said, sorted(os.listdir())


@case
@pytest.mark.parametrize("call", ["rename", "link"])
def test_no_name_crosses_to_another_file_system(call: str) -> Answer:
    put("file")
    return outcome(getattr(os, call), "file", "/dev/shm/gridfs-crossing"), os.listdir()
