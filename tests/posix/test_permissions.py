"""Who may do what: mode bits, groups, ownership, sticky directories, set-uid and set-gid bits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.posix.calls import (
    ALICE,
    BOB,
    CAROL,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Answer,
    User,
    about,
    acting_as,
    each,
    handle,
    opened,
    outcome,
    put,
    renameat2,
    umask,
)
from tests.posix.stage import case

NOBODY_KNOWN = User(65530, 65530)
WHO = {"owner": ALICE, "group": User(65529, ALICE.gid), "supplementary": CAROL, "other": BOB}
SHIFT = {"owner": 6, "group": 3, "supplementary": 3, "other": 0}


def given_to(user: User, *paths: str) -> None:
    for path in paths:
        os.lchown(path, user.uid, user.gid)


def open_to_all(path: str = ".") -> None:
    os.chmod(path, 0o777)


# ---- mode bits --------------------------------------------------------------------------------------


@case(root=True)
@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize("who", WHO)
def test_mode_bits_of_a_file(who: str, bits: int) -> Answer:
    """Only the class that a user falls into counts, also where it gives less than the others."""
    put("file", b"#!/bin/sh\n", mode=bits << SHIFT[who] | 0o777 & ~(7 << SHIFT[who]) & ~0o111)
    given_to(ALICE, "file")
    with acting_as(WHO[who]):
        said = each(
            {
                "read": lambda: opened("file", os.O_RDONLY),
                "write": lambda: opened("file", os.O_WRONLY),
                "both": lambda: opened("file", os.O_RDWR),
                "truncate": lambda: os.truncate("file", 3),
                "access": lambda: [os.access("file", want) for want in range(8)],
                "effective": lambda: [os.access("file", want, effective_ids=True) for want in range(8)],
                "execute": lambda: os.execve("./file", ["file"], {}) if not bits & 1 else "not tried",
                "read-xattr": lambda: os.getxattr("file", "user.a"),
                "write-xattr": lambda: os.setxattr("file", "user.a", b"b"),
            }
        )
    assert (said["read"] == "ok") == bool(bits & 4)
    assert (said["write"] == "ok") == bool(bits & 2)
    return said


@case(root=True)
@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize("who", WHO)
def test_mode_bits_of_a_directory(who: str, bits: int) -> Answer:
    os.mkdir("d")
    put("d/file", mode=0o666)
    put("d/second", mode=0o666)
    open_to_all()
    os.chmod("d", bits << SHIFT[who])
    given_to(ALICE, "d")
    with acting_as(WHO[who]):
        said = each(
            {
                "list": lambda: sorted(os.listdir("d")),
                "look-up": lambda: oct(os.stat("d/file").st_mode),
                "open": lambda: opened("d/file", os.O_RDWR),
                "enter": lambda: opened("d/.", os.O_RDONLY),
                "create": lambda: opened("d/new", os.O_WRONLY | os.O_CREAT),
                "make": lambda: os.mkdir("d/directory"),
                "rename": lambda: os.rename("d/file", "d/renamed"),
                "remove": lambda: os.unlink("d/second"),
                "access": lambda: [os.access("d", want) for want in range(8)],
            }
        )
    return said, sorted(os.listdir("d"))


@case(root=True)
@pytest.mark.parametrize("mode", [0o000, 0o001, 0o010, 0o100, 0o644, 0o755], ids=oct)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_root_may_all_but_execute_what_nobody_may(kind: str, mode: int) -> Answer:
    if kind == "file":
        put("it")
    else:
        os.mkdir("it")
    given_to(ALICE, "it")
    os.chmod("it", mode)
    return [os.access("it", want) for want in range(8)], outcome(opened, "it", os.O_RDONLY)


@case(root=True)
def test_access_asks_for_the_real_user() -> Answer:
    put("file", mode=0o600)
    os.setresuid(ALICE.uid, 0, 0)
    try:
        return os.access("file", os.R_OK), os.access("file", os.R_OK, effective_ids=True)
    finally:
        os.setresuid(0, 0, 0)


@case(root=True)
def test_a_handle_keeps_the_rights_it_was_opened_with() -> Answer:
    put("file", mode=0o666)
    with acting_as(ALICE), handle("file", os.O_RDWR) as file:
        with acting_as_root():
            os.chmod("file", 0)
        return each(
            {
                "write": lambda: os.write(file, b"still"),
                "read": lambda: os.pread(file, 5, 0),
                "truncate": lambda: os.ftruncate(file, 2),
                "again": lambda: opened("file", os.O_RDONLY),
            }
        )


class acting_as_root:  # noqa: N801 - reads like acting_as
    def __enter__(self) -> None:
        self.user = os.geteuid()
        os.setresuid(-1, 0, -1)

    def __exit__(self, *_: object) -> None:
        os.setresuid(-1, self.user, -1)


@case(root=True)
def test_a_new_file_of_mode_zero_is_written_by_its_maker() -> Answer:
    open_to_all()
    with acting_as(ALICE):
        with handle("file", os.O_RDWR | os.O_CREAT, 0) as file:
            said = [os.write(file, b"mine"), os.pread(file, 9, 0)]
        said.append(outcome(opened, "file", os.O_RDONLY))
        with umask(0):
            said.append(outcome(opened, "second", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o444))
        said.append(outcome(opened, "second", os.O_WRONLY))
    return said, about("file"), about("second")


@case(root=True)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_search_is_checked_at_every_step(depth: int) -> Answer:
    os.makedirs("a/b/c")
    put("a/b/c/file", mode=0o666)
    os.chmod("/".join("abc"[:depth]), 0o644)
    with acting_as(ALICE):
        return [outcome(os.listdir, path) for path in ("a", "a/b", "a/b/c")], outcome(
            opened, "a/b/c/file", os.O_RDONLY
        )


# ---- owners and groups ------------------------------------------------------------------------------

CHOWNS: dict[str, Callable[[], Any]] = {
    "give-away": lambda: os.chown("it", BOB.uid, -1),
    "keep": lambda: os.chown("it", -1, -1),
    "same": lambda: os.chown("it", ALICE.uid, ALICE.gid),
    "own-group": lambda: os.chown("it", -1, ALICE.gid),
    "supplementary-group": lambda: os.chown("it", -1, 65540),
    "foreign-group": lambda: os.chown("it", -1, BOB.gid),
    "group-and-same-user": lambda: os.chown("it", ALICE.uid, 65540),
    "group-and-other-user": lambda: os.chown("it", BOB.uid, 65540),
}
ALICE_IN_MORE = User(ALICE.uid, ALICE.gid, (65540,))


@case(root=True)
@pytest.mark.parametrize("call", CHOWNS)
@pytest.mark.parametrize("user", ["owner", "other", "root"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_who_may_chown(kind: str, user: str, call: str) -> Answer:
    if kind == "file":
        put("it")
    else:
        os.mkdir("it")
    given_to(ALICE, "it")
    os.chmod("it", 0o6755)
    if user == "root":
        said = outcome(CHOWNS[call])
    else:
        with acting_as(ALICE_IN_MORE if user == "owner" else BOB):
            said = outcome(CHOWNS[call])
    return said, about("it")


@case(root=True)
@pytest.mark.parametrize("mode", [0o644, 0o755, 0o1755, 0o2644, 0o2755, 0o4755, 0o6755, 0o7777], ids=oct)
@pytest.mark.parametrize("user", ["owner", "owner-not-in-group", "other", "root"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_who_may_chmod(kind: str, user: str, mode: int) -> Answer:
    """An owner outside the file's group does not get a set-gid bit."""
    if kind == "file":
        put("it", mode=0o600)
    else:
        os.mkdir("it", 0o700)
    os.chown("it", ALICE.uid, BOB.gid if user == "owner-not-in-group" else ALICE.gid)
    if user == "root":
        said = outcome(os.chmod, "it", mode)
    else:
        with acting_as(BOB if user == "other" else ALICE):
            said = outcome(os.chmod, "it", mode)
    return said, about("it")


