"""POSIX ACLs: bytes, refusals, and how they and the mode follow each other."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.files.acl import (
    NAMED,
    NOBODY,
    Acl,
    Entry,
    Tag,
    encode,
    inherited,
    is_minimal,
    parse,
    permissions_of,
    with_permissions,
)

GOLDEN = (
    "02000000"
    "01000700ffffffff"  # the owner: rwx
    "02000600e8030000"  # user 1000: rw-
    "04000500ffffffff"  # the owning group: r-x
    "10000700ffffffff"  # mask: rwx
    "20000400ffffffff"  # others: r--
)
ACL: Acl = (
    Entry(Tag.USER_OBJ, 7),
    Entry(Tag.USER, 6, 1000),
    Entry(Tag.GROUP_OBJ, 5),
    Entry(Tag.MASK, 7),
    Entry(Tag.OTHER, 4),
)

permissions = st.integers(0, 7)
named = st.lists(st.tuples(st.integers(0, NOBODY - 1), permissions), max_size=4)
modes = st.integers(0, 0o7777)


@st.composite
def acls(draw: st.DrawFn) -> Acl:
    users = [Entry(Tag.USER, bits, identity) for identity, bits in draw(named)]
    groups = [Entry(Tag.GROUP, bits, identity) for identity, bits in draw(named)]
    mask = [Entry(Tag.MASK, draw(permissions))] if users or groups or draw(st.booleans()) else []
    return (
        Entry(Tag.USER_OBJ, draw(permissions)),
        *users,
        Entry(Tag.GROUP_OBJ, draw(permissions)),
        *groups,
        *mask,
        Entry(Tag.OTHER, draw(permissions)),
    )


def by_tag(acl: Acl) -> dict[Tag, int]:
    return {entry.tag: entry.permissions for entry in acl if entry.tag not in NAMED}


def test_golden_bytes() -> None:
    assert encode(ACL).hex() == GOLDEN
    assert parse(bytes.fromhex(GOLDEN)) == ACL


@given(acls())
def test_bytes_come_back(acl: Acl) -> None:
    assert parse(encode(acl)) == acl


@given(acls(), st.data())
def test_what_is_cut_or_changed_is_another_acl_or_refused(acl: Acl, data: st.DataObject) -> None:
    whole = encode(acl)
    with pytest.raises(OSError, match="Invalid"):
        parse(whole[: data.draw(st.integers(0, len(whole) - 1))])
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    found: Acl | int | None
    try:
        found = parse(bytes(changed))
    except OSError as error:
        found = error.errno
    if place < 4:
        assert found == errno.EOPNOTSUPP
    else:
        # The id of an entry that names nobody says nothing.
        assert found != acl or place % 8 < 4


@pytest.mark.parametrize(
    "acl",
    [
        ACL[1:],
        ACL[:-1],
        (ACL[0], *ACL),
        (*ACL, ACL[-1]),
        (ACL[0], ACL[1], ACL[2], ACL[4]),
        (ACL[1], ACL[0], *ACL[2:]),
        (ACL[0], ACL[2], ACL[1], *ACL[3:]),
        (*ACL[:3], ACL[3], ACL[3], ACL[4]),
        (ACL[0]._replace(permissions=8), *ACL[1:]),
        (ACL[0], ACL[1]._replace(id=NOBODY), *ACL[2:]),
    ],
)
def test_what_is_no_acl_is_refused(acl: Acl) -> None:
    with pytest.raises(OSError, match="Invalid") as caught:
        parse(encode(acl))
    assert caught.value.errno == errno.EINVAL


def test_an_unknown_tag_and_another_version_are_refused() -> None:
    with pytest.raises(OSError, match="Invalid"):
        parse(bytes.fromhex(GOLDEN.replace("20000400", "40000400")))
    with pytest.raises(OSError, match="not supported") as caught:
        parse(bytes.fromhex("01" + GOLDEN[2:]))
    assert caught.value.errno == errno.EOPNOTSUPP


@given(acls(), modes)
def test_chmod_shows_in_the_acl_and_back(acl: Acl, mode: int) -> None:
    after = with_permissions(acl, mode)
    assert permissions_of(after) == mode & 0o777
    assert [entry for entry in after if entry.tag in NAMED] == [entry for entry in acl if entry.tag in NAMED]
    if Tag.MASK in by_tag(acl):
        assert by_tag(after)[Tag.GROUP_OBJ] == by_tag(acl)[Tag.GROUP_OBJ]
    assert with_permissions(acl, permissions_of(acl)) == acl


@given(acls(), modes)
def test_what_is_inherited_grants_no_more_than_was_asked_for(acl: Acl, mode: int) -> None:
    access, result = inherited(acl, mode)
    assert permissions_of(access) == result & 0o777
    assert result & ~0o777 == mode & ~0o777
    assert result & 0o777 == mode & permissions_of(acl) & 0o777
    assert [entry for entry in access if entry.tag in NAMED] == [entry for entry in acl if entry.tag in NAMED]
    if Tag.MASK in by_tag(acl):
        assert by_tag(access)[Tag.GROUP_OBJ] == by_tag(acl)[Tag.GROUP_OBJ]
    assert is_minimal(access) == is_minimal(acl)
