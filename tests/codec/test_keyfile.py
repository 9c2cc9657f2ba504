"""The key file and its slots. SPEC.md, "Key file"."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.codec.keyfile import SLOTS_MAX, KeyFile, ScryptCost, Slot, passphrase_slot, plain_slot
from gridfs.codec.keys import BadKeyFile, KeyFileError, WrongKey

MASTER = bytes(range(32))
QUICK = ScryptCost(n=256)
VERSION_1 = b"""{
  "version": 1,
  "method": "scrypt",
  "key": "bm5ubm5ubm5ubm5ujprKOVSU/Mb3uGF06KxayzsQac0YOvCBiLOmtfZfuVvPu5KLg8vZKJI3vImMUQSH",
  "salt": "c3Nzc3Nzc3Nzc3Nzc3Nzcw==",
  "n": 256,
  "r": 8,
  "p": 1
}
"""
"""What gridfs wrote before there were slots: MASTER under `correct horse`."""


def slot(name: str = "main", passphrase: bytes = b"correct horse") -> Slot:
    return passphrase_slot(name, MASTER, passphrase, b"s" * 16, b"n" * 12, QUICK)


def changed(**fields: object) -> bytes:
    """A key file of one slot with a passphrase, some of whose fields are others."""
    values = msgspec.json.decode(KeyFile((slot(),)).encode())
    values["slots"][0] |= fields
    return msgspec.json.encode(values)


def test_a_passphrase_opens_its_slot() -> None:
    file = KeyFile((slot(),))
    assert file.needs_passphrase
    assert file.open(b"correct horse") == (MASTER, "main")
    assert KeyFile.parse(file.encode()) == file
    assert MASTER not in file.encode()


def test_each_of_several_passphrases_opens_the_same_key() -> None:
    file = KeyFile((slot(),)).with_slot(slot("laptop", b"battery")).with_slot(slot("safe", b"staple"))
    file = KeyFile.parse(file.encode())
    for passphrase, name in ((b"correct horse", "main"), (b"battery", "laptop"), (b"staple", "safe")):
        assert file.open(passphrase) == (MASTER, name)
    left = file.without("laptop")
    assert [one.name for one in left.slots] == ["main", "safe"]
    with pytest.raises(WrongKey):
        left.open(b"battery")
    again = file.with_slot(slot("laptop", b"new"))
    assert [one.name for one in again.slots] == ["main", "laptop", "safe"]
    assert again.open(b"new") == (MASTER, "laptop")
    with pytest.raises(WrongKey):
        again.open(b"battery")


def test_the_last_slot_stays() -> None:
    with pytest.raises(ValueError, match="last slot"):
        KeyFile((slot(),)).without("main")


def test_slots_are_bounded() -> None:
    file = KeyFile((slot(),))
    for number in range(SLOTS_MAX - 1):
        file = file.with_slot(plain_slot(f"slot-{number}", MASTER))
    with pytest.raises(ValueError, match="at most 16"):
        file.with_slot(slot("one.more"))
    assert len(KeyFile.parse(file.encode()).slots) == SLOTS_MAX


@pytest.mark.parametrize("name", ["", "a" * 33, "two words", "a/b", "ä", "line\n", "\x1b[1m"])
def test_names_of_slots_are_plain(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        slot(name)
    with pytest.raises(BadKeyFile, match="damaged"):
        KeyFile.parse(changed(name=name))


def test_the_default_costs_work() -> None:
    made = passphrase_slot("main", MASTER, b"p", b"s" * 16, b"n" * 12)
    assert made.n == 32768
    assert made.open(b"p") == MASTER


@pytest.mark.parametrize("passphrase", [b"wrong", b"", None])
def test_another_passphrase_is_a_wrong_key(passphrase: bytes | None) -> None:
    with pytest.raises(WrongKey, match="passphrase"):
        KeyFile((slot(),)).open(passphrase)


def test_a_plain_slot_needs_no_passphrase_and_does_not_show_its_key() -> None:
    file = KeyFile((slot("other"), plain_slot("main", MASTER)))
    assert not file.needs_passphrase
    assert file.open() == (MASTER, "main")
    assert repr(MASTER)[2:20] not in repr(file)


def test_a_file_of_before_slots_is_read_and_its_passphrase_stays_good() -> None:
    file = KeyFile.parse(VERSION_1)
    assert file.open(b"correct horse") == (MASTER, "main")
    two = KeyFile.parse(file.with_slot(slot("new", b"battery")).encode())
    assert two.open(b"correct horse") == (MASTER, "main")
    assert two.open(b"battery") == (MASTER, "new")


PLAIN = KeyFile((plain_slot("main", MASTER),)).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        PLAIN[:-20],
        PLAIN.replace(b"AAECAwQF", b"AAECAwQG"),
        PLAIN.replace(b'"r"', b'"x"'),
        PLAIN.replace(b"none", b"rot13"),
        b'{"version": 2, "slots": []}',
        b'{"version": 2}',
        msgspec.json.encode({"version": 2, "slots": msgspec.json.decode(PLAIN)["slots"] * 2}),
        b'{"version": 1, "method": "none", "key": ""}',
        VERSION_1.replace(b'"r"', b'"x"'),
    ],
)
def test_a_damaged_key_file_is_named(data: bytes) -> None:
    with pytest.raises(BadKeyFile, match="damaged"):
        KeyFile.parse(data).open(b"correct horse")


def test_another_version_is_named_by_its_number() -> None:
    with pytest.raises(BadKeyFile, match="version 7"):
        KeyFile.parse(PLAIN.replace(b'"version": 2', b'"version": 7'))


@pytest.mark.parametrize("change", [{"n": 3}, {"n": 1 << 30}, {"r": 0}, {"p": 65}, {"n": 0}])
def test_costs_out_of_range_are_damage_and_not_tried(change: dict[str, int]) -> None:
    with pytest.raises(BadKeyFile, match="scrypt"):
        KeyFile.parse(changed(**change)).open(b"correct horse")


def test_changed_costs_do_not_open() -> None:
    with pytest.raises(WrongKey):
        KeyFile.parse(changed(n=512)).open(b"correct horse")


def test_one_damaged_slot_does_not_close_the_others() -> None:
    damaged = Slot("bad", "scrypt", b"", b"", 3, 8, 1)
    file = KeyFile((damaged, slot()))
    assert file.open(b"correct horse") == (MASTER, "main")


@given(st.binary(max_size=200) | st.builds(lambda at, byte: PLAIN[:at] + bytes([byte]) + PLAIN[at + 1 :],
       st.integers(0, len(PLAIN) - 1), st.integers(0, 255)))  # fmt: skip
def test_any_bytes_are_a_key_file_or_damage(data: bytes) -> None:
    with contextlib.suppress(KeyFileError):
        assert KeyFile.parse(data).open(b"p")[0] == MASTER