@case(root=True)
@pytest.mark.parametrize("maker", ["file", "executable", "directory", "fifo", "link"])
@pytest.mark.parametrize("member", [True, False])
def test_set_gid_directories_hand_their_group_on(maker: str, member: bool) -> Answer:
    os.mkdir("d")
    os.chown("d", 0, 65540)
    os.chmod("d", 0o2777)
    with acting_as(ALICE_IN_MORE if member else BOB), umask(0):
        {
            "file": lambda: opened("d/it", os.O_CREAT | os.O_WRONLY, 0o666),
            "executable": lambda: opened("d/it", os.O_CREAT | os.O_WRONLY, 0o2777),
            "directory": lambda: os.mkdir("d/it", 0o755),
            "fifo": lambda: os.mkfifo("d/it"),
            "link": lambda: os.symlink("x", "d/it"),
        }[maker]()
    return about("d/it")


@case(root=True)
@pytest.mark.parametrize("bits", [0o4000, 0o2000, 0o6000, 0o1000], ids=oct)
@pytest.mark.parametrize("maker", ["file", "directory", "mknod"])
def test_special_bits_at_creation(maker: str, bits: int) -> Answer:
    open_to_all()
    with acting_as(ALICE), umask(0):
        {
            "file": lambda: opened("it", os.O_CREAT | os.O_WRONLY, 0o755 | bits),
            "directory": lambda: os.mkdir("it", 0o755 | bits),
            "mknod": lambda: os.mknod("it", 0o100755 | bits),
        }[maker]()
    return about("it")


