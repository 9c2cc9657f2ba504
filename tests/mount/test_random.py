"""A short run of random_operations.py; `scripts/fuzz-mount` is the long one."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.mount.conftest import MakeFileSystem
from tests.mount.memory import Node
from tests.mount.random_operations import Difference, Fuzzer

UMASK = 0o022


@pytest.mark.parametrize(("seed", "operations"), [(1, 1500), pytest.param(2, 20_000, marks=pytest.mark.slow)])
def test_random_operations(make_file_system: MakeFileSystem, seed: int, operations: int) -> None:
    mounted = make_file_system()
    before = os.umask(UMASK)
    try:
        fuzzer = Fuzzer(mounted, mounted.path, seed)
        for close_first in (True, False):
            fuzzer.run(fuzzer.done + operations // 2)
            fuzzer.kill(close_first=close_first)
        fuzzer.mounted.remount()
        fuzzer.compare()
    finally:
        os.umask(before)
    assert fuzzer.counted["write"] > operations // 20
    assert fuzzer.counted["clone"] > operations // 500


def test_a_difference_is_seen(make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system()
    (mounted.path / "file").write_bytes(b"content")
    os.chmod(mounted.path / "file", 0o600)
    changes: dict[str, Callable[[Fuzzer, Node], object]] = {
        "": lambda fuzzer, node: None,
        "content": lambda fuzzer, node: node.write(3, b"x"),
        "AssertionError": lambda fuzzer, node: fuzzer.model.rename("file", "other", 0),
        "attributes": lambda fuzzer, node: fuzzer.model.chmod("file", 0o644),
        "size": lambda fuzzer, node: node.truncate(8),
    }
    for what, change in changes.items():
        fuzzer = Fuzzer(mounted, mounted.path, 3)
        node = fuzzer.model.make("file", "f", 0o600)
        node.write(0, b"content")
        change(fuzzer, node)
        if what:
            with pytest.raises(Difference, match=f"seed 3, operation 0: .*{what}"):
                fuzzer.run(0)
        else:
            fuzzer.run(0)


def test_what_a_kill_may_leave() -> None:
    node = Node("f", 0o600)
    node.write(0, b"aaaa")
    node.sent()
    node.write(2, b"bbbb")
    for good in (b"aaaa", b"aabbbb", b"aabb", b"aaab\0\0", b"aabb\0b"):
        assert node.may_be(good), good
    for bad in (b"aaa", b"aabbbbb", b"abbbbb", b"aacbbb", b"aa\0bbb"):
        assert not node.may_be(bad), bad
