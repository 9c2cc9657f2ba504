"""Read-only file systems: EROFS where a change is asked for, and what is found wrong before that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.posix.calls import ALICE, acting_as, handle, opened, outcome
from tests.posix.read_only import DIRECTORY
from tests.posix.stage import Stage
from tests.posix.test_paths import CALLS

pytestmark = pytest.mark.after_the_cases(2)
__test__ = os.geteuid() == 0
"""Mounting again is for root."""

PATHS = ("file", "absent", "absent/name", "file/name", "empty", "full", "link", "dangling", "fifo", "n" * 256)
MORE: dict[str, Callable[[str], Any]] = {
    "open-truncating": lambda path: opened(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK),
    "open-create-read": lambda path: opened(path, os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK),
    "removexattr": lambda path: os.removexattr(path, "user.name"),
    "access-write": lambda path: os.access(path, os.W_OK),
    "chmod-same": lambda path: os.chmod(path, 0o644),
}


def answers(place: os.PathLike[str], call: Callable[[str], Any]) -> list[Any]:
    with contextlib.chdir(place), handle(".", os.O_RDONLY) as here:
        result = []
        for path in PATHS:
            result.append(outcome(call, path))
            os.fchdir(here)
        return result


@pytest.mark.parametrize("call", {**CALLS, **MORE})
def test_call(read_only_stage: Stage, call: str) -> None:
    body = {**CALLS, **MORE}[call]
    wanted = answers(read_only_stage.references["ext4"] / DIRECTORY, body)
    assert answers(read_only_stage.mount / DIRECTORY, body) == wanted


@pytest.mark.parametrize(
    "call", ["chmod", "mkdir", "open-create", "truncate", "unlink", "setxattr", "rename-from"]
)
def test_ordinary_users_too(read_only_stage: Stage, call: str) -> None:
    def as_alice(path: str) -> Any:
        with acting_as(ALICE):
            return CALLS[call](path)

    wanted = answers(read_only_stage.references["ext4"] / DIRECTORY, as_alice)
    assert answers(read_only_stage.mount / DIRECTORY, as_alice) == wanted


def test_looking_leaves_no_trace(read_only_stage: Stage) -> None:
    place = read_only_stage.mount / DIRECTORY
    before = [os.stat(place / name).st_atime_ns for name in ("file", "full")]
    assert (place / "file").read_bytes() == b"content"
    assert sorted(os.listdir(place / "full")) == ["inside"]
    assert [os.stat(place / name).st_atime_ns for name in ("file", "full")] == before
