"""Extended attributes of the user, trusted and security namespaces."""

from __future__ import annotations

import ctypes
import os

import pytest

from tests.posix.calls import (
    ALICE,
    BOB,
    KINDS,
    Answer,
    acting_as,
    changed_times,
    handle,
    kinds,
    outcome,
    put,
)
from tests.posix.stage import Stage, case

NAMESPACES = ("user", "trusted", "security") if os.geteuid() == 0 else ("user",)
_libc = ctypes.CDLL(None, use_errno=True)


def sized_get(path: str, name: str, size: int) -> int:
    """getxattr with a buffer of `size`; 0 asks for the length."""
    result = _libc.lgetxattr(path.encode(), name.encode(), ctypes.create_string_buffer(max(size, 1)), size)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def sized_list(path: str, size: int) -> int:
    result = _libc.llistxattr(path.encode(), ctypes.create_string_buffer(max(size, 1)), size)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


@case
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_namespace_on(namespace: str, kind: str) -> Answer:
    KINDS[kind]("it")
    name = f"{namespace}.name"
    return [
        outcome(os.setxattr, "it", name, b"value", follow_symlinks=False),
        outcome(os.getxattr, "it", name, follow_symlinks=False),
        outcome(os.listxattr, "it", follow_symlinks=False),
        outcome(os.removexattr, "it", name, follow_symlinks=False),
        outcome(os.removexattr, "it", name, follow_symlinks=False),
    ]


@case
@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("flags", [0, os.XATTR_CREATE, os.XATTR_REPLACE, 4])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_flags(namespace: str, flags: int, present: bool) -> Answer:
    put("it")
    name = f"{namespace}.name"
    if present:
        os.setxattr("it", name, b"old")
    return outcome(os.setxattr, "it", name, b"new", flags), outcome(os.getxattr, "it", name)


VALUES = {
    "empty": b"",
    "zero": b"\0",
    "one": b"x",
    "binary": bytes(range(256)),
    "1000": b"v" * 1000,
    "3900": bytes(range(256)) * 15,
}


@case
@pytest.mark.parametrize("value", VALUES)
def test_values(value: str) -> Answer:
    put("it")
    os.setxattr("it", "user.name", VALUES[value])
    said = [os.getxattr("it", "user.name") == VALUES[value], sized_get("it", "user.name", 0)]
    os.setxattr("it", "user.name", b"shorter")
    return said, os.getxattr("it", "user.name")


@case(reference="tmpfs")
@pytest.mark.parametrize("size", [4096, 16_384, 65_535, 65_536])
def test_large_values(size: int) -> Answer:
    """tmpfs takes what the kernel takes; ext4 would stop at a block."""
    put("it")
    said = outcome(os.setxattr, "it", "user.name", b"v" * size)
    return said, len(os.getxattr("it", "user.name"))


@case
def test_a_value_larger_than_the_kernel_carries() -> Answer:
    put("it")
    return outcome(os.setxattr, "it", "user.name", b"v" * 65_537), os.listxattr("it")


NAMES = {
    "1": "user.n",
    "255": "user." + "n" * 250,
    "256": "user." + "n" * 251,
    "only-namespace": "user.",
    "no-namespace": "name",
    "unknown-namespace": "other.name",
    "empty": "",
    "dots": "user.a.b.c",
    "unicode": "user.\u00e9",
    "spaces": "user.a b",
    "upper": "USER.name",
}


@case
@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> Answer:
    put("it")
    return [
        outcome(os.setxattr, "it", NAMES[name], b"value"),
        outcome(os.getxattr, "it", NAMES[name]),
        outcome(os.listxattr, "it"),
        outcome(os.removexattr, "it", NAMES[name]),
    ]


@case
@pytest.mark.parametrize("size", [0, 1, 4, 5, 6, 1000])
def test_buffers_for_values(size: int) -> Answer:
    put("it")
    os.setxattr("it", "user.name", b"value")
    return outcome(sized_get, "it", "user.name", size)


@case
@pytest.mark.parametrize("size", [0, 1, 9, 10, 18, 19, 20, 1000])
def test_buffers_for_lists(size: int) -> Answer:
    put("it")
    os.setxattr("it", "user.a.b.c", b"")
    os.setxattr("it", "user.name", b"")
    return outcome(sized_list, "it", size)


@case
def test_many_names() -> Answer:
    put("it")
    for number in range(40):
        os.setxattr("it", f"user.name{number}", b"v%d" % number)
    for number in range(0, 40, 3):
        os.removexattr("it", f"user.name{number}")
    return sorted(os.listxattr("it")), os.getxattr("it", "user.name38")