# ---- set-uid and set-gid bits go when a file changes ------------------------------------------------

CHANGES: dict[str, Callable[[int], Any]] = {
    "write": lambda file: os.write(file, b"new"),
    "write-nothing": lambda file: os.write(file, b""),
    "pwrite-past-the-end": lambda file: os.pwrite(file, b"new", 100_000),
    "writev": lambda file: os.writev(file, [b"a", b"b"]),
    "ftruncate-shorter": lambda file: os.ftruncate(file, 3),
    "ftruncate-longer": lambda file: os.ftruncate(file, 300),
    "ftruncate-same": lambda file: os.ftruncate(file, 7),
    "truncate": lambda file: os.truncate("it", 2),
    "open-truncating": lambda file: opened("it", os.O_WRONLY | os.O_TRUNC),
    "copy_file_range": lambda file: os.copy_file_range(file, file, 3, 0, 100),
    "sendfile": lambda file: _sendfile(file),
    "utimens": lambda file: os.utime(file, ns=(1, 2)),
    "setxattr": lambda file: os.setxattr(file, "user.a", b"b"),
    "link": lambda file: os.link("it", "new"),
    "rename": lambda file: os.rename("it", "new"),
}


def _sendfile(file: int) -> int:
    put("source", b"sent")
    with handle("source", os.O_RDONLY) as source:
        return os.sendfile(file, source, 0, 4)


@case(root=True)
@pytest.mark.parametrize("mode", [0o6777, 0o2767], ids=oct)
@pytest.mark.parametrize("user", ["owner", "other", "root"])
@pytest.mark.parametrize("change", CHANGES)
def test_set_id_bits_after(change: str, user: str, mode: int) -> Answer:
    open_to_all()
    put("it", b"content")
    os.chown("it", ALICE.uid, ALICE.gid)
    os.chmod("it", mode)
    users = {"owner": ALICE, "other": BOB}
    if user in users:
        with acting_as(users[user]), handle("it", os.O_RDWR) as file:
            said = outcome(CHANGES[change], file)
    else:
        with handle("it", os.O_RDWR) as file:
            said = outcome(CHANGES[change], file)
    name = "new" if change == "rename" and said == "ok" else "it"
    first = about(name, "mode", "size")
    opened(name, os.O_RDONLY)
    return said, first, about(name, "mode", "size")


@case(root=True)
@pytest.mark.parametrize("call", ["user", "group", "both", "nothing", "same"])
@pytest.mark.parametrize("mode", [0o6777, 0o2767, 0o4711, 0o6644], ids=oct)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_set_id_bits_after_chown_by_root(kind: str, mode: int, call: str) -> Answer:
    if kind == "file":
        put("it")
    else:
        os.mkdir("it")
    os.chown("it", ALICE.uid, ALICE.gid)
    os.chmod("it", mode)
    uid, gid = {
        "user": (BOB.uid, -1),
        "group": (-1, BOB.gid),
        "both": (BOB.uid, BOB.gid),
        "nothing": (-1, -1),
        "same": (ALICE.uid, ALICE.gid),
    }[call]
    os.chown("it", uid, gid)
    return about("it")


# ---- sticky directories -----------------------------------------------------------------------------

