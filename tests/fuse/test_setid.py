"""When the set-user-ID and set-group-ID bits go."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from gridfs.fuse.setid import (
    CAP_FOWNER,
    CAP_FSETID,
    Caller,
    Occasion,
    caller,
    cleared,
    has_bits,
    in_group,
    occasion,
)

FILE, DIRECTORY = stat.S_IFREG, stat.S_IFDIR
MEMBER = Caller(1000, frozenset((1000, 20)), 0)
ADMINISTRATOR = Caller(0, frozenset((0,)), 1 << CAP_FSETID)


@dataclass
class Fields:
    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_size: bool = False
    update_atime: bool = False
    update_mtime: bool = False
    update_ctime: bool = False


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), Occasion.WRITE),
        (("ctime",), Occasion.CHOWN_NOBODY),
        (("uid", "ctime"), Occasion.CHOWN),
        (("gid",), Occasion.CHOWN),
        (("size", "mtime", "ctime"), Occasion.TRUNCATE),
        (("mode", "ctime"), Occasion.NOTHING),
        (("mtime", "ctime"), Occasion.NOTHING),
        (("atime",), Occasion.NOTHING),
    ],
)
def test_what_a_setattr_is_about(names: tuple[str, ...], expected: Occasion) -> None:
    assert occasion(Fields(**{f"update_{name}": True for name in names})) is expected


@pytest.mark.parametrize(
    ("mode", "gid", "who", "after"),
    [
        (FILE | 0o6777, 20, MEMBER, 0o777),
        (FILE | 0o6767, 20, MEMBER, 0o2767),
        (FILE | 0o6767, 30, MEMBER, 0o767),
        (FILE | 0o2767, 30, ADMINISTRATOR, 0o2767),
        (FILE | 0o2711, 30, ADMINISTRATOR, 0o711),
        (FILE | 0o5755, 20, MEMBER, 0o1755),
        (FILE | 0o755, 20, MEMBER, 0o755),
        (DIRECTORY | 0o6777, 20, MEMBER, 0o6777),
    ],
)
def test_what_is_left(mode: int, gid: int, who: Caller, after: int) -> None:
    assert stat.S_IMODE(cleared(mode, gid, who)) == after
    assert has_bits(mode) or cleared(mode, gid, who) == mode


def test_who_may_keep_a_group_bit() -> None:
    assert in_group(20, MEMBER)
    assert not in_group(21, MEMBER)
    assert in_group(21, ADMINISTRATOR)


def test_a_caller_is_read_from_proc() -> None:
    me = caller(os.geteuid(), os.getegid(), os.getpid())
    assert me.groups >= {os.getegid(), *os.getgroups()}
    assert me.can(CAP_FOWNER) == (os.geteuid() == 0)


def test_a_caller_that_is_gone_has_what_its_user_tells() -> None:
    beyond = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    assert caller(0, 0, beyond).can(CAP_FSETID)
    assert not caller(7, 8, beyond).can(CAP_FSETID)
    assert caller(7, 8, beyond).groups == {8}