def test_more_names_than_a_list_carries_are_refused(stage: Stage) -> None:
    """So that all can always be listed. tmpfs takes them and lists none; ext4 has no room for so many."""
    path = stage.mount / "names"
    path.touch()
    names = [f"user.{number:03}{'n' * 240}" for number in range(300)]
    said = [outcome(os.setxattr, path, name, b"") for name in names]
    count = said.index("ENOSPC")
    assert said == ["ok"] * count + ["ENOSPC"] * (300 - count)
    assert sorted(os.listxattr(path)) == names[:count]


@case
def test_attributes_belong_to_the_inode() -> Answer:
    put("it")
    os.setxattr("it", "user.name", b"value")
    os.link("it", "hard")
    os.rename("it", "moved")
    said = [os.getxattr(path, "user.name") for path in ("hard", "moved")]
    os.setxattr("hard", "user.name", b"changed")
    said.append(os.getxattr("moved", "user.name"))
    put("moved", b"truncated and written")
    said.append(os.getxattr("moved", "user.name"))
    put("new")
    os.rename("new", "moved")
    return said, outcome(os.getxattr, "moved", "user.name"), os.getxattr("hard", "user.name")


@case
def test_through_links_and_not() -> Answer:
    put("it")
    os.symlink("it", "link")
    os.setxattr("link", "user.name", b"value")
    return [
        os.getxattr("it", "user.name"),
        outcome(os.getxattr, "link", "user.name", follow_symlinks=False),
        outcome(os.listxattr, "link", follow_symlinks=False),
        outcome(os.setxattr, "link", "user.name", b"x", follow_symlinks=False),
    ]


@case(reference="tmpfs")
@pytest.mark.parametrize(
    "call", ["set-new", "set-same", "set-refused", "get", "list", "remove", "remove-absent"]
)
@pytest.mark.parametrize("kind", ["file", "empty"])
def test_times_after(kind: str, call: str) -> Answer:
    KINDS[kind]("it")
    os.setxattr("it", "user.old", b"value")
    return changed_times(
        {
            "set-new": lambda: os.setxattr("it", "user.new", b"value"),
            "set-same": lambda: os.setxattr("it", "user.old", b"value"),
            "set-refused": lambda: os.setxattr("it", "user.old", b"value", os.XATTR_CREATE),
            "get": lambda: os.getxattr("it", "user.old"),
            "list": lambda: os.listxattr("it"),
            "remove": lambda: os.removexattr("it", "user.old"),
            "remove-absent": lambda: os.removexattr("it", "user.absent"),
        }[call],
        "it",
        ".",
    )


@case(root=True)
@pytest.mark.parametrize("mode", [0o000, 0o222, 0o444, 0o644, 0o666], ids=oct)
@pytest.mark.parametrize("who", ["owner", "other"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_who_may(namespace: str, who: str, mode: int) -> Answer:
    put("it")
    os.chown("it", ALICE.uid, ALICE.gid)
    os.setxattr("it", f"{namespace}.name", b"value")
    os.setxattr("it", "trusted.hidden", b"value")
    os.chmod("it", mode)
    with acting_as(ALICE if who == "owner" else BOB):
        return [
            outcome(os.getxattr, "it", f"{namespace}.name"),
            outcome(os.setxattr, "it", f"{namespace}.name", b"new"),
            outcome(os.removexattr, "it", f"{namespace}.name"),
            outcome(os.listxattr, "it"),
        ]


@case(root=True)
@pytest.mark.parametrize("who", ["owner", "other"])
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=oct)
def test_user_attributes_of_sticky_directories(mode: int, who: str) -> Answer:
    os.mkdir("it")
    os.chown("it", ALICE.uid, ALICE.gid)
    os.chmod("it", mode)
    with acting_as(ALICE if who == "owner" else BOB):
        return outcome(os.setxattr, "it", "user.name", b"value")


CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_bind_service+ep, of the second version."""


@case(root=True)
@pytest.mark.parametrize("change", ["write", "truncate", "chown", "chmod", "rename", "read"])
def test_file_capabilities_after(change: str) -> Answer:
    put("it", b"content")
    os.setxattr("it", "security.capability", CAPABILITY)
    with handle("it", os.O_RDWR) as file:
        {
            "write": lambda: os.write(file, b"new"),
            "truncate": lambda: os.ftruncate(file, 2),
            "chown": lambda: os.chown("it", ALICE.uid, -1),
            "chmod": lambda: os.chmod("it", 0o755),
            "rename": lambda: (os.rename("it", "new"), os.rename("new", "it")),
            "read": lambda: os.read(file, 5),
        }[change]()
    return outcome(os.getxattr, "it", "security.capability")


@case
@pytest.mark.parametrize("name", ["system.name", "system.posix_acl", "trusted", "security"])
def test_names_that_nobody_sets(name: str) -> Answer:
    put("it")
    return outcome(os.setxattr, "it", name, b"value"), outcome(os.getxattr, "it", name)