STICKY: dict[str, Callable[[], Any]] = {
    "unlink": lambda: os.unlink("d/file"),
    "rmdir": lambda: os.rmdir("d/directory"),
    "rename-away": lambda: os.rename("d/file", "e/file"),
    "rename-within": lambda: os.rename("d/file", "d/new"),
    "rename-over": lambda: os.rename("e/mine", "d/file"),
    "rename-directory": lambda: os.rename("d/directory", "e/directory"),
    "rename-directory-over": lambda: os.rename("e/own", "d/directory"),
    "exchange": lambda: renameat2("e/mine", "d/file", RENAME_EXCHANGE),
    "noreplace": lambda: renameat2("e/mine", "d/file", RENAME_NOREPLACE),
    "link": lambda: os.link("d/file", "e/link"),
    "create": lambda: opened("d/new", os.O_CREAT | os.O_WRONLY),
    "open-existing-with-create": lambda: opened("d/file", os.O_CREAT | os.O_WRONLY),
    "write": lambda: opened("d/file", os.O_WRONLY),
}


@case(root=True)
@pytest.mark.parametrize("call", STICKY)
@pytest.mark.parametrize("who", ["owner-of-file", "owner-of-directory", "neither", "root"])
def test_sticky_directory(who: str, call: str) -> Answer:
    os.mkdir("d")
    os.mkdir("e")
    put("d/file", mode=0o666)
    os.mkdir("d/directory")
    put("e/mine")
    os.mkdir("e/own")
    users = {"owner-of-file": ALICE, "owner-of-directory": BOB, "neither": NOBODY_KNOWN}
    actor = users.get(who, User(0, 0))
    given_to(ALICE, "d/file", "d/directory")
    given_to(actor, "e/mine", "e/own")
    os.chown("d", BOB.uid, BOB.gid)
    open_to_all("e")
    os.chmod("d", 0o1777)
    if who == "root":
        said = outcome(STICKY[call])
    else:
        with acting_as(actor):
            said = outcome(STICKY[call])
    return said, sorted(os.listdir("d")), sorted(os.listdir("e"))


@case(root=True)
@pytest.mark.parametrize("where", ["into", "out-of"])
def test_a_directory_of_somebody_else_is_not_moved_without_the_right_to_write_it(where: str) -> Answer:
    """Its `..` would change."""
    os.mkdir("d")
    os.mkdir("e")
    open_to_all("d")
    open_to_all("e")
    os.mkdir("d/directory", 0o555)
    given_to(BOB, "d/directory")
    with acting_as(ALICE):
        if where == "into":
            return outcome(os.rename, "d/directory", "e/directory")
        return outcome(os.rename, "d/directory", "d/renamed")


# ---- what needs more than a mode --------------------------------------------------------------------


@case(root=True)
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o644, 0o666, 0o6755], ids=oct)
@pytest.mark.parametrize("who", ["owner", "other"])
def test_hard_links_to_files_of_others(who: str, mode: int) -> Answer:
    """protected_hardlinks is the machine's setting, and the same for both."""
    open_to_all()
    put("file")
    given_to(ALICE, "file")
    os.chmod("file", mode)
    with acting_as(ALICE if who == "owner" else BOB):
        return outcome(os.link, "file", "link")


@case(root=True)
@pytest.mark.parametrize("kind", [0o020000, 0o060000, 0o010000, 0o140000, 0o100000], ids=oct)
def test_mknod_by_ordinary_users(kind: int) -> Answer:
    open_to_all()
    with acting_as(ALICE):
        return outcome(os.mknod, "it", kind | 0o644, os.makedev(1, 3)), sorted(os.listdir())


@case(root=True)
def test_noatime_is_for_the_owner() -> Answer:
    put("file", mode=0o666)
    given_to(ALICE, "file")
    said = []
    for user in (ALICE, BOB):
        with acting_as(user):
            said.append(outcome(opened, "file", os.O_RDONLY | os.O_NOATIME))
    return said


@case(root=True)
def test_a_new_object_belongs_to_its_maker() -> Answer:
    open_to_all()
    with acting_as(CAROL):
        put("file")
        os.mkdir("directory")
        os.symlink("x", "link")
        os.mkfifo("fifo")
    return [about(name, "owner") for name in ("file", "directory", "link", "fifo")]
