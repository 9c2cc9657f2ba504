"""The key tree, the recovery key and successors. SPEC.md, "Key tree"."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.codec.keys import (
    MASTERS_MAX,
    BadKeyFile,
    KeyTree,
    RecoveryKey,
    WrongKey,
    public_key,
)
from storage.format.head import log_name

MASTER = bytes(range(32))


def test_all_keys_of_the_tree_differ_and_a_follower_has_no_more_than_the_read_key() -> None:
    tree = KeyTree(MASTER)
    keys = [tree.read_key, tree.journal_key, tree.convergence_secret]
    keys += [tree.local_key, tree.signing_seed, tree.verifying_key, MASTER]
    assert len(set(keys)) == len(keys)
    assert tree.reading.journal_key == tree.journal_key
    assert not hasattr(tree.reading, "signing_seed")
    assert not hasattr(tree.reading, "local_key")
    assert tree.verifying_key == public_key(tree.signing_seed)


def test_keys_do_not_show_in_their_text() -> None:
    tree = KeyTree(MASTER)
    shown = f"{tree} {tree.reading} {RecoveryKey(MASTER)}"
    assert MASTER.hex() not in shown
    assert repr(MASTER) not in shown
    assert repr(tree.read_key) not in shown


def test_keys_of_a_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        KeyTree(b"short")
    with pytest.raises(ValueError, match="32 bytes"):
        RecoveryKey(b"short")


@given(st.binary(min_size=32, max_size=32))
def test_a_recovery_key_survives_being_written_down(seed: bytes) -> None:
    text = RecoveryKey(seed).text()
    assert RecoveryKey.parse(text).seed == seed
    assert RecoveryKey.parse("  " + text.lower().replace("-", " ") + "\n").seed == seed


@given(st.data())
def test_a_typing_error_in_a_recovery_key_is_found(data: st.DataObject) -> None:
    text = RecoveryKey(MASTER).text()
    body = text.index("-AAAQ") + 1
    at = data.draw(st.integers(body, len(text) - 1).filter(lambda i: text[i] != "-"))
    letter = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567").filter(lambda c: c != text[at]))
    with pytest.raises(BadKeyFile, match="checksum"):
        RecoveryKey.parse(text[:at] + letter + text[at + 1 :])


@pytest.mark.parametrize("text", ["", "gridfs-recovery-", "hello", "gridfs-recovery-AAAA", "0189!", "é"])
def test_what_is_no_recovery_key_is_said_so(text: str) -> None:
    with pytest.raises(BadKeyFile, match="not a recovery key"):
        RecoveryKey.parse(text)


def test_a_recovery_key_endorses_one_key_of_one_generation() -> None:
    recovery = RecoveryKey(MASTER)
    succession = recovery.endorse(2, [b"1" * 32, b"2" * 32], b"n" * 12)
    succession.check()
    assert succession.verifying_key == KeyTree(b"2" * 32).verifying_key
    assert recovery.log == log_name(KeyTree(recovery.master).verifying_key, recovery.public)
    assert succession.is_endorsed(recovery.log, recovery.public)
    assert not succession.is_endorsed(bytes(32), recovery.public)
    assert not succession.is_endorsed(recovery.log, RecoveryKey(bytes(32)).public)
    assert not succession.is_endorsed(recovery.log, b"short")
    for change in ({"generation": 3}, {"verifying_key": MASTER}, {"wrapped": b"other"}):
        changed = dataclasses.replace(succession, **change)  # type: ignore[arg-type]
        assert not changed.is_endorsed(recovery.log, recovery.public)


def test_a_recovery_key_opens_what_it_endorsed() -> None:
    recovery, masters = RecoveryKey(MASTER), [b"1" * 32, b"2" * 32]
    succession = recovery.endorse(2, masters, b"n" * 12)
    assert recovery.masters(succession) == masters
    with pytest.raises(WrongKey, match="recovery key"):
        RecoveryKey(b"x" * 32).masters(succession)
    with pytest.raises(WrongKey, match="recovery key"):
        recovery.masters(dataclasses.replace(succession, wrapped=succession.wrapped[:-1] + b"x"))


def test_a_succession_keeps_the_newest_master_keys() -> None:
    recovery = RecoveryKey(MASTER)
    masters = [bytes([number]) * 32 for number in range(MASTERS_MAX + 5)]
    succession = recovery.endorse(MASTERS_MAX + 5, masters, b"n" * 12)
    succession.check()
    assert recovery.masters(succession) == masters[5:]


def test_golden_vectors() -> None:
    """SPEC.md, "Golden vectors"."""
    tree = KeyTree(MASTER)
    assert tree.convergence_secret.hex() == "573a1efe0225f17c4b6412efe0ed09a9dd35d9b181164068ab29d3b9f0b26997"
    assert tree.local_key.hex() == "cf1dda5d07bb9c30166716beb38e5dc3037af2a906b0611a605fee4cb4a46814"
    assert tree.journal_key.hex() == "459b56aa5c1af3eed595f7c24360c3335bf07cc5ecdf77a4d0cd55939561b814"
    assert tree.verifying_key.hex() == "8bde90f0986c8b516132b1cf3f1449c78e1a86dd33ce50f13a3e425f4df9f4d0"
    assert RecoveryKey(MASTER).text() == (
        "gridfs-recovery-AAAQEAY-EAUDAOC-AJBIFQY-DIOB4IB-CEQTCQK-RMFYYDE-NBWHA5D-YPX4JKW"
    )
